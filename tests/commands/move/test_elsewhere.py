"""Models on an archive drive or in a base, as all other commands meet them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.commands.move.test_archive import NAMES, Room, folder_of
from tests.kit.bases import FILES
from tests.kit.caches import CacheBuilder, du_allocated, fingerprint
from tests.kit.disks import removable_drive, small_filesystem
from vlmcache.cache.base_record import base_record_path
from vlmcache.cache.moved import note_path
from vlmcache.cache.scan import scan
from vlmcache.cache.trash import has_trash
from vlmcache.change.trash import removals_in
from vlmcache.errors import ExitCode, UnknownModelError

LENT = "org/lent"


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    with small_filesystem(32_000_000) as drive:
        yield Room(tmp_path, drive)


@pytest.fixture
def lent(room: Room, tmp_path: Path) -> CacheBuilder:
    """A base with one model, attached; no command of a test may change it."""
    base = CacheBuilder(tmp_path / "base")
    base.repo(LENT).revision(FILES)
    assert room.cache.attach(base.root).problem is None
    return base


def content_of(root: Path, name: str) -> dict[str, bytes]:
    (snapshot,) = (root / folder_of(name) / "snapshots").iterdir()
    return {
        str(path.relative_to(snapshot)): path.read_bytes()
        for path in snapshot.rglob("*")
        if path.is_file()
    }


def test_attached_models_are_not_moved_to_the_archive(room: Room, lent: CacheBuilder) -> None:
    before = fingerprint(lent.root)
    done = room.clean(older_than=0.0)
    assert room.archived == list(NAMES)
    assert not (room.root / folder_of(LENT)).is_symlink()
    assert content_of(room.root, LENT) == FILES
    assert [kept.repo for kept in done.plan.kept] == [LENT]
    assert fingerprint(lent.root) == before


def test_what_is_in_the_trash_is_not_moved_and_comes_back(room: Room) -> None:
    room.cache.remove(NAMES[0], trash=True)
    room.clean(older_than=0.0)
    assert room.archived == list(NAMES[1:])
    assert not (room.there / folder_of(NAMES[0])).exists()
    assert room.cache.undo().problem is None
    room.check()


def test_an_archived_model_that_was_removed_comes_back_with_its_notes(room: Room) -> None:
    room.clean(older_than=0.0)
    before, there = fingerprint(room.root), fingerprint(room.there)
    note = note_path(str(room.there), folder_of(NAMES[0]))
    assert os.path.exists(note)
    removal = room.cache.remove(NAMES[0], trash=True)
    assert removal.problem is None
    assert not (room.there / folder_of(NAMES[0])).exists()
    assert room.cache.undo().problem is None
    assert os.path.exists(note)
    room.check()
    assert fingerprint(room.root) == before
    assert fingerprint(room.there) == there
    assert room.cache.recall(NAMES[0]).problem is None
    assert room.archived == list(NAMES[1:])


def test_an_attached_model_that_was_removed_comes_back_with_its_record(
    room: Room, lent: CacheBuilder
) -> None:
    before, there = fingerprint(room.root), fingerprint(lent.root)
    removal = room.cache.remove(LENT, trash=True)
    assert removal.problem is None
    with pytest.raises(UnknownModelError):
        room.cache.remove(LENT)
    assert room.cache.undo().problem is None
    assert os.path.exists(base_record_path(str(room.root), folder_of(LENT)))
    assert fingerprint(room.root) == before
    assert room.cache.verify(LENT, max_age=0).problem is None
    assert room.cache.status(LENT).repos[0].size_in_base == sum(map(len, FILES.values()))
    assert room.cache.detach().problem is None
    assert fingerprint(lent.root) == there


def test_the_trash_of_attached_models_is_emptied_and_the_base_stays(
    room: Room, lent: CacheBuilder
) -> None:
    there = fingerprint(lent.root)
    room.cache.remove(LENT, trash=True)
    assert room.cache.trash(empty=True).problem is None
    assert fingerprint(lent.root) == there
    assert room.cache.attach(lent.root).ids == [LENT]


@pytest.mark.parametrize("command", ["attach", "detach", "recall", "clean"])
def test_what_has_expired_in_the_trash_is_removed_by_the_next_command(
    room: Room, lent: CacheBuilder, command: str
) -> None:
    room.clean(older_than=0.0)
    room.cache.recall(NAMES[0])
    room.cache.remove(NAMES[0], trash=True)
    (trashed,) = removals_in(str(room.root))
    record = trashed.record
    assert record is not None
    path = os.path.join(trashed.path, "record.json")
    changed = msgspec.structs.replace(record, removed_at=1.0)
    Path(path).write_bytes(msgspec.json.encode(changed))
    if command == "attach":
        room.cache.attach(lent.root)
    elif command == "detach":
        room.cache.detach(lent.root)
    elif command == "recall":
        room.cache.recall(NAMES[1])
    else:
        room.clean(older_than=0.0)
    assert not has_trash(str(room.root))


def test_a_backup_has_the_content_of_archived_and_attached_models(
    room: Room, lent: CacheBuilder, tmp_path: Path
) -> None:
    room.clean(older_than=0.0)
    assert room.cache.backup(tmp_path / "saved.tar").problem is None
    room.root = room.root.parent / "fresh"
    room.session = room.session._replace(
        cache=msgspec.structs.replace(room.session.cache, dir=str(room.root))
    )
    assert room.cache.restore(tmp_path / "saved.tar").problem is None
    room.check()
    assert content_of(room.root, LENT) == FILES
    assert not any(path.is_symlink() for path in room.root.glob("models--*/blobs/*"))


def test_verify_reads_archived_and_attached_models(room: Room, lent: CacheBuilder) -> None:
    room.clean(older_than=0.0)
    verification = room.cache.verify(max_age=0)
    assert verification.problem is None
    assert verification.checked == 2 * len(NAMES) + len(FILES)
    blob = next((lent.root / folder_of(LENT) / "blobs").iterdir())
    blob.write_bytes(b"x" * blob.stat().st_size)
    there = room.there / folder_of(NAMES[0]) / "blobs"
    other = next(path for path in there.iterdir() if path.stat().st_size > 1000)
    other.write_bytes(b"x" * other.stat().st_size)
    found = {damage.repo for damage in room.cache.verify(max_age=0).damaged}
    assert found == {LENT, NAMES[0]}


def test_the_cache_moves_and_archived_and_attached_models_still_load(
    room: Room, lent: CacheBuilder, tmp_path: Path
) -> None:
    room.clean(max_size=room.goal(2))
    with small_filesystem(32_000_000) as other:
        room.cache.move(other / "hub")
        room.check()
        assert content_of(room.root, LENT) == FILES


def test_a_timer_whose_archive_is_away_fails_and_status_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with removable_drive() as drive:
        room = Room(tmp_path, drive.place)
        room.clean(max_size=room.goal(1))
        drive.unmount()
        monkeypatch.setenv("VLMCACHE_HOME", str(tmp_path / "own"))
        monkeypatch.setenv("VLMCACHE_SCHEDULED", "nightly")
        words = ["clean", "--older-than", "0", "--to", str(room.there), "--yes"]
        done = subprocess.run(
            [sys.executable, "-m", "vlmcache", *words, "--cache-dir", str(room.root)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == ExitCode.DAMAGE, done.stderr
        (last,) = room.cache.status().schedules
        assert (last.name, last.exit_code) == ("nightly", ExitCode.DAMAGE)
        assert "not mounted" in last.text
        assert room.archived == [NAMES[0]]


def test_one_line_says_how_many_models_were_moved(room: Room) -> None:
    done = room.clean(max_size=room.goal(2))
    assert done.in_one_line.startswith("moved 2 models, freed ")
    again = room.clean(max_size=room.goal(0) + 10**9)
    assert again.in_one_line == "nothing to remove or to move"


def test_status_agrees_with_du_with_all_of_them(room: Room, lent: CacheBuilder) -> None:
    room.clean(max_size=room.goal(2))
    room.cache.remove(NAMES[3], trash=True)
    status = room.cache.status()
    assert status.cache.size_on_disk == du_allocated(room.root) == scan(room.root).size_on_disk
    assert status.cache.by_class.total == status.cache.size_on_disk
