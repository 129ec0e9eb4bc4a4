"""What is removed with the trash comes back exactly as it was, and leaves it in no other way."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from huggingface_hub import scan_cache_dir

from tests.commands.remove.test_remove import Place
from tests.commands.remove.test_remove_faults import make
from tests.kit.caches import CacheBuilder, du_allocated
from tests.kit.disks import common_folder, fill_disk, small_filesystem
from tests.kit.faulty import killed_at
from tests.kit.hub import LoopbackHub
from tests.kit.local_fleet import wait_until
from tests.kit.pulls import command, small_config, variables, vlmcache
from tests.kit.rooms import WEIGHTS
from vlmcache.cache.completeness import judge
from vlmcache.cache.scan import scan
from vlmcache.change.trash_room import take_back_blobs
from vlmcache.commands.move.move import move
from vlmcache.commands.move.recall import recall
from vlmcache.commands.remove import keeping
from vlmcache.commands.remove.clean import clean
from vlmcache.commands.remove.remove import remove
from vlmcache.commands.remove.values import CleanOptions, Removal, RemoveOptions
from vlmcache.commands.status.status import status
from vlmcache.commands.trash.trash import trash
from vlmcache.commands.trash.undo import undo
from vlmcache.commands.trash.values import NameTakenError, NothingToUndoError, UndoReport
from vlmcache.config import Limits
from vlmcache.errors import AwayError, ChangedError, PartlyError, UsageError

KEPT = RemoveOptions(trash=True)
BESIDE = ".hub.vlmcache-trash"
INSIDE = ".vlmcache-trash"


def described(root: Path) -> dict[str, tuple[object, ...]]:
    """Describe each entry: its inode, mode, times and content or target."""
    found: dict[str, tuple[object, ...]] = {}
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(root))] = (
            status.st_ino,
            status.st_mode,
            status.st_uid,
            status.st_mtime_ns,
            content,
        )
    return found


@pytest.fixture(params=["beside", "inside"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A cache with all that removals go through, whose trash is next to it or in it."""
    if request.param == "beside":
        here = Place(tmp_path)
        make(here)
        yield here
        return
    with small_filesystem(50_000_000) as mounted:
        here = Place(mounted.parent)
        here.root = mounted
        here.location = msgspec.structs.replace(here.location, dir=str(mounted))
        make(here)
        yield here


def rm(place: Place, *names: str, include: tuple[str, ...] = ()) -> Removal:
    removal = remove(place.session, names, RemoveOptions(include=include, trash=True))
    assert removal.receipt is not None
    assert removal.receipt.whole, removal.receipt
    assert removal.receipt.freed == 0
    assert removal.receipt.trash_id is not None
    return removal


@pytest.mark.parametrize(
    ("names", "include"),
    [
        (("org/name",), ()),
        (("org/name@main",), ()),
        (("org/name",), ("*.bin", "config.json", "a/*")),
        (("org/name", "org/other"), ()),
    ],
)
def test_undo_restores_everything_as_it_was_times_included(
    place: Place, names: tuple[str, ...], include: tuple[str, ...]
) -> None:
    before = described(place.root)
    size = du_allocated(place.root)
    removal = rm(place, *names, include=include)
    listed = trash(place.session).removals
    assert [row.id for row in listed] == [removal.receipt.trash_id if removal.receipt else ""]
    assert listed[0].frees >= (removal.receipt.trashed if removal.receipt else 0) > 0
    state = scan(place.root)
    assert state.size_on_disk == du_allocated(place.root)
    assert not [stray for stray in state.strays if "trash" in stray.path]
    planned = undo(place.session, dry_run=True)
    assert planned.receipt is None
    done = undo(place.session).check()
    assert done.items == planned.items
    assert described(place.root) == before
    assert du_allocated(place.root) == size
    assert not trash(place.session).removals
    assert not any((place.root.parent / name).exists() for name in (BESIDE, f"hub/{INSIDE}"))


@pytest.mark.parametrize("name", ["org/name", "org/name@main"])
def test_undo_after_a_killed_removal_restores_the_times_of_folders_too(
    tmp_path: Path, name: str
) -> None:
    killed = 0
    for kill in range(1, 60, 6):
        place = Place(tmp_path / str(kill))
        place.root.parent.mkdir()
        make(place)
        before = described(place.root)
        act = functools.partial(remove, place.session, [name], KEPT)
        if not killed_at(kill, act, place.root.parent):
            break
        killed += 1
        if trash(place.session).removals:
            undo(place.session).check()
        assert described(place.root) == before
    assert killed > 2


