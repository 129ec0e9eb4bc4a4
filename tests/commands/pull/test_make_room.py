"""`vlmcache pull --make-room`: evicts what was not used for a long time, after one question."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder, CachedRepo, du_allocated, fingerprint
from tests.kit.contents import Synthetic
from tests.kit.disks import small_filesystem
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import vlmcache

MB = 1_000_000
CONFIG = """
models:
  wanted: {repo: org/wanted}
  pinned: {repo: org/pinned}
vlmcache: {min_free: 2MB, comfortable_free: 3MB}
"""


def held(cache: CacheBuilder, name: str, days: int) -> CachedRepo:
    """A model of 6 MB that was last used so many days ago."""
    repo = cache.repo(name)
    repo.revision({"config.json": b"{}", "model.safetensors": os.urandom(6 * MB)})
    then = time.time() - days * 86400
    for path in repo.folder.rglob("*"):
        os.utime(path, (then, then), follow_symlinks=False)
    return repo


@pytest.fixture
def disk() -> Iterator[tuple[LoopbackHub, CacheBuilder]]:
    """A disk of 24 MB with three models of 6 MB, and a hub with a model of 7 MB."""
    with small_filesystem(24 * MB) as place, LoopbackHub() as hub:
        cache = CacheBuilder(place / "hub")
        for name, days in (("org/pinned", 90), ("org/older", 60), ("org/newer", 30)):
            held(cache, name, days)
        content = Synthetic(size=7 * MB, seed=1)
        hub.add_repo("org/wanted").commit({"config.json": b"{}", "model.safetensors": content})
        (place / "small-config.yaml").write_text(CONFIG)
        yield hub, cache


def names(cache: CacheBuilder) -> set[str]:
    return {path.name.rpartition("--")[2] for path in cache.root.glob("models--*")}


def test_without_it_a_full_disk_is_reported_before_anything_is_written(
    disk: tuple[LoopbackHub, CacheBuilder],
) -> None:
    hub, cache = disk
    before = fingerprint(cache.root)
    done = vlmcache(hub, cache.root, "pull", "wanted")
    assert done.returncode == 9
    assert "--make-room' proposes what to evict" in done.stderr
    assert fingerprint(cache.root) == before


def test_the_least_recently_used_is_evicted_and_no_more_than_is_needed(
    disk: tuple[LoopbackHub, CacheBuilder],
) -> None:
    hub, cache = disk
    done = vlmcache(hub, cache.root, "pull", "wanted", "--make-room", "--yes")
    assert done.returncode == 0, done.stderr
    assert names(cache) == {"wanted", "pinned", "newer"}
    assert vlmcache(hub, cache.root, "status", "wanted", "--check").returncode == 0


def test_the_plan_and_the_receipt_show_both(disk: tuple[LoopbackHub, CacheBuilder]) -> None:
    hub, cache = disk
    before = du_allocated(cache.repo("org/older").folder)
    planned = vlmcache(hub, cache.root, "pull", "wanted", "--make-room", "--dry-run", "--json")
    assert planned.returncode == 0, planned.stdout
    plan = json.loads(planned.stdout)["plan"]
    assert {action["action"] for action in plan["actions"]} >= {"remove-tree", "fetch"}
    assert plan["frees"] >= before
    assert plan["needs"] >= 7 * MB
    assert names(cache) == {"pinned", "older", "newer"}
    done = vlmcache(hub, cache.root, "pull", "wanted", "--make-room", "--yes", "--json")
    receipt = json.loads(done.stdout)["receipt"]
    assert receipt["freed"] >= before
    assert receipt["fetched"] >= 7 * MB


def test_what_the_trash_frees_next_to_an_eviction_is_in_the_receipt(
    disk: tuple[LoopbackHub, CacheBuilder],
) -> None:
    hub, cache = disk
    content = Synthetic(size=13 * MB, seed=5)
    hub.add_repo("org/huge").commit({"config.json": b"{}", "model.safetensors": content})
    kept = vlmcache(hub, cache.root, "rm", "org/older", "--trash", "--yes")
    assert kept.returncode == 0, kept.stderr
    done = vlmcache(hub, cache.root, "pull", "org/huge", "--make-room", "--yes", "--json")
    assert done.returncode == 0, done.stdout
    assert names(cache) == {"huge", "pinned"}
    assert json.loads(done.stdout)["receipt"]["freed"] >= 12 * MB


def test_offline_nothing_is_evicted_for_what_cannot_be_fetched(
    disk: tuple[LoopbackHub, CacheBuilder],
) -> None:
    hub, cache = disk
    begun = vlmcache(hub, cache.root, "pull", "wanted", "--exclude", "*.safetensors", "--json")
    commit = json.loads(begun.stdout)["models"][0]["commit"]
    words = ["pull", f"wanted@{commit}", "--make-room", "--yes"]
    done = vlmcache(hub, cache.root, *words, HF_HUB_OFFLINE="1")
    assert done.returncode == 8, done.stderr
    assert names(cache) == {"wanted", "pinned", "older", "newer"}


def test_without_a_terminal_and_yes_nobody_is_asked_and_nothing_is_evicted(
    disk: tuple[LoopbackHub, CacheBuilder],
) -> None:
    hub, cache = disk
    before = fingerprint(cache.root)
    done = vlmcache(hub, cache.root, "pull", "wanted", "--make-room")
    assert done.returncode == 5
    assert fingerprint(cache.root) == before


def test_nothing_is_evicted_if_all_that_may_be_would_not_be_enough(
    disk: tuple[LoopbackHub, CacheBuilder],
) -> None:
    hub, cache = disk
    content = Synthetic(size=19 * MB, seed=2)
    hub.add_repo("org/huge").commit({"config.json": b"{}", "model.safetensors": content})
    before = fingerprint(cache.root)
    done = vlmcache(hub, cache.root, "pull", "org/huge", "--make-room", "--yes")
    assert done.returncode == 9
    assert "evicting would not make enough room" in done.stderr
    assert "pull --make-room" not in done.stderr
    assert "'vlmcache rm org/older' frees 6 MB (" in done.stderr
    asked = vlmcache(hub, cache.root, "pull", "org/huge")
    assert "--make-room" not in asked.stderr
    assert "evict" not in asked.stderr, "nobody asked for it"
    assert "vlmcache rm org/newer" in asked.stderr
    assert fingerprint(cache.root) == before


def test_nothing_is_evicted_from_a_cache_that_does_not_exist_and_the_pull_is_refused(
    disk: tuple[LoopbackHub, CacheBuilder],
) -> None:
    hub, cache = disk
    absent = cache.root.parent / "absent"
    asked = vlmcache(hub, absent, "pull", "wanted")
    assert "--make-room" not in asked.stderr
    done = vlmcache(hub, absent, "pull", "wanted", "--make-room", "--yes")
    assert (asked.returncode, done.returncode) == (9, 9)
    assert "evicting would not make enough room" in done.stderr
    assert not absent.exists()


def test_a_working_folders_free_space_refuses_a_pull_and_evicts_nothing_for_it(
    disk: tuple[LoopbackHub, CacheBuilder],
) -> None:
    hub, cache = disk
    folder = cache.root.parent
    home = folder / "home"
    own = home / ".config" / "vlmcache" / "config.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("vlmcache: {min_free: 1MB}\n")
    (folder / "config.yaml").write_text(CONFIG.replace("min_free: 2MB", "min_free: 16MB"))
    before = fingerprint(cache.root)
    settings = {"VLMCACHE_CONFIG": "", "HOME": str(home)}
    done = vlmcache(hub, cache.root, "pull", "wanted", "--make-room", "--yes", **settings)
    assert done.returncode == 9
    assert f"{folder}/config.yaml asks for more free space than your own" in done.stderr
    assert fingerprint(cache.root) == before


def test_what_is_to_be_pulled_is_not_evicted_for_itself(
    disk: tuple[LoopbackHub, CacheBuilder],
) -> None:
    hub, cache = disk
    content = Synthetic(size=7 * MB, seed=3)
    newer = hub.add_repo("org/older")
    newer.commit({"config.json": b"{}", "model.safetensors": content})
    done = vlmcache(hub, cache.root, "pull", "org/older", "--make-room", "--yes")
    assert done.returncode == 0, done.stderr
    assert names(cache) == {"pinned", "older"}


def test_a_newer_revision_without_room_is_named_without_a_command(
    disk: tuple[LoopbackHub, CacheBuilder],
) -> None:
    hub, cache = disk
    repo = hub.add_repo("org/pinned")
    repo.commit({"config.json": b"{}", "model.safetensors": Synthetic(size=9 * MB, seed=4)})
    done = vlmcache(hub, cache.root, "status", "pinned", "--outdated", "--json")
    (step,) = [
        step
        for step in json.loads(done.stdout)["recommendations"]
        if step["text"].startswith("newer on the hub")
    ]
    assert step["command"] is None
    assert "9 MB to fetch" in step["text"]
    assert "short" in step["text"]


def test_with_an_archive_no_model_is_deleted_and_the_command_that_moves_is_named(
    disk: tuple[LoopbackHub, CacheBuilder], tmp_path: Path
) -> None:
    hub, cache = disk
    config = cache.root.parent / "small-config.yaml"
    drive = f"vlmcache: {{archive: {tmp_path / 'drive'}, "
    config.write_text(CONFIG.replace("vlmcache: {", drive))
    before = fingerprint(cache.root)
    words = ["--make-room", "--yes", "--config", str(config)]
    done = vlmcache(hub, cache.root, "pull", "wanted", *words)
    assert done.returncode == 9, done.stderr
    assert fingerprint(cache.root) == before
    (clean,) = re.findall(r"'vlmcache (clean [^']*)' moves models", " ".join(done.stderr.split()))
    moved = vlmcache(hub, cache.root, *shlex.split(clean), "--yes", "--config", str(config))
    assert moved.returncode == 0, moved.stderr
    done = vlmcache(hub, cache.root, "pull", "wanted", *words)
    assert done.returncode == 0, done.stderr
    assert (cache.root / "models--org--older").is_symlink()
    assert {"older", "newer", "pinned", "wanted"} <= names(cache)
