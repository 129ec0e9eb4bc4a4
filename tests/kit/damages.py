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


def _each_link(change: Callable[[CachedRepo, Path], object]) -> Callable[[CachedRepo], object]:
    def lose(repo: CachedRepo) -> None:
        for name in repo.revisions[repo.latest]:
            change(repo, repo.pointer(name))

    return lose


def _becomes_text(repo: CachedRepo, pointer: Path) -> None:
    target = os.readlink(pointer)
    pointer.unlink()
    pointer.write_text(target)


def _becomes_text_of_windows(repo: CachedRepo, pointer: Path) -> None:
    target = os.readlink(pointer).replace("/", "\\")
    pointer.unlink()
    pointer.write_text(target)


def _becomes_empty(repo: CachedRepo, pointer: Path) -> None:
    pointer.unlink()
    pointer.touch()


def _leads_to_the_old_place(repo: CachedRepo, pointer: Path) -> None:
    blob = os.path.basename(os.readlink(pointer))
    pointer.unlink()
    pointer.symlink_to(Path("/old/place/hub", repo.folder.name, "blobs", blob))


def _leads_to_a_copy_elsewhere(repo: CachedRepo, pointer: Path) -> None:
    elsewhere = repo.cache.root.parent / "old"
    elsewhere.mkdir(exist_ok=True)
    blob = pointer.resolve()
    (elsewhere / blob.name).write_bytes(blob.read_bytes())
    pointer.unlink()
    pointer.symlink_to(elsewhere / blob.name)


def _loses_its_folders(repo: CachedRepo) -> None:
    repo.missing_snapshots()
    repo.snapshots.mkdir()


LOST_LINKS: dict[str, tuple[Callable[[CachedRepo], object], bool]] = {
    "no snapshots": (lambda repo: repo.missing_snapshots(), False),
    "no snapshots next to an old partial": (
        lambda repo: (repo.missing_snapshots(), repo.partial(age=7200)),
        False,
    ),
    "no snapshot of the commit": (_loses_its_folders, False),
    "an empty snapshot": (lambda repo: repo.empty_snapshot(repo.latest), False),
    "one link is missing": (lambda repo: repo.pointer(WEIGHTS).unlink(), False),
    "empty files": (_each_link(_becomes_empty), False),
    "text files": (_each_link(_becomes_text), True),
    "text files from Windows": (_each_link(_becomes_text_of_windows), True),
    "links to the old place": (_each_link(_leads_to_the_old_place), True),
    "links to a copy elsewhere": (_each_link(_leads_to_a_copy_elsewhere), True),
}
"""How the links of a cache get lost while every blob is good, and whether what is left of a link
says which blob it meant."""

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
"""What `status` sees and `pull` repairs -> how it is done, and the bytes that a repair fetches."""

SEEN_IN_A_SNAPSHOT: dict[str, Damage] = {
    "ref to a missing commit": (lambda repo: repo.ref_to_missing_commit(), 0),
    "empty snapshot": (lambda repo: repo.empty_snapshot(repo.latest), 0),
    "snapshot that is a link": (_snapshot_that_is_a_link, 0),
}
"""What else `pull` repairs, since it knows which revision is wanted."""

SEEN_BY_HASHING: dict[str, Damage] = {
    "flipped bit": (lambda repo: repo.flipped_bit(WEIGHTS), SIZE),
    "flipped bit in a small file": (lambda repo: repo.flipped_bit("config.json"), 19),
    "wrong link": (_wrong_link, 0),
    "broken link of an unlisted file": (_broken_link_that_the_hub_does_not_list, 0),
    "listing that cannot be read": (lambda repo: repo.bad_tree("{"), 0),
    "missing link": (lambda repo: repo.pointer(WEIGHTS).unlink(), 0),
}
"""What only `verify` sees and repairs."""