def test_removals_are_undone_one_after_the_other_the_last_one_first(place: Place) -> None:
    states = [described(place.root)]
    for name in ("org/name@main", "org/name", "org/other"):
        rm(place, name)
        states.append(described(place.root))
    assert len(trash(place.session).removals) == 3
    for wanted in ("org/other", "org/name", "org/name@main"):
        done = undo(place.session).check()
        assert done.names[0].startswith(wanted.partition("@")[0])
    assert described(place.root) == states[0]
    with pytest.raises(NothingToUndoError):
        undo(place.session)


def test_what_only_the_trash_needs_of_the_shared_store_is_moved_there_too(place: Place) -> None:
    before = described(place.root)
    rm(place, "org/name")
    assert scan(place.root).shared
    removal = remove(place.session, ["org/other"], RemoveOptions(trash=False))
    assert removal.receipt is not None
    assert removal.receipt.trashed > 0
    assert not scan(place.root).shared
    undo(place.session).check()
    after = described(place.root)
    name = "models--org--name"
    assert {path for path in after if path.startswith(name)} == {
        path for path in before if path.startswith(name)
    }
    state = scan(place.root)
    assert judge(state.repo("org/name"), "main").state == "cached"


def test_a_shared_blob_that_another_removal_has_taken_comes_back(place: Place) -> None:
    first = rm(place, "org/name").receipt
    rm(place, "org/other")
    assert first is not None
    undo(place.session, first.trash_id).check()
    assert judge(scan(place.root).repo("org/name"), "main").state == "cached"
    undo(place.session).check()
    assert judge(scan(place.root).repo("org/other"), "main").state == "cached"


def test_emptying_frees_what_the_receipt_said(place: Place) -> None:
    removal = rm(place, "org/name", "org/other")
    assert removal.receipt is not None
    done = trash(place.session, empty=True).check()
    assert done.receipt is not None
    assert done.receipt.freed >= removal.receipt.trashed
    assert not trash(place.session).removals
    assert scan(place.root).by_class.trash == 0


def test_status_shows_the_trash_as_a_figure_of_its_own(place: Place) -> None:
    rm(place, "org/name")
    shown = status(place.session).cache
    inside = (place.root / INSIDE).is_dir()
    folder = place.root / INSIDE if inside else place.root.parent / BESIDE
    assert shown.trash == du_allocated(folder)
    assert shown.by_class.trash == (shown.trash if inside else 0)
    assert shown.size_on_disk == du_allocated(place.root)


def test_plain_clean_removes_nothing_that_the_trash_needs(place: Place) -> None:
    before = described(place.root)
    rm(place, "org/name@main")
    # As after a kill between the snapshot and its blobs.
    folder = next((place.root.parent / BESIDE).glob("*"), None) or next(
        (place.root / INSIDE).glob("*")
    )
    items = msgspec.json.decode((folder / "record.json").read_bytes())["items"]
    for number, item in enumerate(items):
        if item["kind"] == "blob":
            (folder / str(number)).rename(place.root / item["path"])
    clean(place.session).check()
    undo(place.session).check()
    after = described(place.root)
    assert {name: entry[4] for name, entry in after.items() if "incomplete" not in name} == {
        name: entry[4] for name, entry in before.items() if "incomplete" not in name
    }


def test_clean_all_empties_the_trash_too(place: Place) -> None:
    rm(place, "org/name")
    clean(place.session, CleanOptions(everything=True)).check()
    assert not trash(place.session).removals


def test_clean_keeps_only_if_asked_and_then_can_be_undone(place: Place) -> None:
    before = described(place.root)
    kept = clean(place.session, CleanOptions(older_than=0.0, trash=True)).check()
    assert kept.receipt is not None
    assert kept.receipt.trash_id
    undo(place.session).check()
    after = described(place.root)
    assert {name for name in after if ".lock" not in name} == {
        name for name in before if ".lock" not in name
    }
    with pytest.raises(UsageError, match="trash"):
        clean(place.session, CleanOptions(free=1 << 40, trash=True))


# What a person is told, and when it is kept.


@pytest.fixture
def beside(tmp_path: Path) -> Place:
    here = Place(tmp_path)
    make(here)
    return here


