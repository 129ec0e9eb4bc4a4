"""`doctor --shared` and `doctor --fix`: a plan first, then permissions, and nothing else."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.caches import CacheBuilder, fingerprint, model_files
from tests.kit.commands import Vlmcache
from tests.kit.disks import NOBODY, as_other_user, becoming, common_folder
from tests.kit.faulty import FAULTS, Fault, Subject, fault_name, try_every
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import variables
from vlmcache.cache.owners import group_name, owner_name
from vlmcache.change.plan import SetAccess
from vlmcache.commands.doctor.permissions import inherits, set_access
from vlmcache.commands.doctor.sharing import check_sharing
from vlmcache.commands.doctor.values import AccessReport

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="giving files to a group needs root"
)
OTHER, OTHERS = NOBODY - 1, 1
"""A user, and a group of the system that this user is not in."""
OURS = "import sys; from vlmcache.cli.main import main; sys.exit(main())"


@pytest.fixture
def group() -> str:
    return str(NOBODY)


@pytest.fixture
def shared() -> Iterator[CacheBuilder]:
    """A cache where every user can enter, with one model."""
    with common_folder() as folder:
        cache = CacheBuilder(folder / "hub")
        cache.repo("org/name").revision(model_files())
        cache.root.chmod(0o755)
        yield cache


def permissions(root: Path) -> dict[str, tuple[int, int]]:
    places = [root, *root.rglob("*")]
    return {
        str(place): (place.lstat().st_mode, place.lstat().st_gid)
        for place in places
        if not place.is_symlink()
    }


def contents(root: Path) -> dict[str, object]:
    """Return what a fingerprint holds, without the modes."""
    return {name: (kind, *rest) for name, (kind, _, *rest) in fingerprint(root).items()}


def paths(cache: CacheBuilder, group: str | None) -> list[str]:
    found = check_sharing(str(cache.root), group, fix=False)
    return [action.path for action in found.plan.actions if isinstance(action, SetAccess)]


def test_the_plan_is_shown_first_and_changes_nothing(
    shared: CacheBuilder, group: str, vlmcache: Vlmcache
) -> None:
    before = permissions(shared.root)
    done = vlmcache("doctor", "--shared", group, "--cache-dir", str(shared.root), "--json")
    assert done.code == 4
    assert {finding["code"] for finding in done.document["findings"]} >= {"not-shared"}
    assert {action["path"] for action in done.document["plan"]["actions"]} == set(before)
    assert done.document["receipt"] is None
    assert permissions(shared.root) == before


def test_a_fix_lets_the_group_write_folders_refs_and_locks_and_read_blobs(
    shared: CacheBuilder, group: str, vlmcache: Vlmcache
) -> None:
    (blob, *_) = sorted((shared.root / "models--org--name" / "blobs").iterdir())
    blob.chmod(0o600)
    before = contents(shared.root)
    done = vlmcache("doctor", "--shared", group, "--fix", "--cache-dir", str(shared.root))
    assert done.code == 0, done
    for path, (mode, owner) in permissions(shared.root).items():
        assert owner == NOBODY
        wanted = 0o2770 if stat.S_ISDIR(mode) else 0o440 if "/blobs/" in path else 0o660
        assert mode & wanted == wanted, path
    assert stat.S_IMODE(blob.stat().st_mode) == 0o640
    assert contents(shared.root) == before
    assert paths(shared, group) == []


def test_after_a_fix_a_user_of_the_group_pulls_and_removes_with_the_usual_umask(
    shared: CacheBuilder, group: str
) -> None:
    if inherits(str(shared.root)) is None:
        pytest.skip("this filesystem has no default ACL")
    check_sharing(str(shared.root), group, fix=True)
    with LoopbackHub() as hub:
        hub.add_repo("org/second").commit(model_files())
        environment = variables(hub, shared.root)
        environment |= {"HOME": "/nonexistent", "HF_HOME": "/nonexistent"}
        for command in (["pull", "org/second"], ["rm", "org/name", "--yes"]):
            program = f"import os; os.umask(0o022); {OURS}"
            done = as_other_user(
                [sys.executable, "-c", program, *command],
                environment=environment,
                folder=shared.root,
            )
            assert done.returncode == 0, done.stderr
    assert not (shared.root / "models--org--name").exists()
    assert paths(shared, group) == [], "what the user made is not shared"


def test_what_is_not_the_hubs_and_links_stay_as_they_are(
    shared: CacheBuilder, group: str, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("x")
    (shared.root / "models--org--linked").symlink_to(tmp_path / "elsewhere")
    (shared.root / "models--org--name" / "refs" / "odd").symlink_to(tmp_path / "elsewhere" / "file")
    (shared.root / "notes.txt").write_text("mine")
    outside = permissions(tmp_path / "elsewhere")
    found = check_sharing(str(shared.root), group, fix=True)
    assert {Path(kept.path).name for kept in found.plan.kept} == {
        "models--org--linked",
        "notes.txt",
    }
    assert (shared.root / "notes.txt").stat().st_gid != NOBODY
    assert permissions(tmp_path / "elsewhere") == outside


def test_a_file_with_another_name_outside_of_the_cache_is_left_alone(
    shared: CacheBuilder, group: str
) -> None:
    secret = shared.root.parent / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    os.link(secret, shared.root / "models--org--name" / "blobs" / ("a" * 64))
    found = check_sharing(str(shared.root), group, fix=True)
    assert [kept.reason for kept in found.plan.kept] == ["it has another name outside the cache"]
    assert (secret.stat().st_mode & 0o777, secret.stat().st_gid) == (0o600, os.getgid())


@pytest.mark.parametrize("swapped", ["refs", "refs/main"])
def test_an_entry_that_was_swapped_for_a_link_since_the_plan_is_stale(
    shared: CacheBuilder, group: str, swapped: str
) -> None:
    plan = check_sharing(str(shared.root), group, fix=False).plan
    outside = shared.root.parent / "outside"
    outside.mkdir()
    (outside / "main").write_text("x")
    before = permissions(outside)
    place = shared.root / "models--org--name" / swapped
    place.rename(shared.root.parent / "old")
    place.symlink_to(outside if swapped == "refs" else outside / "main")
    receipt = set_access(plan, str(shared.root))
    assert {outcome.path for outcome in receipt.outcomes if outcome.result == "stale"} >= {
        str(place)
    }
    assert permissions(outside) == before


@pytest.mark.parametrize("call", ["chown", "chmod", "setxattr"])
def test_a_refused_change_is_reported_and_a_second_run_finishes(
    shared: CacheBuilder, group: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if call == "setxattr" and inherits(str(shared.root)) is None:
        pytest.skip("this filesystem has no default ACL")
    real: Any = getattr(os, call)
    calls = 0

    def failing(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        real(*arguments)

    monkeypatch.setattr(os, call, failing)
    found = check_sharing(str(shared.root), group, fix=True)
    assert found.receipt is not None
    assert [one.result for one in found.receipt.outcomes].count("failed") == 1
    error = found.problem
    assert error is not None
    assert error.exit_code == 3
    assert {finding.code for finding in found.findings} == {"not-shared"}
    assert check_sharing(str(shared.root), group, fix=True).problem is None
    assert paths(shared, group) == []


def fix_words(cache: CacheBuilder, group: str) -> str:
    name = group_name(int(group))
    return f"doctor --shared {name} --fix --cache-dir {cache.root}"


@pytest.fixture
def closed(shared: CacheBuilder, group: str) -> CacheBuilder:
    """A shared cache in which a member has put a model that only this member may read."""
    check_sharing(str(shared.root), group, fix=True)
    for path in [shared.root / "models--org--name", *shared.root.glob("models--*/**/*")]:
        os.chown(path, OTHER, int(group), follow_symlinks=False)
        if path.is_dir() and not path.is_symlink():
            os.removexattr(path, "system.posix_acl_default")
            path.chmod(0o700)
    return shared


def as_user(cache: CacheBuilder, group: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run vlmcache as a user of the group `nogroup`, who has set the cache in the environment."""
    return as_other_user(
        [sys.executable, "-c", OURS, *words],
        environment={"HOME": "/nonexistent", "HF_HUB_CACHE": str(cache.root)},
        folder=cache.root.parent,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["doctor", "--shared", str(NOBODY)],
        ["doctor", "--shared", str(NOBODY), "--fix"],
        ["rm", "org/name", "--yes"],
        ["move", "{beside}/elsewhere"],
        ["verify"],
    ],
    ids=lambda words: words[0],
)
def test_what_a_member_keeps_from_the_others_names_the_command_that_shares_it(
    closed: CacheBuilder, group: str, words: list[str]
) -> None:
    """`sudo` has no HF_HUB_CACHE: without the folder, the command would share root's own cache."""
    beside = str(closed.root.parent)
    closed.root.parent.chmod(0o777)
    done = as_user(closed, group, *(word.format(beside=beside) for word in words))
    assert done.returncode != 0
    assert f"sudo vlmcache {fix_words(closed, group)}" in done.stdout + done.stderr
    assert "belongs to" in done.stdout + done.stderr or words[0] == "doctor"
    assert check_sharing(str(closed.root), group, fix=True).problem is None
    assert as_user(closed, group, *(word.format(beside=beside) for word in words)).returncode == 0


