"""What a node has of models, and whether the rest can be put there."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence

from vlmcache import log
from vlmcache.cache import layout
from vlmcache.cache.hashing import hash_file, identify_open
from vlmcache.cache.mounts import mount_of, nearest_folder
from vlmcache.cache.moved import away_error
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Finding
from vlmcache.cache.tree import CacheTree
from vlmcache.change.abilities import check_filesystem, refused_names
from vlmcache.change.place import check_places, disk_failure
from vlmcache.change.plan import Failure, Plan, joined
from vlmcache.change.space import FreeSpace
from vlmcache.commands.fleet.parcels import NodeStock, WantedModel, content_key
from vlmcache.commands.pull.plan import DownloadOrder, Listing, plan_pull
from vlmcache.commands.pull.room import abilities_needed, find_shortage, without_fetches
from vlmcache.config import Session, own_home
from vlmcache.errors import VlmcacheError, reason_of
from vlmcache.home.journal import Journal, read_damaged
from vlmcache.paths import real_path


class Surveyor:
    """Reads a node's cache for a `fleet pull`.

    Args:
        session: what to work on.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._models: Sequence[WantedModel] = ()
        self._distrusted: set[str] = set()
        self._space = FreeSpace(session.cache.dir)

    def survey(self, models: Sequence[WantedModel]) -> NodeStock:
        """Return what the node has of models, and whether the rest can be put here."""
        self._models = models
        cache = self._session.cache.dir
        contents: set[str] = set()
        begun: dict[str, int] = {}
        to_fetch: dict[str, int] = {}
        complete: set[str] = set()
        findings: list[Finding] = []
        plans: list[Plan] = []
        error: VlmcacheError | None = None
        fetched: set[tuple[str, str]] = set()
        for model in models:
            try:
                order = self._order(model, findings)
                check_places(order.plan.placed)
            except VlmcacheError as caught:
                error = error or caught
                continue
            self._distrusted |= order.distrusted
            missing = {fetch.etag: fetch for fetch in order.fetches}
            to_fetch[model.id] = order.plan.to_fetch
            if not order.plan.actions and not order.new_listing:
                complete.add(model.id)
            wanted = {model.files[name].etag for name in order.wanted}
            contents |= {content_key(model.repo, etag) for etag in wanted - missing.keys()}
            begun |= {content_key(model.repo, f.etag): f.have for f in missing.values() if f.have}
            plans.append(without_fetches(order.plan, fetched))
        free, needed = 0, abilities_needed(cache, plans)
        try:
            free = self._space.before or 0
            check_filesystem(cache, needed)
            shortage = find_shortage(cache, self._session.config.limits, plans)
            if shortage is not None:
                error = error or shortage.error("'vlmcache status' there shows what makes room")
        except (OSError, VlmcacheError) as caught:
            error = error or as_ours(caught, cache)
        return NodeStock(
            _place_of(cache),
            cache,
            free,
            frozenset(contents),
            begun,
            to_fetch,
            frozenset(complete),
            self._session.environment.offline_by is None,
            None if error is None else Failure.of(error),
            tuple(findings),
            joined(plans),
        )

    def _order(self, model: WantedModel, findings: list[Finding] | None = None) -> DownloadOrder:
        """Return what is to be done for a model here, as a pull of this node alone would plan it.

        Raises:
            VlmcacheError: it is on a drive that is not mounted.
        """
        state = self._scanned(model.repo)
        repo = state.repo(model.repo)
        if repo is not None and repo.away is not None:
            raise away_error(repo, repo.away)
        revision = repo.revision(model.commit) if repo is not None else None
        listing = Listing(model.commit, model.files)
        wanted = model.wanted
        snapshot = f"{layout.folder_of(model.repo)}/{layout.SNAPSHOTS}/{model.commit}"
        refused = refused_names(state.dir, [f"{snapshot}/{name}" for name in sorted(wanted)])
        words = {path[len(snapshot) + 1 :]: why for path, why in refused.items()}
        for name, why in words.items() if findings is not None else ():
            assert findings is not None
            detail = f"{name} left out: the filesystem {why}"
            findings.append(Finding("refused-name", "warning", model.repo, state.dir, detail))
        wanted -= words.keys()
        plan = plan_pull(state, model.repo, model.revision, listing, wanted)
        blobs = repo.blobs.values() if repo is not None else ()
        return DownloadOrder(
            state.dir,
            model.repo,
            model.commit,
            model.files,
            wanted,
            plan,
            new_listing=revision is None or revision.tree is None,
            distrusted=frozenset(blob.name for blob in blobs if blob.damaged),
            restriction=model.restriction,
        )

    def _scanned(self, repo: str) -> CacheState:
        state = scan(self._session.cache.dir, only={layout.folder_of(repo)})
        return state.with_damage(read_damaged(self._session.environment))

    def damaged(self, repo: str, etags: Sequence[str]) -> list[str]:
        """Read contents that are here, and return the damaged ones, which are remembered."""
        folder = os.path.join(self._session.cache.dir, layout.folder_of(repo))
        tree = CacheTree(self._session.cache.dir)
        damaged: list[str] = []
        for etag in etags:
            path = layout.blob_path(folder, etag)
            try:
                actual = hash_file(path, etag, tree.open_content)
            except (OSError, VlmcacheError) as error:
                log.info("fleet", "cannot be read: '%s': %s", path, reason_of(error))
                actual = ""
            if actual != etag:
                damaged.append(etag)
                self._distrusted.add(etag)
                with contextlib.suppress(OSError):
                    self._remember_damage(tree, path)
        return damaged

    def _remember_damage(self, tree: CacheTree, path: str) -> None:
        descriptor = tree.open_content(path)
        try:
            identity = identify_open(descriptor)
        finally:
            os.close(descriptor)
        with Journal(own_home(self._session.environment)[0]) as journal:
            journal.record_damaged([identity], time.time())


def as_ours(error: BaseException, path: str) -> VlmcacheError:
    """Return any exception as one of our errors.

    Args:
        error: what was raised.
        path: what the disk was asked for, if that failed.
    """
    if isinstance(error, VlmcacheError):
        return error
    if isinstance(error, OSError):
        return disk_failure(error, path)
    return VlmcacheError(f"internal error: {type(error).__name__}: {reason_of(error)}")


def _place_of(cache_dir: str) -> str:
    """Return what identifies a cache, wherever it is seen from: nodes that share it agree."""
    place = nearest_folder(cache_dir)
    status, mount = os.stat(place), mount_of(place)
    rest = os.path.relpath(real_path(cache_dir), real_path(place))
    if mount is not None and mount.network:
        return f"{mount.source}:{status.st_ino}:{rest}"
    return f"{_machine()}:{status.st_dev}:{status.st_ino}:{rest}"


def _machine() -> str:
    """Return what identifies this machine since it was started."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return socket.gethostname()
