"""What a killed pull can leave next to the cache's own files is known, and `clean` removes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder, fingerprint
from vlmcache.cache.scan import scan
from vlmcache.cache.state import TreeFile
from vlmcache.change import place
from vlmcache.change.tree import Tree
from vlmcache.commands.remove.clean import clean
from vlmcache.config import CacheLocation, Config, Environment, Limits, Session

OTHER = "b" * 40


class Killed(BaseException):
    """Stands for the end of the process."""


def _tree(folder: str, commit: str) -> None:
    listing = {"config.json": TreeFile(2, OTHER)}
    place.write_tree(Tree(folder), folder, OTHER, listing, complete=True)


def _ref(folder: str, commit: str) -> None:
    place.write_ref(Tree(folder), os.path.join(folder, "refs", "pr", "1"), commit)


def _link(folder: str, commit: str) -> None:
    place.place_link(Tree(folder), folder, commit, "config.json", OTHER)


def _copy(folder: str, commit: str) -> None:
    blob = os.path.realpath(os.path.join(folder, "snapshots", commit, "config.json"))
    place.place_copy(Tree(folder), folder, commit, "config.json", blob, move=False)


@pytest.mark.parametrize("write", [_tree, _ref, _link, _copy])
def test_a_temporary_of_a_killed_pull_is_a_leftover_and_clean_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[str, str], None]
) -> None:
    root = tmp_path / "hub"
    repo = CacheBuilder(root).repo("org/name")
    commit = repo.revision({"config.json": b"{}"})
    (repo.refs / "pr").mkdir()
    before = fingerprint(root)

    def killed(*_: object, **_keywords: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        patched.setattr(Tree, "discard", lambda *_: None)
        with pytest.raises(Killed):
            write(str(repo.folder), commit)
    (left,) = set(fingerprint(root)) - set(before)
    os.utime(root / left, (0, 0), follow_symlinks=False)
    (found,) = scan(str(root)).repos[0].strays
    assert (found.path, found.leftover) == (str(root / left), True)
    environment = Environment({"VLMCACHE_HOME": str(tmp_path / "own")}, frozenset(), str(tmp_path))
    config = Config("config.yaml", "--config", {}, Limits())
    clean(Session(environment, config, CacheLocation(str(root), "--cache-dir")))
    assert fingerprint(root) == before
