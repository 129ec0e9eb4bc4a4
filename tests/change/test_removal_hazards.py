"""What an admin fears: files in use, closed folders, full disks, links that lead out."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.remove.test_remove import Place, freed
from tests.kit.caches import CacheBuilder, CachedRepo, du_allocated, fingerprint
from tests.kit.commands import Vlmcache
from tests.kit.disks import as_other_user, common_folder, read_only_view, small_filesystem
from tests.kit.hub import LoopbackHub, slow
from tests.kit.rooms import LONG, OLD, OTHER, ROOMS, WEIGHTS, base, settle
from vlmcache.cache.locks import lock_held
from vlmcache.cache.scan import scan
from vlmcache.change.leftovers import Leftovers
from vlmcache.change.names import Target
from vlmcache.change.removal_plan import plan_removal
from vlmcache.change.remove import Executor, execute
from vlmcache.commands.remove.values import CleanOptions
from vlmcache.errors import ExitCode

HOLD = """
import mmap, os, sys
how, path = sys.argv[1:]
if how == "mapped":
    with open(path, "rb") as file:
        kept = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
elif how == "writing":
    kept = open(path, "ab")
else:
    import fcntl
    kept = open(path)
    if how == "lock":
        fcntl.flock(kept, fcntl.LOCK_EX)
print("ready", flush=True)
for line in sys.stdin:
    kept.write(line.encode())
    kept.flush()
    os.fsync(kept.fileno())
    print("written", flush=True)
