"""What plain `clean` leaves alone, since somebody may need it, and what it removes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.remove.test_remove import Place, freed
from tests.kit.caches import CacheBuilder, CachedRepo, fingerprint, safetensors
from tests.kit.commands import run_here
from tests.kit.hub import LoopbackHub
from tests.kit.rooms import LONG, OLD, settle
from vlmcache.cache.mounts import Mount
from vlmcache.cache.scan import scan
from vlmcache.change import known
from vlmcache.commands.move.move import move
from vlmcache.commands.remove.values import CleanOptions
from vlmcache.commands.verify.verify import verify
from vlmcache.config import CacheLocation
from vlmcache.home.journal import Journal

NAME = "org/name"
SHARED = os.urandom(20_000)
FIRST = {"config.json": b"{}", "model.safetensors": SHARED, "README.md": b"first"}
SECOND = {"config.json": b"[2]", "model.safetensors": SHARED, "README.md": b"second"}
DAY = 86400.0


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A cache on a filesystem that keeps access times."""
    mounted(monkeypatch, "ext4", "relatime")
    return Place(tmp_path)


def mounted(monkeypatch: pytest.MonkeyPatch, kind: str, *options: str) -> None:
    monkeypatch.setattr(known, "mount_of", lambda _: Mount("/", kind, frozenset(options)))


def replaced(place: Place, **more: bytes) -> CachedRepo:
    """A repo with a revision that a newer one replaced, unused for decades."""
    repo = CacheBuilder(place.root).repo(NAME)
    repo.revision(FIRST | more, refs=())
    repo.revision(SECOND)
    settle(place.root)
    return repo


def first(repo: CachedRepo) -> Path:
    return repo.snapshots / next(iter(repo.revisions))


def read(path: Path, ago: float = 0) -> None:
    """Let a file have been read so many seconds ago."""
    at = time.time() - ago
    os.utime(path, (at, path.stat().st_mtime))


# 1. Revisions that no ref names.


def test_what_a_newer_revision_replaced_and_nobody_used_is_removed(place: Place) -> None:
    repo = replaced(place)
    freed(place.clean())
    assert not first(repo).exists()
    assert not repo.blob("config.json", first(repo).name).exists()
    assert {name: repo.pointer(name).read_bytes() for name in SECOND} == SECOND


def _write_ref_earlier(repo: CachedRepo) -> None:
    os.utime(repo.refs / "main", (0, 0))


def _rename(repo: CachedRepo) -> None:
    (repo.trees / f"{first(repo).name}.json").unlink()
    first(repo).rename(repo.snapshots / "main")


def _touch_folder(repo: CachedRepo) -> None:
    os.utime(first(repo))


def _date_a_link_into_the_future(repo: CachedRepo) -> None:
    when = time.time() + 10 * DAY
    os.utime(first(repo) / "config.json", (when, when), follow_symlinks=False)


def _forget_what_the_new_one_should_have(repo: CachedRepo) -> None:
    """As an older client left it, and one file of it was never fetched."""
    (repo.trees / f"{repo.latest}.json").unlink()
    repo.pointer("README.md").unlink()
    repo.blob("README.md").unlink()


def _purge_refs(repo: CachedRepo) -> None:
    shutil.rmtree(repo.refs)


def _let_main_be_the_configuration_alone(repo: CachedRepo) -> None:
    repo.revision(FIRST | {"README.md": b"third"}, downloaded={"config.json"})
    shutil.rmtree(repo.snapshots / list(repo.revisions)[1])
    settle(repo.cache.root)


def _read_its_own(name: str, days: float) -> Callable[[CachedRepo], None]:
    return lambda repo: read(repo.blob(name, first(repo).name), days * DAY)


def _read_all_at_once(repo: CachedRepo) -> None:
    for blob in repo.blobs.iterdir():
        read(blob, 90 * DAY)


def _begin_a_download(repo: CachedRepo) -> None:
    repo.partial()


