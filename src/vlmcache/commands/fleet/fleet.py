"""`FleetCache`: the verbs of `fleet` as methods, for people who write Python.

Keyword arguments are those of the same methods of `Cache`, and every method joins the cluster and
leaves it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from vlmcache import log
from vlmcache.arguments import (
    Names,
    Size,
    as_bytes,
    as_count,
    as_list,
    as_names,
    as_rate,
    as_seconds,
)
from vlmcache.commands.fleet import measuring, removal, requests
from vlmcache.commands.fleet.actor import Setup
from vlmcache.commands.fleet.calls import Fleet
from vlmcache.commands.fleet.status import names_for_nodes, status_of_nodes
from vlmcache.commands.fleet.values import (
    FleetLoads,
    FleetRemoval,
    FleetStatus,
    FleetVerification,
)
from vlmcache.config import Config, Session, at_revision, without_addresses
from vlmcache.errors import UsageError
from vlmcache.progress import Progress

if TYPE_CHECKING:
    from vlmcache.commands.fleet.cluster import Cluster
    from vlmcache.commands.fleet.pull_values import FleetPull


class FleetCache:
    """The hub caches of a Ray cluster's nodes; `Cache.fleet` makes one.

    Args:
        session: what names of models mean here, and the hub cache if `--cache-dir` chose one.
        address: `auto`, `HOST:PORT` or `ray://HOST:PORT`; RAY_ADDRESS, else `auto`, if not given.
        nodes: names, addresses, labels `KEY=VALUE`, patterns, or ranges `gpu[1-4]`; all if none.
        named: returns what messages call an argument.
    """

    def __init__(
        self,
        session: Session,
        address: str | None = None,
        nodes: Names = (),
        named: Callable[[str], str] = str,
    ) -> None:
        self.session = session
        self.address = address
        self.wanted = as_list(nodes)
        self.named = named
        self.progress: Progress = Progress()
        """What sees how far nodes are, and who is waited for."""
        self.confirm: Callable[[Any], bool] | None = None
        """Is called with the plans of all nodes before anything is removed."""
        self.agree: Callable[[Any], bool] | None = None
        """Is called with the other repos that models need, before anything is pulled."""
        self.choose: Callable[[Any], str] | None = None
        """Is called if a model has several variants and none is named; returns one."""

    def _starting(self, *, sees_gpus: bool = False) -> AbstractContextManager[Cluster]:
        """Return what lets the cluster be joined for as long as a block runs."""
        from vlmcache.commands.fleet import cluster

        location = self.session.cache
        folder = location.dir if location.source == "--cache-dir" else None
        verbose = log.shows_every_step()
        setup = Setup(folder, verbosity=2 if verbose else 0)
        return cluster.starting(self.address, setup, sees_gpus=sees_gpus, verbose=verbose)

    @contextlib.contextmanager
    def joined(self, *, sees_gpus: bool = False) -> Iterator[Fleet]:
        """Join the cluster for as long as the block runs.

        Args:
            sees_gpus: whether what runs on the nodes sees their GPUs.

        Raises:
            MissingPackageError: Ray is not installed.
            ClusterError: the cluster cannot be joined.
            UsageError: a node does not exist.
            VersionsError: nodes have other versions.
        """
        with self._starting(sees_gpus=sees_gpus) as cluster:
            yield cluster.join(self.wanted)

    def status(self, models: Names | None = None, *, check: bool = False) -> FleetStatus:
        """Return what each node has of models.

        Args:
            models: keys of config.yaml, repo ids with an optional `@revision`, or patterns; if not
                given, what any node has configured, else what is in any of the caches.
            check: count it as a problem if a node is missing one, or has another commit.
        """
        names = self._names(models)
        with self.joined() as fleet:
            return status_of_nodes(fleet, names, self.progress, check=check)

    def pull(
        self,
        models: Names,
        *,
        revision: str | None = None,
        include: Names = (),
        exclude: Names = (),
        all_files: bool = False,
        limit_rate: Size | None = None,
        dry_run: bool = False,
    ) -> FleetPull:
        """Download models once, and spread them over the nodes.

        The arguments are those of `Cache.pull`; `limit_rate` counts for each transfer on a node.

        Raises:
            UnknownModelError: a name is neither a key nor a repo id.
            SpaceError: a node has no room; nothing was begun.
        """
        from vlmcache.commands.fleet.pull_values import FleetPullOptions
        from vlmcache.commands.pull.plan import FileSelection

        rate = as_rate(self.named("limit_rate"), limit_rate)
        names = _pulled(self.session.config, as_names(models), revision, self.named)
        where = [word for node in self.wanted for word in ("--nodes", node)]
        where += ["--address", self.address] if self.address is not None else []
        options = FleetPullOptions(
            FileSelection(as_list(include), as_list(exclude), all_files),
            dry_run,
            rate,
            self.agree,
            self.choose,
            tuple(where),
        )
        with self._starting() as cluster:
            # Ray starts meanwhile.
            from vlmcache.commands.fleet.pull import pull_to_fleet

            return pull_to_fleet(
                self.session, lambda: cluster.join(self.wanted), names, options, self.progress
            )

    def remove(
        self,
        models: Names,
        *,
        revision: str | None = None,
        include: Names = (),
        dry_run: bool = False,
        force: bool = False,
        trash: bool | None = None,
    ) -> FleetRemoval:
        """Remove models from the nodes that have them; nobody is asked.

        The arguments are those of `Cache.remove`.

        Raises:
            UnconfirmedError: `confirm` said no.
        """
        if trash is None and self.confirm is None:
            trash = False  # as of a `Cache`: what nobody confirms is freed at once
        options = {
            "revision": revision,
            "include": as_list(include),
            "force": force,
            "trash": trash,
        }
        names = self._names(models)
        if not names:
            raise UsageError("no model is named")
        request = requests.RemovalRequest(False, names, options, dry_run)
        with self.joined() as fleet:
            return removal.remove_from_nodes(fleet, request, self.progress, self.confirm)

    def clean(
        self,
        models: Names = (),
        *,
        older_than: float | str | None = None,
        max_size: Size | None = None,
        free: Size | None = None,
        duplicates: bool = False,
        partials: bool = False,
        keep: Names = (),
        all: bool = False,  # noqa: A002
        xet: bool = False,
        modules: bool = False,
        dry_run: bool = False,
        trash: bool | None = None,
    ) -> FleetRemoval:
        """Remove from each node what nobody needs there; nobody is asked.

        The arguments are those of `Cache.clean`; sizes and ages count for each node.

        Raises:
            UnconfirmedError: `confirm` said no.
        """
        options = {
            "older_than": as_seconds(self.named("older_than"), older_than),
            "max_size": as_bytes(self.named("max_size"), max_size),
            "free": as_bytes(self.named("free"), free),
            "duplicates": duplicates,
            "partials": partials,
            "keep": names_for_nodes(self.session.config, as_list(keep)),
            "all": all,
            "xet": xet,
            "modules": modules,
            "trash": trash,
        }
        names = names_for_nodes(self.session.config, as_list(models))
        request = requests.RemovalRequest(True, names, options, dry_run)
        with self.joined() as fleet:
            return removal.remove_from_nodes(fleet, request, self.progress, self.confirm)

    def verify(
        self,
        models: Names | None = None,
        *,
        max_age: float | str | None = None,
        workers: int | None = None,
    ) -> FleetVerification:
        """Compare every file on each node with its hash. Nothing is changed.

        The arguments are those of `Cache.verify`.
        """
        request = requests.VerifyRequest(
            self._names(models),
            as_seconds(self.named("max_age"), max_age),
            None if workers is None else as_count(self.named("workers"), workers, 256),
        )
        with self.joined() as fleet:
            return measuring.verify_nodes(fleet, request, self.progress)

    def load_test(
        self,
        models: Names | None = None,
        *,
        precision: Names = (),
        device: str = "auto",
        trials: int = 3,
        cold: bool | None = None,
        synthetic: Names = (),
        tokens: int = 1,
        loader: Names = (),
        attention: str | None = None,
        trust_remote_code: bool = False,
        context: int | None = None,
        cold_libraries: bool = False,
    ) -> FleetLoads:
        """Measure on each node how fast models load; the slow ones are named.

        The arguments are those of `Cache.load_test`.
        """
        from vlmcache.load import options as loads

        loads.parse_precisions(as_list(precision))
        loads.parse_loaders(as_list(loader))
        loads.parse_one_attention(attention)
        options = {
            "precision": as_list(precision),
            "device": device,
            "trials": as_count(self.named("trials"), trials),
            "cold": cold,
            "synthetic": as_list(synthetic),
            "tokens": as_count(self.named("tokens"), tokens),
            "loader": as_list(loader),
            "attention": attention,
            "trust_remote_code": trust_remote_code,
            "context": context,
            "cold_libraries": cold_libraries,
        }
        request = requests.LoadRequest(self._names(models), options)
        with self.joined(sees_gpus=True) as fleet:
            return measuring.load_test_nodes(fleet, request, self.progress)

    def _names(self, models: Names | None) -> tuple[str, ...]:
        return names_for_nodes(self.session.config, as_names(models))


def _pulled(
    config: Config, models: Names, revision: str | None, named: Callable[[str], str]
) -> tuple[str, ...]:
    """Return the names of what is pulled, each with its revision.

    Raises:
        UsageError: there are none, or a revision is given twice.
    """
    names = without_addresses(config, models)
    if not names:
        raise UsageError("no model is named")
    return at_revision(names, revision, named("revision"))