@pytest.mark.parametrize("words", [["rm", "org/name", "--yes"], ["doctor"]], ids=["rm", "doctor"])
def test_who_is_not_in_the_group_reads_how_to_join_it(
    shared: CacheBuilder, words: list[str]
) -> None:
    check_sharing(str(shared.root), str(OTHERS), fix=True)
    (shared.root / "models--org--name").chmod(0o755)
    done = as_user(shared, str(NOBODY), *words)
    assert f"sudo usermod -aG {group_name(OTHERS)} $USER" in done.stdout + done.stderr
    assert "Removed" not in done.stdout


def test_a_refused_removal_says_that_nothing_was_removed(closed: CacheBuilder, group: str) -> None:
    done = as_user(closed, group, "rm", "org/name", "--yes")
    assert done.returncode == 1
    assert done.stdout.startswith("Nothing was removed.\n")
    assert ".locks" not in done.stdout, "locks stay because the model stays"


def test_a_move_out_of_a_shared_cache_says_how_to_share_the_destination(
    shared: CacheBuilder, group: str, vlmcache: Vlmcache
) -> None:
    check_sharing(str(shared.root), group, fix=True)
    place = shared.root.parent / "other"
    place.mkdir(mode=0o755)
    refused = as_user(shared, group, "move", str(place))
    assert refused.returncode == 1
    assert f"{place} cannot be written (it belongs to root" in refused.stderr
    assert not list(place.iterdir())
    words = ["move", str(place), "--yes", "--cache-dir", str(shared.root)]
    done = vlmcache(*words)
    assert done.code == 0, done
    shares = f"sudo vlmcache doctor --shared {group_name(int(group))} --fix --cache-dir {place}\n"
    assert f"\n  {shares}" in done.out
    before = contents(place)
    refused = as_user(shared, group, "rm", "org/name", "--yes")
    assert refused.returncode == 1
    assert refused.stdout.startswith("Nothing was removed.\n"), refused.stdout
    assert f"'{place}' belongs to root" in refused.stderr
    assert f"hint: {shares}" in refused.stderr
    assert contents(place) == before, "no model is removed in part"
    check_sharing(str(place), group, fix=True)
    assert as_user(shared, group, "rm", "org/name", "--yes").returncode == 0
    shared.repo("org/second").revision(model_files())
    assert "doctor --shared" not in vlmcache(*words).out


