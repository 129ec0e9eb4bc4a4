"""What one node does in a `fleet pull`: it says what it has, fetches, serves, and links.

This runs on the node, in its own environment and with its own config.yaml; nothing of it knows Ray.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from vlmcache import log
from vlmcache.cache import layout
from vlmcache.cache.hashing import hash_file, identify_open
from vlmcache.cache.mounts import mount_of, nearest_folder
from vlmcache.cache.moved import away_error
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Finding, TreeFile
from vlmcache.cache.tree import CacheTree
from vlmcache.change.abilities import check_filesystem, refused_names
from vlmcache.change.place import check_places, disk_failure
from vlmcache.change.plan import Failure, Fetch, Link, Outcome, Plan, Receipt, joined
from vlmcache.change.space import FreeSpace
from vlmcache.commands.fleet.actor import Worker
from vlmcache.commands.pull.fetch import download
from vlmcache.commands.pull.plan import DownloadOrder, Listing, plan_pull
from vlmcache.commands.pull.prepare import check_result
from vlmcache.commands.pull.room import abilities_needed, find_shortage, without_fetches
from vlmcache.commands.serve.shelf import BlobServer
from vlmcache.config import Session, own_home
from vlmcache.errors import (
    AccessError,
    CacheError,
    ChangedError,
    HubError,
    OfflineError,
    SpaceError,
    UnreachableError,
    VlmcacheError,
    reason_of,
)
from vlmcache.home.journal import Journal, read_damaged
from vlmcache.hub.client import Client
from vlmcache.hub.retry import Patience
from vlmcache.hub.served import ServedContents
from vlmcache.hub.sources import Source
from vlmcache.progress import Progress, Throttle

_SILENCE = 8.0
"""Seconds without a byte after which another node is given up."""
_WORKERS = 8
"""Connections to the hub for one parcel: small files at once, or parts of a large one."""
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class WantedModel(msgspec.Struct, frozen=True):
    """One model at one commit, as the driver found it on the hub: what every node is to have."""

    key: str
    """What was typed for it."""
    repo: str
    revision: str
    commit: str
    files: dict[str, TreeFile]
    """The hub's listing."""
    wanted: frozenset[str]
    restriction: str | None
    """As in `DownloadOrder`."""
    variant: str | None = None
    plain: bool = True
    """Whether what loading needs is wanted, and not what somebody chose."""
    needed_by: str | None = None
    """The repo that needs it, if nobody named it."""

    @property
    def contents(self) -> dict[str, TreeFile]:
        """Etag -> a file that is wanted and has the content."""
        return {self.files[name].etag: self.files[name] for name in sorted(self.wanted)}


def content_key(repo: str, etag: str) -> str:
    """Return what names a content of a repo."""
    return f"{repo}/{etag}"


class NodeStock(msgspec.Struct, frozen=True):
    """What a node has of the models before anything begins. Contents are named by `content_key`."""

    place: str
    """What names the cache: two nodes with the same name share it."""
    cache: str
    free: int
    held: frozenset[str]
    begun: dict[str, int]
    """Content -> bytes of it that are here."""
    to_fetch: dict[str, int]
    """Repo -> bytes."""
    complete: frozenset[str] = frozenset()
    """Repos for which there is nothing to do, not even a link."""
    reaches_hub: bool = True
    error: Failure | None = None
    """Why nothing can be pulled here."""
    findings: tuple[Finding, ...] = ()
    plan: Plan = Plan(())


class Parcel(msgspec.Struct, frozen=True):
    """Contents of one repo that are fetched together: a large one, or several small ones."""

    key: str
    repo: str
    etags: tuple[str, ...]
    size: int


class Sender(msgspec.Struct, frozen=True):
    """A node that serves what it has."""

    node: str
    address: str
    token: str

    def __repr__(self) -> str:
        """Leave out the token: a repr ends up in logs."""
        return f"{type(self).__name__}({self.node!r}, {self.address!r})"


Fault = Literal["source", "wrong", "hub", "unreachable", "node", "stopped"]
"""What is to blame: who sent, the bytes that came, the hub for this parcel or altogether, this
node, or nobody."""


class Landing(msgspec.Struct, frozen=True):
    """What became of a parcel that a node was to fetch."""

    parcel: str
    source: str | None
    """The node that sent it; `None` for the hub."""
    received: int
    """Bytes that came over the network."""
    have: int = 0
    """Bytes of it that are here now."""
    fault: Fault | None = None
    error: Failure | None = None


