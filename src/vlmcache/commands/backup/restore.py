"""`restore`: models from one tar stream or from a store."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import IO, NamedTuple

from vlmcache.cache import layout
from vlmcache.cache.case import paths_of, refuse_clash
from vlmcache.cache.hashing import BLOCK, Check, hash_all
from vlmcache.cache.scan import scan
from vlmcache.cache.tree import CacheTree
from vlmcache.change import place as change_place
from vlmcache.change.abilities import Needs, check_filesystem
from vlmcache.change.plan import Action, Kept, Outcome, Plan, Receipt, Restore, WriteRef
from vlmcache.change.space import FreeSpace
from vlmcache.change.trash_room import empty_for, expire
from vlmcache.change.tree import Tree
from vlmcache.commands.backup import places, tar
from vlmcache.commands.backup.arrivals import Arrivals
from vlmcache.commands.backup.contents import SavedBlob, SavedRepo, files_of, narrowed, select_repos
from vlmcache.commands.backup.nearby import backups_near
from vlmcache.commands.backup.remote import open_place, reading_stream
from vlmcache.commands.backup.store import Store, blob_name
from vlmcache.commands.backup.tarred import TarContents
from vlmcache.commands.backup.values import (
    STREAM,
    Amount,
    BackupError,
    Form,
    Restored,
    RestoreOptions,
)
from vlmcache.config import Config, Session
from vlmcache.errors import UsageError
from vlmcache.progress import FileOf, Progress, StopToken, continued_by, files_shown
from vlmcache.threads import each

_REF_LIMIT = 4096
_WORKERS = 4
"""How many contents of a tar that is not compressed are read at once."""


def restore(
    session: Session,
    source: str,
    names: Sequence[str] = (),
    options: RestoreOptions | None = None,
    progress: Progress | None = None,
) -> Restored:
    """Restore a backup into the cache. Every byte is compared with its hash before it counts.

    Good blobs that are in the cache already are skipped, so that an interrupted restore continues;
    from a store, it continues within a blob too. Refs come last; one that names another commit in
    the cache stays unless `overwrite`. Damage to one repo of a store does not keep the others from
    being restored.

    Args:
        session: the hub cache, and the configuration whose keys count.
        source: a store or a tar stream, as for `backup`, or `-` for stdin. The first bytes of a
            stream show how it is compressed.
        names: keys, repo ids with `@revision` or without, `datasets/owner/name`; all if none.
        options: whether to overwrite refs, and whether only to plan.
        progress: shows the progress.

    Raises:
        CacheError: names in it differ only by case, and the cache's filesystem ignores that.
        BackupError: it is not a backup, or a damaged or hostile one. Blobs that were complete
            before stay; no ref leads to anything that is missing.
        PlaceError: the source cannot be reached or read.
        SpaceError: the disk has too little room.
        UnknownModelError: nothing of that name is in the backup.
        UsageError: the source makes no sense.
    """
    begun = time.monotonic()
    options, progress = options or RestoreOptions(), progress or Progress()
    overwrite = ["--overwrite"] if options.overwrite else []
    again = session.command("restore", places.without_password(source), *names, *overwrite)
    with (
        continued_by(progress, f"'{again}' continues from here"),
        _named(source),
        _opened(source, session.config, names) as saved,
    ):
        refuse_clash(
            itertools.chain.from_iterable(
                paths_of(repo.folder, repo.snapshots, repo.refs) for repo in saved.repos
            ),
            session.cache.dir,
        )
        plan = _plan(session.cache.dir, saved.repos, overwrite=options.overwrite)
        check_filesystem(session.cache.dir, _needs(saved.repos))
        receipt = None
        if not options.dry_run:
            expire(session)
            empty_for(session, session.cache.dir, plan.needs)
            change_place.check_room(
                session.cache.dir, plan.needs, "'vlmcache status' shows what makes room"
            )
            space = FreeSpace(session.cache.dir)
            receipt = space.measured(Restorer(session.cache.dir, saved, plan, progress).run())
    actions = [action for action in plan.actions if isinstance(action, Restore)]
    blobs = [blob for repo in saved.repos for blob in repo.blobs.values()]
    size = sum(blob.size for blob in blobs)
    return Restored(
        places.without_password(source),
        tuple(repo.name for repo in saved.repos),
        len(blobs),
        size,
        Amount(len(blobs) - len(actions), size - plan.needs),
        plan,
        receipt,
        time.monotonic() - begun,
        session.cache.dir,
        saved.form,
    )


# Restoring.


class OpenBackup(NamedTuple):
    """A backup that is open for reading (a reader, a store or a plain tar), and what to restore."""

    repos: list[SavedRepo]
    reader: tar.Reader | None = None
    store: Store | None = None
    plain: TarContents | None = None
    """A hub cache packed by tar itself."""

    @property
    def form(self) -> Form:
        """The kind of backup."""
        tarred = self.reader or self.plain
        return "store" if tarred is None else tarred.form


@contextlib.contextmanager
def _named(source: str) -> Iterator[None]:
    """Let what is wrong with a backup name the backup, and what to do about it."""
    try:
        yield
    except BackupError as error:
        name = "stdin" if source == STREAM else places.without_password(source)
        message = error.message if name in error.message else f"{error.message}: {name}"
        hint = error.hint or "copy it again, or make a new one with 'vlmcache backup'"
        raise error.saying(message, hint) from error


@contextlib.contextmanager
def _opened(source: str, config: Config, names: Sequence[str]) -> Iterator[OpenBackup]:
    if source != STREAM and places.is_store(source):
        path = places.local_path(source)
        if path is not None and not os.path.isdir(path):
            raise UsageError(f"no such folder: {path}", backups_near(path))
        store = Store(open_place(source), StopToken())
        store.check()
        selection = select_repos(store.folders(), config, names)
        repos = [narrowed(repo, selection[repo.folder]) for repo in store.repos(selection)]
        yield OpenBackup(repos, store=store)
        return
    with contextlib.ExitStack() as stack:
        reader: tar.Reader | None = None
        plain: TarContents | None = None
        try:
            file = stack.enter_context(reading_stream(source))
            reader = stack.enter_context(contextlib.closing(tar.Reader(file)))
        except BackupError as error:
            if not error.foreign:
                raise
            if source == STREAM:
                raise BackupError(
                    f"{error.message}; a hub cache packed by tar cannot be read from stdin",
                    "name the file itself",
                ) from error
            plain = stack.enter_context(contextlib.closing(TarContents(source)))
        saved = reader.manifest.repos if reader is not None else plain.repos if plain else ()
        by_folder = {repo.folder: repo for repo in saved}
        selection = select_repos(by_folder, config, names)
        # In the manifest's order.
        repos = [narrowed(repo, selection[f]) for f, repo in by_folder.items() if f in selection]
        yield OpenBackup(repos, reader, plain=plain)


def _plan(cache_dir: str, repos: Iterable[SavedRepo], *, overwrite: bool) -> Plan:
    actions: list[Action] = []
    kept: list[Kept] = []
    cached = {repo.folder: repo for repo in scan(cache_dir).repos}
    tree = Tree(cache_dir)
    for repo in repos:
        folder = os.path.join(cache_dir, repo.folder)
        arrivals = Arrivals(tree, repo, StopToken(), Progress())
        paths = {arrivals.content(name): name for name in repo.blobs}
        actions += (
            Restore(repo.id, arrivals.path(paths[path]), blob.hash, blob.size, reason)
            for path, (blob, reason) in _reasons(
                tree, {path: repo.blobs[name] for path, name in paths.items()}
            ).items()
        )
        known = cached[repo.folder].refs if repo.folder in cached else {}
        for ref, commit in repo.refs.items():
            path = layout.ref_path(folder, ref)
            old = known.get(ref)
            if old is not None and old != commit and not overwrite:
                kept.append(Kept(path, repo.id, f"{ref} names another commit here ({old[:12]})"))
            else:
                reason = "new" if old is None else "the same" if old == commit else f"was {old}"
                actions.append(WriteRef(repo.id, ref, path, commit, reason))
    needs = sum(action.size for action in actions if isinstance(action, Restore))
    return Plan(tuple(actions), needs=needs, kept=tuple(kept))


def _needs(repos: Iterable[SavedRepo]) -> Needs:
    """Return the names and the largest size that the cache's filesystem must allow."""
    repos = list(repos)
    names = [
        f"{repo.folder}/{layout.SNAPSHOTS}/{commit}/{file}"
        for repo in repos
        for commit, files in repo.snapshots.items()
        for file in files
    ]
    names += (f"{repo.folder}/{layout.REFS}/{ref}" for repo in repos for ref in repo.refs)
    sizes = (blob.size for repo in repos for blob in repo.blobs.values())
    return Needs(names, max(sizes, default=0))