def test_a_process_of_another_user_is_named_with_its_user(
    shared: CacheBuilder, vlmcache: Vlmcache
) -> None:
    blob = next((shared.root / "models--org--name" / "blobs").iterdir())
    reader = f"import sys; kept = open({str(blob)!r}); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [*becoming(NOBODY), sys.executable, "-c", reader],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            pytest.skip("cannot become another user here")
        done = vlmcache("rm", "org/name", "--dry-run", "--cache-dir", str(shared.root))
        process.communicate(b"")
    assert f"PID {process.pid} of {owner_name(NOBODY)} (open)" in done.out


def test_a_plan_counts_as_changed_only_what_was_changed(closed: CacheBuilder, group: str) -> None:
    (closed.root / ".locks").mkdir(exist_ok=True)
    os.chown(closed.root / ".locks", NOBODY, int(group))
    (closed.root / ".locks").chmod(0o755)
    done = as_user(closed, group, "doctor", "--shared", group, "--fix")
    assert "changed       1 folder: " in done.stdout, done.stdout
    assert done.returncode == 3


def test_records_of_moves_need_no_change(shared: CacheBuilder, group: str) -> None:
    check_sharing(str(shared.root), group, fix=True)
    for name in ("moved", "moved-here", "base"):
        record = shared.root / ".locks" / f"models--org--name.{name}.json"
        record.parent.mkdir(exist_ok=True)
        record.write_text("{}")
        record.chmod(0o644)
        os.chown(record, -1, int(group))
    assert not [path for path in paths(shared, group) if path.endswith(".json")]


