"""One repo, and what can be wrong with it in a cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.kit.caches import CachedRepo
from tests.kit.contents import Content

SIZE = 20_000
WEIGHTS = "model.safetensors"
GOOD = "sub/other.safetensors"
FILES: dict[str, Content] = {
    "config.json": b'{"model_type": "x"}',
    WEIGHTS: os.urandom(SIZE),
    GOOD: os.urandom(SIZE),
}

Damage = tuple[Callable[[CachedRepo], object], int]


def _snapshot_that_is_a_link(repo: CachedRepo) -> None:
    """Let a snapshot be a link to another place, with the same files in it."""
    snapshot = repo.snapshots / repo.latest
    elsewhere = snapshot.with_name("elsewhere")
    snapshot.rename(elsewhere)
    snapshot.symlink_to(elsewhere)


def _wrong_link(repo: CachedRepo) -> None:
    pointer = repo.pointer(WEIGHTS)
    pointer.unlink()
    pointer.symlink_to(os.path.relpath(repo.blob(GOOD), pointer.parent))


def _link_to_something_longer(repo: CachedRepo) -> None:
    pointer = repo.pointer("config.json")
    pointer.unlink()
    pointer.symlink_to(os.path.relpath(repo.blob(GOOD), pointer.parent))


def _broken_link_that_the_hub_does_not_list(repo: CachedRepo) -> None:
    repo.pointer(WEIGHTS).with_name("extra.bin").symlink_to("../../blobs/none")


SEEN_BY_LOOKING: dict[str, Damage] = {
    "dangling link": (lambda repo: repo.dangling_link(WEIGHTS), 0),
    "missing blob": (lambda repo: repo.missing_blob(WEIGHTS), SIZE),
    "truncated blob": (lambda repo: repo.truncated_blob(WEIGHTS), SIZE),
    "empty blob": (lambda repo: repo.empty_blob(WEIGHTS), SIZE),
    "ref with a newline": (lambda repo: repo.ref_with_newline(), 0),
    "ref that is a folder": (lambda repo: repo.ref_folder(), 0),
    "no snapshots": (lambda repo: repo.missing_snapshots(), 0),
    "link to something longer": (_link_to_something_longer, 0),
    "link out of the cache": (lambda repo: repo.leaving_link(Path("/etc/hosts"), WEIGHTS), 0),
}
"""What `status` sees and `pull` mends -> how it is done, and the bytes that mending it takes."""

SEEN_IN_A_SNAPSHOT: dict[str, Damage] = {
    "ref to a missing commit": (lambda repo: repo.ref_to_missing_commit(), 0),
    "empty snapshot": (lambda repo: repo.empty_snapshot(repo.latest), 0),
    "snapshot that is a link": (_snapshot_that_is_a_link, 0),
}
"""What else `pull` mends, since it knows which revision is wanted."""

SEEN_BY_HASHING: dict[str, Damage] = {
    "flipped bit": (lambda repo: repo.flipped_bit(WEIGHTS), SIZE),
    "flipped bit in a small file": (lambda repo: repo.flipped_bit("config.json"), 19),
    "wrong link": (_wrong_link, 0),
    "broken link of an unlisted file": (_broken_link_that_the_hub_does_not_list, 0),
    "listing that cannot be read": (lambda repo: repo.bad_tree("{"), 0),
    "missing link": (lambda repo: repo.pointer(WEIGHTS).unlink(), 0),
}
"""What only `verify` sees and mends."""
