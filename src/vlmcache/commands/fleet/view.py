"""The verbs of `fleet` for people: a line for each node, then what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, TypeVar

from rich.console import Console
from rich.text import Text

from vlmcache.commands.fleet.calls import LOST
from vlmcache.commands.fleet.pull_values import FleetPull, PulledNode
from vlmcache.commands.fleet.removal_notes import notes_of
from vlmcache.commands.fleet.values import (
    FleetLoads,
    FleetNode,
    FleetRemoval,
    FleetStatus,
    FleetVerification,
    LoadedModel,
    NodeRemoval,
    NodeStatus,
    differing_commits,
)
from vlmcache.load.report import Spread
from vlmcache.load.words import doubts
from vlmcache.show.console import console
from vlmcache.show.prose import whole
from vlmcache.show.rows import print_rows, table, width_of, wrapped
from vlmcache.show.tables import state_text
from vlmcache.show.text import NOTHING, printable
from vlmcache.units import command, counted, first_of, pace_text, seconds_text, size_text

_N = TypeVar("_N", bound=FleetNode)
_Columns = Mapping[str, Sequence[str | Text]]
"""Heading -> the cells below it."""

_ROWS = 20
_NOTES = 6
"""The most lines that say what stays, and the most warnings."""
_LATER = "when the trash is emptied"
_MOST_MODELS = 6
"""Up to so many models have a column each, if the screen is wide enough."""
_COMMIT = 7
_NUMBERS = (
    *("ON DISK", "EXPECTED", "FREE", "FREES", "FREED", "FILES", "SIZE", "COLD", "WARM"),
    *("TO FETCH", "FROM HUB", "FROM NODES", "SENT"),
)


def show_status(status: FleetStatus, *, verbose: bool = False) -> None:
    """Print what each node has."""
    out = console()
    print_rows(out, [*wrapped(out, _headline(status)), Text()])
    nodes = _shown(status.nodes, verbose=verbose)
    names = [printable(node.node) for node in nodes]
    ends = {"ON DISK": [_on_disk(node) for node in nodes], "FREE": _free(nodes)}
    addresses = {"ADDRESS": [printable(node.address) for node in nodes]}
    if len(status.models) == 1:
        states = {"STATE": [_state(node, 0) for node in nodes]}
        commits = {"COMMIT": [_commit(node) for node in nodes]}
        expected = {"EXPECTED": [_expected(node) for node in nodes]}
        layouts: list[_Columns] = [
            {"NODE": names, **addresses, **states, **commits, **expected, **ends},
            {"NODE": names, **states, **commits, **expected, **ends},
            {"NODE": names, **states, **commits, "FREE": ends["FREE"]},
        ]
    else:
        layouts = [{"NODE": names, "CACHED": [_count(node) for node in nodes], **ends}]
        if len(status.models) <= _MOST_MODELS:
            columns = {
                printable(name): [_state(node, number) for node in nodes]
                for number, name in enumerate(status.models)
            }
            layouts.insert(0, {"NODE": names, **columns, **ends})
            layouts.insert(0, {"NODE": names, **addresses, **columns, **ends})
    _print_table(out, layouts)
    _print_rest(out, len(status.nodes) - len(nodes))
    _print_errors(out, status.nodes)
    _print_incomplete(out, status)
    _print_commits(out, status)
    if verbose:
        for node in nodes:
            print_rows(
                out, wrapped(out, f"{printable(node.node)}: {whole(printable(node.cache))}", 2)
            )


def _headline(status: FleetStatus) -> Text:
    silent = sum(node.error is not None for node in status.nodes)
    text = Text(f"{counted(len(status.nodes), 'node')}, ", "bold")
    text.append(counted(len(status.models), "model"), "bold")
    if status.models:
        models = printable(status.models[0]) if len(status.models) == 1 else "all of them"
        text.append(f": {len(status.ids)} of {len(status.nodes)} have {models}", "not bold")
    if silent:
        text.append(f", {silent} without an answer", "not bold")
    return text


def _state(node: NodeStatus, number: int) -> Text:
    if node.error is not None:
        return Text("no answer" if number == 0 else NOTHING, "red")
    model = node.models[number]
    return state_text(model.state, model.progress)


def _commit(node: NodeStatus) -> str:
    commit = node.models[0].commit if node.models else None
    return commit[:_COMMIT] if commit else NOTHING


def _count(node: NodeStatus) -> Text:
    if node.error is not None:
        return Text("no answer", "red")
    cached = sum(model.state == "cached" for model in node.models)
    return Text(f"{cached} of {len(node.models)}", "" if cached == len(node.models) else "yellow")


def _on_disk(node: NodeStatus) -> str:
    if len(node.models) == 1:
        return _size(node.models[0].size_on_disk or None)
    return _size(node.size_on_disk)


def _expected(node: NodeStatus) -> str:
    return _size(node.models[0].expected_size if node.models else None)


def _free(nodes: Sequence[FleetNode]) -> list[str]:
    return [_size(node.free) for node in nodes]


def _size(size: int | None) -> str:
    return NOTHING if size is None else size_text(size)


def _print_incomplete(out: Console, status: FleetStatus) -> None:
    """Print which models are not cached on which nodes, unless the table says it."""
    if len(status.models) > 1:
        _print_lines(out, [*map(printable, status.incomplete)])


def _print_commits(out: Console, status: FleetStatus) -> None:
    lines = []
    several = len(status.models) > 1
    for name, commits in status.commits.items():
        if len(commits) > 1:
            lines.append(printable(differing_commits(name, commits)))
        elif commits and several:
            lines.append(f"{printable(name)}: commit {next(iter(commits))[:_COMMIT]}")
    _print_lines(out, lines)


def _print_lines(out: Console, lines: Sequence[str], count: int | None = None) -> None:
    """Print lines, and how many of `count` in all are left out."""
    shown = lines[:_ROWS]
    for line in shown:
        print_rows(out, wrapped(out, line, 2))
    more = (len(lines) if count is None else count) - len(shown)
    if more:
        print_rows(out, [Text(f"  and {more} more", "dim")])


def show_pull(report: FleetPull, *, verbose: bool = False) -> None:
    """Print what each node has now, or would fetch."""
    out = console()
    for number, model in enumerate(report.models):
        done = [node for node in report.nodes if node.models[number].state in ("cached", "pulled")]
        key = f"{model.key}:{model.variant}" if model.variant else model.key
        files, commit = counted(model.files, "file"), model.commit[:_COMMIT]
        facts = f"{files}, {size_text(model.size)}, commit {commit}"
        nodes_done = f"{len(done)} of {counted(len(report.nodes), 'node')}"
        print_rows(out, wrapped(out, f"{printable(key)} ({facts}): complete on {nodes_done}"))
    nodes = _shown(report.nodes, verbose=verbose)
    columns: dict[str, Sequence[str | Text]] = {
        "NODE": [printable(node.node) for node in nodes],
        "STATE": [_pull_state(node) for node in nodes],
    }
    if report.dry_run:
        columns["TO FETCH"] = [size_text(sum(m.to_fetch for m in node.models)) for node in nodes]
    else:
        columns["FROM HUB"] = [size_text(node.from_hub) for node in nodes]
        columns["FROM NODES"] = [size_text(node.from_nodes) for node in nodes]
        columns["SENT"] = [size_text(node.sent) for node in nodes]
    _print_table(out, [{**columns, "FREE": _free(nodes)}, columns])
    _print_rest(out, len(report.nodes) - len(nodes))
    _print_errors(out, report.nodes)
    _print_lines(
        out,
        [
            f"{finding.severity}: {whole(printable(finding.detail))}"
            for finding in report.findings
            if verbose or finding.severity != "info"
        ],
    )
    if report.dry_run:
        print_rows(out, wrapped(out, f"The hub would send {size_text(report.to_fetch)}."))
    elif report.from_hub or report.from_nodes:
        hub, others = size_text(report.from_hub), size_text(report.from_nodes)
        took = seconds_text(report.seconds)
        text = f"The hub sent {hub}, the nodes {others} to each other, in {took}."
        print_rows(out, wrapped(out, text))


def _pull_state(node: PulledNode) -> Text:
    if node.error is not None:
        return Text(_failed_word(node), "red")
    states = {model.state for model in node.models}
    if states == {"cached"}:
        return Text("cached")
    return Text("planned") if "planned" in states else Text("pulled", "green")


def show_removal(removal: FleetRemoval, *, verbose: bool = False) -> None:
    """Print what was removed, or would be."""
    show_removal_plan(removal, verbose=verbose)
    out = console()
    if not any(node.plan is not None and node.plan.actions for node in removal.nodes):
        out.print("Nothing to remove.")
    elif any(node.receipt is not None for node in removal.nodes):
        acted = sum(bool(node.receipt and node.receipt.outcomes) for node in removal.nodes)
        out.print(
            f"Freed {size_text(removal.freed)} on {counted(acted, 'node')}"
            + (f", {size_text(removal.trashed)} more {_LATER}." if removal.trashed else ".")
        )
        ids = [
            f"{printable(node.node)}: {command('undo', node.receipt.trash_id)}"
            for node in removal.nodes
            if node.receipt is not None and node.receipt.trash_id is not None
        ]
        if ids:
            out.print("To restore it, type on the node:")
            _print_lines(out, ids)
    else:
        out.print(f"Frees {frees_words(removal)}.")


def frees_words(removal: FleetRemoval) -> str:
    """Return what the plans of all nodes free, and when."""
    kept = sum(n.plan.frees for n in removal.nodes if n.plan is not None and n.trash.kept)
    now = size_text(removal.frees - kept)
    return f"{now} now, {size_text(kept)} {_LATER}" if kept else now


def show_removal_plan(
    removal: FleetRemoval, *, verbose: bool = False, stream: IO[str] | None = None
) -> None:
    """Print what is removed from which node, and what became of it if that is known."""
    out = console(stream)
    frees: dict[str, int] = {}
    on: dict[str, list[str]] = {}
    for node in removal.nodes:
        for model in node.models:
            frees[model.repo] = frees.get(model.repo, 0) + model.frees
            on.setdefault(model.repo, []).append(printable(node.node))
    names = sorted(frees, key=lambda name: -frees[name])
    shown = names if verbose else names[:_ROWS]
    if shown:
        rows = {
            "REMOVES": [printable(name) for name in shown],
            "FREES": [size_text(frees[name]) for name in shown],
        }
        wide = {"NODES": [first_of(on[name]) for name in shown]}
        counts = {"NODES": [str(len(on[name])) for name in shown]}
        _print_table(out, [{**rows, **wide}, {**rows, **counts}], "REMOVES")
        _print_rest(out, len(names) - len(shown), "model")
        out.print()
    nodes = _shown(removal.nodes, verbose=verbose)
    columns: dict[str, Sequence[str | Text]] = {
        "NODE": [printable(node.node) for node in nodes],
        "REMOVES": [_removes(node) for node in nodes],
        "FREES": [_size(node.plan.frees if node.plan else None) for node in nodes],
    }
    if any(node.receipt is not None for node in removal.nodes):
        columns["FREED"] = [_size(node.receipt.freed if node.receipt else None) for node in nodes]
    columns["FREE"] = _free(nodes)
    _print_table(out, [columns])
    _print_rest(out, len(removal.nodes) - len(nodes))
    _print_errors(out, removal.nodes)
    for heading, notes in notes_of(removal).items():
        lines = _by_nodes(notes)
        if lines:
            out.print(f"\n{heading}")
            _print_lines(out, lines if verbose else lines[:_NOTES], len(lines))
    out.print()


def _by_nodes(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return each line once, after the nodes that it is about."""
    nodes: dict[str, dict[str, None]] = {}
    for node, lines in notes.items():
        for line in lines:
            nodes.setdefault(line, {})[printable(node)] = None
    return [f"{first_of(list(names))}: {printable(line)}" for line, names in nodes.items()]