@pytest.mark.parametrize(
    ("free", "days", "trash", "asked", "kept"),
    [
        (40, 7, None, True, True),
        (30, 7, None, True, False),
        (40, 0, None, True, False),
        (40, 7, None, False, False),
        (40, 7, False, True, False),
        (10, 7, True, False, True),
        (10, 0, True, False, True),
    ],
)
def test_a_removal_is_kept_if_a_person_confirms_it_and_enough_is_free_without_it(
    beside: Place,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    days: int,
    trash: bool | None,
    asked: bool,
    kept: bool,
) -> None:
    limits = Limits(comfortable_free=30_000_000_000, trash_days=days)
    beside.config = msgspec.structs.replace(beside.config, limits=limits)
    monkeypatch.setattr(keeping, "free_bytes", lambda _: free * 10**9)
    shown: list[Removal] = []

    def confirm(removal: Removal) -> bool:
        shown.append(removal)
        return True

    options = RemoveOptions(trash=trash)
    done = remove(beside.session, ["org/name"], options, confirm=confirm if asked else None)
    assert done.receipt is not None
    assert (done.receipt.trash_id is not None) is kept
    assert (done.receipt.freed == 0) is kept
    if asked:
        assert shown[0].trash.kept is kept
        why = "30 GB is free, not more than the comfortable 30 GB"
        assert shown[0].trash.why_not == (why if free == 30 else None)


