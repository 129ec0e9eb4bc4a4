"""The trash is next to the hub folder only if what is renamed there stays on its filesystem."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlmcache.cache.trash import next_to
from vlmcache.cache.tree import CacheTree

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs descriptors of folders")


def test_the_folder_above_a_cache_is_found_by_the_caches_real_name(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "link").symlink_to("hub")
    with next_to(CacheTree(str(tmp_path / "link"))) as place:
        assert place is not None
        parent, name = place
        assert name == "hub"
        assert os.path.samestat(os.fstat(parent), tmp_path.stat())


@pytest.mark.parametrize("replaced", [False, True])
def test_a_cache_whose_name_is_taken_from_it_has_nothing_next_to_it(
    tmp_path: Path, replaced: bool
) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    tree = CacheTree(str(hub))
    assert tree.top
    hub.rename(tmp_path / "elsewhere")
    if replaced:
        hub.mkdir()
    with next_to(tree) as place:
        assert place is None