def _removes(node: NodeRemoval) -> Text:
    if node.plan is None and node.error is not None:
        return Text(_failed_word(node), "red")
    return Text(counted(len(node.models), "item") if node.models else "nothing")


def show_verification(report: FleetVerification, *, verbose: bool = False) -> None:
    """Print what was found on which node."""
    out = console()
    nodes = _shown(report.nodes, verbose=verbose)
    results = []
    for node in nodes:
        bad = [
            f"{count} {word}"
            for word, count in (("damaged", len(node.damaged)), ("missing", len(node.missing)))
            if count
        ]
        if bad:
            results.append(Text(", ".join(bad), "bold red"))
        elif node.error is not None:
            results.append(Text(_failed_word(node), "red"))
        else:
            results.append(Text("correct", "green"))
    columns: dict[str, Sequence[str | Text]] = {
        "NODE": [printable(node.node) for node in nodes],
        "RESULT": results,
        "FILES": [str(node.checked + node.remembered) for node in nodes],
        "SIZE": [size_text(node.bytes + node.remembered_bytes) for node in nodes],
    }
    paces = {"READ IN": [pace_text(n.bytes, n.seconds) if n.bytes else NOTHING for n in nodes]}
    _print_table(out, [{**columns, **paces, "FREE": _free(nodes)}, columns])
    _print_rest(out, len(report.nodes) - len(nodes))
    _print_errors(out, report.nodes)
    _print_lines(
        out,
        [
            f"{printable(node.node)}: {printable(damage.repo)}: {printable(damage.detail)}"
            for node in report.nodes
            for damage in node.damaged
        ],
    )