def test_what_has_expired_is_removed_by_the_next_command_that_changes_the_cache(
    beside: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    rm(beside, "org/name")
    later = time.time() + 8 * 86400
    monkeypatch.setattr("vlmcache.change.trash_room.time.time", lambda: later)
    status(beside.session)
    assert len(trash(beside.session).removals) == 1
    remove(beside.session, ["org/other"], RemoveOptions())
    assert not trash(beside.session).removals


def test_other_tools_see_nothing_of_a_trash_next_to_the_cache(beside: Place) -> None:
    rm(beside, "org/name")
    seen = scan_cache_dir(beside.root)
    assert {repo.repo_id for repo in seen.repos} == {"org/other"}
    assert not [warning for warning in seen.warnings if "trash" in str(warning)]


def test_other_tools_warn_once_of_a_trash_in_the_cache() -> None:
    with small_filesystem(50_000_000) as mounted:
        CacheBuilder(mounted).repo("org/name").revision({"config.json": b"{}"})
        CacheBuilder(mounted).repo("org/stays").revision({"config.json": b"{}"})
        here = Place(mounted.parent)
        here.location = msgspec.structs.replace(here.location, dir=str(mounted))
        rm(here, "org/name")
        seen = scan_cache_dir(mounted)
    assert {repo.repo_id for repo in seen.repos} == {"org/stays"}
    assert len([warning for warning in seen.warnings if "trash" in str(warning)]) == 1


# A name that is taken, and what has come back.


def test_undo_refuses_if_a_name_is_taken_and_changes_nothing(beside: Place) -> None:
    rm(beside, "org/name")
    CacheBuilder(beside.root).repo("org/name").revision({"config.json": b"new"})
    before = described(beside.root)
    with pytest.raises(NameTakenError, match="the ref main names another commit by now"):
        undo(beside.session)
    assert described(beside.root) == before
    assert trash(beside.session).removals


def test_undo_merges_what_has_come_back(beside: Place) -> None:
    rm(beside, "org/name", "org/other")
    make(beside)
    again = described(beside.root)
    done = undo(beside.session).check()
    assert [item.step for item in done.items if item.kind == "repo"] == ["merge", "merge"]
    after = described(beside.root)
    assert {name: entry[4] for name, entry in after.items()} == {
        name: entry[4] for name, entry in again.items()
    }


def test_undo_of_a_model_that_was_put_elsewhere_meanwhile_is_refused(beside: Place) -> None:
    rm(beside, "org/name")
    (beside.root / "models--org--name").symlink_to(beside.root.parent)
    with pytest.raises(NameTakenError, match="its folder is a link"):
        undo(beside.session)


@pytest.mark.parametrize("later", [("org/name",), ("each revision",)])
def test_what_a_removal_for_good_takes_of_an_earlier_one_goes_to_the_trash_too(
    place: Place, later: tuple[str, ...]
) -> None:
    folder = place.root / "models--org--name"
    commit = (folder / "refs" / "main").read_text()

    def contents() -> dict[str, bytes]:
        paths = (folder / "snapshots" / commit).rglob("*")
        return {str(path): path.read_bytes() for path in paths if path.is_file()}

    before = contents()
    rm(place, "org/name@main")
    commits = [path.name for path in (folder / "snapshots").iterdir()]
    assert commits
    names = [f"org/name@{other}" for other in commits] if later != ("org/name",) else later
    removal = remove(place.session, names, RemoveOptions(trash=False))
    assert removal.receipt is not None
    assert removal.receipt.whole, removal.receipt
    assert not list(folder.glob("blobs/*"))
    undo(place.session).check()
    assert contents() == before
    state = scan(place.root)
    assert state.size_on_disk == du_allocated(place.root)
    assert not trash(place.session).removals


def test_what_was_removed_for_good_meanwhile_is_reported(beside: Place) -> None:
    rm(beside, "org/name@main")
    shutil.rmtree(beside.root / "models--org--name")
    done = undo(beside.session)
    assert isinstance(done.problem, PartlyError)
    assert done.problem.hint is not None
    assert "pull org/name@" in done.problem.hint


def test_an_unknown_id_is_refused_with_those_that_there_are(beside: Place) -> None:
    removal = rm(beside, "org/name")
    assert removal.receipt is not None
    with pytest.raises(NothingToUndoError) as refused:
        undo(beside.session, "zz")
    assert removal.receipt.trash_id is not None
    assert refused.value.hint is not None
    assert removal.receipt.trash_id in refused.value.hint
    undo(beside.session, removal.receipt.trash_id[:4]).check()


# Models on other drives.


def moved(place: Place, *names: str) -> Path:
    there = place.root.parent / "elsewhere"
    there.mkdir()
    move(place.session, str(there), names).check()
    return there


def test_a_moved_model_is_kept_where_it_is_and_its_link_comes_back(beside: Place) -> None:
    there = moved(beside, "org/other")
    before, at_place = described(beside.root), described(there)
    rm(beside, "org/other")
    assert not (beside.root / "models--org--other").is_symlink()
    assert len(trash(beside.session).removals) == 1
    assert trash(beside.session).removals[0].size_on_disk > len(WEIGHTS)
    undo(beside.session).check()
    assert described(beside.root) == before
    assert described(there) == at_place


def test_undo_of_a_part_of_a_model_that_was_moved_meanwhile_names_what_brings_it_back(
    beside: Place,
) -> None:
    before = described(beside.root)
    rm(beside, "org/name@main")
    size = trash(beside.session).removals[0].size_on_disk
    moved(beside, "org/name")
    assert trash(beside.session).removals[0].size_on_disk == size
    with pytest.raises(NameTakenError) as refused:
        undo(beside.session)
    assert refused.value.message.count("models--org--name") == 1
    assert (refused.value.hint or "").startswith("'vlmcache recall org/name' brings it back")
    recall(beside.session, ["org/name"]).check()
    undo(beside.session).check()
    for name, entry in described(beside.root).items():
        assert ".lock" in name or entry[4] == before[name][4]


def test_a_part_on_a_drive_that_is_away_keeps_the_rest_in_the_trash(beside: Place) -> None:
    there = moved(beside, "org/other")
    rm(beside, "org/other")
    there.rename(there.with_name("unplugged"))
    with pytest.raises(AwayError):
        undo(beside.session)
    assert trash(beside.session).removals


def test_after_a_move_alone_undo_names_what_brings_the_model_back(beside: Place) -> None:
    moved(beside, "org/other")
    with pytest.raises(NothingToUndoError) as refused:
        undo(beside.session)
    assert refused.value.hint == "vlmcache recall org/other"


def test_after_an_unfinished_move_undo_names_how_it_is_taken_back(beside: Place) -> None:
    there = moved(beside, "org/other")
    (there / ".vlmcache-moving" / "models--org--name").mkdir(parents=True)
    with pytest.raises(NothingToUndoError) as refused:
        undo(beside.session)
    assert refused.value.hint == f"vlmcache move {there} --undo"


# A hub, a full disk, another user.


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo("org/name").commit({"config.json": b"{}", "model.safetensors": WEIGHTS})
        yield hub


def ran(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_pull_takes_back_from_the_trash_what_it_would_fetch(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    cache = tmp_path / "hub"
    ran(vlmcache(hub, cache, "pull", "org/name"))
    ran(vlmcache(hub, cache, "rm", "org/name", "--trash", "--yes"))
    planned = msgspec.json.decode(
        ran(vlmcache(hub, cache, "pull", "org/name", "--dry-run", "--json"))
    )
    assert (planned["models"][0]["to_fetch"], planned["plan"]["needs"]) == (0, 0)
    shown = msgspec.json.decode(ran(vlmcache(hub, cache, "status", "one", "--json")))
    removal = msgspec.json.decode(ran(vlmcache(hub, cache, "trash", "--json")))["removals"][0]["id"]
    commands = [step["command"] or "" for step in shown["recommendations"]]
    assert f"vlmcache undo {removal}" in commands[0]
    assert not any(command.startswith("vlmcache pull") for command in commands)
    report = msgspec.json.decode(ran(vlmcache(hub, cache, "pull", "org/name", "--json")))
    assert report["receipt"]["fetched"] == 0
    ran(vlmcache(hub, cache, "status", "org/name", "--check"))
    ran(vlmcache(hub, cache, "undo"))
    ran(vlmcache(hub, cache, "verify", "org/name"))


def test_a_pull_on_a_full_disk_empties_the_trash_and_succeeds() -> None:
    with small_filesystem(24_000_000) as disk, LoopbackHub() as hub:
        cache = CacheBuilder(disk / "hub")
        for name in ("org/one", "org/two", "org/three"):
            cache.repo(name).revision({"config.json": b"{}", "model.safetensors": b"x" * 7_000_000})
        hub.add_repo("org/name").commit({"config.json": b"{}", "m.bin": b"y" * 7_000_000})
        small_config(disk)
        for name in ("org/one", "org/two"):
            ran(vlmcache(hub, cache.root, "rm", name, "--trash", "--yes"))
        ran(vlmcache(hub, cache.root, "pull", "org/name", "--all-files"))
        left = msgspec.json.decode(ran(vlmcache(hub, cache.root, "trash", "--json")))
        assert [row["names"] for row in left["removals"]] == [["org/two"]]


@pytest.mark.full
def test_a_pull_of_which_another_program_takes_the_room_empties_the_trash_and_continues() -> None:
    with small_filesystem(24_000_000) as disk, LoopbackHub() as hub:
        cache = CacheBuilder(disk / "hub")
        cache.repo("org/one").revision({"config.json": b"{}", "m.bin": b"x" * 7_000_000})
        hub.add_repo("org/name").commit({"config.json": b"{}", "m.bin": os.urandom(8_000_000)})
        config = small_config(disk)
        ran(vlmcache(hub, cache.root, "rm", "org/one", "--trash", "--yes"))
        pull = subprocess.Popen(
            command("pull", "org/name", "--all-files", "--limit-rate", "2MB"),
            env=variables(hub, cache.root) | {"VLMCACHE_CONFIG": str(config)},
            cwd=disk,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_until(lambda: arrived(cache.root) > 3_000_000)
        fill_disk(disk / "filler")
        _, said = pull.communicate(timeout=60)
        assert pull.returncode == 0, said
        ran(vlmcache(hub, cache.root, "verify", "org/name"))
        assert not json.loads(ran(vlmcache(hub, cache.root, "trash", "--json")))["removals"]


def arrived(cache: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in cache.glob("models--*/blobs/*incomplete"))


def test_rm_on_a_full_disk_frees_at_once_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with small_filesystem(9_000_000) as disk:
        here = Place(disk)
        CacheBuilder(here.root).repo("org/name").revision({"m.bin": b"x" * 5_000_000})
        fill_disk(disk / "filler")
        shown: list[Removal] = []

        def confirm(removal: Removal) -> bool:
            shown.append(removal)
            return True

        done = remove(here.session, ["org/name"], RemoveOptions(), confirm=confirm)
        assert done.receipt is not None
        assert done.receipt.whole, done.receipt
        assert done.receipt.freed > 5_000_000
        assert shown[0].trash.why_not is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has two users to test with")
def test_what_root_removes_from_a_users_cache_that_user_restores() -> None:
    with common_folder() as folder:
        here = Place(folder)
        make(here)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534, follow_symlinks=False)
        before = described(here.root)
        rm(here, "org/name")
        owners = {path.lstat().st_uid for path in (folder / BESIDE).rglob("*")}
        assert owners == {65534}

        def restore() -> None:
            undo(here.session).check()

        as_user(restore)
        assert described(here.root) == before


def as_user(act: Callable[[], object]) -> None:
    """Run something with another user's rights, in a child."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            act()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def test_a_trash_of_somebody_else_next_to_the_cache_is_not_used(beside: Place) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs two users")
    theirs = beside.root.parent / BESIDE
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    rm(beside, "org/name")
    assert not list(theirs.iterdir())
    assert (beside.root / INSIDE).is_dir()
    assert isinstance(undo(beside.session).check(), UndoReport)


@pytest.mark.parametrize(
    "path", ["../outside", "/etc/passwd", "a/../../b", ".vlmcache-trash/x", ""]
)
def test_a_record_that_names_a_place_outside_the_cache_counts_for_nothing(
    beside: Place, path: str
) -> None:
    rm(beside, "org/name")
    record = next((beside.root.parent / BESIDE).glob("*/record.json"))
    value = msgspec.json.decode(record.read_bytes())
    value["items"][0]["path"] = path
    record.write_bytes(msgspec.json.encode(value))
    before = described(beside.root)
    with pytest.raises(Exception, match="record of the removal"):
        undo(beside.session)
    assert described(beside.root) == before


def falsify(place: Place, **fields: object) -> None:
    """Let the record of the only removal say something else, as whoever can write there may."""
    record = next((place.root.parent / BESIDE).glob("*/record.json"))
    record.write_text(json.dumps(json.loads(record.read_bytes()) | fields))


@pytest.mark.parametrize("commit", ["../../../precious", "..", "."])
def test_a_record_leads_emptying_to_no_folder_but_that_of_a_copy(
    beside: Place, commit: str
) -> None:
    precious = beside.root.parent / "precious"
    copy = beside.root.parent / "own" / "quantized" / "models--org--name" / ("c" * 40)
    for folder in (precious, copy):
        folder.mkdir(parents=True)
    rm(beside, "org/name")
    falsify(beside, revisions=[["model", "org/name", commit]])
    trash(beside.session, empty=True).check()
    assert precious.is_dir()
    assert copy.is_dir()
    assert not trash(beside.session).removals


def test_a_record_lets_undo_change_the_time_of_nothing_outside_the_cache(beside: Place) -> None:
    outside = beside.root.parent / "outside"
    outside.mkdir()
    before = outside.stat()
    rm(beside, "org/name")
    time_of = {"path": str(outside), "inode": before.st_ino, "before": 0}
    falsify(beside, folders=[time_of | {"after": before.st_mtime_ns}])
    with pytest.raises(ChangedError, match="record of the removal"):
        undo(beside.session)
    assert outside.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    "fields",
    [
        {"removed_at": 1e300},
        {"removed_at": -1e300},
        {"days": 1e300},
        {"folders": [{"path": "", "inode": 1, "before": 1 << 70}]},
    ],
)
def test_a_record_with_a_time_that_no_calendar_has_is_listed_and_can_be_emptied(
    beside: Place, fields: dict[str, object]
) -> None:
    rm(beside, "org/name")
    falsify(beside, **fields)
    assert len(trash(beside.session).removals) == 1
    with pytest.raises(ChangedError, match="record of the removal"):
        undo(beside.session)
    trash(beside.session, empty=True).check()
    assert not trash(beside.session).removals


def test_a_manifest_in_the_trash_that_is_not_text_keeps_undo_from_nothing(beside: Place) -> None:
    rm(beside, "org/name", "org/other")
    make(beside)
    record = next((beside.root.parent / BESIDE).glob("*/record.json"))
    items = json.loads(record.read_bytes())["items"]
    manifests = [number for number, item in enumerate(items) if item["path"].endswith(".refs")]
    assert manifests
    for number in manifests:
        (record.parent / str(number)).write_bytes(b"\xff\n")
    undo(beside.session).check()
    assert judge(scan(beside.root).repo("org/name"), "main").state == "cached"


def test_every_blob_is_taken_back_although_the_cache_has_no_folder_of_locks(
    tmp_path: Path,
) -> None:
    here = Place(tmp_path)
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS, "v.bin": b"v"}
    CacheBuilder(here.root).repo("org/name").revision(files)
    repo = scan(here.root).repo("org/name")
    assert repo is not None
    listed = list((repo.revisions[0].tree or {}).values())
    rm(here, "org/name")
    shutil.rmtree(here.root / ".locks")
    taken = take_back_blobs(str(here.root), "models--org--name", listed)
    assert taken == {file.etag for file in listed}
    assert len(taken) == 3
    assert not (here.root / ".locks").exists()
