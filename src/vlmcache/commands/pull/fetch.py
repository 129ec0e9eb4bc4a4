"""Carries out a download order: blobs in parallel, each linked when complete, the ref last."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from functools import partial

from vlmcache.cache import layout
from vlmcache.cache.hashing import hash_file
from vlmcache.cache.moved import destination_of
from vlmcache.change import place
from vlmcache.change.base import base_at, place_blob_link, record_bases
from vlmcache.change.plan import Fetch, Link, Outcome, Plan, WriteRef
from vlmcache.change.shared_store import SharedStore
from vlmcache.change.tree import Tree
from vlmcache.commands.pull.group import Group, GroupError, Task
from vlmcache.commands.pull.plan import DownloadOrder
from vlmcache.errors import (
    AccessError,
    CacheError,
    ChangedError,
    NoSuchFileError,
    NoSuchRepoError,
    OfflineError,
    UnreachableError,
    VlmcacheError,
    WrongBytesError,
    reason_of,
)
from vlmcache.hub.client import Client
from vlmcache.hub.elsewhere import fetch_elsewhere
from vlmcache.hub.library import without_links
from vlmcache.hub.locks import blob_lock
from vlmcache.hub.ranges import Spare
from vlmcache.hub.small import SMALL
from vlmcache.hub.transfer import BlobJob, Transfer, link_shared
from vlmcache.progress import Progress, Stopped
from vlmcache.threads import run_in_threads

_LEAVE_AFTER = 3.0
"""Seconds that threads get to finish cleanly when the work is stopped."""


Downloaded = tuple[list[Outcome], VlmcacheError | None]
"""What became of an order, and the first failure, if there was one."""


def download(
    client: Client,
    order: DownloadOrder,
    progress: Progress,
    workers: int,
    cache: Tree | None = None,
) -> Downloaded:
    """Do what an order's plan says, as far as the hub and the disk allow.

    A file that fails does not stop the others, unless they would fail for the same reason. Only
    interruptions are raised: the threads are stopped then, and partial downloads stay.

    Args:
        client: the hub.
        order: what to do.
        progress: shows the progress.
        workers: how many blobs to fetch at once.
        cache: the cache, if only its patience counts for locks; if not given, the download of
            another process is waited for as long as it grows.
    """
    return _Work(client, order, progress, cache).run(workers)


class _Work:
    def __init__(
        self, client: Client, order: DownloadOrder, progress: Progress, cache: Tree | None
    ) -> None:
        self.client = client
        self.order = order
        self.progress = progress
        self.cache = cache or Tree(order.cache_dir)
        self.waits = cache is None
        name = layout.folder_of(order.repo)
        folder = os.path.join(order.cache_dir, name)
        self.tree, self.folder = self.cache, folder
        # Links into the shared store are relative to where the repo's folder really is.
        self.shares = not os.path.islink(folder) or bool(destination_of(order.cache_dir, name))
        self.tasks = deque(_tasks(order.plan))
        if client.sources.streamed:
            # What can be read only once is read in its own order.
            self.tasks = deque(sorted(self.tasks, key=self._order))
        self.outcomes: list[Outcome] = []
        self.error: VlmcacheError | None = None
        self.broken_off = False
        self.spare = Spare()
        self.lock = threading.Lock()

    def run(self, workers: int) -> Downloaded:
        order = self.order
        self.progress.started(order.repo, {f.file: f.size for f in order.fetches}, order.have)
        try:
            self._prepare()
            workers = 1 if self.client.sources.streamed else workers
            count = min(workers, len(self.tasks))
            self.spare = Spare(workers - count)
            run_in_threads(lambda: self._do_all(count), count, self.client.stop, _LEAVE_AFTER)
            if self.error is None:
                self._write_ref()
        except (OSError, VlmcacheError) as error:
            self.error = _as_error(error, self.folder)
        finally:
            self.progress.ended(self.order.repo)
        return self.outcomes, self.error

    def _order(self, task: Task) -> int:
        first = task[0]
        return self.client.sources.order(first.etag) if isinstance(first, Fetch) else 0

    def _prepare(self) -> None:
        if not self.order.plan.actions:
            # All is in place. In a cache that cannot be written to, the listing is left out.
            complete = self.order.files.keys() <= self.order.wanted
            with contextlib.suppress(OSError, CacheError):
                self.tree, self.folder = place.home_of(self.cache, self.folder)
                self._write_tree(complete=complete)
            return
        self.tree, self.folder = place.home_of(self.cache, self.folder)
        place.prepare_repo(self.tree, self.folder)
        if self.order.new_listing:
            # It gets the client's name at the end: an interruption must not leave one that names
            # files which no later pull fetches alone.
            self._write_tree(complete=False)
        if self.tasks:
            self.tree.make_folders(layout.blob_path(self.folder, ""))
        if self.order.lent:
            folders = {lent.base for lent in self.order.lent.values()}
            record_bases(self.tree, os.path.basename(self.folder), map(base_at, sorted(folders)))

    def _write_tree(self, *, complete: bool) -> None:
        order = self.order
        place.write_tree(self.tree, self.folder, order.commit, order.files, complete=complete)
        place.write_absent(self.tree, self.folder, order.commit, order.files)

    def _do_all(self, workers: int) -> None:
        group = Group(self.cache, self.tree, workers)
        try:
            while not self.broken_off:
                try:
                    task = self.tasks.popleft()
                except IndexError:
                    self._publish(group)
                    self.spare.add()
                    return
                self._do_one(task, group)
            self._publish(group)
        except Stopped:
            return
        finally:
            group.release()

    def _do_one(self, task: Task, group: Group) -> None:
        """Fetch and link one blob, or add it to the group, which is published once it is full."""
        transfer = self._transfer(task)
        problem: VlmcacheError | None = None
        try:
            added = self._is_simple(task) and group.add(task, transfer, self._lock_path(transfer))
            if added and not group.is_full:
                return
            # No lock is waited for while others are held.
            self._publish(group)
            if added:
                return
            self._do(task, transfer)
        except Stopped:
            raise
        except Exception as error:
            problem = _named(transfer.job, _as_error(error, self.folder))
        self._note_outcome(task, problem, transfer.received)

    def _publish(self, group: Group) -> None:
        problem: VlmcacheError | None = None
        try:
            members = group.publish(partial(self._place, new=True))
        except GroupError as error:
            members, problem = error.members, _as_error(error.error, self.folder)
        for member in members:
            self._note_outcome(member.task, problem, member.transfer.received)

    def _is_simple(self, task: Task) -> bool:
        """Return whether a blob is small, and nothing is known of it but what the hub lists."""
        first = task[0]
        return (
            isinstance(first, Fetch)
            and not first.have
            and first.size <= SMALL
            and first.etag not in self.order.distrusted
            and self.order.files[first.file].xet_hash is None
            and layout.is_etag(first.etag)
        )

    def _note_outcome(self, task: Task, problem: VlmcacheError | None, received: int) -> None:
        with self.lock:
            for action in task:
                self.outcomes.append(
                    Outcome(
                        "fetch" if isinstance(action, Fetch) else "link",
                        action.path,
                        "done" if problem is None else "failed",
                        fetched=received if isinstance(action, Fetch) else 0,
                        detail=problem.message if problem is not None else None,
                    )
                )
            if problem is not None:
                self.error = self.error or problem
                # A failure of this file alone is no reason to leave the others.
                only_this = isinstance(problem, WrongBytesError | NoSuchFileError)
                self.broken_off = self.broken_off or not only_this

    def _transfer(self, task: Task) -> Transfer:
        order, file = self.order, task[0].file
        listed = order.files[file]
        blobs = os.path.join(self.folder, layout.BLOBS)
        job = BlobJob(order.repo, order.commit, file, listed, self.tree, blobs, self.shares)
        return Transfer(
            self.client,
            job,
            lambda position: self.progress.moved(order.repo, file, position),
            self.spare,
        )

    def _do(self, task: Task, transfer: Transfer) -> None:
        """Fetch one blob to its place, and link it into the snapshot."""
        job = transfer.job
        size, etag = job.listed.content_size, job.listed.etag
        lock = self._lock_path(transfer)
        waiting = partial(self.progress.waiting, job.repo, job.file)
        arrived = partial(_arrived, transfer) if self.waits else None
        longest = self.client.patience.longest_download
        with blob_lock(self.cache, lock, self.client.stop_token, waiting, arrived, longest):
            # The process that held the lock before may have done the work.
            distrusted = etag in self.order.distrusted
            bad = place.file_size(job.blob) != size or (
                distrusted and hash_file(job.blob, etag, self.tree.open_content) != etag
            )
            store = SharedStore(self.tree.root)
            shared = store.target_of(job.blob) if bad else None
            new = bad and (distrusted or not (self._link_base(job) or link_shared(job)))
            if new and not isinstance(task[0], Fetch):
                raise ChangedError(
                    f"{job.repo}: the content of {job.file} was removed while it was being pulled",
                    "pull again",
                )
            if new:
                if not fetch_elsewhere(transfer):
                    self._ask_hub(transfer)
                if shared is not None and distrusted:
                    store.return_blob(job.blob, shared)
            transfer.moved(size)
            self._place(self.tree, task, job, new=new)

    def _link_base(self, job: BlobJob) -> bool:
        """Let a blob be a link into a base, if that has the content; return whether it is one."""
        lent = self.order.lent.get(job.listed.etag)
        return lent is not None and place_blob_link(self.tree, job.blob, lent)

    def _ask_hub(self, transfer: Transfer) -> None:
        try:
            with self.client.contact.tried():
                transfer.run()
        except (OfflineError, UnreachableError) as error:
            if not self.client.sources.uses:
                raise
            message = f"no source has {transfer.job.file}, and {error.message}"
            raise error.saying(message, error.hint) from error

    def _lock_path(self, transfer: Transfer) -> str:
        # The client's lock is named by the repo, wherever a link in its place leads.
        repo = layout.folder_of(self.order.repo)
        return layout.lock_path(self.order.cache_dir, repo, transfer.job.listed.etag)

    def _place(self, tree: Tree, task: Task, job: BlobJob, *, new: bool) -> None:
        """Put a blob into the snapshot, under each of its names."""
        files = [action.file for action in task]
        if without_links() or not all(
            place.place_link(tree, self.folder, job.commit, file, job.listed.etag) for file in files
        ):
            for file in files:
                move = new and file == files[-1]
                place.place_copy(tree, self.folder, job.commit, file, job.blob, move=move)

    def _write_ref(self) -> None:
        """Let the ref name the commit, now that every wanted file is there."""
        snapshot = layout.snapshot_path(self.folder, self.order.commit)
        for file in self.order.wanted:
            path = layout.file_path(snapshot, file)
            if place.file_size(path) != self.order.files[file].content_size:
                raise ChangedError(
                    f"{self.order.repo}: {file} was removed while the repo was being pulled",
                    "pull again",
                )
        own = layout.tree_path(self.folder, self.order.commit, own=True)
        if os.path.exists(own) and all(
            os.path.exists(layout.file_path(snapshot, file)) for file in self.order.files
        ):
            self._write_tree(complete=True)
        for action in self.order.plan.actions:
            if isinstance(action, WriteRef):
                place.write_ref(*self.cache.home(action.path), action.commit)
                self.outcomes.append(Outcome("write-ref", action.path, "done"))


def _arrived(transfer: Transfer) -> int:
    """Return when something of a blob was last written or compared, in ns; 0 for never.

    How much of it others have brought is reported as progress.
    """
    downloads = list(transfer.downloads())
    if downloads:
        # Another program may give the file its full length at the beginning.
        transfer.moved(max(min(status.st_size, status.st_blocks * 512) for status in downloads))
    return max((status.st_mtime_ns for status in downloads), default=0)


def _tasks(plan: Plan) -> list[Task]:
    """Return the plan's blobs with their files: first those that are here, then the largest."""
    tasks: dict[str, list[Fetch | Link]] = {}
    for action in plan.actions:
        if isinstance(action, Fetch | Link):
            tasks.setdefault(action.etag, []).append(action)
    # A link costs nothing, and is made even if the hub turns out not to answer.
    return sorted(tasks.values(), key=lambda task: isinstance(task[0], Fetch))


def _named(job: BlobJob, error: VlmcacheError) -> VlmcacheError:
    """Return a refusal of the hub that names the file."""
    if isinstance(error, NoSuchFileError):
        return NoSuchFileError(
            f"{job.repo}: {job.file} is listed, but the hub does not have it",
            "pull again later, or leave it out with --exclude",
        )
    if isinstance(error, NoSuchRepoError):
        return AccessError(f"{job.repo}: the hub lists {job.file} and refuses it", error.hint)
    if isinstance(error, AccessError):
        return AccessError(f"{job.repo}: {job.file}: {error.message}", error.hint)
    return error


def _as_error(error: Exception, path: str) -> VlmcacheError:
    if isinstance(error, VlmcacheError):
        return error
    if isinstance(error, OSError):
        return place.disk_failure(error, path)
    return VlmcacheError(f"internal error: {type(error).__name__}: {reason_of(error)}")