def show_loads(report: FleetLoads, *, verbose: bool = False) -> None:
    """Print how fast each node loads, the slow ones first."""
    out = console()
    rows = [(node, model) for node in report.nodes for model in node.models]
    rows.sort(key=lambda row: (row[1].model, row[1].precision, not row[1].slow))
    shown = rows if verbose else rows[:_ROWS]
    if shown:
        columns: dict[str, Sequence[str | Text]] = {
            "NODE": [printable(node.node) for node, _ in shown],
            "MODEL": [printable(model.model) for _, model in shown],
            "PRECISION": [model.precision for _, model in shown],
            "COLD": [_seconds(model.cold) for _, model in shown],
            "WARM": [_seconds(model.warm) for _, model in shown],
            "": [_verdict(model) for _, model in shown],
        }
        short = {name: cells for name, cells in columns.items() if name != "PRECISION"}
        _print_table(out, [columns, short], "MODEL")
        _print_rest(out, len(rows) - len(shown), "load")
    _print_errors(out, report.nodes)
    doubtful = {
        node.node: [
            f"{result.model} {result.precision}: {doubt}"
            for result in node.results
            for doubt in doubts(result)
        ]
        for node in report.nodes
    }
    _print_lines(out, _by_nodes(doubtful))
    for node in report.nodes:
        for model in node.models:
            if model.slow:
                load = f"{printable(model.model)} {model.precision}"
                text = f"{printable(node.node)} is slow: {load} takes {model.ratio:.1f} times as"
                print_rows(out, wrapped(out, f"{text} long as on the other nodes"))