def _reasons(tree: CacheTree, paths: Mapping[str, SavedBlob]) -> dict[str, tuple[SavedBlob, str]]:
    """Return path -> blob and why it has to be restored; good blobs are left out."""
    sizes = {path: change_place.file_size(path) for path in paths}
    checks = [Check(path, blob.hash) for path, blob in paths.items() if sizes[path] == blob.size]
    answers = hash_all(checks, opener=tree.open_content)
    good = {judged.check.path for judged in answers if judged.good}
    return {
        path: (blob, "missing" if sizes[path] is None else "damaged")
        for path, blob in paths.items()
        if path not in good
    }


class _Slot(NamedTuple):
    """A place for a content: a blob of a repo."""

    arrivals: Arrivals
    name: str

    @property
    def path(self) -> str:
        return self.arrivals.path(self.name)

    @property
    def blob(self) -> SavedBlob:
        return self.arrivals.repo.blobs[self.name]


class Restorer:
    """Carries out the plan of a restore."""

    def __init__(self, cache_dir: str, saved: OpenBackup, plan: Plan, progress: Progress) -> None:
        self.cache_dir = cache_dir
        self.tree = Tree(cache_dir)
        self.saved = saved
        self.plan = plan
        self.progress = progress
        self.stop_token = saved.store.stop_token if saved.store is not None else StopToken()
        self.wanted = {
            action.path: action for action in plan.actions if isinstance(action, Restore)
        }
        self.arrivals = [
            Arrivals(self.tree, repo, self.stop_token, progress) for repo in saved.repos
        ]
        self.refs_before = {
            action.path: _ref_now(self.tree, action.path)
            for action in plan.actions
            if isinstance(action, WriteRef)
        }
        self.taken: dict[str, int] = {}
        self.failed: dict[str, BackupError] = {}
        self.outcomes: list[Outcome] = []

    def run(self) -> Receipt:
        """Restore all; blobs that are damaged in a store are failures in the receipt.

        Raises:
            VlmcacheError: the backup or the disk fails.
        """
        files: dict[str, FileOf] = {}
        for arrivals in self.arrivals:
            paths = {name: arrivals.path(name) for name in arrivals.repo.blobs}
            wanted = {name: path for name, path in paths.items() if path in self.wanted}
            files |= files_of(arrivals.repo, wanted)
        try:
            with files_shown(self.progress, "restored", files) as moved:
                if self.saved.reader is not None:
                    self._from_stream(self.saved.reader, moved)
                elif self.saved.plain is not None:
                    self._from_plain(self.saved.plain, moved)
                elif self.saved.store is not None:
                    store = self.saved.store
                    source = partial(_blocks_of_store, store, store.blobs())
                    self._from_contents(source, store.place.workers, moved, lambda _: 0)
        except OSError as error:
            raise change_place.disk_failure(error, self.cache_dir) from error
        return Receipt(tuple(self.outcomes), fetched=sum(self.taken.values()))

    def _from_stream(self, reader: tar.Reader, moved: Callable[[str, int], None]) -> None:
        by_folder = {arrivals.repo.folder: arrivals for arrivals in self.arrivals}
        for repo in reader.manifest.repos:
            arrivals = by_folder.get(repo.folder)
            wanted = frozenset(
                name for name in repo.blobs if arrivals and arrivals.path(name) in self.wanted
            )
            taken = reader.restore(repo, arrivals, wanted, moved)
            if arrivals is not None:
                self.taken |= {arrivals.path(name): count for name, count in taken.items()}
                self._finish(arrivals)

    def _from_plain(self, plain: TarContents, moved: Callable[[str, int], None]) -> None:
        def source(blob: SavedBlob, start: int) -> Iterator[bytes]:
            with plain.open(blob.hash, start) as blocks:
                yield from blocks

        def order(blob_hash: str) -> int:
            # A compressed tar is read once, in its own order.
            return plain.where[blob_hash].number if plain.streamed else 0

        self._from_contents(source, 1 if plain.streamed else _WORKERS, moved, order)

    def _from_contents(
        self,
        source: Callable[[SavedBlob, int], Iterator[bytes]],
        workers: int,
        moved: Callable[[str, int], None],
        order: Callable[[str], int],
    ) -> None:
        """Restore contents that can be read in any order, by their hashes.

        Args:
            source: returns a content from an offset on.
            workers: how many are read at once.
            moved: is called with blob paths and how many of their bytes are there.
            order: returns the sort key of a content's hash, which comes before its length.
        """
        slots: dict[str, list[_Slot]] = {}
        for arrivals in self.arrivals:
            arrivals.prepare()
            for name, blob in arrivals.repo.blobs.items():
                slots.setdefault(blob.hash, []).append(_Slot(arrivals, name))
        longest_first = sorted(
            slots.values(), key=lambda same: (order(same[0].blob.hash), -same[0].blob.size)
        )
        each(longest_first, partial(self._fetch, source, moved), workers, self.stop_token)
        for arrivals in self.arrivals:
            self._finish(arrivals)

    def _fetch(
        self,
        stored: Callable[[SavedBlob, int], Iterator[bytes]],
        moved: Callable[[str, int], None],
        slots: list[_Slot],
    ) -> None:
        """Put one content into all of its slots; it is transferred once."""
        copy: str | None = None
        # Slots that have it already come first, so that the others are copied from them.
        for slot in sorted(slots, key=lambda slot: slot.path in self.wanted):
            source = partial(stored, slot.blob)
            if copy is not None:
                source = partial(_blocks_of_file, self.tree, copy)
            try:
                taken = slot.arrivals.fetch(
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
                copy = copy or slot.arrivals.content(slot.name)

    def _finish(self, arrivals: Arrivals) -> None:
        """Write the refs of a repo, if all its blobs are there, and record the outcomes."""
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
        refs = layout.ref_path(os.path.join(self.cache_dir, arrivals.repo.folder), "")
        for action in self.plan.actions:
            if not isinstance(action, WriteRef) or not action.path.startswith(refs):
                continue
            outcome = Outcome("write-ref", action.path, "done")
            if _ref_now(self.tree, action.path) in (
                self.refs_before.get(action.path),
                action.commit,
            ):
                change_place.write_ref(*self.tree.home(action.path), action.commit)
            else:
                detail = f"it names another commit now, and stays: {action.path}"
                outcome = Outcome("write-ref", action.path, "stale", detail=detail)
            self.outcomes.append(outcome)


def _ref_now(tree: CacheTree, path: str) -> str | None:
    """Return the content of a ref; `None` if it cannot be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return tree.read(path, _REF_LIMIT).decode().strip()
    return None


def _blocks_of_file(tree: CacheTree, path: str, start: int) -> Iterator[bytes]:
    with os.fdopen(tree.open_content(path), "rb", buffering=0) as file:
        yield from _blocks(file, start)


def _blocks_of_store(
    store: Store, sizes: Mapping[str, int], blob: SavedBlob, start: int
) -> Iterator[bytes]:
    name = blob_name(blob.hash)
    if sizes.get(blob.hash) != blob.size:
        problem = "has the wrong length" if blob.hash in sizes else "is missing"
        raise BackupError(f"the store is damaged: {name} {problem}: {store.place.shown}")
    with store.place.reading(name, blob.size) as file:
        yield from _blocks(file, start)


def _blocks(file: IO[bytes], start: int) -> Iterator[bytes]:
    file.seek(start)
    yield from iter(partial(file.read, BLOCK), b"")