class News(msgspec.Struct, frozen=True):
    """What has happened on a node since it was last asked."""

    landings: tuple[Landing, ...]
    positions: dict[str, int]
    """Parcel -> bytes of it that are here, of those that are being fetched."""
    notes: tuple[str, ...]


class Finished(msgspec.Struct, frozen=True):
    """How a node ends."""

    states: dict[str, str]
    """Repo -> `cached` or `pulled`, or `failed`."""
    errors: dict[str, Failure]
    receipt: Receipt
    paths: dict[str, str]
    """Repo -> its snapshot."""


class Survey(msgspec.Struct, frozen=True):
    """What a node is asked at first."""

    name: str
    """Of the node."""
    models: tuple[WantedModel, ...]
    limit_rate: int | None = None


class Opening(msgspec.Struct, frozen=True):
    """What lets a node begin; see `Holdings.open`."""

    host: str
    parcels: tuple[Parcel, ...]
    given: dict[str, bytes]
    peers: tuple[str, ...]


class Errand(msgspec.Struct, frozen=True):
    """A parcel that a node is to fetch, to stop fetching, or to read."""

    parcel: str
    sender: Sender | None = None


class Checked(msgspec.Struct, frozen=True):
    """Whether a parcel that a node has is good."""

    parcel: str
    good: bool


class NewsWanted(msgspec.Struct, frozen=True):
    """How long to wait for news, in seconds."""

    wait: float = 0.0


class Nothing(msgspec.Struct, frozen=True):
    """An answer that says nothing more."""


