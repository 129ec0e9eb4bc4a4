"""`status` as a table for people."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmcache.cache.moved import DRIVE_AWAY
from vlmcache.cache.state import Finding
from vlmcache.commands.status.values import CacheSummary, ModelStatus, RepoStatus, Status
from vlmcache.show.console import console
from vlmcache.show.prose import Prose, whole
from vlmcache.show.tables import (
    SEVERITY_COLORS,
    STATE_COLORS,
    hanging,
    labelled,
    plain_table,
    state_text,
)
from vlmcache.show.text import NOTHING, ago, printable
from vlmcache.units import size_text

_WIDE = 110
_NARROW = 72
_SHOWN_FILES = 3
_ALWAYS_SHOWN = (
    "hub-not-asked",
    "configuration",
    "changed-copy",
    "failed-copy",
    "no-loader",
    "variant-only",
    "other-spelling",
    "second-cache",
    DRIVE_AWAY,
)
"""Findings that are shown although nothing is damaged."""
_SHOWN_FINDINGS = 8


def show(status: Status, *, every: bool = False, verbose: bool = False) -> None:
    """Print the status: models, the rest of the cache, bytes, room, problems, next steps."""
    out = console()
    now = datetime.now(timezone.utc)
    if status.models:
        out.print(_model_table(status.models, now, out.width))
        _print_bad_files(out, status.models)
        _print_variants(out, status.models)
        _print_contexts(out, status.models)
        if verbose:
            _print_paths(out, status.models)
    else:
        out.print("No model is configured, or none passes the filter.")
    asked = {model.repo for model in status.models}
    others = [repo for repo in status.repos if repo.name not in asked]
    if every and others:
        out.print()
        out.print(_repo_table(others, now))
    out.print()
    _print_cache(out, status.cache, others, every=every)
    for place in status.elsewhere:
        count = len(place.repos)
        noun = "repo is" if count == 1 else "repos are"
        room = "not mounted now" if place.free is None else f"{size_text(place.free)} free"
        where = whole(printable(place.path))
        text = f"{count} {noun} at {where}, {size_text(place.size_on_disk)} ({room})"
        style = "red" if place.free is None else ""
        out.print(labelled("Moved" if place.moved else "Linked", text, style))
    for copy in status.copies:
        outdated = "" if copy.current else ", made by other versions of its libraries"
        text = f"{printable(copy.repo)} {copy.precision}, {size_text(copy.size)}{outdated}"
        out.print(labelled("Copy", text))
    # What is wrong with what was asked for is read first.
    findings = sorted(status.findings, key=lambda finding: finding.repo not in asked)
    _print_findings(out, findings, verbose=verbose)
    if status.recommendations:
        out.print("\nNext")
        for step in status.recommendations:
            command, text = whole(printable(step.command or "")), f"# {printable(step.text)}"
            if command and len(command) + len(text) + 4 <= out.width:
                out.print(hanging(Text(command, "bold").append(f"  {text}", "dim"), 2))
                continue
            if command:
                out.print(hanging(Text(command, "bold"), 2))
            # Each line is a comment, so that all of it can be pasted.
            out.print(Prose(Text(text, "dim"), 2, again="# "))


def _amount(size: int | None) -> str:
    return NOTHING if size is None else size_text(size)


def _model_table(models: Iterable[ModelStatus], now: datetime, width: int) -> Table:
    columns = ["MODEL", *(["REPO"] if width >= _WIDE else []), "STATE", "ON DISK", "EXPECTED"]
    columns += ["PRECISION", "MEMORY", "LAST USED"] if width >= _NARROW else []
    table = plain_table(
        *columns, numbers=("ON DISK", "EXPECTED", "MEMORY"), folded=("MODEL", "REPO")
    )
    for model in models:
        cells: list[str | Text] = [printable(model.name)]
        if width >= _WIDE:
            cells.append(printable(model.id))
        cells += [
            state_text(model.state, model.progress),
            size_text(model.size_on_disk) if model.size_on_disk else NOTHING,
            _amount(model.expected_size),
        ]
        if width >= _NARROW:
            cells += [
                # Without an estimate, nothing is known that is loaded at a precision.
                (model.precision if model.memory_estimate is not None else None) or NOTHING,
                _amount(model.memory_estimate),
                ago(model.last_used, now),
            ]
        table.add_row(*cells)
    return table


def _print_bad_files(out: Console, models: Iterable[ModelStatus]) -> None:
    lines = [
        f"{printable(model.name)}, {word}: {_some(names)}"
        for model in models
        for word, names in (("damaged", model.damaged_files), ("missing", model.missing_files))
        if names
    ]
    for line in lines:
        out.print(hanging(Text(line), 2))


def _print_contexts(out: Console, models: Iterable[ModelStatus]) -> None:
    """Print what of the memory is the cache of a context, if one was asked for."""
    for model in models:
        if model.memory_context is not None:
            text = f"{printable(model.name)}: the context takes {size_text(model.memory_context)}"
            text += " of the memory"
            out.print(hanging(Text("; ".join([text, *model.memory_notes])), 2))


def _print_variants(out: Console, models: Iterable[ModelStatus]) -> None:
    """Print what is here of models with several variants, and how many more the hub has."""
    for model in models:
        if len(model.variants) < 2:
            continue
        here = [
            f"{printable(one.name)} {one.state} ({size_text(one.size)})"
            for one in model.variants
            if one.state != "missing"
        ]
        rest = [printable(one.name) for one in model.variants if one.state == "missing"]
        more = f"on the hub: {_some(tuple(rest))}" if rest else ""
        line = "; ".join(filter(None, (", ".join(here), more)))
        out.print(hanging(Text(f"{printable(model.key)}, variants: {line}"), 2))


def _print_paths(out: Console, models: Iterable[ModelStatus]) -> None:
    """Print the folder of each model's snapshot, to be copied."""
    for model in models:
        if model.path is not None:
            path = whole(printable(model.path))
            out.print(hanging(Text(f"{printable(model.name)}: {path}"), 2))


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(map(printable, names[:_SHOWN_FILES]))
    more = len(names) - _SHOWN_FILES
    return f"{shown} and {more} more" if more > 0 else shown


