"""What the verbs of `fleet` are asked for, and what they return."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from vlmcache.cache.state import Finding, State
from vlmcache.change.plan import Failure, Kept, Plan, Receipt
from vlmcache.commands.remove.values import Keeping
from vlmcache.commands.verify.values import Damage, DamageError, Missing, Unverifiable
from vlmcache.errors import ExitCode, PartlyError, VlmcacheError
from vlmcache.load.report import LoadFailure, Machine, Result, Spread
from vlmcache.report import Report
from vlmcache.units import command, counted, first_of

_MOST_REASONS = 5
"""The most reasons in a message."""
_LOCAL_COMMAND = re.compile(
    r"vlmcache (status|pull|clean|verify|load-test)\b((?:(?!vlmcache )[^;])*)"
)
"""`rm` is not among them: what one node should remove, the others may need."""
_OPTIONS_OF_BOTH = {"--include", "--exclude", "--revision"}


class NodeLostError(VlmcacheError):
    """A node died, hangs or cannot be reached."""

    code = "node-lost"


class VersionsError(VlmcacheError):
    """Nodes have other versions of vlmcache, Ray or Python than this machine."""

    code = "versions-differ"


class FleetCheckError(VlmcacheError):
    """A node is missing a model, or has another commit of it than others."""

    code = "fleet-differs"
    exit_code = ExitCode.DAMAGE


class FleetNode(msgspec.Struct, frozen=True, kw_only=True):
    """What every verb says of a node."""

    node: str
    """Its name."""
    address: str
    free: int | None = None
    """Bytes free on the filesystem of its cache; `None` if that is not known."""
    error: Failure | None = None
    """Why it did not do what was asked for, or not all of it."""


class FleetReport(Report, frozen=True):
    """What a verb returns. Each verb has a type of its own for `nodes`."""

    @property
    def rows(self) -> Sequence[FleetNode]:
        """The nodes, with what all verbs say of them."""
        raise NotImplementedError

    @property
    def problem(self) -> VlmcacheError | None:
        """Which nodes failed, and why."""
        if "_problem" in self.__dict__:
            return super().problem
        return nodes_problem(self.rows)


def nodes_problem(nodes: Sequence[FleetNode]) -> VlmcacheError | None:
    """Return the failures of nodes as one error; `None` if there are none.

    If all nodes failed with the same exit code, that is the command's; otherwise it is partly done.
    """
    failed = [(node, node.error) for node in nodes if node.error is not None]
    if not failed:
        return None
    causes = tuple(
        error_of(failure).saying(f"{node.node}: {failure.message}", _fleet_hint(failure.hint))
        for node, failure in failed
    )
    codes = {failure.exit_code for _, failure in failed}
    first, hint = failed[0][1], _fleet_hint(failed[0][1].hint)
    if len(nodes) == 1:
        return causes[0]
    count = f"{len(failed)} of {counted(len(nodes), 'node')}"
    why = "; ".join(_grouped((node.node, failure.message) for node, failure in failed))
    message = f"not complete on {count}: {why}"
    if len(failed) == len(nodes) and len(codes) == 1:
        error = error_of(first).saying(message, hint)
    else:
        error = PartlyError(message, hint)
    error.causes = causes
    return error


def _fleet_hint(hint: str | None) -> str | None:
    """Return the hint of a node with the commands that do on all nodes what it says for one.

    A command with an option that `fleet` does not have stays: it is typed on the node.
    """

    def on_all_nodes(found: re.Match[str]) -> str:
        verb, rest = found.groups()
        options = set(re.findall(r"(?<!\S)--[\w-]+", rest))
        if verb == "status" and options == {"--all"}:
            return f"vlmcache fleet status{rest.replace(' --all', '')}"
        return f"vlmcache fleet {verb}{rest}" if options <= _OPTIONS_OF_BOTH else found[0]

    return None if hint is None else _LOCAL_COMMAND.sub(on_all_nodes, hint)


def _grouped(reasons: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the nodes with each reason: `gpu1, gpu2 (no answer)`."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons:
        names.setdefault(reason, []).append(name)
    shown = list(names.items())[:_MOST_REASONS]
    for reason, those in shown:
        yield f"{first_of(those)} ({reason})"
    if len(names) > len(shown):
        yield f"and {len(names) - len(shown)} more"


def error_of(failure: Failure) -> VlmcacheError:
    """Return a failure that came from a node as the error that it was there."""
    kinds = {kind.code: kind for kind in _kinds(VlmcacheError)}
    exit_codes = {kind.exit_code: kind for kind in reversed(list(_kinds(VlmcacheError)))}
    kind = kinds.get(failure.code) or exit_codes.get(ExitCode(failure.exit_code), VlmcacheError)
    error = kind.__new__(kind)
    VlmcacheError.__init__(error, failure.message, failure.hint)
    return error


def _kinds(kind: type[VlmcacheError]) -> Iterator[type[VlmcacheError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)


class ModelOnNode(msgspec.Struct, frozen=True):
    """A model on one node. Sizes are bytes."""

    repo: str
    """What to type for it: of a dataset `datasets/owner/name`."""
    revision: str = "main"
    variant: str | None = None
    state: State = "missing"
    progress: float | None = None
    """The fraction of `expected_size` that is on disk, 0 to 1."""
    commit: str | None = None
    size_on_disk: int = 0
    expected_size: int | None = None
    to_fetch: int | None = None

    @property
    def id(self) -> str:
        """The repo, with the revision if it is not main, and the variant."""
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return self.repo + revision + (f":{self.variant}" if self.variant else "")


class NodeStatus(FleetNode, frozen=True, kw_only=True):
    """The cache of a node."""

    models: tuple[ModelOnNode, ...] = ()
    """Each model that the report is about, on this node."""
    cache: str = ""
    """The hub cache."""
    size_on_disk: int | None = None
    total: int | None = None
    """Bytes of the filesystem of its cache."""


class FleetStatus(FleetReport, frozen=True):
    """What `vlmcache fleet status` returns."""

    nodes: tuple[NodeStatus, ...]
    models: tuple[str, ...] = ()
    """The models that the report is about."""
    checked: bool = False
    """Whether it is a problem if a node is missing a model, or has another commit of it."""

    @property
    def rows(self) -> Sequence[FleetNode]:
        """The nodes."""
        return self.nodes

    @property
    def ids(self) -> list[str]:
        """The nodes that have all models."""
        return [node.node for node in self.nodes if node.error is None and self.has_all(node)]

    @staticmethod
    def has_all(node: NodeStatus) -> bool:
        """Return whether each model is cached on a node."""
        return all(model.state == "cached" for model in node.models)

    @property
    def commits(self) -> dict[str, dict[str, list[str]]]:
        """Model -> commit -> the nodes that have it."""
        commits: dict[str, dict[str, list[str]]] = {name: {} for name in self.models}
        for node in self.nodes:
            for model in node.models:
                if model.commit is not None:
                    commits[model.id].setdefault(model.commit, []).append(node.node)
        return commits

    @property
    def incomplete(self) -> list[str]:
        """Which models are not cached on which nodes, in words."""
        parts: list[str] = []
        for number, name in enumerate(self.models):
            nodes: dict[str, list[str]] = {}
            for node in self.nodes:
                if node.error is None and node.models[number].state != "cached":
                    nodes.setdefault(node.models[number].state, []).append(node.node)
            parts += (f"{name} is {state} on {first_of(names)}" for state, names in nodes.items())
        return parts

    @property
    def problem(self) -> VlmcacheError | None:
        """What `--check` found, or which nodes did not answer."""
        return (self._difference() if self.checked else None) or super().problem

    def _difference(self) -> VlmcacheError | None:
        if not self.models:
            return FleetCheckError("no model is cached on these nodes")
        parts = self.incomplete
        parts += (
            differing_commits(name, commits)
            for name, commits in self.commits.items()
            if len(commits) > 1
        )
        silent = [node.node for node in self.nodes if node.error is not None]
        parts += [f"not known of {first_of(silent)}"] if silent else []
        if not parts:
            return None
        shown = first_of(parts, separator="; ")
        error = FleetCheckError(f"the nodes do not all have the same: {shown}")
        problem = super().problem
        error.causes = () if problem is None else problem.causes or (problem,)
        return error


def differing_commits(name: str, commits: Mapping[str, Sequence[str]]) -> str:
    """Return that nodes have different commits of a model.

    Args:
        name: the model.
        commits: commit -> the nodes that have it.
    """
    words = ", ".join(f"{commit[:7]} on {first_of(nodes)}" for commit, nodes in commits.items())
    return f"commits of {name} differ: {words}"


class RemovedModel(msgspec.Struct, frozen=True):
    """A repo, or another path, of which something is removed from a node."""

    repo: str
    frees: int


class NodeRemoval(FleetNode, frozen=True, kw_only=True):
    """What is removed from a node."""

    models: tuple[RemovedModel, ...] = ()
    cache: str = ""
    plan: Plan | None = None
    receipt: Receipt | None = None
    in_use: tuple[Kept, ...] = ()
    """What processes use there, and which processes."""
    findings: tuple[Finding, ...] = ()
    """Models that stay and need what is removed."""
    trash: Keeping = Keeping()
    missed_by: int = 0
    """Bytes that were asked for and cannot be freed."""


class FleetRemoval(FleetReport, frozen=True):
    """What `vlmcache fleet rm` and `vlmcache fleet clean` return."""

    nodes: tuple[NodeRemoval, ...]
    frees: int = 0
    """Bytes that the plans of all nodes free."""
    freed: int = 0
    """Bytes that were freed on all nodes."""
    trashed: int = 0
    """Bytes that are freed there once the trash is emptied."""

    @property
    def rows(self) -> Sequence[FleetNode]:
        """The nodes."""
        return self.nodes

    @property
    def ids(self) -> list[str]:
        """The nodes from which something is or would be removed."""
        return [
            node.node
            for node in self.nodes
            if node.models and (node.receipt is None or node.receipt.outcomes)
        ]


class DamagedModel(msgspec.Struct, frozen=True):
    """A repo of which something on a node is damaged or missing."""

    repo: str
    damaged: int = 0
    missing: int = 0


class NodeVerification(FleetNode, frozen=True, kw_only=True):
    """What was verified on a node."""

    models: tuple[DamagedModel, ...] = ()
    """The models of which something is damaged or missing."""
    cache: str = ""
    checked: int = 0
    """Files that were read and hashed this time."""
    bytes: int = 0
    remembered: int = 0
    """Files found good before, and unchanged since."""
    remembered_bytes: int = 0
    seconds: float = 0.0
    damaged: tuple[Damage, ...] = ()
    missing: tuple[Missing, ...] = ()
    unverifiable: tuple[Unverifiable, ...] = ()


class FleetVerification(FleetReport, frozen=True):
    """What `vlmcache fleet verify` returns."""

    nodes: tuple[NodeVerification, ...]

    @property
    def rows(self) -> Sequence[FleetNode]:
        """The nodes."""
        return self.nodes

    @property
    def ids(self) -> list[str]:
        """The nodes on which something is damaged or missing."""
        return [node.node for node in self.nodes if node.models]

    @property
    def problem(self) -> VlmcacheError | None:
        """What is damaged or missing, else which nodes could not be checked."""
        problem = super().problem
        if problem is None or not self.ids:
            return problem
        # Damage is certain, whatever the other nodes did.
        repos = dict.fromkeys(model.repo for node in self.nodes for model in node.models)
        damage = DamageError(
            problem.message,
            f"'{command('fleet', 'pull', *repos)}' fetches what is bad from nodes where it is good",
        )
        damage.causes = problem.causes
        return damage


class LoadedModel(msgspec.Struct, frozen=True):
    """A model that was loaded on a node at a precision. Times are seconds."""

    model: str
    precision: str
    loader: str
    device: str
    cold: Spread | None = None
    warm: Spread | None = None
    ratio: float | None = None
    """How many times as long as the median of the other nodes; `None` if there are none."""
    slow: bool = False
    """Whether that is more than the spread of the other nodes explains."""


class NodeLoads(FleetNode, frozen=True, kw_only=True):
    """What was loaded on a node."""

    models: tuple[LoadedModel, ...] = ()
    machine: Machine | None = None
    results: tuple[Result, ...] = ()
    failures: tuple[LoadFailure, ...] = ()


class FleetLoads(FleetReport, frozen=True):
    """What `vlmcache fleet load-test` returns."""

    nodes: tuple[NodeLoads, ...]
    slow: tuple[str, ...] = ()
    """The nodes that load slower than the others."""

    @property
    def rows(self) -> Sequence[FleetNode]:
        """The nodes."""
        return self.nodes

    @property
    def ids(self) -> list[str]:
        """One line for each result: node, model, precision, loader."""
        return [
            f"{node.node} {model.model} {model.precision} {model.loader}"
            for node in self.nodes
            for model in node.models
        ]
