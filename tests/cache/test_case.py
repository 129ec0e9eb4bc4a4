"""Names that differ only by case are found before they meet on a disk that ignores it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.commands.remove.test_remove import Place
from tests.kit.caches import CacheBuilder
from tests.kit.disks import common_folder
from vlmcache.cache import case
from vlmcache.cache.case import clash, ignores_case
from vlmcache.commands.backup.backup import backup
from vlmcache.commands.backup.restore import restore
from vlmcache.commands.backup.values import RestoreOptions
from vlmcache.commands.move.move import move
from vlmcache.errors import CacheError


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["README.md", "readme.md"], True),
        (["a/README.md", "A/readme.md"], True),
        (["weights", "Weights/model.bin"], True),
        (["Stra\u00dfe", "STRASSE"], True),
        (["caf\u00e9", "cafe\u0301"], True),
        (["a/one", "A/two"], False),
        (["README.md", "README.txt"], False),
        (["a", "b/a"], False),
        ([], False),
    ],
)
def test_names_clash_that_are_one_file_or_a_file_and_a_folder(
    names: list[str], found: bool
) -> None:
    assert (clash(names) is not None) == found


@given(st.sets(st.text("aAbB/", min_size=1).filter(lambda name: name.strip("/") == name)))
def test_names_without_a_clash_can_all_be_written_in_lower_case(names: set[str]) -> None:
    files = {name for name in names if "//" not in name}
    folders = {name[:end] for name in files for end, letter in enumerate(name) if letter == "/"}
    if files & folders or clash(files) is not None:
        return
    lower = {name.lower() for name in files}
    assert len(lower) == len(files)
    assert not lower & {folder.lower() for folder in folders}


@pytest.fixture
def folding() -> Iterator[Path]:
    """A folder on a filesystem that ignores case; skipped where none can be mounted."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("mounting needs root and mkfs.ext4")
    with common_folder() as folder:
        image, place = folder / "image", folder / "mounted"
        with image.open("wb") as file:
            file.truncate(8_000_000)
        make = ["mkfs.ext4", "-q", "-O", "casefold", str(image)]
        if subprocess.run(make, capture_output=True, check=False).returncode != 0:
            pytest.skip("mkfs.ext4 is too old for folders that ignore case")
        place.mkdir()
        done = subprocess.run(["mount", "-o", "loop", image, place], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"cannot mount here: {done.stderr.strip()}")
        try:
            (place / "folding").mkdir()
            subprocess.run(["chattr", "+F", str(place / "folding")], check=True)
            yield place / "folding"
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_ignores_case_is_found_by_its_entries_and_nothing_is_written(
    folding: Path, tmp_path: Path
) -> None:
    (folding / "hub").mkdir()
    assert ignores_case(str(folding))
    assert ignores_case(str(folding / "not" / "there"))
    assert ignores_case(str(folding / "hub"))
    (folding / "hub" / "models--a").mkdir()
    assert ignores_case(str(folding / "hub"))
    assert [path.name for path in folding.rglob("*")] == ["hub", "models--a"]
    assert not ignores_case(str(tmp_path))
    assert not ignores_case(str(tmp_path / "not" / "there"))


def test_an_entry_that_answers_to_its_name_in_the_other_case_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hub").mkdir()
    lstat = os.lstat

    def fold(path: str) -> os.stat_result:
        try:
            return lstat(path)
        except FileNotFoundError:
            folder, name = os.path.split(path)
            (same,) = (other for other in os.listdir(folder) if other.lower() == name.lower())
            return lstat(os.path.join(folder, same))

    monkeypatch.setattr(os, "lstat", fold)
    assert ignores_case(str(tmp_path))
    assert ignores_case(str(tmp_path / "hub"))
    assert ignores_case(str(tmp_path / "not" / "there"))


def test_two_names_of_one_file_do_not_make_a_disk_ignore_case(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    os.link(tmp_path / "a", tmp_path / "A")
    assert not ignores_case(str(tmp_path))


def test_restore_and_move_refuse_before_the_first_byte_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path)
    repo = CacheBuilder(place.root).repo("org/name")
    repo.revision({"README.md": b"one", "readme.md": b"two", "config.json": b"{}"})
    saved = tmp_path / "backup.tar"
    backup(place.session, str(saved))
    elsewhere = tmp_path / "new"
    other = Place(elsewhere)
    monkeypatch.setattr(case, "ignores_case", lambda path: True)

    for options in (RestoreOptions(dry_run=True), RestoreOptions()):
        with pytest.raises(
            CacheError, match=r"'.*README.md' and '.*readme.md' differ only by case"
        ):
            restore(other.session, str(saved), options=options)
    assert not elsewhere.exists()
    with pytest.raises(CacheError, match="differ only by case"):
        move(place.session, str(elsewhere))
    assert not elsewhere.exists()

    monkeypatch.setattr(case, "ignores_case", lambda path: False)
    restore(other.session, str(saved))
    assert {path.name for path in other.root.glob("models--*/snapshots/*/*")} == {
        "README.md",
        "readme.md",
        "config.json",
    }


def test_refs_that_differ_by_case_are_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path)
    cache = CacheBuilder(place.root)
    cache.repo("org/name").revision({"config.json": b"{}"}, refs=("main", "Main"))
    saved = tmp_path / "backup.tar"
    backup(place.session, str(saved))
    monkeypatch.setattr(case, "ignores_case", lambda path: True)
    with pytest.raises(CacheError, match=r"'.*refs/Main' and '.*refs/main'"):
        restore(Place(tmp_path / "new").session, str(saved))
