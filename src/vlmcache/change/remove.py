"""From a plan to a receipt: the only code that removes anything, and it says what the disk says.

Folders are entered one by one from the cache's root and links among them are never followed, so
that a folder that was swapped for a link cannot lead outside. Whole folders are renamed into
`.vlmcache-leftovers/<unique>/<repo folder>/…` first, where nothing finds them, and unlinked last.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat as modes
import sys
from collections.abc import Collection, Iterator
from typing import Literal, TypeAlias

from vlmcache.cache import layout
from vlmcache.cache.entries import allocated_bytes
from vlmcache.cache.reading import read_bytes
from vlmcache.cache.scan_repo import scan_repo
from vlmcache.cache.state import Repo
from vlmcache.cache.usage import lock_held
from vlmcache.change.locks import TakenError, hold_lock
from vlmcache.change.plan import (
    Expected,
    Outcome,
    Plan,
    Receipt,
    ReleaseShared,
    Remove,
    RemoveTree,
    stamp,
    sum_stamp,
)
from vlmcache.change.shared_store import links_into_store

Result: TypeAlias = Literal["done", "absent", "stale", "busy", "failed"]
Removing: TypeAlias = Remove | RemoveTree | ReleaseShared

_BATCH = 100
"""Locks held at once, each an open file."""
_HOIST_AT = 40
"""Folders deep at which a folder is moved up, so that no depth exhausts descriptors."""
_ROUNDS = 100
"""How often deep folders are moved up; more only where a process keeps making new ones."""
_MANIFEST_LIMIT = 64_000_000
_SHARED_LOCK_SECONDS = 5.0
_PROBE_SECONDS = 0.2
"""Seconds to wait for a lock: whoever only looks whether it is held lets go of it at once."""
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
_LOCKS_STAY_OPEN = sys.platform == "win32"
"""Whether a lock cannot be unlinked while it is held, which keeps others from taking it."""
_BY_DESCRIPTOR = os.open in os.supports_dir_fd and os.unlink in os.supports_dir_fd


class _ChangedError(Exception):
    """What is there is not what the plan expects."""


def execute(
    plan: Plan, cache_dir: str, *, in_use: Collection[tuple[int, int]] = (), force: bool = False
) -> Receipt:
    """Carry a plan of removals out, as far as the system lets, and return what became of it.

    Args:
        plan: what to remove; actions that are no removals are not for this function.
        cache_dir: the hub cache that the plan was made for.
        in_use: (device, inode) of files that processes use; what holds one stays.
        force: remove in spite of locks and uses.
    """
    return _Run(cache_dir, frozenset(in_use), force=force).run(plan)


class _Run:
    def __init__(self, cache_dir: str, in_use: frozenset[tuple[int, int]], *, force: bool) -> None:
        self.root = os.path.abspath(cache_dir)
        self.in_use = in_use
        self.force = force
        self.token = secrets.token_hex(6)
        self.made: list[str] = []
        self.links: dict[str, set[str]] = {}
        self.held: dict[tuple[str, str | None], tuple[Result, str]] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.renamed: list[tuple[int, str]] = []
        self.freed: dict[int, int] = {}
        self.finished = False
        """Whether all actions had their turn; not so after an interruption."""

    def run(self, plan: Plan) -> Receipt:
        actions = [a for a in plan.actions if isinstance(a, Remove | RemoveTree | ReleaseShared)]
        numbered = list(enumerate(actions))
        self._hold_back_changed(numbered)
        try:
            for number, action in numbered:
                if number not in self.outcomes and _step(action) == "first":
                    self._attempt_first(number, action)
            self._remove_blobs(
                [
                    (number, action)
                    for number, action in numbered
                    if isinstance(action, Remove) and _step(action) == "blob"
                ]
            )
            self._release([one for one in numbered if _step(one[1]) == "shared"])
            for number, action in numbered:
                if _step(action) == "lock":
                    self._attempt(number, action)
            self.finished = True
        finally:
            self._empty_leftovers()
            left, failures = self._remove_made()
        for number, action in numbered:
            if _step(action) == "leftover":
                self._attempt(number, action)
        outcomes = (*(self.outcomes[number] for number, _ in numbered), *failures)
        # Folders of our own that could not be removed count, but nothing was freed is 0, not less.
        return Receipt(outcomes, max(0, sum(outcome.freed for outcome in outcomes) - left))

    # What became of an action.

    def _note(
        self, number: int, action: Removing, result: Result, detail: str | None = None
    ) -> None:
        freed = self.freed.get(number, 0)
        name = str(action.__struct_config__.tag)
        self.outcomes[number] = Outcome(name, action.path, result, freed, detail=detail)

    def _add_freed(self, number: int, count: int) -> None:
        self.freed[number] = self.freed.get(number, 0) + count

    def _attempt_first(self, number: int, action: Removing) -> None:
        """Attempt it, but leave what the hub remembers of a snapshot that could not be removed."""
        if isinstance(action, ReleaseShared) or action.commit is None:
            self._attempt(number, action)
            return
        key = _folder_of(self.root, action.path), action.commit
        if action.kind in ("tree", "no-exist") and key in self.held:
            self._note(number, action, *self.held[key])
            return
        self._attempt(number, action)
        outcome = self.outcomes[number]
        if action.kind in ("snapshot", "link") and outcome.result not in ("done", "absent"):
            self.held[key] = outcome.result, outcome.detail or f"{action.path} stays"

    def _attempt(self, number: int, action: Removing) -> None:
        try:
            result = self._do(number, action)
        except _ChangedError as error:
            self._note(number, action, "stale", str(error))
        except TakenError as error:
            self._note(number, action, "busy", str(error))
        except FileNotFoundError:
            self._note(number, action, "absent")
        except OSError as error:
            self._note(number, action, "failed", _words(error, action.path))
        else:
            self._note(number, action, result)

    def _do(self, number: int, action: Removing) -> Result:
        if isinstance(action, ReleaseShared):
            return self._release_one(number, action)
        if isinstance(action, Remove):
            if action.kind == "lock":
                held = self._hub_lock(action.path)
                self._unlink_lock(number, action.path, action.expected, held)
            elif action.kind == "folder":
                self._remove_folder(number, action.path)
            elif action.kind == "ref" or (action.kind == "blob" and os.path.islink(action.path)):
                # Set aside and not unlinked: it tells a second run what a killed one was at.
                self._set_aside(number, action.path, action.expected, whole=False)
            else:
                self._unlink(number, action.path, action.expected)
            return "done"
        if action.kind in ("leftover", "side-cache"):
            own = action.kind == "leftover"
            self._empty_in_place(number, action.path, None if own else action.expected)
        elif action.kind == "locks":
            self._remove_lock_folder(number, action.path)
        else:
            if action.kind != "snapshot":  # of these there can be many, and they were just seen
                self._check_content(action, {})
            if action.at_once:
                self._exchange(number, action)
            else:
                self._set_aside(number, action.path, action.expected, whole=action.kind == "repo")
        return "done"

    # Checks.

    def _hold_back_changed(self, numbered: list[tuple[int, Removing]]) -> None:
        """Find what changed or is in use before anything is touched.

        A revision's ref, snapshot and listing go together or not at all.
        """
        seen: dict[str, Repo | None] = {}
        for _, action in numbered:
            if not isinstance(action, RemoveTree) or action.kind not in ("repo", "snapshot"):
                continue
            key = _folder_of(self.root, action.path), action.commit
            try:
                with self._parent(action.path) as (name, folder):
                    _compare(os.stat(name, dir_fd=folder, follow_symlinks=False), action.expected)
                self._check_content(action, seen)
            except FileNotFoundError:
                continue
            except TakenError as error:
                self.held[key] = "busy", str(error)
            except _ChangedError as error:
                self.held[key] = "stale", str(error)
            except OSError as error:
                self.held[key] = "failed", _words(error, action.path)
        for number, action in numbered:
            if isinstance(action, ReleaseShared):
                continue
            key = _folder_of(self.root, action.path), action.commit
            whole = isinstance(action, RemoveTree) and action.kind == "repo"
            if key in self.held and (whole or action.commit is not None):
                self._note(number, action, *self.held[key])

    def _is_inside(self, path: str) -> bool:
        return path.startswith(self.root + os.sep)

    def _check_content(self, action: RemoveTree, seen: dict[str, Repo | None]) -> None:
        """Compare what a folder holds with what it held when the plan was made.

        Args:
            action: the folder and what was expected.
            seen: repos that were looked at already, by their folders; added to.
        """
        if action.kind in ("repo", "snapshot"):
            folder = _folder_of(self.root, action.path)
            if folder not in seen:
                seen[folder] = scan_repo(self.root, folder)
            repo = seen[folder]
            commit = action.commit if action.kind == "snapshot" else None
            revision = repo.revision(commit) if repo is not None and commit else None
            if repo is None or (commit is not None and revision is None):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), action.path)
            # A download that is to be overridden goes on writing.
            growing = self.force and commit is None and bool(repo.partials)
            if action.stamp is not None and stamp(repo, revision) != action.stamp and not growing:
                raise _ChangedError("its content changed since the plan was made")
            self._check_locks(folder)
            self._check_use(repo, commit)
        elif action.kind == "stray" and action.stamp is not None:
            size, allocated = _sums(action.path)
            if sum_stamp(size, allocated) != action.stamp:
                raise _ChangedError("its content changed since the plan was made")

    def _check_locks(self, folder: str) -> None:
        """See whether a download into a repo has begun."""
        path = os.path.join(self.root, layout.LOCKS, folder)
        if self.force or not os.path.isdir(path):
            return
        for name in os.listdir(path):
            if name.endswith(layout.LOCK_SUFFIX) and lock_held(os.path.join(path, name)):
                raise TakenError(f"the hub's lock is held: {os.path.join(path, name)}")

    def _check_use(self, repo: Repo, commit: str | None) -> None:
        if self.force or not self.in_use:
            return
        names = set(repo.blobs)
        if commit is not None:
            users = repo.blob_users()
            names = {name for name in names if any(held == commit for held, _ in users[name])}
        for name in names:
            path = repo.blob_path(name)
            with contextlib.suppress(OSError):
                target = os.stat(path)
                if (target.st_dev, target.st_ino) in self.in_use:
                    raise TakenError(f"a process uses {path}")
        for revision in repo.revisions:
            if commit in (None, revision.commit) and any(
                (file.device, file.inode) in self.in_use for file in revision.files
            ):
                raise TakenError(f"a process uses a file of {revision.path}")

    # Paths.

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[str, int | None]]:
        """Yield a path's last name and its folder, entered from the root without following links.

        Where the system has no such calls, the folder is `None` and the name is the whole path.
        """
        root, flags = self.root, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
        if not self._is_inside(path):
            # A side cache, in which entries were found; a link that has taken its place is not it.
            root, flags = os.path.dirname(path), _FOLDER
        folder, name = os.path.split(path)
        if not _BY_DESCRIPTOR:
            _refuse_links(root, folder)
            yield path, None
            return
        descriptor = os.open(root, flags)
        try:
            relative = os.path.relpath(folder, root)
            for part in [] if relative == os.curdir else relative.split(os.sep):
                below = _enter(part, descriptor, path)
                os.close(descriptor)
                descriptor = below
            yield name, descriptor
        finally:
            os.close(descriptor)

    def _unlink(self, number: int, path: str, expected: Expected | None) -> None:
        with self._parent(path) as (name, folder):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            _compare(found, expected)
            key = found.st_dev, found.st_ino
            if key in self.in_use and not self.force:
                raise TakenError("a process uses it")
            os.unlink(name, dir_fd=folder)
            self._add_freed(number, _freed_by(found))

    def _remove_folder(self, number: int, path: str) -> None:
        with self._parent(path) as (name, folder):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            try:
                os.rmdir(name, dir_fd=folder)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise _ChangedError("it is not empty") from None
                raise
            self._add_freed(number, allocated_bytes(found))

    def _set_aside(self, number: int, path: str, expected: Expected | None, *, whole: bool) -> None:
        """Rename an entry into this run's leftovers, or remove it in place where that fails."""
        with self._parent(path) as (name, folder):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            _compare(found, expected)
            is_folder = modes.S_ISDIR(found.st_mode)
            if is_folder and folder is not None and os.path.ismount(path):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
            try:
                place = self._place_for(path, whole=whole)
                with self._parent(place) as (new_name, new_folder):
                    os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=new_folder)
                self.renamed.append((number, place))
                _sync(folder)
                return
            except FileNotFoundError:
                if not _exists(name, folder):
                    raise
            except (OSError, _ChangedError):
                pass  # a full, foreign or read-only place for the leftovers; unlinking may still do
            if is_folder:
                self._empty(number, name, folder, path)
            else:
                os.unlink(name, dir_fd=folder)
                self._add_freed(number, _freed_by(found))

    def _exchange(self, number: int, action: RemoveTree) -> None:
        """Rename a repo's folder into the leftovers and the link into its place, or do neither.

        The hub's locks of the repo are held meanwhile, so that no download goes on in the folder;
        of a repo with very many files, the rest are seen to be free.
        """
        path = action.path
        with contextlib.ExitStack() as locks:
            folder_of_locks = os.path.join(self.root, layout.LOCKS, _folder_of(self.root, path))
            for count, name in enumerate(sorted(_names_or_none(folder_of_locks))):
                if not name.endswith(layout.LOCK_SUFFIX):
                    continue
                lock = os.path.join(folder_of_locks, name)
                if count < _BATCH:
                    locks.enter_context(hold_lock(lock, 0o664, _PROBE_SECONDS, force=self.force))
                elif lock_held(lock) and not self.force:
                    raise TakenError(f"the hub's lock is held: {lock}")
            place = self._place_for(path, whole=True)
            link = os.path.join(self.root, layout.LEFTOVERS, f"link-{self.token}")
            with (
                self._parent(path) as (name, folder),
                self._parent(place) as (aside, there),
                self._parent(link) as (link_name, leftovers),
            ):
                _compare(os.stat(name, dir_fd=folder, follow_symlinks=False), action.expected)
                if action.link is not None:
                    os.symlink(action.link, link_name, dir_fd=leftovers)
                try:
                    os.rename(name, aside, src_dir_fd=folder, dst_dir_fd=there)
                    if action.link is not None:
                        try:
                            os.rename(link_name, name, src_dir_fd=leftovers, dst_dir_fd=folder)
                        except OSError:
                            os.rename(aside, name, src_dir_fd=there, dst_dir_fd=folder)
                            raise
                except OSError:
                    if action.link is not None:
                        with contextlib.suppress(OSError):
                            os.unlink(link_name, dir_fd=leftovers)
                    raise
                self.renamed.append((number, place))
                _sync(folder)
                if action.link is not None:
                    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
                    self._add_freed(number, -allocated_bytes(found))

    def _place_for(self, path: str, *, whole: bool) -> str:
        """Return where to rename a path to, its folders made."""
        job = (layout.WHOLE_REPO if whole else "part-") + self.token
        base = os.path.join(self.root, layout.LEFTOVERS)
        parts = [job, *os.path.relpath(path, self.root).split(os.sep)]
        folder = base
        for part in ["", *parts[:-1]]:
            folder = os.path.join(folder, part) if part else folder
            self._make_folder(folder, 0o700)
        return os.path.join(folder, parts[-1])

    def _make_folder(self, path: str, mode: int = 0o777) -> None:
        """Make a folder that is gone again at the end of the run, if it was not there."""
        if path in self.made:
            return
        with self._parent(path) as (name, parent), contextlib.suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=parent)
            self.made.append(path)

    def _remove_made(self) -> tuple[int, list[Outcome]]:
        """Remove the folders that this run made.

        Returns:
            The bytes of those that stay, and a failure for each that the system refused to remove;
            one that others use by now is none.
        """
        left, failures = 0, []
        for path in reversed(self.made):
            try:
                with self._parent(path) as (name, parent):
                    os.rmdir(name, dir_fd=parent)
            except FileNotFoundError:
                continue
            except (OSError, _ChangedError) as error:
                with contextlib.suppress(OSError):
                    left += allocated_bytes(os.lstat(path))
                used = getattr(error, "errno", None) in (errno.ENOTEMPTY, errno.EEXIST)
                if isinstance(error, OSError) and not used:
                    detail = _words(error, path)
                    failures.append(Outcome("remove-tree", path, "failed", detail=detail))
        return left, failures

    # Emptying folders.

    def _empty_in_place(self, number: int, path: str, expected: Expected | None) -> None:
        with self._parent(path) as (name, folder):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            _compare(found, expected)
            if not modes.S_ISDIR(found.st_mode):
                os.unlink(name, dir_fd=folder)
                self._add_freed(number, _freed_by(found))
                return
            self._empty(number, name, folder, path)
        if os.path.basename(os.path.dirname(os.path.dirname(path))) == layout.LEFTOVERS:
            self._drop_empty(number, os.path.dirname(path))

    def _drop_empty(self, number: int, job: str) -> None:
        for folder in (job, os.path.dirname(job)):
            with contextlib.suppress(OSError), self._parent(folder) as (name, parent):
                found = os.stat(name, dir_fd=parent, follow_symlinks=False)
                os.rmdir(name, dir_fd=parent)
                self._add_freed(number, allocated_bytes(found))

    def _empty(self, number: int, name: str, parent: int | None, path: str) -> None:
        """Unlink a folder with all that is below it; what cannot go is told and the rest goes."""
        errors: list[OSError] = []
        before = os.stat(name, dir_fd=parent, follow_symlinks=False)
        self._empty_below(number, name, parent, path, None, 0, errors)
        try:
            os.rmdir(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            errors.append(OSError(error.errno, error.strerror, path))
        else:
            self._add_freed(number, allocated_bytes(before))
        if errors:
            raise errors[0]

    def _empty_below(
        self,
        number: int,
        name: str,
        parent: int | None,
        path: str,
        top: int | None,
        depth: int,
        errors: list[OSError],
    ) -> None:
        descriptor = _enter(name, parent, path) if _BY_DESCRIPTOR else None
        top = descriptor if top is None else top
        device = os.stat(path if descriptor is None else descriptor).st_dev
        try:
            # Once more as long as deep folders were moved up to the top meanwhile.
            for _ in range(_ROUNDS):
                hoisted = False
                # What makes a repo one goes before what it leads to, wherever it is emptied.
                for entry in sorted(_names_in(descriptor, path), key=_refs_first):
                    where = os.path.join(path, entry)
                    entry_name = entry if descriptor is not None else where
                    try:
                        found = os.stat(entry_name, dir_fd=descriptor, follow_symlinks=False)
                        if not modes.S_ISDIR(found.st_mode):
                            os.unlink(entry_name, dir_fd=descriptor)
                            self._add_freed(number, _freed_by(found))
                        elif found.st_dev != device:
                            raise OSError(errno.EXDEV, "another filesystem is mounted there")
                        elif depth >= _HOIST_AT and descriptor is not None:
                            unique = f"{secrets.token_hex(8)}.deep"
                            os.rename(entry, unique, src_dir_fd=descriptor, dst_dir_fd=top)
                        else:
                            self._empty_below(
                                number, entry_name, descriptor, where, top, depth + 1, errors
                            )
                            os.rmdir(entry_name, dir_fd=descriptor)
                            self._add_freed(number, allocated_bytes(found))
                    except FileNotFoundError:
                        continue
                    except OSError as error:
                        errors.append(OSError(error.errno, error.strerror, where))
                if depth == 0 and descriptor is not None and not errors:
                    hoisted = any(True for _ in _names_in(descriptor, path))
                if not hoisted:
                    return
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _empty_leftovers(self) -> None:
        """Unlink what was renamed: the refs last, and only if nothing failed.

        They tell a second run, which finds the revision no longer, what there is to finish; so do
        the links of a snapshot, as long as one of the blobs stays. After an interruption all of it
        stays, as after a kill.
        """
        if not self.finished:
            return
        blobs = f"{os.sep}{layout.BLOBS}{os.sep}"
        for number, place in reversed(self.renamed):
            outcome = self.outcomes.get(number)
            failed = [one.path for one in self.outcomes.values() if one.result == "failed"]
            parts = os.path.relpath(place, self.root).split(os.sep)
            if failed and _is_ref(os.path.relpath(place, self.root)):
                continue
            if parts[3:4] == [layout.SNAPSHOTS] and any(blobs in path for path in failed):
                continue
            detail, result = (outcome.detail, outcome.result) if outcome else (None, "done")
            try:
                self._empty_renamed(number, place)
            except (OSError, _ChangedError) as error:
                detail, result = _words(error, place), "failed"
            if outcome is not None:
                freed = self.freed.get(number, 0)
                self.outcomes[number] = Outcome(
                    outcome.action, outcome.path, result, freed, detail=detail
                )

    def _empty_renamed(self, number: int, place: str) -> None:
        with self._parent(place) as (name, folder):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if modes.S_ISDIR(found.st_mode):
                self._empty(number, name, folder, place)
            else:
                os.unlink(name, dir_fd=folder)
                self._add_freed(number, _freed_by(found))

    # Under the hub's locks.

    @contextlib.contextmanager
    def _hub_lock(self, path: str) -> Iterator[None]:
        """Hold the hub's lock of a blob, so that no download of it is going on or begins.

        A lock file that was not there is made and taken away again.
        """
        made = not os.path.lexists(path)
        try:
            if made:
                self._make_folder(os.path.join(self.root, layout.LOCKS))
                self._make_folder(os.path.dirname(path))
            with self._parent(path) as (name, parent):
                if made:
                    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
                    os.close(os.open(name, flags, 0o664, dir_fd=parent))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # What cannot be made on a full disk is held by nobody, and room has to be made.
            yield
            return
        with hold_lock(path, 0o664, _PROBE_SECONDS, force=self.force):
            try:
                yield
            finally:
                if made:
                    with contextlib.suppress(OSError), self._parent(path) as (name, parent):
                        os.unlink(name, dir_fd=parent)

    def _unlink_lock(
        self,
        number: int,
        path: str,
        expected: Expected | None,
        held: contextlib.AbstractContextManager[object],
    ) -> None:
        """Unlink a lock while it is held, or right after it where that cannot be."""
        with held:
            if not _LOCKS_STAY_OPEN:
                self._unlink(number, path, expected)
        if _LOCKS_STAY_OPEN:
            self._unlink(number, path, expected)

    def _lock_path(self, folder: str, blob: str) -> str:
        etag = layout.partial_etag(blob) or blob
        return os.path.join(self.root, layout.LOCKS, folder, etag + layout.LOCK_SUFFIX)

    def _remove_blobs(self, numbered: list[tuple[int, Remove]]) -> None:
        """Unlink blobs and partials, each under its lock, unless something links to it by now."""
        groups: dict[str, list[tuple[int, Remove]]] = {}
        for number, action in numbered:
            groups.setdefault(_folder_of(self.root, action.path), []).append((number, action))
        for folder, group in groups.items():
            for start in range(0, len(group), _BATCH):
                self._remove_batch(folder, group[start : start + _BATCH])

    def _remove_batch(self, folder: str, batch: list[tuple[int, Remove]]) -> None:
        with contextlib.ExitStack() as locks:
            ready: list[tuple[int, Remove]] = []
            taken: set[str] = set()
            for number, action in batch:
                path = self._lock_path(folder, os.path.basename(action.path))
                try:
                    if path not in taken:
                        locks.enter_context(self._hub_lock(path))
                        taken.add(path)
                    ready.append((number, action))
                except TakenError as error:
                    self._note(number, action, "busy", str(error))
                except (OSError, _ChangedError) as error:
                    self._note(number, action, "failed", _words(error, path))
            repo = scan_repo(self.root, folder)
            users = repo.blob_users() if repo is not None else {}
            for number, action in ready:
                name = os.path.basename(action.path)
                if action.kind == "blob" and users.get(name):
                    held = [self.held.get((folder, commit)) for commit, _ in users[name]]
                    why = next(filter(None, held), ("stale", "a snapshot links to it"))
                    self._note(number, action, *why)
                    continue
                self._attempt(number, action)

    def _remove_lock_folder(self, number: int, path: str) -> None:
        """Remove a repo's lock files and their folder, if the repo is gone and no lock is held."""
        repo = os.path.join(self.root, os.path.basename(path))
        if os.path.isdir(repo):
            raise _ChangedError("the repo is there")
        with self._parent(path) as (name, parent):
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            descriptor = _enter(name, parent, path) if _BY_DESCRIPTOR else None
            try:
                for entry in list(_names_in(descriptor, path)):
                    where = os.path.join(path, entry)
                    held = hold_lock(where, 0o664, _PROBE_SECONDS, force=self.force)
                    self._unlink_lock(number, where, None, held)
            finally:
                if descriptor is not None:
                    os.close(descriptor)
            os.rmdir(name, dir_fd=parent)
            self._add_freed(number, allocated_bytes(found))

    # The shared store, by the protocol of huggingface_hub 2.4 (`utils/_shared_blobs.py`).

    def _release(self, numbered: list[tuple[int, Removing]]) -> None:
        for start in range(0, len(numbered), _BATCH):
            batch = numbered[start : start + _BATCH]
            with contextlib.ExitStack() as locks:
                ready: list[tuple[int, Removing]] = []
                for number, action in batch:
                    try:
                        locks.enter_context(self._shared_lock(action.path))
                        ready.append((number, action))
                    except FileNotFoundError:
                        self._note(number, action, "absent")
                    except (TakenError, _ChangedError) as error:
                        self._note(number, action, "busy", str(error))
                    except OSError as error:
                        self._note(number, action, "failed", _words(error, action.path))
                try:
                    self.links = links_into_store(self.root) if ready else {}
                except OSError as error:
                    # A repo that cannot be read may need any of them.
                    for number, action in ready:
                        self._note(number, action, "failed", _words(error, self.root))
                    continue
                for number, action in ready:
                    self._attempt(number, action)

    @contextlib.contextmanager
    def _shared_lock(self, path: str) -> Iterator[None]:
        """Hold a shared blob's lock as the hub takes it: a file that every user may lock."""
        lock = path + layout.LOCK_SUFFIX
        with self._parent(lock) as (name, parent):
            os.stat(os.path.basename(path) if parent is not None else path, dir_fd=parent)
            flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            descriptor = os.open(name, flags, 0o666, dir_fd=parent)
            try:
                if not modes.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(errno.EINVAL, "the lock is no regular file", lock)
                with contextlib.suppress(OSError, AttributeError):
                    os.fchmod(descriptor, 0o666)
            finally:
                os.close(descriptor)
        with hold_lock(lock, 0o666, _SHARED_LOCK_SECONDS, force=False):
            yield

    def _release_one(self, number: int, action: ReleaseShared) -> Result:
        """Rewrite the manifest without what is gone, or unlink the blob if nothing is left.

        What counts are the links of all repos; the manifest is made to agree with them.
        """
        links = self.links.get(action.hash, set())
        manifest = action.path + layout.MANIFEST_SUFFIX
        listed = self._listed(manifest)
        with self._parent(action.path) as (name, parent):
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not modes.S_ISREG(found.st_mode):
                raise _ChangedError("it is no regular file")
            if links:
                if listed is not None and listed != links:
                    self._rewrite(number, manifest, links)
                if action.last:
                    raise _ChangedError("a repo links to it by now")
                return "done"
            if (found.st_dev, found.st_ino) in self.in_use and not self.force:
                raise TakenError("a process uses it")
            os.unlink(name, dir_fd=parent)
            self._add_freed(number, _freed_by(found))
        with contextlib.suppress(FileNotFoundError):
            self._unlink(number, manifest, None)
        return "done"

    def _listed(self, manifest: str) -> set[str] | None:
        """Return the references that a manifest lists; `None` if there is none to read."""
        if os.path.islink(manifest):
            return None
        try:
            return set(read_bytes(manifest, _MANIFEST_LIMIT).decode().splitlines())
        except (OSError, UnicodeDecodeError):
            return None

    def _rewrite(self, number: int, manifest: str, references: set[str]) -> None:
        content = "".join(f"{reference}\n" for reference in sorted(references)).encode()
        with self._parent(manifest) as (name, parent):
            before = os.stat(name, dir_fd=parent, follow_symlinks=False)
            temporary = f"{manifest}.{secrets.token_hex(4)}.tmp"
            short = os.path.basename(temporary) if parent is not None else temporary
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
            descriptor = os.open(short, flags, 0o666, dir_fd=parent)
            try:
                try:
                    with contextlib.suppress(OSError, AttributeError):
                        os.fchmod(descriptor, 0o666)
                    view = memoryview(content)
                    while view:
                        view = view[os.write(descriptor, view) :]
                    os.fsync(descriptor)
                    after = os.fstat(descriptor)
                finally:
                    os.close(descriptor)
                os.replace(short, name, src_dir_fd=parent, dst_dir_fd=parent)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(short, dir_fd=parent)
                raise
            self._add_freed(number, allocated_bytes(before) - allocated_bytes(after))


def _refs_first(name: str) -> int:
    return {layout.REFS: 0, layout.SNAPSHOTS: 1}.get(name, 2)


def _is_ref(place: str) -> bool:
    """Return whether a path in the leftovers, relative to the cache, is that of a ref."""
    return layout.REFS in place.split(os.sep)[3:4]


def _step(action: Removing) -> Literal["first", "blob", "shared", "lock", "leftover"]:
    """Return when an action has its turn."""
    if isinstance(action, ReleaseShared):
        return "shared"
    if action.kind in ("blob", "partial"):
        return "blob"
    if action.kind in ("lock", "locks"):
        return "lock"
    return "leftover" if action.kind in ("leftover", "side-cache") else "first"


def _folder_of(root: str, path: str) -> str:
    """Return the name of the repo folder that a path of the cache lies in."""
    return os.path.relpath(path, root).split(os.sep)[0]


def _compare(found: os.stat_result, expected: Expected | None) -> None:
    if expected is None:
        return
    same = found.st_ino == expected.inode and found.st_mtime_ns == expected.mtime_ns
    if not same or (expected.size is not None and found.st_size != expected.size):
        raise _ChangedError("it changed since the plan was made")


def _freed_by(found: os.stat_result) -> int:
    """Return the bytes that unlinking gave back: none while another hard link keeps them."""
    return allocated_bytes(found) if found.st_nlink <= 1 else 0


def _enter(name: str, parent: int | None, path: str) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise _ChangedError(f"a folder on the way is none by now: {path}") from None
        raise


def _refuse_links(root: str, folder: str) -> None:
    while len(folder) > len(root):
        if os.path.islink(folder):
            raise _ChangedError(f"a folder on the way is a link by now: {folder}")
        folder = os.path.dirname(folder)


def _exists(name: str, parent: int | None) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _names_or_none(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _names_in(descriptor: int | None, path: str) -> list[str]:
    return os.listdir(path if descriptor is None else descriptor)


def _sums(path: str) -> tuple[int, int]:
    """Return length and allocated bytes of a folder, counted as the scan counts a stray one."""
    allocated = allocated_bytes(os.lstat(path))
    size = 0
    pending = [path]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                allocated += allocated_bytes(found)
                if modes.S_ISDIR(found.st_mode):
                    pending.append(entry.path)
                else:
                    size += found.st_size
    return size, allocated


def _sync(folder: int | None) -> None:
    """Make a rename lasting before anything that relies on it is unlinked."""
    if folder is not None:
        with contextlib.suppress(OSError):
            os.fsync(folder)


def _words(error: OSError | _ChangedError, path: str) -> str:
    if isinstance(error, _ChangedError):
        return str(error)
    where = error.filename
    # Names relative to an open folder would say nothing to the user.
    whole = isinstance(where, str) and os.path.isabs(where)
    return f"{error.strerror or error}: {where if whole else path}"
