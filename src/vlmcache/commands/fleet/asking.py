"""All nodes are asked for the same thing, and the progress shows who is waited for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from vlmcache.commands.fleet.calls import SILENT, Fleet, Node, Reply
from vlmcache.progress import Progress
from vlmcache.units import first_of

_WAIT, _AGAIN = 5.0, 60.0
"""Seconds after which a note says who is waited for, and says it again: after twice as many each
time."""


class Work(NamedTuple):
    """What nodes are asked to do."""

    method: str
    """A key of `actor.METHODS`."""
    done: str = ""
    """What is done to the bytes that are counted, such as `verified`; empty if none are."""
    silent: float = SILENT
    """Seconds without progress after which a node is given up."""


def ask_all(
    fleet: Fleet, work: Work, requests: Mapping[str, msgspec.Struct], progress: Progress
) -> dict[str, Reply]:
    """Return the answers of nodes, by the nodes' ids.

    Args:
        fleet: the nodes.
        work: what they do.
        requests: id of a node -> what it needs to know; others are not asked.
        progress: shows how far each is, and who is waited for.
    """
    nodes = {node.id: node for node in fleet.nodes if node.id in requests}
    calls = [
        fleet.call(node, work.method, requests[key], silent=work.silent)
        for key, node in nodes.items()
    ]
    waiting = {call.number for call in calls}
    replies: dict[str, Reply] = {}
    shown = _Shown(progress, work.done)
    next_note, again = time.monotonic() + _WAIT, _AGAIN
    try:
        while waiting:
            for reply in fleet.arrived(0.25):
                if reply.call.number in waiting:
                    waiting.remove(reply.call.number)
                    replies[reply.call.node.id] = reply
                    shown.end(reply.call.node)
            shown.update(fleet, [node for key, node in nodes.items() if key not in replies])
            if waiting and not shown.begun and time.monotonic() >= next_note:
                names = [_doing(fleet, node) for key, node in nodes.items() if key not in replies]
                progress.note(f"waiting for {first_of(names)}")
                next_note, again = time.monotonic() + again, 2 * again
    finally:
        shown.close()
    return replies


def _doing(fleet: Fleet, node: Node) -> str:
    """Return a node's name, with what it does now if that is known."""
    beat = fleet.beats.get(node.id)
    return f"{node.name} ({beat.text})" if beat is not None and beat.text else node.name


class _Shown:
    """Progress with a line for each node, where a pull has one for each model."""

    def __init__(self, progress: Progress, done: str) -> None:
        self._progress = progress
        self._done = done
        self._totals: dict[str, int] = {}
        self.begun = False

    def update(self, fleet: Fleet, nodes: Sequence[Node]) -> None:
        """Show how far nodes are."""
        if not self._done:
            return
        for node in nodes:
            beat = fleet.beats.get(node.id)
            if beat is None or not beat.total:
                continue
            if not self.begun:
                self._progress.planned(self._done, {}, {})
                self.begun = True
            if node.id not in self._totals:
                self._totals[node.id] = beat.total
                self._progress.started(node.name, {node.name: beat.total}, 0)
            self._progress.moved(node.name, node.name, beat.done)

    def end(self, node: Node) -> None:
        """Show that a node has answered."""
        if node.id in self._totals:
            self._progress.moved(node.name, node.name, self._totals[node.id])
            self._progress.ended(node.name)

    def close(self) -> None:
        """End the progress."""
        if self.begun:
            self._progress.finished()