"""


@contextlib.contextmanager
def holding(how: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that maps, writes, opens or locks a file as long as the block runs."""
    command = [sys.executable, "-c", HOLD, how, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        try:
            yield child
        finally:
            child.kill()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("how", ["mapped", "open", "lock"])
def test_rm_of_a_model_that_a_process_uses_is_refused_and_the_process_named(
    place: Place, how: str
) -> None:
    repo = base(place.root)
    other = CacheBuilder(place.root).repo("org/other")
    other.revision({"config.json": b"[3]"})
    before = fingerprint(place.root)
    blob = repo.blob("model.safetensors")
    path = repo.locks / f"{blob.name}.lock" if how == "lock" else blob

    with holding(how, path) as child:
        done = place.rm("org/other", "org/name")
        assert done.receipt is None
        assert fingerprint(place.root) == before
        (user,) = done.in_use
        (process,) = user.processes
        assert (process.pid, process.how) == (child.pid, how)
        assert "-c" in process.command
        error = done.problem
        assert error is not None
        assert error.exit_code == ExitCode.BUSY
        assert f"PID {child.pid}" in error.message

        forced = place.rm("org/other", "org/name", force=True)
        assert freed(forced)
        assert not repo.folder.exists()


def test_a_process_with_several_files_of_a_stray_folder_open_is_named_once(place: Place) -> None:
    base(place.root)
    files = [place.root / "not-a-model" / name for name in ("one", "two")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    command = ["sh", "-c", 'exec 3<"$1" 4<"$2"; echo ready; read line', "sh", *map(str, files)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        done = place.rm("not-a-model")
        child.kill()
    (kept,) = done.in_use
    assert [process.pid for process in kept.processes] == [child.pid]
    assert all(file.exists() for file in files)


def test_clean_keeps_what_a_process_uses_and_names_it(place: Place) -> None:
    repo = base(place.root)
    detached = next(iter(repo.revisions))
    with holding("mapped", repo.blob("config.json", detached)) as child:
        done = place.clean()

    assert (repo.snapshots / detached).is_dir()
    assert [one.pid for kept in done.in_use for one in kept.processes] == [child.pid]
    assert done.problem is None
    assert freed(done) == 0


@pytest.mark.parametrize("locked", [True, False])
def test_a_partial_that_another_process_writes_survives_clean(place: Place, locked: bool) -> None:
    repo = base(place.root)
    partial = repo.partial(age=10 * OLD, data=b"begun ")
    dead = repo.partial(age=LONG, number=1)
    with holding("writing", partial) as child:
        os.utime(partial, (0, 0))
        lock = repo._lock_file(partial.name.partition(".")[0])
        with lock.open() as file:
            if locked:
                fcntl.flock(file, fcntl.LOCK_EX)
            place.clean()
            place.clean(CleanOptions(everything=True))
        assert dead.exists() == locked
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("goes on\n")
        child.stdin.flush()
        assert child.stdout.readline() == "written\n"

    assert partial.read_bytes() == b"begun goes on\n"


def test_a_use_that_begins_after_the_plan_is_respected(place: Place) -> None:
    repo = base(place.root)
    state = scan(place.root)
    plan = plan_removal(state, [Target("org/name", repo.folder.name)])
    blob = repo.blob("model.safetensors").stat()

    receipt = execute(plan, str(place.root), in_use={(blob.st_dev, blob.st_ino)})

    assert {outcome.result for outcome in receipt.outcomes[:1]} == {"busy"}
    assert receipt.freed == 0
    assert repo.pointer("model.safetensors").read_bytes() == WEIGHTS


def test_what_changed_since_the_plan_is_stale_and_left_alone(place: Place) -> None:
    repo = base(place.root)
    detached = next(iter(repo.revisions))
    partial = repo.partial(age=LONG)
    plan = place.plan()
    # Both begin to be used again, by another process, before the plan is carried out.
    repo.ref("v1", detached)
    with partial.open("ab") as file:
        file.write(b"more")
    (repo.snapshots / detached / "new.txt").write_bytes(b"new")

    receipt = execute(plan, str(place.root))

    results = {outcome.path: outcome.result for outcome in receipt.outcomes}
    assert results[str(partial)] == "stale"
    assert results[str(repo.snapshots / detached)] == "stale"
    assert (repo.snapshots / detached / "model.safetensors").read_bytes() == WEIGHTS
    assert (repo.snapshots / detached / "config.json").read_bytes() == b"{}"


def test_a_blob_that_a_download_linked_to_meanwhile_stays(place: Place) -> None:
    repo = base(place.root)
    orphan = repo.orphan_blob(OTHER)
    plan = place.plan()
    (repo.snapshots / repo.latest / "late.bin").symlink_to(f"../../blobs/{orphan.name}")

    receipt = execute(plan, str(place.root))

    assert orphan.read_bytes() == OTHER
    assert "stale" in {outcome.result for outcome in receipt.outcomes}


def test_a_file_that_came_into_a_folder_of_locks_after_the_plan_stays(place: Place) -> None:
    repo = base(place.root)
    repo.locks.mkdir(parents=True, exist_ok=True)
    (repo.locks / f"{'a' * 40}.lock").touch()
    plan = plan_removal(scan(place.root), [Target("org/name", repo.folder.name)])
    stranger = repo.locks / "notes.txt"
    stranger.touch()
    receipt = execute(plan, str(place.root))
    assert stranger.exists()
    assert not repo.folder.exists()
    results = {outcome.path: outcome.result for outcome in receipt.outcomes}
    assert results[str(repo.locks)] == "stale"


def test_a_held_lock_keeps_its_blob(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmcache.change.tree.WAIT_SECONDS", 0.3)
    repo = base(place.root)
    orphan = repo.orphan_blob(OTHER)
    lock = repo._lock_file(orphan.name)
    plan = place.plan()
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        receipt = execute(plan, str(place.root))

    assert orphan.exists()
    assert lock.exists()
    busy = [str(outcome.detail) for outcome in receipt.outcomes if outcome.result == "busy"]
    assert busy
    assert f"process {os.getpid()} (" in busy[0]


@pytest.mark.parametrize("commit", [True, False])
def test_a_download_that_begins_after_the_plan_keeps_its_repo(place: Place, commit: bool) -> None:
    repo = base(place.root)
    before = fingerprint(repo.folder)
    target = Target("x", repo.folder.name, repo.latest if commit else None)
    plan = plan_removal(scan(place.root), [target])
    with repo._lock_file("e" * 64).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        receipt = execute(plan, str(place.root))

    assert fingerprint(repo.folder) == before
    assert receipt.outcomes[0].result == "busy"
    assert receipt.freed == 0


# Links.


def _home(folder: Path) -> Path:
    home = folder / "home"
    (home / "blobs").mkdir(parents=True)
    (home / "precious.txt").write_bytes(b"precious")
    (home / "blobs" / "more.txt").write_bytes(b"more")
    return home


def _trick(repo: CachedRepo, trick: str, home: Path) -> None:
    if trick == "snapshot":
        repo.snapshot_link(home)
    elif trick == "file":
        repo.leaving_link(home / "precious.txt", "model.safetensors")
    elif trick == "folder in a snapshot":
        repo.leaving_link(home, "folder")
    elif trick == "blob":
        blob = repo.orphan_blob(b"x")
        blob.unlink()
        blob.symlink_to(home / "precious.txt")
    elif trick == "stray":
        (repo.cache.root / "stray").symlink_to(home)
    elif trick == "leftovers":
        (repo.cache.root / ".vlmcache-leftovers").symlink_to(home)
    elif trick == "locks":
        repo.locks.rename(repo.locks.with_name("away"))
        repo.locks.symlink_to(home)
    else:
        (repo.folder / trick).rename(repo.folder / f"{trick}.away")
        (repo.folder / trick).symlink_to(home)


@pytest.mark.parametrize(
    "trick",
    [
        "snapshot",
        "file",
        "folder in a snapshot",
        "blob",
        "stray",
        "leftovers",
        "locks",
        "blobs",
        "refs",
        "trees",
    ],
)
@pytest.mark.parametrize("everything", [True, False])
def test_links_that_lead_out_are_removed_and_never_followed(
    place: Place, tmp_path: Path, trick: str, everything: bool
) -> None:
    repo = base(place.root)
    home = _home(tmp_path)
    _trick(repo, trick, home)
    before = fingerprint(home)

    if everything:
        done = place.clean(CleanOptions(everything=True))
        assert done.receipt is not None
        assert not [one for one in done.receipt.outcomes if one.result == "stale"]
        if trick == "stray":
            place.rm("stray")
            assert not os.path.lexists(place.root / "stray")
    else:
        done = place.clean()
        assert done.receipt is not None
        assert not [one for one in done.receipt.outcomes if one.result == "stale"]
        place.rm("org/name")
        assert not os.path.lexists(repo.folder)

    assert fingerprint(home) == before


@pytest.mark.parametrize("swapped", ["snapshots", "blobs", "refs", "."])
def test_a_folder_that_was_swapped_for_a_link_after_the_plan_leads_nowhere(
    place: Place, tmp_path: Path, swapped: str
) -> None:
    repo = base(place.root)
    repo.orphan_blob()
    repo.partial(age=LONG)
    plan = place.plan()
    target = plan_removal(scan(place.root), [Target("x", repo.folder.name, repo.latest)])
    outside = tmp_path / "outside"
    folder = Path(os.path.normpath(repo.folder / swapped))
    folder.rename(outside)
    folder.symlink_to(outside)
    before = fingerprint(outside)

    for one in (plan, target):
        execute(one, str(place.root))

    assert fingerprint(outside) == before


# Closed folders and full disks.


def test_another_users_cache_stays_and_every_refusal_is_told() -> None:
    with common_folder() as folder:
        root = folder / "hub"
        repo = base(root)
        repo.orphan_blob()
        for listing in repo.trees.iterdir():
            listing.chmod(0o644)
        home = folder / "home"
        home.mkdir(mode=0o777)
        home.chmod(0o777)
        before = fingerprint(root)
        for command in (["rm", "org/name"], ["clean"]):
            result = as_other_user(
                [
                    sys.executable,
                    "-m",
                    "vlmcache",
                    *command,
                    "--yes",
                    "--json",
                    "--cache-dir",
                    root,
                ],
                environment={
                    "PATH": os.environ["PATH"],
                    "HOME": str(home),
                    "PYTHONPATH": ":".join(sys.path),
                },
                folder=home,
            )
            assert result.stderr == ""
            found = json.loads(result.stdout)
            assert found["exit_code"] == result.returncode == ExitCode.FAILED
            assert found["receipt"]["freed"] == 0
            failed = [o for o in found["receipt"]["outcomes"] if o["result"] == "failed"]
            assert failed
            assert all("Permission denied" in outcome["detail"] for outcome in failed)
        assert fingerprint(root) == before


def test_a_read_only_cache_stays_and_the_refusal_is_reported(
    tmp_path: Path, vlmcache: Vlmcache
) -> None:
    root = tmp_path / "hub"
    base(root).orphan_blob()
    before = fingerprint(root)
    with read_only_view(root) as view:
        for command in (("rm", "org/name"), ("clean",)):
            done = vlmcache(*command, "--yes", "--json", "--cache-dir", str(view))
            found = done.document
            assert found["exit_code"] == done.code == ExitCode.FAILED
            assert "Read-only file system" in found["errors"][0]["message"]
            assert found["receipt"]["freed"] == 0
    assert fingerprint(root) == before


def fill(disk: Path) -> None:
    """Use up all room and all inodes of a disk."""
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    with contextlib.suppress(OSError):
        for number in itertools.count():
            (disk / f"inode{number}").touch()
    status = os.statvfs(disk)
    assert status.f_bfree == status.f_ffree == 0


@pytest.mark.parametrize("command", [("rm", "org/name"), ("rm", "org/name@main"), ("clean",)])
def test_on_a_full_disk_room_can_be_made(vlmcache: Vlmcache, command: tuple[str, ...]) -> None:
    with small_filesystem(2_000_000, inodes=200) as disk:
        root = disk / "hub"
        repo = base(root)
        repo.orphan_blob(OTHER * 10)
        fill(disk)
        before = du_allocated(root)
        done = vlmcache(*command, "--yes", "--json", "--cache-dir", str(root))

        found = done.document
        assert found["receipt"]["freed"] == before - du_allocated(root) > 0
        assert done.code == 0, done
        assert repo.folder.exists() == (command != ("rm", "org/name"))


# Identity.

TWO_REPOS = """
import sys
from vlmcache.cache.scan import scan
from vlmcache.change.removal_plan import plan_removal
from vlmcache.change.names import find_targets
from vlmcache.config import Config, Limits

state = scan(sys.argv[1])
config = Config("", "--config", {}, Limits())
for name in sys.argv[2:]:
    plan = plan_removal(state, find_targets(state, config, [name]))
    print(",".join(sorted({action.path.split("/models--")[1].split("/")[0]
        for action in plan.actions})))
"""


def test_of_two_repos_with_one_commit_the_named_one_is_removed_under_any_hash_seed(
    place: Place,
) -> None:
    cache = CacheBuilder(place.root)
    files = {"config.json": b"{}", "w.bin": WEIGHTS}
    first, second = cache.repo("org/first"), cache.repo("org/second")
    commit = first.revision(files)
    assert second.revision(files) == commit
    names = ["org/second", f"org/first@{commit}", f"org/second@{commit[:8]}"]

    # Five seeds at a time, since the two cores are busy with one interpreter each.
    for start in range(0, 10, 5):
        children = [
            subprocess.Popen(
                [sys.executable, "-c", TWO_REPOS, str(place.root), *names],
                env={**os.environ, "PYTHONHASHSEED": str(seed)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for seed in range(start, start + 5)
        ]
        for child in children:
            told, _ = child.communicate(timeout=60)
            assert told.split() == ["org--second", "org--first", "org--second"]

    place.rm(f"org/second@{commit}")
    assert not second.folder.exists()
    assert first.pointer("w.bin").read_bytes() == WEIGHTS


def test_hard_links_from_outside_keep_the_bytes_and_nothing_is_counted_as_freed(
    place: Place, tmp_path: Path
) -> None:
    repo = base(place.root)
    blob = repo.blob("model.safetensors")
    os.link(blob, tmp_path / "mine.safetensors")
    before = du_allocated(tmp_path)

    done = place.rm("org/name")

    assert freed(done) == before - du_allocated(tmp_path)
    assert freed(done) == done.plan.frees
    assert (tmp_path / "mine.safetensors").read_bytes() == WEIGHTS


def test_a_cache_reached_by_a_link_is_cleaned_where_it_lies(tmp_path: Path) -> None:
    base(tmp_path / "drive" / "hub")
    place = Place(tmp_path)
    place.root.symlink_to(tmp_path / "drive" / "hub")

    done = place.rm("org/name")

    assert freed(done)
    assert not (tmp_path / "drive" / "hub" / "models--org--name").exists()
    assert place.root.is_symlink()


def test_folders_of_any_depth_are_removed(place: Place) -> None:
    ROOMS["plain"](place.root)
    os.mkdir(place.root / "deep")
    here = os.open(place.root / "deep", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)

    plan = plan_removal(scan(place.root), [])
    assert plan.actions == ()
    done = place.rm("deep")

    assert freed(done)
    assert not (place.root / "deep").exists()


# Beside downloads.

DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download

for repo, revision in [argument.split("@") for argument in sys.argv[1:]]:
    snapshot_download(repo, revision=revision, max_workers=2)
print("done")
"""


@pytest.mark.parametrize("pinned", [True, False])
def test_clean_during_a_download_by_the_hubs_own_client_breaks_nothing(
    place: Place, pinned: bool
) -> None:
    files = {f"w{number}.bin": os.urandom(300_000) for number in range(6)} | {"config.json": b"{}"}
    with LoopbackHub() as hub:
        commit = hub.add_repo("org/name").commit(files)
        hub.fault(slow(600_000))
        asked = f"org/name@{commit if pinned else 'main'}"
        with subprocess.Popen(
            [sys.executable, "-c", DOWNLOAD, asked],
            env=hub.environment(place.root),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            rounds = 0
            while child.poll() is None:
                if place.root.exists():
                    done = place.clean()
                    assert done.receipt is not None
                    assert all(one.result != "failed" for one in done.receipt.outcomes)
                    rounds += 1
            told, errors = child.communicate(timeout=30)
    assert told == "done\n", errors
    assert rounds > 3
    snapshot = place.root / "models--org--name" / "snapshots" / commit
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == files


def test_a_snapshot_folder_that_a_download_has_only_just_made_stays(place: Place) -> None:
    """The client makes it first, and a lock or a partial only after it."""
    repo = base(place.root)
    folder = repo.empty_snapshot("a" * 40)
    before = {path for path in repo.folder.rglob("*") if not path.is_dir()}
    place.clean()
    assert folder.is_dir()
    assert {path for path in repo.folder.rglob("*") if not path.is_dir()} == before


def test_a_revision_that_its_ref_moved_on_from_stays_until_nobody_has_used_it_for_30_days(
    place: Place,
) -> None:
    with LoopbackHub() as hub:
        repo = hub.add_repo("org/name")
        environment = hub.environment(place.root)
        commits = []
        for content in (b"one", b"two"):
            files = {"config.json": b"{}", "model.safetensors": content * 1000}
            commits.append(repo.commit(files))
            subprocess.run(
                [sys.executable, "-c", DOWNLOAD, "org/name@main"],
                env=environment,
                check=True,
                capture_output=True,
            )
    place.clean()
    snapshots = place.root / "models--org--name" / "snapshots"
    assert {path.name for path in snapshots.iterdir()} == set(commits)

    settle(place.root)
    freed(place.clean())
    assert [path.name for path in snapshots.iterdir()] == commits[1:]


def test_a_stale_partial_of_a_kept_model_stays(place: Place) -> None:
    repo = base(place.root)
    partial = repo.partial(size=100, age=LONG)
    place.clean(CleanOptions(keep=("org/name",), partials=True))
    assert partial.exists()
    place.clean()
    assert not partial.exists()


# Interruptions, and what cannot be told.


def test_what_ctrl_c_cut_short_is_finished_by_the_same_command(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = base(place.root)
    others = repo.blob("model.safetensors")
    alone = repo.revision({"config.json": b"{}", "only.bin": OTHER}, refs=["v9"])
    with monkeypatch.context() as patched:
        patched.setattr(Executor, "_remove_blobs", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            place.rm("org/name@v9")
    assert not (repo.snapshots / alone).exists()
    assert repo.blob("only.bin", alone).exists()

    again = place.rm("org/name@v9")

    assert again.problem is None
    assert not repo.blob("only.bin", alone).exists()
    assert others.exists()
    assert not (place.root / ".vlmcache-leftovers").exists()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_refs_and_snapshots_go_first_where_a_repo_is_emptied_in_its_place(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = base(place.root)
    gone: list[str] = []
    unlink = os.unlink

    def noted(path: str, **options: int) -> None:
        gone.append(os.readlink(f"/proc/self/fd/{options['dir_fd']}"))
        unlink(path, **options)

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Leftovers, "_place_for", full)
    monkeypatch.setattr(os, "unlink", noted)
    place.rm("org/name")
    parts = [os.path.relpath(path, repo.folder).split(os.sep)[0] for path in gone]
    inside = [part for part in parts if part in ("refs", "snapshots", "blobs")]
    assert [part for part, _ in itertools.groupby(inside)] == ["refs", "snapshots", "blobs"]


@pytest.mark.parametrize("name", ["snapshots", "refs", "blobs"])
def test_a_repo_with_a_link_in_the_place_of_a_folder_is_not_cleaned(
    place: Place, name: str
) -> None:
    repo = base(place.root)
    (repo.folder / name).rename(repo.folder / "moved")
    (repo.folder / name).symlink_to("moved")
    before = fingerprint(repo.folder)
    done = place.clean()
    assert fingerprint(repo.folder) == before
    assert freed(done) == 0
    reasons = {kept.path: kept.reason for kept in done.plan.kept}
    assert reasons[str(repo.folder / name)] == (
        "something else is in the place of a folder of the repo"
    )


def test_the_listing_of_a_snapshot_that_cannot_be_removed_stays_and_nothing_is_freed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = base(place.root)
    detached = next(iter(repo.revisions))
    real, unlink = os.rename, os.unlink

    def refuse(source: str, *arguments: object, **options: object) -> None:
        if source in (detached, str(repo.snapshots / detached)):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), source)
        real(source, *arguments, **options)  # type: ignore[arg-type]

    def stay(path: str, **options: object) -> None:
        if not path.endswith(f"{detached}.json"):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        unlink(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(os, "rmdir", stay)
    monkeypatch.setattr(os, "unlink", stay)
    done = place.clean()
    assert done.receipt is not None
    assert (repo.trees / f"{detached}.json").exists()
    assert done.receipt.freed == 0
    results = {outcome.path: outcome.result for outcome in done.receipt.outcomes}
    assert results[str(repo.trees / f"{detached}.json")] == "failed"


@pytest.mark.parametrize("partial", [True, False])
def test_a_shared_blob_that_nobody_links_to_stays_while_a_download_is_unfinished(
    place: Place, partial: bool
) -> None:
    cache = CacheBuilder(place.root)
    repo = cache.repo("org/name")
    repo.revision({"config.json": b"{}", "model.safetensors": WEIGHTS})
    payload = cache.shared_blob("cd" * 32)
    payload.parent.mkdir(parents=True, exist_ok=True)
    payload.write_bytes(OTHER)
    cache.shared_store.joinpath(".huggingface-shared-blobs").write_text("1\n")
    if partial:
        repo.partial(age=OLD)
    settle(place.root)
    os.utime(payload, (0, 0))
    place.clean()
    assert payload.exists() == partial


def test_revisions_next_to_a_snapshot_that_is_a_link_stay(place: Place) -> None:
    repo = base(place.root)
    detached = next(iter(repo.revisions))
    (repo.snapshots / ("d" * 40)).symlink_to(detached)
    repo.ref("dev", "d" * 40)
    place.clean()
    assert (repo.snapshots / detached / "model.safetensors").exists()


def test_the_last_complete_revision_stays_while_its_ref_leads_to_what_is_not_there(
    place: Place,
) -> None:
    repo = base(place.root)
    for ref in repo.refs.rglob("*"):
        if ref.is_file():
            ref.write_text("e" * 40)
    before = sorted(path.name for path in repo.snapshots.iterdir())
    place.clean()
    assert sorted(path.name for path in repo.snapshots.iterdir()) == before


def test_two_scans_do_not_take_each_other_for_a_download(place: Place) -> None:
    repo = base(place.root)
    lock = repo._lock_file("e" * 64)
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not lock_held(str(lock))
        fcntl.flock(file, fcntl.LOCK_EX)
        assert lock_held(str(lock))


def test_force_removes_what_is_being_downloaded(place: Place) -> None:
    repo = base(place.root)
    partial = repo.partial(age=0, data=b"begun ")
    state = scan(place.root)
    plan = plan_removal(state, [Target("org/name", repo.folder.name)])
    with partial.open("ab") as file:
        file.write(b"and grown")
    assert execute(plan, str(place.root)).outcomes[0].result == "stale"
    assert execute(plan, str(place.root), force=True).whole
    assert not repo.folder.exists()
