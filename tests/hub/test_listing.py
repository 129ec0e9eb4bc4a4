"""A listing is believed only as far as it can do no harm."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.caches import fingerprint
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import REPO, pull
from vlmcache.cache import layout
from vlmcache.cache.case import ignores_case
from vlmcache.cache.state import TreeFile
from vlmcache.commands.pull import prepare
from vlmcache.errors import ExitCode, HostileListingError
from vlmcache.hub.listing import check_names

HOSTILE = [
    "../../x",
    "a/../../x",
    "/etc/passwd",
    "//x",
    "a\0b",
    "a\nb",
    "..",
    ".",
    "",
    "a//b",
    "a/./b",
    "a\\..\\..\\x",
    "C:x",
    "0:",
    "c:/x",
    "x" * 256,
    "ä" * 130,
    "a/" * 2100 + "x",
]


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.mark.parametrize("name", HOSTILE, ids=[ascii(name)[:20] for name in HOSTILE])
def test_a_name_that_leaves_the_folder_refuses_the_whole_repo(
    hub: LoopbackHub, tmp_path: Path, name: str
) -> None:
    hub.add_repo(REPO).commit({"config.json": b"{}", name: b"evil"})
    before = fingerprint(tmp_path)
    run = pull(hub, tmp_path / "inner" / "cache")
    assert run.problem is not None
    assert (run.problem.code, run.problem.exit_code) == ("hostile-listing", ExitCode.FAILED)
    assert fingerprint(tmp_path) == before
    assert hub.bytes_sent() == 0


def test_a_file_that_is_a_folder_too_refuses_the_whole_repo() -> None:
    file = TreeFile(1, "a" * 40)
    with pytest.raises(HostileListingError, match="folder"):
        check_names(REPO, {"a/b": file, "a": file})


@pytest.mark.parametrize("etag", ["../../x", "a" * 39, "", "A" * 40, "g" * 64])
def test_a_hash_that_is_none_refuses_the_whole_repo(etag: str) -> None:
    with pytest.raises(HostileListingError, match="hash"):
        check_names(REPO, {"a": TreeFile(1, "a" * 40, lfs_sha256=etag or "x", lfs_size=1)})


def test_a_listing_in_the_cache_is_not_believed_either(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.add_repo(REPO).commit({"config.json": b"{}"})
    assert pull(hub, tmp_path / "cache").problem is None
    tree = tmp_path / f"cache/models--org--name/trees/{commit}.json"
    document = json.loads(tree.read_text())
    document["files"]["../../../x"] = document["files"]["config.json"]
    tree.write_text(json.dumps(document))
    assert pull(hub, tmp_path / "cache").problem is None
    assert "../../../x" not in json.loads(tree.read_text())["files"]
    assert not (tmp_path / "x").exists()


def test_an_empty_listing_in_the_cache_is_none(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.add_repo(REPO).commit({"config.json": b"{}"})
    assert pull(hub, tmp_path / "cache").problem is None
    folder = tmp_path / "cache/models--org--name"
    (folder / f"trees/{commit}.json").write_text('{"format_version": 1, "files": {}}')
    (folder / f"snapshots/{commit}/config.json").unlink()
    assert pull(hub, tmp_path / "cache").problem is None
    assert (folder / f"snapshots/{commit}/config.json").exists()


@given(st.text(st.characters(codec="utf-8"), max_size=300))
def test_a_name_that_passes_stays_below_its_folder_on_every_system(name: str) -> None:
    import ntpath
    import posixpath

    if layout.file_name_problem(name) is None:
        for path in (posixpath, ntpath):
            joined = path.normpath(path.join("/base", name))
            assert joined.replace("\\", "/").startswith("/base/")
            assert joined.replace("\\", "/") == f"/base/{name}"


def test_names_that_differ_by_case_only_are_refused_where_the_disk_takes_them_for_one(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo(REPO).commit({"config.json": b"{}", "Config.json": b"[]"})
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "ignores_case", lambda _: True)
        run = pull(hub, tmp_path / "cache")
        assert run.problem is not None
        assert run.problem.code == "hostile-listing"
        assert not (tmp_path / "cache").exists()
    assert not ignores_case(str(tmp_path / "cache"))
    assert pull(hub, tmp_path / "cache").problem is None
