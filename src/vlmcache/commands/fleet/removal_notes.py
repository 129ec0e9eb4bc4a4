"""What a fleet's removal plans say about each node: what stays, and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlmcache.cache.layout import name_by_path, parse_repo_folder
from vlmcache.change.plan import Kept
from vlmcache.commands.fleet.values import FleetRemoval
from vlmcache.units import size_text


def notes_of(removal: FleetRemoval) -> Mapping[str, Mapping[str, Sequence[str]]]:
    """Return heading -> node -> the lines that its plan has below it."""
    stays: dict[str, list[str]] = {}
    warnings: dict[str, list[str]] = {}
    for node in removal.nodes:
        kept = node.plan.kept if node.plan is not None else ()
        stays[node.node] = [_stays(entry) for entry in (*kept, *node.in_use)]
        warnings[node.node] = [f"{finding.repo}: {finding.detail}" for finding in node.findings]
        if node.missed_by:
            warnings[node.node].append(f"{size_text(node.missed_by)} less than was asked for")
        if node.trash.why_not is not None:
            warnings[node.node].append(
                f"freed at once, and cannot be restored: {node.trash.why_not}"
            )
    return {"Stays": stays, "Warnings": warnings}


def _stays(kept: Kept) -> str:
    """Return what stays, and why: named without folders, which differ between nodes."""
    place = kept.path
    if kept.repo is not None:
        place = name_by_path(kept.repo, kept.path)
        name = kept.path.rpartition("/")[2]
        if parse_repo_folder(name) is None:
            place += f": {name}"
    return f"{place}  {kept.reason}"