def _share_all_that_loading_opens(repo: CachedRepo) -> None:
    second = repo.latest
    repo.revision(FIRST | {"README.md": b"third"})
    shutil.rmtree(repo.snapshots / second)
    (repo.trees / f"{second}.json").unlink()
    for name in ("config.json", "README.md"):
        repo.blob(name, second).unlink()
    settle(repo.cache.root)


def _let_half_of_the_configuration_be_written(repo: CachedRepo) -> None:
    shutil.rmtree(repo.trees)
    repo.truncated_blob("config.json", 1)
    settle(repo.cache.root)


def _date_a_blob(ahead: float) -> Callable[[CachedRepo], None]:
    def date(repo: CachedRepo) -> None:
        blob = repo.blob("config.json", first(repo).name)
        os.utime(blob, (blob.stat().st_atime, time.time() + ahead))

    return date


def _date_the_ref(repo: CachedRepo) -> None:
    os.utime(repo.refs / "main", (time.time() + DAY,) * 2)


NEEDED: dict[str, tuple[Callable[[CachedRepo], object], str]] = {
    "it was written after the ref": (_write_ref_earlier, "no newer complete revision replaces it"),
    "its name is not a commit": (_rename, "its name is not a commit"),
    "its folder was written now": (_touch_folder, "written within the last hour"),
    "a link of it is of tomorrow": (_date_a_link_into_the_future, "written within the last hour"),
    "the newer one has fewer files and no listing": (
        _forget_what_the_new_one_should_have,
        "no newer complete revision replaces it",
    ),
    "the configuration of the newer one is half there": (
        _let_half_of_the_configuration_be_written,
        "no newer complete revision replaces it",
    ),
    "all refs were purged": (_purge_refs, "no newer complete revision replaces it"),
    "main has the configuration alone": (
        _let_main_be_the_configuration_alone,
        "no newer complete revision replaces it",
    ),
    "its configuration was read": (
        _read_its_own("config.json", 29),
        "used or written within the last 30 days",
    ),
    "its documentation was read": (
        _read_its_own("README.md", 1),
        "used or written within the last 30 days",
    ),
    "all was read within an hour": (_read_all_at_once, "its last use is unknown"),
    "what it alone has is never loaded": (
        _share_all_that_loading_opens,
        "its last use is unknown",
    ),
    "its blob was written now": (_date_a_blob(0), "written within the last hour"),
    "its blob is of tomorrow": (_date_a_blob(DAY), "written within the last hour"),
    "the ref is of tomorrow": (_date_the_ref, "no newer complete revision replaces it"),
    "a download is in progress": (_begin_a_download, "a download into the repo is in progress"),
}


@pytest.mark.parametrize("case", NEEDED)
def test_a_revision_that_somebody_may_need_stays_and_the_plan_says_why(
    place: Place, case: str
) -> None:
    make, why = NEEDED[case]
    repo = replaced(place)
    make(repo)
    before = fingerprint_unread(repo)
    done = place.clean()
    assert fingerprint_unread(repo) == before
    stays = next(path for path in repo.snapshots.iterdir() if (path / "model.safetensors").exists())
    reasons = {kept.path: kept.reason for kept in done.plan.kept}
    unnamed = [str(path) for path in (first(repo), repo.snapshots / "main") if path.exists()]
    assert [reasons[path] for path in unnamed] == [why]
    assert (stays / "model.safetensors").read_bytes() == SHARED


def fingerprint_unread(repo: CachedRepo) -> list[tuple[str, int]]:
    """All that is in a repo, without reading it: that would be a use."""
    return sorted((str(path), path.lstat().st_ino) for path in repo.folder.rglob("*"))


def test_the_good_revision_stays_if_the_weights_of_the_newer_one_end_early(place: Place) -> None:
    repo = CacheBuilder(place.root).repo(NAME)
    weights = {"w": ([2500], os.urandom(10_000))}
    repo.revision({"config.json": b"{}", "model.safetensors": safetensors(weights)}, refs=())
    weights = {"w": ([2500], os.urandom(10_000))}
    repo.revision({"config.json": b"[2]", "model.safetensors": safetensors(weights)})
    shutil.rmtree(repo.trees)
    repo.truncated_blob("model.safetensors", 5000)
    settle(place.root)
    assert place.clean().plan.actions == ()