class Holdings:
    """The part of a `fleet pull` that one node does. Its methods may be called by several threads.

    Args:
        session: what to work on.
        name: of the node.
        limit_rate: bytes per second from the hub and other nodes; unlimited if `None`.
    """

    def __init__(self, session: Session, name: str, limit_rate: int | None = None) -> None:
        self._session = session
        self._name = name
        self._rate = limit_rate
        self._models: dict[str, WantedModel] = {}
        self._parcels: dict[str, Parcel] = {}
        self._server: BlobServer | None = None
        self._clients: dict[str, Client] = {}
        self._landings: list[Landing] = []
        self._positions: dict[str, dict[str, int]] = {}
        self._notes: list[str] = []
        self._changed = threading.Condition()
        self._listed: set[str] = set()
        self._distrusted: set[str] = set()
        self._outcomes: list[Outcome] = []
        self._space = FreeSpace(session.cache.dir)

    # What there is.

    def survey(self, models: Sequence[WantedModel]) -> NodeStock:
        """Return what the node has of models, and whether the rest can be put here."""
        self._models = {model.repo: model for model in models}
        cache = self._session.cache.dir
        held: set[str] = set()
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
            to_fetch[model.repo] = order.plan.to_fetch
            if not order.plan.actions and not order.new_listing:
                complete.add(model.repo)
            wanted = {model.files[name].etag for name in order.wanted}
            held |= {content_key(model.repo, etag) for etag in wanted - missing.keys()}
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
            error = error or _as_ours(caught, cache)
        return NodeStock(
            _place_of(cache),
            cache,
            free,
            frozenset(held),
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

    # What it serves.

    def open(
        self, host: str, parcels: Sequence[Parcel], given: Mapping[str, bytes], peers: Sequence[str]
    ) -> Sender:
        """Begin to serve what is here; return where, and with which token.

        Args:
            host: the node's address in the cluster.
            parcels: all that is fetched by any node.
            given: etag -> small content that the driver has asked the hub for already.
            peers: addresses of nodes, to which no proxy leads.

        Raises:
            VlmcacheError: it cannot serve here, or the disk refuses.
        """
        _without_proxy([host, *peers])
        self._parcels = {parcel.key: parcel for parcel in parcels}
        for model in self._models.values():
            if model.restriction:
                # A server of this cache must know it before the model is complete.
                with Journal(own_home(self._session.environment)[0]) as memory:
                    memory.record_restriction(*layout.split_name(model.repo), model.restriction)
        token = secrets.token_urlsafe(32)
        self._server = BlobServer(self._session, host, token)
        for model in self._models.values():
            order = self._order(model)
            links = [action for action in order.plan.actions if isinstance(action, Link)]
            fetched = {fetch.etag for fetch in order.fetches}
            links = [link for link in links if link.etag not in fetched]
            small = [fetch for fetch in order.fetches if fetch.etag in given]
            if links or small:
                client = self._peer_client([_Given(given)])
                self._work(client, order, [*small, *links], Progress())
            self._serve(model.repo, [*model.contents], verified=False)
        return Sender(self._name, self._server.address, token)

    def _serve(self, repo: str, etags: Sequence[str], *, verified: bool) -> None:
        """Serve what of contents is here."""
        assert self._server is not None
        state = self._scanned(repo)
        cached = state.repo(repo)
        files = self._models[repo].contents
        for etag in etags:
            if cached is not None and layout.is_etag(etag) and cached.holds(files[etag]):
                size = files[etag].content_size
                self._server.add(etag, cached.blob_path(etag), size, verified=verified)

    def check(self, key: str) -> bool:
        """Read a parcel that is here; what is damaged of it is not served, and remembered."""
        parcel = self._parcels[key]
        folder = os.path.join(self._session.cache.dir, layout.folder_of(parcel.repo))
        tree = CacheTree(self._session.cache.dir)
        good = True
        for etag in parcel.etags:
            path = layout.blob_path(folder, etag)
            try:
                actual = hash_file(path, etag, tree.open_content)
            except (OSError, VlmcacheError) as error:
                log.info("fleet", "cannot be read: '%s': %s", path, reason_of(error))
                actual = ""
            if actual != etag:
                good = False
                self._distrusted.add(etag)
                if self._server is not None:
                    self._server.shelf.distrust(etag)
                with contextlib.suppress(OSError):
                    self._remember_damage(tree, path)
        return good

    def _remember_damage(self, tree: CacheTree, path: str) -> None:
        descriptor = tree.open_content(path)
        try:
            identity = identify_open(descriptor)
        finally:
            os.close(descriptor)
        with Journal(own_home(self._session.environment)[0]) as memory:
            memory.record_damaged([identity], time.time())

    # What it fetches.

    def fetch(self, key: str, sender: Sender | None) -> None:
        """Begin to fetch a parcel from a node, or from the hub if none is named."""
        threading.Thread(
            target=self._fetch, args=(self._parcels[key], sender), name=f"fetch {key}", daemon=True
        ).start()

    def cancel(self, key: str) -> None:
        """Stop fetching a parcel; what has arrived stays. A landing says so."""
        with self._changed:
            client = self._clients.get(key)
        if client is not None:
            client.stop()

    def _fetch(self, parcel: Parcel, sender: Sender | None) -> None:
        source = None if sender is None else sender.node
        landing = Landing(parcel.key, source, 0, fault="node")
        client: Client | None = None
        try:
            client = self._client(sender)
            with self._changed:
                self._clients[parcel.key] = client
                self._positions[parcel.key] = {}
            landing = self._fetched(client, parcel, source)
        except BaseException as error:
            # Whatever it is, the driver has to know that nothing comes of it.
            failure = Failure.of(_as_ours(error, self._session.cache.dir))
            landing = msgspec.structs.replace(landing, error=failure)
        finally:
            with self._changed:
                self._clients.pop(parcel.key, None)
                have = sum(self._positions.pop(parcel.key, {}).values())
                self._landings.append(msgspec.structs.replace(landing, have=have))
                self._changed.notify_all()
            if client is not None:
                client.stop()

    def _fetched(self, client: Client, parcel: Parcel, source: str | None) -> Landing:
        model = self._models[parcel.repo]
        order = self._order(model)
        order = order._replace(distrusted=order.distrusted | self._distrusted)
        wanted = set(parcel.etags)
        steps = [a for a in order.plan.actions if isinstance(a, Fetch | Link) and a.etag in wanted]
        outcomes, error = self._work(client, order, steps, _Positions(self, parcel, model))
        received = sum(outcome.fetched for outcome in outcomes)
        landing = Landing(parcel.key, source, received)
        if error is None:
            self._distrusted -= wanted
            self._serve(parcel.repo, parcel.etags, verified=True)
            return landing
        fault = _fault(error, client, source)
        return msgspec.structs.replace(landing, fault=fault, error=Failure.of(error))

    def _work(
        self,
        client: Client,
        order: DownloadOrder,
        steps: Sequence[Fetch | Link],
        progress: Progress,
    ) -> tuple[list[Outcome], VlmcacheError | None]:
        """Do some steps of an order, as a pull does them; the ref is left to the end."""
        plan = Plan(tuple(steps))
        files = frozenset(step.file for step in steps)
        new = order.new_listing and order.repo not in self._listed
        part = order._replace(plan=plan, wanted=files, new_listing=new)
        self._listed.add(order.repo)
        outcomes, error = download(client, part, progress, _WORKERS)
        with self._changed:
            self._outcomes += outcomes
        return outcomes, error

    def _client(self, sender: Sender | None) -> Client:
        if sender is not None:
            throttle = Throttle(self._rate)
            return self._peer_client([self._served(sender, throttle)], throttle)
        return Client(self._session.environment, throttle=Throttle(self._rate), note=self._note)

    def _served(self, sender: Sender, throttle: Throttle) -> ServedContents:
        log.hide(sender.token)
        variables = {
            name: value
            for name, value in self._session.environment.variables.items()
            # The network is not the hub.
            if name not in _OFFLINE
        }
        environment = msgspec.structs.replace(self._session.environment, variables=variables)
        patience = Patience(
            attempts=1, asks=1, growth=1.0, answer_timeout=_SILENCE, data_timeout=_SILENCE
        )
        return ServedContents(environment, sender.address, sender.token, throttle, patience)

    def _peer_client(self, sources: Sequence[Source], throttle: Throttle | None = None) -> Client:
        """Return a client that asks nobody but sources."""
        own = self._session.environment
        variables = own.variables | {_OFFLINE[0]: "1"}
        client = Client(
            msgspec.structs.replace(own, variables=variables),
            # What stops the transfer stops its source.
            throttle=throttle,
            patience=Patience(data_timeout=_SILENCE),
        )
        client.sources.use(sources, first=True)
        return client

    def _note(self, text: str) -> None:
        with self._changed:
            self._notes.append(text)

    def news(self, wait: float = 0.0) -> News:
        """Return what has happened, as soon as a parcel has landed, or after some seconds."""
        with self._changed:
            if not self._landings:
                self._changed.wait(wait)
            landings, self._landings = tuple(self._landings), []
            notes, self._notes = tuple(self._notes), []
            positions = {key: sum(files.values()) for key, files in self._positions.items()}
        return News(landings, positions, notes)

    def moved(self, key: str, etag: str, position: int) -> None:
        """Take note of how much of a content is here."""
        with self._changed:
            if key in self._positions:
                self._positions[key][etag] = position

    # How it ends.

    def finish(self) -> Finished:
        """Link what is left, write the refs, and judge each model by the rules of `status`."""
        states: dict[str, str] = {}
        errors: dict[str, Failure] = {}
        paths: dict[str, str] = {}
        for repo, model in self._models.items():
            error: VlmcacheError | None = None
            try:
                order = self._order(model)
                paths[repo] = order.snapshot
                states[repo] = "cached"
                if order.plan.actions or order.new_listing:
                    error = self._end(model, order)
                    states[repo] = "pulled"
                elif repo in self._listed:
                    states[repo] = "pulled"
                if error is None and model.plain and model.needed_by is None:
                    error = check_result(order, model.variant)
            except (OSError, VlmcacheError) as caught:
                error = _as_ours(caught, self._session.cache.dir)
            if error is not None:
                states[repo], errors[repo] = "failed", Failure.of(error)
                continue
            self._remember(model)
        with self._changed:
            outcomes = tuple(self._outcomes)
        fetched = sum(outcome.fetched for outcome in outcomes)
        receipt = self._space.measured(Receipt(outcomes, 0, fetched))
        return Finished(states, errors, receipt, paths)

    def _end(self, model: WantedModel, order: DownloadOrder) -> VlmcacheError | None:
        if order.fetches:
            missing = order.fetches[0].file
            others = len(order.fetches) - 1
            more = f" and {others} more" if others else ""
            return ChangedError(f"{model.repo}: {missing}{more} missing on {self._name}")
        client = self._peer_client([])
        try:
            outcomes, error = download(client, order, Progress(), _WORKERS)
        finally:
            client.stop()
        with self._changed:
            self._outcomes += outcomes
        return error

    def _remember(self, model: WantedModel) -> None:
        kind, repo_id = layout.split_name(model.repo)
        with Journal(own_home(self._session.environment)[0]) as memory:
            if model.restriction is None:
                memory.record_restriction(kind, repo_id, None)
            memory.record_use(self._session.cache.dir, kind, repo_id, model.commit, "pull")

    def close(self) -> None:
        """Stop all that is running, and serve no more."""
        with self._changed:
            clients = list(self._clients.values())
        for client in clients:
            client.stop()
        if self._server is not None:
            self._server.close()
            self._server = None


class _Given:
    """Small contents that the driver has handed over: a `Source`."""

    kind = "given"
    streamed = False
    name = "the driver"

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self._contents = contents

    def has(self, etag: str, size: int) -> bool:
        """Return whether it has a content of a length."""
        return len(self._contents.get(etag, b"")) == size and etag in self._contents

    def order(self, etag: str) -> int:  # noqa: ARG002
        """Return 0: any content can be read at any time."""
        return 0

    @contextlib.contextmanager
    def open(self, etag: str, offset: int = 0) -> Iterator[Iterator[bytes]]:
        """Yield a content from an offset on."""
        yield iter([self._contents[etag][offset:]])

    def descriptor(self, etag: str) -> int | None:  # noqa: ARG002
        """Return `None`: it is in no file."""
        return None

    def listing(self, repo: str, revision: str) -> tuple[str, dict[str, TreeFile]] | None:  # noqa: ARG002
        """Return `None`: it lists nothing."""
        return None


class _Positions(Progress):
    """Hands on how much of a parcel is here."""

    def __init__(self, holdings: Holdings, parcel: Parcel, model: WantedModel) -> None:
        self._holdings = holdings
        self._parcel = parcel
        self._etags = {name: listed.etag for name, listed in model.files.items()}

    def moved(self, repo: str, file: str, position: int) -> None:  # noqa: ARG002
        """Take note of a position."""
        self._holdings.moved(self._parcel.key, self._etags[file], position)


def _fault(error: VlmcacheError, client: Client, source: str | None) -> Fault:
    if client.stop_token.stopped.is_set():
        return "stopped"
    if client.sources.wrong:
        return "wrong"
    if isinstance(error, SpaceError | CacheError):
        return "node"
    if source is not None:
        return "source"
    if isinstance(error, OfflineError | UnreachableError):
        return "unreachable"
    if isinstance(error, HubError | AccessError):
        return "hub"
    return "node" if isinstance(error, ChangedError) else "hub"


def _as_ours(error: BaseException, path: str) -> VlmcacheError:
    if isinstance(error, VlmcacheError):
        return error
    if isinstance(error, OSError):
        return disk_failure(error, path)
    return VlmcacheError(f"internal error: {type(error).__name__}: {reason_of(error)}")


def _place_of(cache_dir: str) -> str:
    """Return what names a cache, wherever it is seen from: the same for nodes that share it."""
    place = nearest_folder(cache_dir)
    status, mount = os.stat(place), mount_of(place)
    rest = os.path.relpath(os.path.realpath(cache_dir), os.path.realpath(place))
    if mount is not None and mount.network:
        return f"{mount.source}:{status.st_ino}:{rest}"
    return f"{_machine()}:{status.st_dev}:{status.st_ino}:{rest}"


def _machine() -> str:
    """Return what names this start of this machine."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return socket.gethostname()


def _without_proxy(hosts: Sequence[str]) -> None:
    """Let no proxy stand between the nodes: what the process inherits is meant for the hub."""
    if not {"http_proxy", "all_proxy"} & {name.casefold() for name in os.environ}:
        return
    for name in ("NO_PROXY", "no_proxy"):
        known = [part for part in os.environ.get(name, "").split(",") if part]
        if "*" not in known:
            os.environ[name] = ",".join([*known, *(host for host in hosts if host not in known)])


def _holdings(worker: Worker) -> Holdings:
    holdings = worker.kept["pull"]
    assert isinstance(holdings, Holdings)
    return holdings


def survey(worker: Worker, request: bytes) -> NodeStock:
    """Return what a node has."""
    asked = msgspec.json.decode(request, type=Survey)
    holdings = Holdings(worker.cache.session, asked.name, asked.limit_rate)
    worker.kept["pull"] = holdings
    return holdings.survey(asked.models)


def open_node(worker: Worker, request: bytes) -> Sender:
    """Let a node serve."""
    asked = msgspec.json.decode(request, type=Opening)
    return _holdings(worker).open(asked.host, asked.parcels, asked.given, asked.peers)


def fetch(worker: Worker, request: bytes) -> Nothing:
    """Let a node begin to fetch."""
    asked = msgspec.json.decode(request, type=Errand)
    _holdings(worker).fetch(asked.parcel, asked.sender)
    return Nothing()


def cancel(worker: Worker, request: bytes) -> Nothing:
    """Let a node stop fetching."""
    _holdings(worker).cancel(msgspec.json.decode(request, type=Errand).parcel)
    return Nothing()


def check(worker: Worker, request: bytes) -> Checked:
    """Let a node read what it has."""
    key = msgspec.json.decode(request, type=Errand).parcel
    return Checked(key, _holdings(worker).check(key))


def news(worker: Worker, request: bytes) -> News:
    """Return what has happened on a node."""
    return _holdings(worker).news(msgspec.json.decode(request, type=NewsWanted).wait)


def finish(worker: Worker, request: bytes) -> Finished:  # noqa: ARG001
    """Let a node link what it has, and serve no more."""
    holdings = _holdings(worker)
    try:
        return holdings.finish()
    finally:
        holdings.close()
