"""`restore`: models from one tar stream or from a store."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import IO, NamedTuple

from vlmcache.cache import layout
from vlmcache.cache.hashing import BLOCK, Check, hash_all
from vlmcache.cache.reading import open_quietly, read_bytes
from vlmcache.cache.scan import scan
from vlmcache.change import place as change_place
from vlmcache.change.plan import Action, Kept, Outcome, Plan, Receipt, Restore, WriteRef
from vlmcache.commands.backup import places, tar
from vlmcache.commands.backup.arrivals import Arrivals
from vlmcache.commands.backup.contents import SavedBlob, SavedRepo, narrowed, wishes
from vlmcache.commands.backup.store import Store, blob_name
from vlmcache.commands.backup.transfer import MAKE_ROOM, names_of, telling
from vlmcache.commands.backup.values import STREAM, Amount, BackupError, Restored
from vlmcache.config import CacheLocation, Config
from vlmcache.errors import UsageError
from vlmcache.progress import Pace, Watcher
from vlmcache.threads import each

_REF_LIMIT = 4096


def restore(
    config: Config,
    location: CacheLocation,
    source: str,
    names: Sequence[str] = (),
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    watcher: Watcher | None = None,
) -> Restored:
    """Bring a backup back into the cache, every byte compared with its hash before it counts.

    Blobs that are there and right are skipped, so that an interrupted restore goes on; from a store
    within a blob too. Refs come last; one that names another commit here stays unless `overwrite`.
    What a store has damaged of one repo does not keep the others: see `problem`.

    Args:
        config: its limits and keys count.
        location: the hub cache.
        source: a store or a tar stream, as of `backup`, or `-` for stdin.
        names: keys, repo ids with `@revision` or without, `datasets/owner/name`; all if none.
        overwrite: let refs of the backup take the place of others.
        dry_run: only plan.
        watcher: is told of the progress.

    Raises:
        BackupError: it is no backup, or a damaged or hostile one. Blobs that were whole before that
            came to light stay; no ref leads to anything that is not there.
        PlaceError: the source cannot be reached or read.
        SpaceError: the disk has too little room.
        UnknownModelError: nothing of that name is in the backup.
        UsageError: the source makes no sense.
    """
    begun = time.monotonic()
    watcher = watcher or Watcher()
    with _opened(source, config, names) as saved:
        plan = _plan(location.dir, saved.repos, overwrite=overwrite)
        receipt = None
        if not dry_run:
            change_place.check_room(location.dir, plan.needs, MAKE_ROOM)
            receipt = _Restoring(location.dir, saved, plan, watcher).run()
    actions = [action for action in plan.actions if isinstance(action, Restore)]
    blobs = [blob for repo in saved.repos for blob in repo.blobs.values()]
    size = sum(blob.size for blob in blobs)
    return Restored(
        places.without_password(source),
        tuple(repo.id for repo in saved.repos),
        len(blobs),
        size,
        Amount(len(blobs) - len(actions), size - plan.needs),
        plan,
        receipt,
        time.monotonic() - begun,
        location.dir,
    )


# Restoring.


class _Saved(NamedTuple):
    """What of a backup is asked for, and the backup itself: one of the two."""

    repos: list[SavedRepo]
    reader: tar.Reader | None = None
    store: Store | None = None


@contextlib.contextmanager
def _opened(source: str, config: Config, names: Sequence[str]) -> Iterator[_Saved]:
    if source != STREAM and places.is_store(source):
        path = places.local_path(source)
        if path is not None and not os.path.isdir(path):
            raise UsageError(f"no such folder: {path}")
        store = Store(places.open_place(source), Pace())
        store.check()
        wanted = wishes(store.folders(), config, names)
        repos = [narrowed(repo, wanted[repo.folder]) for repo in store.repos(wanted)]
        yield _Saved(repos, store=store)
        return
    with _reading(source) as file, contextlib.closing(tar.Reader(file)) as reader:
        held = {repo.folder: repo for repo in reader.manifest.repos}
        wanted = wishes(held, config, names)
        # In the manifest's order.
        repos = [narrowed(repo, wanted[f]) for f, repo in held.items() if f in wanted]
        yield _Saved(repos, reader=reader)


@contextlib.contextmanager
def _reading(source: str) -> Iterator[IO[bytes]]:
    if source == STREAM:
        yield sys.stdin.buffer
        return
    path = places.local_path(source)
    if path is None:
        folder, name = places.split(source)
        place = places.Remote(folder)
        with place.reading(name, place.size(name)) as remote:
            yield remote
        return
    try:
        opened = open(path, "rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"cannot be read: {source}: {error.strerror}") from error
    with opened:
        yield opened


def _plan(cache_dir: str, repos: Iterable[SavedRepo], *, overwrite: bool) -> Plan:
    actions: list[Action] = []
    kept: list[Kept] = []
    needs = 0
    held = {repo.folder: repo for repo in scan(cache_dir).repos}
    for repo in repos:
        folder = os.path.join(cache_dir, repo.folder)
        reasons = _reasons(os.path.join(folder, layout.BLOBS), repo.blobs)
        for path, (blob, reason) in reasons.items():
            actions.append(Restore(repo.id, path, blob.hash, blob.size, reason))
            needs += blob.size
        known = held[repo.folder].refs if repo.folder in held else {}
        for ref, commit in repo.refs.items():
            path = layout.ref_path(folder, ref)
            old = known.get(ref)
            if old is not None and old != commit and not overwrite:
                kept.append(Kept(path, repo.id, f"{ref} names another commit here ({old[:12]})"))
            else:
                reason = "new" if old is None else "the same" if old == commit else f"was {old}"
                actions.append(WriteRef(repo.id, ref, path, commit, reason))
    return Plan(tuple(actions), needs=needs, kept=tuple(kept))


def _reasons(folder: str, blobs: Mapping[str, SavedBlob]) -> dict[str, tuple[SavedBlob, str]]:
    """Return path -> blob and why it has to be restored, of those that are not there and right."""
    paths = {os.path.join(folder, name): blob for name, blob in blobs.items()}
    sizes = {path: change_place.file_size(path) for path in paths}
    checks = [Check(path, blob.hash) for path, blob in paths.items() if sizes[path] == blob.size]
    right = {judged.check.path for judged in hash_all(checks) if judged.good}
    return {
        path: (blob, "missing" if sizes[path] is None else "damaged")
        for path, blob in paths.items()
        if path not in right
    }


class _Slot(NamedTuple):
    """A blob of a repo."""

    arrivals: Arrivals
    name: str

    @property
    def path(self) -> str:
        return self.arrivals.path(self.name)

    @property
    def blob(self) -> SavedBlob:
        return self.arrivals.repo.blobs[self.name]


class _Restoring:
    """A plan of a restore, carried out."""

    def __init__(self, cache_dir: str, saved: _Saved, plan: Plan, watcher: Watcher) -> None:
        self.cache_dir = cache_dir
        self.saved = saved
        self.plan = plan
        self.watcher = watcher
        self.pace = saved.store.pace if saved.store is not None else Pace()
        self.wanted = {one.path: one for one in plan.actions if isinstance(one, Restore)}
        self.arrivals = [Arrivals(cache_dir, repo, self.pace, watcher.note) for repo in saved.repos]
        self.refs_before = {
            action.path: _ref_now(action.path)
            for action in plan.actions
            if isinstance(action, WriteRef)
        }
        self.taken: dict[str, int] = {}
        self.failed: dict[str, BackupError] = {}
        self.outcomes: list[Outcome] = []

    def run(self) -> Receipt:
        """Restore all; blobs that a store has damaged are told of in the receipt.

        Raises:
            VlmcacheError: the backup or the disk fails.
        """
        sizes = {path: action.size for path, action in self.wanted.items()}
        names: dict[str, str] = {}
        for one in self.arrivals:
            names |= names_of(one.repo, one.path)
        try:
            with telling(self.watcher, "restore", sizes, names) as moved:
                if self.saved.reader is not None:
                    self._from_stream(self.saved.reader, moved)
                elif self.saved.store is not None:
                    self._from_store(self.saved.store, moved)
        except OSError as error:
            raise change_place.disk_failure(error, self.cache_dir) from error
        return Receipt(tuple(self.outcomes), fetched=sum(self.taken.values()))

    def _from_stream(self, reader: tar.Reader, moved: Callable[[str, int], None]) -> None:
        arrivals = {one.repo.folder: one for one in self.arrivals}
        for repo in reader.manifest.repos:
            one = arrivals.get(repo.folder)
            wanted = frozenset(name for name in repo.blobs if one and one.path(name) in self.wanted)
            taken = reader.restore(repo, one, wanted, moved)
            if one is not None:
                self.taken |= {one.path(name): count for name, count in taken.items()}
                self._finish(one)

    def _from_store(self, store: Store, moved: Callable[[str, int], None]) -> None:
        slots: dict[str, list[_Slot]] = {}
        for one in self.arrivals:
            one.prepare()
            for name, blob in one.repo.blobs.items():
                slots.setdefault(blob.hash, []).append(_Slot(one, name))
        sizes = store.blobs()
        longest_first = sorted(slots.values(), key=lambda same: -same[0].blob.size)
        each(
            longest_first,
            lambda same: self._bring(store, sizes, same, moved),
            store.place.workers,
            self.pace,
        )
        for one in self.arrivals:
            self._finish(one)

    def _bring(
        self,
        store: Store,
        sizes: Mapping[str, int],
        same: list[_Slot],
        moved: Callable[[str, int], None],
    ) -> None:
        """Let one content be wherever it belongs; it travels once."""
        copy: str | None = None
        # What is there already comes first, so that the others are copied from it.
        for slot in sorted(same, key=lambda slot: slot.path in self.wanted):
            if copy is not None:
                source = partial(_from_file, copy)
            else:
                source = partial(_from_store, store, sizes, slot.blob)
            try:
                taken = slot.arrivals.bring(
                    slot.name,
                    source,
                    partial(moved, slot.path),
                    distrusted=slot.path in self.wanted,
                    resumed=True,
                )
            except BackupError as error:
                self.failed[slot.path] = error
            else:
                self.taken[slot.path] = taken if copy is None else 0
                copy = copy or slot.path

    def _finish(self, arrivals: Arrivals) -> None:
        """Write the refs of a repo, if all its blobs are there, and say what was done."""
        paths = [arrivals.path(name) for name in arrivals.repo.blobs]
        for path in paths:
            error = self.failed.get(path)
            if error is not None:
                self.outcomes.append(Outcome("restore", path, "failed", detail=error.message))
            elif path in self.wanted:
                fetched = self.taken[path]
                self.outcomes.append(Outcome("restore", path, "done", fetched=fetched))
        if any(path in self.failed for path in paths):
            return
        refs = os.path.join(self.cache_dir, arrivals.repo.folder, layout.REFS) + os.sep
        for action in self.plan.actions:
            if not isinstance(action, WriteRef) or not action.path.startswith(refs):
                continue
            now = _ref_now(action.path)
            if now not in (self.refs_before.get(action.path), action.commit):
                detail = f"it names another commit by now, and stays: {action.path}"
                self.outcomes.append(Outcome("write-ref", action.path, "stale", detail=detail))
                continue
            change_place.write_ref(action.path, action.commit)
            self.outcomes.append(Outcome("write-ref", action.path, "done"))


def _ref_now(path: str) -> str | None:
    """Return what a ref holds now; `None` if it cannot be read."""
    try:
        return read_bytes(path, _REF_LIMIT).decode().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _from_file(path: str, start: int) -> Iterator[bytes]:
    with open(open_quietly(path), "rb", buffering=0) as file:
        file.seek(start)
        while block := file.read(BLOCK):
            yield block


def _from_store(
    store: Store, sizes: Mapping[str, int], blob: SavedBlob, start: int
) -> Iterator[bytes]:
    name = blob_name(blob.hash)
    if sizes.get(blob.hash) != blob.size:
        what = "has a wrong length of" if blob.hash in sizes else "lacks"
        raise BackupError(f"the store {what} {name}: {store.place.shown}")
    with store.place.reading(name, blob.size) as file:
        file.seek(start)
        while block := file.read(BLOCK):
            yield block