@pytest.mark.parametrize("asked", [True, False])
def test_a_finished_part_stays_in_the_run_that_removes_the_unfinished_one_next_to_it(
    place: Place, asked: bool
) -> None:
    repo = CacheBuilder(place.root).repo(NAME)
    repo.revision(FIRST)
    settle(place.root)
    part = repo.orphan_blob(age=3 * DAY)
    partial = repo.partial(age=OLD if asked else 31 * DAY, suffix=".downloadInProgress")
    place.clean(CleanOptions(partials=asked))
    assert not partial.exists()
    assert part.exists()


def test_a_partial_stays_next_to_a_blob_that_is_shorter(place: Place) -> None:
    repo = CacheBuilder(place.root).repo(NAME)
    repo.revision(FIRST)
    shutil.rmtree(repo.trees)
    partial = repo.partial(repo.file("config.json").etag, age=OLD)
    settle(place.root)
    os.utime(partial, (time.time() - OLD,) * 2)
    place.clean()
    assert partial.exists()


@pytest.mark.parametrize("kind", ["copy", "move", "hardlink"])
def test_copies_and_hard_links_show_their_uses_too(place: Place, kind: str) -> None:
    repo = CacheBuilder(place.root).repo(NAME)
    repo.revision(FIRST, refs=(), link=kind)  # type: ignore[arg-type]
    repo.revision(SECOND, link=kind)  # type: ignore[arg-type]
    settle(place.root)
    read(first(repo) / "config.json", DAY)
    place.clean()
    assert first(repo).exists()
    read(first(repo) / "config.json", LONG)
    place.clean()
    assert not first(repo).exists()
    assert {name: repo.pointer(name).read_bytes() for name in SECOND} == SECOND