def _repo_table(repos: Iterable[RepoStatus], now: datetime) -> Table:
    columns = ("OTHER REPO", "TYPE", "STATE", "ON DISK", "REVISIONS", "LAST USED")
    table = plain_table(*columns, numbers=("ON DISK", "REVISIONS"), folded=("OTHER REPO",))
    for repo in repos:
        table.add_row(
            printable(repo.repo),
            repo.type,
            Text(repo.state, STATE_COLORS[repo.state]),
            size_text(repo.size_on_disk),
            str(len(repo.revisions)),
            ago(repo.last_used, now),
        )
    return table


def _print_cache(
    out: Console, cache: CacheSummary, others: list[RepoStatus], *, every: bool
) -> None:
    filesystem = f", {cache.filesystem}" if cache.filesystem else ""
    folder = whole(printable(cache.dir))
    out.print(labelled("Cache", f"{folder} ({cache.source}{filesystem})"))
    if not cache.exists:
        out.print(labelled("", "does not exist yet: the first pull creates it"))
    else:
        classes = [
            f"{size_text(count)} {name}"
            for name in cache.by_class.__struct_fields__
            if (count := getattr(cache.by_class, name))
        ]
        out.print(labelled("", f"{size_text(cache.size_on_disk)}: {', '.join(classes)}"))
    if others and not every:
        size = size_text(sum(repo.size_on_disk for repo in others))
        noun = "repo" if len(others) == 1 else "repos"
        out.print(labelled("Others", f"{len(others)} more {noun}, {size} (--all lists them)"))
    if cache.free is not None and cache.total is not None:
        limits = (
            f"minimum {size_text(cache.min_free)}, comfortable {size_text(cache.comfortable_free)}"
        )
        style = "red" if cache.free < cache.min_free else ""
        style = style or ("yellow" if cache.free < cache.comfortable_free else "")
        text = f"{size_text(cache.free)} free of {size_text(cache.total)} ({limits})"
        out.print(labelled("Disk", text, style))


def _print_findings(out: Console, findings: Iterable[Finding], *, verbose: bool) -> None:
    every = list(findings)
    serious = [
        finding
        for finding in every
        if verbose or finding.severity == "error" or finding.code in _ALWAYS_SHOWN
    ]
    shown = serious if verbose else serious[:_SHOWN_FINDINGS]
    if shown:
        out.print("\nProblems" if not verbose else "\nFindings")
    for finding in shown:
        where = f" {printable(finding.repo)}:" if finding.repo else ":"
        line = Text(finding.code, SEVERITY_COLORS[finding.severity])
        line = Text.assemble(line, f"{where} {printable(finding.detail)}")
        if verbose:
            line.append(f"\n{whole(printable(finding.path))}", "dim")
        out.print(hanging(line, 2))
    if len(shown) < len(serious):
        out.print(f"  and {len(every) - len(shown)} more (-v shows all)")