def _seconds(spread: Spread | None) -> str:
    return NOTHING if spread is None else seconds_text(spread.median)


def _verdict(model: LoadedModel) -> Text:
    if model.ratio is None:
        return Text()
    return Text(f"{model.ratio:.1f}x" + (" slow" if model.slow else ""), "red" * model.slow)


def _shown(nodes: Sequence[_N], *, verbose: bool) -> Sequence[_N]:
    """Return the nodes to list; if not all fit, those with problems come first."""
    if verbose or len(nodes) <= _ROWS:
        return nodes
    return sorted(nodes, key=lambda node: node.error is None)[:_ROWS]


def _print_table(out: Console, layouts: Sequence[_Columns], shortened: str = "NODE") -> None:
    """Print the first table that fits the screen, or the last."""
    width = width_of(out)
    for layout in layouts:
        widest = [
            max(len(heading), *(len(str(cell)) for cell in cells))
            for heading, cells in layout.items()
        ]
        if width is None or sum(widest) + 2 * (len(widest) - 1) <= width:
            break
    rows = zip(*layout.values(), strict=True)
    print_rows(
        out, table(list(layout), list(rows), width, names=(shortened, "NODE"), numbers=_NUMBERS)
    )


def _print_rest(out: Console, count: int, noun: str = "node") -> None:
    if count > 0:
        print_rows(out, [Text(f"and {counted(count, noun)} more (-v shows all)", "dim")])


def _print_errors(out: Console, nodes: Sequence[FleetNode]) -> None:
    """Print why nodes failed."""
    failed = [node for node in nodes if node.error is not None]
    for node in failed[:_ROWS]:
        assert node.error is not None
        line = Text.assemble(
            (printable(node.node), "red"), f": {whole(printable(node.error.message))}"
        )
        print_rows(out, wrapped(out, line, 2))
    if len(failed) > _ROWS:
        print_rows(out, [Text(f"  and {len(failed) - _ROWS} more", "dim")])


def _failed_word(node: FleetNode) -> str:
    lost = node.error is not None and node.error.code == LOST
    return "no answer" if lost else "failed"