@pytest.mark.parametrize("kind", ["nfs4", "overlay", "fuse.sshfs"])
def test_where_a_read_may_leave_no_trace_old_revisions_stay(
    place: Place, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    repo = replaced(place)
    mounted(monkeypatch, kind, "relatime")
    assert place.clean().plan.actions == ()
    assert first(repo).exists()


@pytest.mark.parametrize("option", ["noatime", "ro"])
def test_where_no_access_times_are_kept_old_revisions_stay_and_the_command_for_them_is_named(
    place: Place, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    repo = replaced(place, **{"own.safetensors": os.urandom(50_000)})
    mounted(monkeypatch, "ext4", option)
    place.configure(mine=NAME)
    done = place.clean()
    assert first(repo).exists()
    assert done.unknown_use is not None
    assert done.unknown_use.command == (
        f"vlmcache clean --older-than 30d --cache-dir {place.root} --config config.yaml"
    )
    asked = place.clean(CleanOptions(older_than=30 * DAY))
    assert freed(asked) == done.unknown_use.size > 50_000
    assert not first(repo).exists()


def test_our_own_journal_keeps_a_revision_and_its_silence_removes_none(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = replaced(place)
    key = str(place.root), ("model", NAME, first(repo).name)
    with Journal(place.environment.variables["VLMCACHE_HOME"]) as memory:
        memory.record_use(*key, "load", time.time() - DAY)
    place.clean()
    assert first(repo).exists()
    with Journal(place.environment.variables["VLMCACHE_HOME"]) as memory:
        memory.forget(*key)
        memory.record_use(*key, "pull", time.time() - LONG)
    mounted(monkeypatch, "ext4", "noatime")
    place.clean()
    assert first(repo).exists()


def test_a_configured_commit_and_what_is_kept_stay_however_old(place: Place) -> None:
    repo = replaced(place)
    place.clean(CleanOptions(keep=(f"{NAME}@{first(repo).name}",)))
    assert first(repo).exists()
    place.configure(mine=f"{NAME}@{first(repo).name}")
    place.clean()
    assert first(repo).exists()


CLIENT = """
import sys
from huggingface_hub import hf_hub_download, snapshot_download

for argument in sys.argv[1:]:
    revision, _, name = argument.partition(":")
    if name:
        hf_hub_download("org/name", name, revision=revision)
    else:
        print(snapshot_download("org/name", revision=revision))
"""


def client(environment: dict[str, str], *arguments: str, offline: bool = False) -> str:
    """Load with the real client: `REVISION`, or `REVISION:FILE`."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CLIENT, *arguments],
        env=environment | ({"HF_HUB_OFFLINE": "1"} if offline else {}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("case", ["by commit", "refs purged", "config of a later commit"])
def test_what_the_real_client_loads_offline_before_clean_it_loads_after(
    place: Place, case: str
) -> None:
    with LoopbackHub() as hub:
        repo = hub.add_repo(NAME)
        commit = repo.commit(FIRST)
        environment = hub.environment(place.root)
        client(environment, commit if case == "by commit" else "main")
        folder = place.root / "models--org--name"
        if case == "refs purged":
            shutil.rmtree(folder / "refs")
        if case == "config of a later commit":
            later = repo.commit(FIRST | {"README.md": b"a word more"})
            client(environment, "main:config.json")
            assert (folder / "refs" / "main").read_text() == later
    settle(place.root)
    place.clean()
    snapshot = Path(client(environment, commit, offline=True))
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == FIRST


# 2. Interrupted downloads.


@pytest.mark.parametrize(
    ("age", "finished", "asked", "gone"),
    [
        (60, False, False, False),
        (60, True, True, False),
        (-60, False, True, False),
        (OLD, False, False, False),
        (OLD, True, False, True),
        (OLD, False, True, True),
        (29 * DAY, False, False, False),
        (31 * DAY, False, False, True),
    ],
)
@pytest.mark.parametrize("configured", [True, False])
def test_a_partial_stays_while_a_pull_would_continue_it_unless_asked_for(
    place: Place, age: float, finished: bool, asked: bool, gone: bool, configured: bool
) -> None:
    repo = CacheBuilder(place.root).repo(NAME)
    commit = repo.revision(FIRST, downloaded={"config.json"})
    if configured:
        place.configure(mine=NAME)
    etag = repo.file("config.json" if finished else "model.safetensors").etag
    partial = repo.partial(etag, age=age)
    settle(place.root)
    place.clean(CleanOptions(partials=asked))
    assert partial.exists() == (not gone)
    assert (repo.snapshots / commit / "config.json").exists()
    assert (repo.refs / "main").read_text() == commit
    assert (repo.trees / f"{commit}.json").exists()


def test_a_repo_that_has_nothing_but_a_partial_stays_with_its_refs_and_listings(
    place: Place,
) -> None:
    repo = CacheBuilder(place.root).repo(NAME)
    repo.revision(FIRST, downloaded=())
    shutil.rmtree(repo.snapshots)
    repo.partial(age=20 * DAY)
    settle(place.root)
    before = fingerprint(repo.folder)
    place.clean()
    assert fingerprint(repo.folder) == before


def test_a_blob_that_was_cut_short_does_not_count_as_finished(place: Place) -> None:
    repo = CacheBuilder(place.root).repo(NAME)
    repo.revision(FIRST)
    partial = repo.partial(repo.file("model.safetensors").etag, age=OLD)
    repo.truncated_blob("model.safetensors")
    place.clean()
    assert partial.exists()


def test_the_option_removes_partials_on_the_command_line(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(place.root))
    repo = CacheBuilder(place.root).repo(NAME)
    repo.revision(FIRST)
    partial = repo.partial(age=OLD)
    assert run_here("clean", "--yes").code == 0
    assert partial.exists()
    assert "--partialsremovesit" in "".join(run_here("clean", "--dry-run").out.split())
    assert run_here("clean", "--partials", "--yes").code == 0
    assert not partial.exists()


# 3. Lost links.


def _lose_links(repo: CachedRepo) -> None:
    """As rsync without -l does."""
    for path in repo.snapshots.rglob("*"):
        if path.is_symlink():
            path.unlink()


def _lose_one_link(repo: CachedRepo) -> None:
    repo.pointer("README.md").unlink()


def _lose_snapshots(repo: CachedRepo) -> None:
    repo.missing_snapshots()


def _stand_in(text: bool, tree: bool) -> Callable[[CachedRepo], None]:
    def change(repo: CachedRepo) -> None:
        for path in repo.snapshots.rglob("*"):
            if path.is_symlink():
                target = os.readlink(path)
                path.unlink()
                path.write_text(target if text else "")
        if not tree:
            shutil.rmtree(repo.trees)

    return change


def _absolute_links(repo: CachedRepo) -> None:
    for path in repo.snapshots.rglob("*"):
        if path.is_symlink():
            name = os.path.basename(os.readlink(path))
            path.unlink()
            path.symlink_to(f"/nowhere/hub/{repo.folder.name}/blobs/{name}")


def _replace_folder(name: str) -> Callable[[CachedRepo], None]:
    def change(repo: CachedRepo) -> None:
        (repo.folder / name).rename(repo.folder / f"{name}.old")
        (repo.folder / name).write_text("")

    return change


LOST: dict[str, Callable[[CachedRepo], object]] = {
    "links": _lose_links,
    "one link": _lose_one_link,
    "no snapshots": _lose_snapshots,
    "empty files": _stand_in(False, True),
    "empty files, no listing": _stand_in(False, False),
    "text files": _stand_in(True, True),
    "text files, no listing": _stand_in(True, False),
    "absolute links": _absolute_links,
    "no refs": _purge_refs,
    "a ref to nothing": lambda repo: repo.ref_to_missing_commit("v1"),
    "a dangling link": lambda repo: repo.dangling_link("config.json"),
    "a loop": lambda repo: repo.link_loop(),
    "a listing cut short": lambda repo: repo.bad_tree(),
    "a file for snapshots": _replace_folder("snapshots"),
    "a file for refs": _replace_folder("refs"),
    "a file for blobs": _replace_folder("blobs"),
    "snapshots renamed": lambda repo: repo.snapshots.rename(repo.folder / "snapshots.old"),
}


@pytest.mark.parametrize("lost", LOST)
def test_in_a_damaged_repo_nothing_is_waste(place: Place, lost: str) -> None:
    repo = replaced(place)
    repo.orphan_blob(age=LONG)
    listing = repo.trees / f"{'e' * 40}.json"
    shutil.copy(repo.trees / f"{repo.latest}.json", listing)
    os.utime(listing, (0, 0))
    repo.no_exist("absent.json", "e" * 40)
    LOST[lost](repo)
    os.utime(repo.folder / ".no_exist" / ("e" * 40), (0, 0))
    before = fingerprint_unread(repo)
    done = place.clean()
    assert done.plan.actions == ()
    assert fingerprint_unread(repo) == before


def test_without_damage_the_orphan_and_the_listing_of_nothing_are_removed(place: Place) -> None:
    repo = replaced(place)
    orphan = repo.orphan_blob(age=LONG)
    listing = repo.trees / f"{'e' * 40}.json"
    shutil.copy(repo.trees / f"{repo.latest}.json", listing)
    os.utime(listing, (0, 0))
    freed(place.clean())
    assert not orphan.exists()
    assert not listing.exists()


def test_a_blob_that_the_listing_of_what_stays_names_outlives_the_last_link_to_it(
    place: Place,
) -> None:
    """The newer revision was pulled without its second format; the older one has it."""
    repo = CacheBuilder(place.root).repo(NAME)
    both = {"pytorch_model.bin": os.urandom(9000)}
    repo.revision(FIRST | both, refs=())
    repo.revision(SECOND | both, downloaded=SECOND)
    settle(place.root)
    freed(place.clean())
    assert not first(repo).exists()
    assert repo.blob("pytorch_model.bin").read_bytes() == both["pytorch_model.bin"]
    assert place.clean().plan.actions == ()


def test_a_shared_blob_waits_until_no_repo_is_damaged_and_an_hour_has_passed(
    place: Place,
) -> None:
    cache = CacheBuilder(place.root)
    repo = cache.repo(NAME)
    repo.revision(FIRST, shared=("model.safetensors",), xet={"model.safetensors": "ab" * 32})
    settle(place.root)
    shutil.rmtree(repo.blobs)
    shared = cache.shared_blob("ab" * 32)
    place.clean()
    assert shared.exists()
    shutil.rmtree(repo.folder)
    other = cache.repo("org/other")
    other.revision(SECOND)
    os.utime(shared)
    place.clean()
    assert shared.exists()
    os.utime(shared, (0, 0))
    place.clean()
    assert not shared.exists()


# 4. What other programs write, and what is young.


@pytest.mark.parametrize(
    "name",
    [
        "a" * 64 + ".somethingElse",
        "." + "b" * 64 + ".Xy12Za",
        "model.gguf",
        "C" * 64,
        "d" * 63,
    ],
)
def test_a_name_that_no_rule_knows_stays_and_so_do_the_blobs_next_to_it(
    place: Place, name: str
) -> None:
    repo = replaced(place)
    other = repo.orphan_blob(age=LONG)
    path = repo.blobs / name
    path.write_bytes(b"a program of tomorrow")
    os.utime(path, (0, 0))
    place.clean()
    assert path.exists()
    assert other.exists()


@pytest.mark.parametrize("age", [0.0, 3000.0, -5000.0])
def test_nothing_younger_than_an_hour_or_of_the_future_is_removed(place: Place, age: float) -> None:
    repo = CacheBuilder(place.root).repo(NAME)
    repo.revision(SECOND)
    settle(place.root)
    orphan = repo.orphan_blob(age=age)
    listing = repo.trees / f"{'e' * 40}.json"
    shutil.copy(repo.trees / f"{repo.latest}.json", listing)
    os.utime(listing, (time.time() - age,) * 2)
    temporary = repo.blobs / "tmp_12345678-1234-1234-1234-123456789abc"
    temporary.write_bytes(b"")
    os.utime(temporary, (time.time() - age,) * 2)
    assert place.clean().plan.actions == ()
    assert orphan.exists()
    assert listing.exists()
    assert temporary.exists()


def test_finished_parts_wait_for_the_part_that_is_still_a_partial(place: Place) -> None:
    """llama.cpp links a split GGUF only when all of its parts are there."""
    repo = CacheBuilder(place.root).repo(NAME)
    repo.revision(SECOND)
    settle(place.root)
    part = repo.orphan_blob(age=2 * DAY)
    partial = repo.partial(age=2 * DAY)
    place.clean()
    assert part.exists()
    partial.unlink()
    place.clean()
    assert not part.exists()


# Elsewhere, and with limits.


def test_what_move_took_to_another_place_is_as_safe_there(place: Place, tmp_path: Path) -> None:
    from tests.commands.move.test_move import Place as Moving

    (tmp_path / "drive").mkdir()
    moving = Moving(tmp_path, tmp_path / "drive")
    repo = replaced(place)
    moving.moved()
    there = moving.other / repo.folder.name
    snapshot = there / "snapshots" / first(repo).name
    read(snapshot / "config.json", DAY)
    partial = there / "blobs" / f"{'a' * 64}.00000001.incomplete"
    partial.write_bytes(b"begun")
    os.utime(partial, (time.time() - OLD,) * 2)
    place.clean()
    assert snapshot.exists()
    assert partial.exists()
    place.clean(CleanOptions(partials=True))
    assert not partial.exists()


def test_limits_that_are_asked_for_still_remove_what_plain_clean_keeps(place: Place) -> None:
    repo = CacheBuilder(place.root).repo(NAME)
    repo.revision(FIRST, refs=())
    repo.orphan_blob()
    partial = repo.partial(age=OLD)
    settle(place.root)
    state = scan(place.root)
    place.clean(CleanOptions(max_size=state.size_on_disk))
    assert partial.exists()
    freed(place.clean(CleanOptions(max_size=state.size_on_disk - state.repos[0].size_on_disk)))
    assert not repo.folder.exists()


# Files of others in a snapshot.


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        CleanOptions(),
        CleanOptions(older_than=DAY),
        CleanOptions(max_size=0),
        CleanOptions(everything=True),
    ],
)
def test_a_revision_with_a_file_that_is_not_the_hubs_stays_and_the_plan_says_so(
    place: Place, options: CleanOptions, listed: bool
) -> None:
    repo = replaced(place)
    if not listed:
        shutil.rmtree(repo.trees)
    own = first(repo) / "tuned" / "own.safetensors"
    own.parent.mkdir()
    own.write_bytes(b"months of work")
    settle(place.root)
    done = place.clean(options)
    assert own.read_bytes() == b"months of work"
    assert (first(repo) / "model.safetensors").read_bytes() == SHARED
    assert (str(first(repo)), "it holds files that are not the hub's") in [
        (kept.path, kept.reason) for kept in done.plan.kept
    ]


@pytest.mark.parametrize("kind", ["copy", "move", "hardlink"])
@pytest.mark.parametrize("listed", [True, False])
def test_copies_that_the_hubs_client_made_are_not_taken_for_files_of_others(
    place: Place, kind: str, listed: bool
) -> None:
    repo = CacheBuilder(place.root).repo(NAME)
    repo.revision(FIRST, refs=(), link=kind)  # type: ignore[arg-type]
    if not listed:
        shutil.rmtree(repo.trees)
    settle(place.root)
    place.clean(CleanOptions(older_than=DAY))
    assert not first(repo).exists()


@pytest.mark.parametrize("name", [NAME, f"{NAME}@main"])
def test_rm_names_the_number_of_files_that_are_not_the_hubs_before_it_removes_them(
    place: Place, name: str
) -> None:
    repo = CacheBuilder(place.root).repo(NAME)
    repo.revision(FIRST)
    repo.pointer("own.txt").write_bytes(b"mine")
    done = place.rm(name)
    freed(done)
    assert not repo.folder.exists()
    reasons = {getattr(action, "reason", "") for action in done.plan.actions}
    assert "asked for, with 1 file that is not the hub's" in reasons


# Links of other repos.


def _link_blobs(repo: CachedRepo, other: CachedRepo) -> None:
    """A hand-made repo whose snapshot leads into another repo's blobs."""
    for name in FIRST:
        link = other.snapshots / other.latest / name
        link.unlink()
        link.symlink_to(os.path.relpath(repo.blob(name, first(repo).name), link.parent))


def _link_blob_folder(repo: CachedRepo, other: CachedRepo) -> None:
    for name in FIRST:
        blob = other.blob(name)
        blob.unlink()
        blob.symlink_to(os.path.relpath(repo.blob(name, first(repo).name), blob.parent))


def _link_files(repo: CachedRepo, other: CachedRepo) -> None:
    for name in FIRST:
        link = other.snapshots / other.latest / name
        link.unlink()
        link.symlink_to(first(repo) / name)


def _link_snapshot(repo: CachedRepo, other: CachedRepo) -> None:
    shutil.rmtree(other.snapshots / other.latest)
    (other.snapshots / other.latest).symlink_to(first(repo))


@pytest.mark.parametrize("link", [_link_blobs, _link_blob_folder, _link_files, _link_snapshot])
@pytest.mark.parametrize("command", ["clean", "older than", "rm"])
def test_what_another_repo_links_to_stays_and_the_plan_names_that_repo(
    place: Place, link: Callable[[CachedRepo, CachedRepo], None], command: str
) -> None:
    repo = replaced(place)
    other = CacheBuilder(place.root).repo("org/other")
    other.revision(FIRST)
    link(repo, other)
    settle(place.root)
    place.configure(mine="org/other")
    for name in FIRST:
        read((first(repo) / name).resolve(), 90 * DAY)
    if command == "rm":
        done = place.rm(NAME)
    else:
        done = place.clean(CleanOptions(older_than=60 * DAY if command == "older than" else None))
    held = {name: (other.snapshots / other.latest / name).read_bytes() for name in FIRST}
    assert held == FIRST
    assert "org/other links to it" in {kept.reason for kept in done.plan.kept}
    if command == "rm":
        assert not (repo.refs / "main").exists()
        assert not repo.blob("config.json").exists()


def test_a_repo_is_removed_with_the_repo_that_links_to_it(place: Place) -> None:
    repo = replaced(place)
    other = CacheBuilder(place.root).repo("org/other")
    other.revision(FIRST)
    _link_blobs(repo, other)
    freed(place.rm(NAME, "org/other"))
    assert not repo.folder.exists()
    assert not other.folder.exists()


def test_what_another_repo_links_to_stays_where_it_was_moved_to(
    place: Place, tmp_path: Path
) -> None:
    repo = replaced(place)
    other = CacheBuilder(place.root).repo("org/other")
    other.revision(FIRST)
    _link_blobs(repo, other)
    (tmp_path / "drive").mkdir()
    move(place.session, str(tmp_path / "drive"), [NAME])
    assert (place.root / repo.folder.name).is_symlink()
    freed(place.rm(NAME))
    held = {name: (other.snapshots / other.latest / name).read_bytes() for name in FIRST}
    assert held == FIRST


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_a_place_that_models_were_moved_to_respects_the_locks_of_their_cache(
    place: Place, tmp_path: Path
) -> None:
    import fcntl

    repo = CacheBuilder(place.root).repo(NAME)
    repo.revision(FIRST)
    settle(place.root)
    (tmp_path / "drive").mkdir()
    move(place.session, str(tmp_path / "drive"), [NAME])
    partial = tmp_path / "drive" / repo.folder.name / "blobs" / ("d" * 64 + ".incomplete")
    partial.write_bytes(b"half")
    os.utime(partial, (time.time() - OLD,) * 2)
    lock = place.root / ".locks" / repo.folder.name / ("d" * 64 + ".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    place.location = CacheLocation(str(tmp_path / "drive"), "--cache-dir")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        place.clean(CleanOptions(partials=True))
        assert partial.exists()
        place.rm(NAME)
        assert partial.exists()
    place.clean(CleanOptions(partials=True))
    assert not partial.exists()


def test_a_cache_of_which_nothing_is_left_is_within_any_size(place: Place) -> None:
    CacheBuilder(place.root).repo(NAME).revision(FIRST)
    settle(place.root)
    done = place.clean(CleanOptions(max_size=0))
    assert done.problem is None
    assert place.clean(CleanOptions(max_size=0)).problem is None


def test_what_stays_is_named_if_a_size_cannot_be_reached(place: Place) -> None:
    CacheBuilder(place.root).repo(NAME).revision(FIRST)
    settle(place.root)
    place.configure(mine=NAME)
    missed = place.clean(CleanOptions(max_size=0)).problem
    assert missed is not None
    assert missed.message.endswith(
        "short of what was asked for: org/name (configured as mine) stays"
    )


def test_a_revision_stays_whose_use_of_other_weights_would_not_show(place: Place) -> None:
    repo = CacheBuilder(place.root).repo(NAME)
    shared = {"config.json": b"{}", "onnx/model.onnx": SHARED}
    repo.revision(shared | {"model.safetensors": os.urandom(9000)}, refs=())
    repo.revision(shared | {"model.safetensors": os.urandom(9000)})
    settle(place.root)
    place.clean()
    assert first(repo).exists()


def test_what_verify_found_damaged_replaces_nothing_until_it_is_found_good_again(
    place: Place,
) -> None:
    repo = replaced(place)
    names = {"config.json": b"[3]", "model.safetensors": safetensors({"w": ([2], b"abcd")})}
    repo.revision(names | {"README.md": b"third"})
    settle(place.root)
    old = first(repo)
    repo.flipped_bit("model.safetensors", 0)
    assert verify(place.session, [NAME]).damaged
    assert place.clean().plan.actions == ()
    assert old.exists()
    repo.flipped_bit("model.safetensors", 0)
    assert not verify(place.session, [NAME]).damaged
    freed(place.clean())
    assert not old.exists()