def test_what_belongs_to_somebody_else_fails_with_exit_1_and_names_sudo(
    shared: CacheBuilder, group: str
) -> None:
    done = as_other_user(
        [
            *[sys.executable, "-c", OURS, "doctor", "--shared", group, "--fix"],
            *["--cache-dir", str(shared.root)],
        ],
        environment={"HOME": "/nonexistent"},
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "changed" not in done.stdout, "nothing was changed"
    assert f"hint: sudo vlmcache {fix_words(shared, group)}" in done.stderr


def test_a_folder_above_that_the_group_cannot_enter_is_reported(
    shared: CacheBuilder, group: str
) -> None:
    shared.root.parent.chmod(0o700)
    codes = {one.code for one in check_sharing(str(shared.root), group, fix=True).findings}
    assert codes == {"closed-above"}


def test_without_default_permissions_the_umask_is_reported(
    shared: CacheBuilder, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*arguments: Any) -> bytes:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "getxattr", unsupported)
    before = os.umask(0o022)
    try:
        found = check_sharing(str(shared.root), group, fix=True)
    finally:
        os.umask(before)
    assert {one.code for one in found.findings} == {"umask"}
    assert found.receipt is not None
    assert found.receipt.whole


def test_a_fix_without_a_group_gives_the_owner_what_is_his_and_nobody_else_the_right_to_write(
    shared: CacheBuilder,
) -> None:
    repo = shared.root / "models--org--name"
    shared.root.chmod(0o777)
    (repo / "refs" / "main").chmod(0o666)
    (repo / "snapshots").chmod(0)
    for folder, _, files in os.walk(shared.root.parent):
        for name in ["", *files]:
            os.chown(os.path.join(folder, name), NOBODY, NOBODY, follow_symlinks=False)
    done = as_other_user(
        [sys.executable, "-c", OURS, "doctor", "--fix", "--cache-dir", str(shared.root)],
        environment={"HOME": "/nonexistent"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert stat.S_IMODE(shared.root.stat().st_mode) == 0o775
    assert stat.S_IMODE((repo / "refs" / "main").stat().st_mode) == 0o664
    assert stat.S_IMODE((repo / "snapshots").stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["no-such-group", pytest.param("9" * 5000, id="long")])
def test_a_group_that_does_not_exist_is_a_usage_error(vlmcache: Vlmcache, name: str) -> None:
    done = vlmcache("doctor", "--shared", name)
    assert done.code == 2
    assert f"hint: sudo groupadd {name} && sudo usermod -aG {name} $USER" in done.err


class Sharing(Subject[AccessReport]):
    """A cache that only its owner may write to is given to a group."""

    command = "doctor --shared GROUP --fix"

    def __init__(self, group: str) -> None:
        self.group = group
        self.content: dict[str, object] = {}

    def begin(self, place: Path) -> None:
        CacheBuilder(place / "hub").repo("org/name").revision({"config.json": b"{}"})
        self.content = contents(place / "hub")

    def run(self, place: Path) -> AccessReport:
        return check_sharing(str(place / "hub"), self.group, fix=True)

    def hold(self, place: Path, answer: AccessReport | None) -> None:
        assert contents(place / "hub") == self.content
        modes = [mode for mode, _ in permissions(place / "hub").values()]
        assert not any(mode & stat.S_IWOTH for mode in modes)
        assert all(mode & stat.S_IRUSR for mode in modes)
        if answer is not None and answer.problem is None:
            self.check_done(place)

    def again(self, place: Path) -> None:
        assert self.run(place).problem is None
        self.check_done(place)

    def check_done(self, place: Path) -> None:
        assert check_sharing(str(place / "hub"), self.group, fix=False).plan.actions == ()
        assert {group for _, group in permissions(place / "hub").values()} == {int(self.group)}


@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS, ids=fault_name)
def test_a_fault_at_every_change_opens_nothing_to_others_and_a_second_fix_finishes(
    group: str, fault: Fault
) -> None:
    try_every(Sharing(group), fault, at_least=10)
