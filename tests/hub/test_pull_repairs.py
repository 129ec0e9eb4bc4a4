"""`pull` repairs what `status` calls damaged, with no more bytes than that takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder
from tests.kit.damages import FILES, GOOD, SEEN_BY_LOOKING, SEEN_IN_A_SNAPSHOT, WEIGHTS
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import REPO, lies, pull
from vlmcache.cache.completeness import judge
from vlmcache.cache.scan import scan

DAMAGE = SEEN_BY_LOOKING | SEEN_IN_A_SNAPSHOT


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_repaired_and_what_is_good_is_left_alone(
    repair_hub: LoopbackHub, tmp_path: Path, kind: str
) -> None:
    cache = tmp_path / "cache"
    repo = CacheBuilder(cache).repo(REPO)
    repo.revision(FILES)
    damage, bytes_needed = DAMAGE[kind]
    good = repo.blob(GOOD).stat()
    damage(repo)
    assert judge(scan(cache).repo(REPO), "main").state != "cached"
    run = pull(repair_hub, cache)
    assert run.problem is None
    assert repair_hub.bytes_sent() == bytes_needed
    state = scan(cache).repo(REPO)
    assert judge(state, "main").state == "cached"
    assert lies(cache) == []
    after = repo.blob(GOOD).stat()
    assert (after.st_ino, after.st_mtime_ns) == (good.st_ino, good.st_mtime_ns)
    assert pull(repair_hub, cache).models[0].state == "cached"


@pytest.mark.parametrize("part", ["blobs", "refs", "snapshots"])
def test_nothing_is_written_through_a_link_that_leads_out_of_the_repo(
    repair_hub: LoopbackHub, tmp_path: Path, part: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "cache/models--org--name"
    folder.mkdir(parents=True)
    (folder / part).symlink_to(outside)
    run = pull(repair_hub, tmp_path / "cache")
    assert run.problem is not None
    assert "a link where a folder belongs" in run.problem.message
    assert list(outside.iterdir()) == []


def test_nothing_is_written_through_a_linked_folder_of_a_snapshot(
    repair_hub: LoopbackHub, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    commit = repair_hub._repos["model", REPO].find("main")
    snapshot = tmp_path / f"cache/models--org--name/snapshots/{commit}"
    snapshot.mkdir(parents=True)
    (snapshot / "sub").symlink_to(outside)
    run = pull(repair_hub, tmp_path / "cache")
    assert run.problem is not None
    assert list(outside.iterdir()) == []


def test_a_partial_that_is_a_link_is_not_written_through(
    repair_hub: LoopbackHub, tmp_path: Path
) -> None:
    repo = CacheBuilder(tmp_path / "cache").repo(REPO)
    etag = repair_hub._repos["model", REPO].file(WEIGHTS).etag
    repo.blobs.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (repo.blobs / f"{etag}.incomplete").symlink_to(victim)
    run = pull(repair_hub, tmp_path / "cache")
    assert run.problem is not None
    assert victim.read_bytes() == b"precious"
