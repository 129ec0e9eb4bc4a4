"""What one node does in a `fleet pull`: it reports what it has, fetches, serves, and links.

This runs on the node, in its own environment and with its own config.yaml. It does not know Ray.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from vlmcache.cache import layout
from vlmcache.change.plan import Failure, Fetch, Link, Outcome, Plan, Receipt
from vlmcache.commands.fleet.fetching import (
    Given,
    client_for,
    client_of_sources,
    fault_of,
    without_proxy,
)
from vlmcache.commands.fleet.parcels import (
    EndState,
    Finished,
    Landing,
    News,
    Parcel,
    Sender,
    WantedModel,
)
from vlmcache.commands.fleet.surveying import Surveyor, as_ours
from vlmcache.commands.pull.fetch import download
from vlmcache.commands.pull.plan import DownloadOrder
from vlmcache.commands.pull.prepare import check_result
from vlmcache.commands.serve.shelf import BlobServer
from vlmcache.config import Session, own_home
from vlmcache.errors import ChangedError, VlmcacheError
from vlmcache.home.journal import Journal
from vlmcache.hub.client import Client
from vlmcache.progress import Progress
from vlmcache.units import first_of

_WORKERS = 8
"""Connections to the hub for one parcel: for small files, or for the parts of a large one."""


class Holdings(Surveyor):
    """The part of a `fleet pull` that one node does. Its methods may be called by several threads.

    Args:
        session: what to work on.
        name: of the node.
        limit_rate: bytes per second from the hub and other nodes; unlimited if `None`.
    """

    def __init__(self, session: Session, name: str, limit_rate: int | None = None) -> None:
        super().__init__(session)
        self._name = name
        self._rate = limit_rate
        self._parcels: dict[str, Parcel] = {}
        self._server: BlobServer | None = None
        self._clients: dict[str, Client] = {}
        self._landings: list[Landing] = []
        self._positions: dict[str, dict[str, int]] = {}
        self._notes: list[str] = []
        self._changed = threading.Condition()
        self._listed: set[str] = set()
        self._outcomes: list[Outcome] = []

    # What it serves.

    def open(
        self, host: str, parcels: Sequence[Parcel], given: Mapping[str, bytes], peers: Sequence[str]
    ) -> Sender:
        """Begin to serve what is here; return where, and with which token.

        Args:
            host: the node's address in the cluster.
            parcels: all that is fetched by any node.
            given: etag -> small content that the driver has from the hub already.
            peers: addresses of nodes, to which no proxy leads.

        Raises:
            VlmcacheError: it cannot serve here, or the disk refuses.
        """
        without_proxy([host, *peers])
        self._parcels = {parcel.key: parcel for parcel in parcels}
        for model in self._models:
            if model.restriction:
                # A server of this cache must know it before the model is complete.
                with Journal(own_home(self._session.environment)[0]) as journal:
                    journal.record_restriction(*layout.split_name(model.repo), model.restriction)
        token = secrets.token_urlsafe(32)
        self._server = BlobServer(self._session, host, token)
        for model in self._models:
            order = self._order(model)
            links = [action for action in order.plan.actions if isinstance(action, Link)]
            fetched = {fetch.etag for fetch in order.fetches}
            links = [link for link in links if link.etag not in fetched]
            small = [fetch for fetch in order.fetches if fetch.etag in given]
            if links or small:
                client = client_of_sources(self._session, [Given(given)])
                self._work(client, model, order, [*small, *links], Progress())
            self._serve(model, model.contents, verified=False)
        return Sender(self._name, self._server.address, token)

    def _serve(self, model: WantedModel, etags: Iterable[str], *, verified: bool) -> None:
        """Serve those contents of a model that are here."""
        assert self._server is not None
        cached = self._scanned(model.repo).repo(model.repo)
        files = model.contents
        for etag in files.keys() & set(etags) if cached is not None else ():
            assert cached is not None
            if layout.is_etag(etag) and cached.holds(files[etag]):
                size = files[etag].content_size
                self._server.add(etag, cached.blob_path(etag), size, verified=verified)

    def check(self, key: str) -> bool:
        """Read a parcel, and return whether it is good; what is damaged is not served any more."""
        parcel = self._parcels[key]
        damaged = self.damaged(parcel.repo, parcel.etags)
        for etag in damaged if self._server is not None else ():
            assert self._server is not None
            self._server.shelf.distrust(etag)
        return not damaged

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
            client = client_for(self._session, sender, self._rate, self._note)
            with self._changed:
                self._clients[parcel.key] = client
                self._positions[parcel.key] = {}
            landing = self._fetched(client, parcel, source)
        except BaseException as error:
            # Whatever it is, the driver has to know that the parcel does not come.
            failure = Failure.of(as_ours(error, self._session.cache.dir))
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
        wanted, received = set(parcel.etags), 0
        models = [model for model in self._models if model.repo == parcel.repo]
        for model in models:
            order = self._order(model)
            order = order._replace(distrusted=order.distrusted | self._distrusted)
            actions = order.plan.actions
            steps = [a for a in actions if isinstance(a, Fetch | Link) and a.etag in wanted]
            shown = _Positions(self, parcel, model)
            outcomes, error = self._work(client, model, order, steps, shown)
            received += sum(outcome.fetched for outcome in outcomes)
            if error is not None:
                fault = fault_of(error, client, source)
                return Landing(parcel.key, source, received, fault=fault, error=Failure.of(error))
            # The next model links what this one has fetched.
            self._distrusted -= {step.etag for step in steps}
        self._distrusted -= wanted
        for model in models:
            self._serve(model, parcel.etags, verified=True)
        return Landing(parcel.key, source, received)

    def _work(
        self,
        client: Client,
        model: WantedModel,
        order: DownloadOrder,
        steps: Sequence[Fetch | Link],
        progress: Progress,
    ) -> tuple[list[Outcome], VlmcacheError | None]:
        """Do some steps of an order, as a pull does them; the ref is left to the end."""
        plan = Plan(tuple(steps))
        files = frozenset(step.file for step in steps)
        new = order.new_listing and model.id not in self._listed
        part = order._replace(plan=plan, wanted=files, new_listing=new)
        self._listed.add(model.id)
        outcomes, error = download(client, part, progress, _WORKERS)
        with self._changed:
            self._outcomes += outcomes
        return outcomes, error

    def _note(self, text: str) -> None:
        with self._changed:
            self._notes.append(text)

    def news(self, wait: float = 0.0) -> News:
        """Return what has happened, once a parcel has landed or after `wait` seconds."""
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
        states: dict[str, EndState] = {}
        errors: dict[str, Failure] = {}
        paths: dict[str, str] = {}
        for model in self._models:
            key, error = model.id, None
            try:
                order = self._order(model)
                paths[key] = order.snapshot
                states[key] = "cached"
                if order.plan.actions or order.new_listing:
                    error = self._end(model, order)
                    states[key] = "pulled"
                elif key in self._listed:
                    states[key] = "pulled"
                if error is None and model.plain and model.needed_by is None:
                    error = check_result(order, model.variant)
            except (OSError, VlmcacheError) as caught:
                error = as_ours(caught, self._session.cache.dir)
            if error is not None:
                states[key], errors[key] = "failed", Failure.of(error)
                continue
            self._remember(model)
        with self._changed:
            outcomes = tuple(self._outcomes)
        fetched = sum(outcome.fetched for outcome in outcomes)
        receipt = self._space.measured(Receipt(outcomes, 0, fetched))
        return Finished(states, errors, receipt, paths)

    def _end(self, model: WantedModel, order: DownloadOrder) -> VlmcacheError | None:
        if order.fetches:
            missing = first_of([fetch.file for fetch in order.fetches], 1)
            return ChangedError(f"{model.repo}: {missing} missing on {self._name}")
        client = client_of_sources(self._session, [])
        try:
            outcomes, error = download(client, order, Progress(), _WORKERS)
        finally:
            client.stop()
        with self._changed:
            self._outcomes += outcomes
        return error

    def _remember(self, model: WantedModel) -> None:
        kind, repo_id = layout.split_name(model.repo)
        with Journal(own_home(self._session.environment)[0]) as journal:
            if model.restriction is None:
                journal.record_restriction(kind, repo_id, None)
            journal.record_use(self._session.cache.dir, (kind, repo_id, model.commit), "pull")

    def close(self) -> None:
        """Stop everything that is running, and stop serving."""
        with self._changed:
            clients = list(self._clients.values())
        for client in clients:
            client.stop()
        if self._server is not None:
            self._server.close()
            self._server = None


class _Positions(Progress):
    """Passes on how much of a parcel is here."""

    def __init__(self, holdings: Holdings, parcel: Parcel, model: WantedModel) -> None:
        self._holdings = holdings
        self._parcel = parcel
        self._etags = {name: listed.etag for name, listed in model.files.items()}

    def moved(self, repo: str, file: str, position: int) -> None:  # noqa: ARG002
        """Take note of a position."""
        self._holdings.moved(self._parcel.key, self._etags[file], position)
