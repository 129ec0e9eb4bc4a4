"""`status` for people: a headline, the models, what the cache holds, what is wrong, what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone

from rich.console import Console
from rich.text import Text

from vlmcache.cache.moved import DRIVE_AWAY
from vlmcache.cache.state import Finding
from vlmcache.commands.status.filters import TableOptions
from vlmcache.commands.status.values import (
    CacheSummary,
    ModelStatus,
    Recommendation,
    RepoStatus,
    Status,
)
from vlmcache.show.console import console
from vlmcache.show.prose import Prose, whole
from vlmcache.show.rows import (
    class_text,
    print_rows,
    repos_text,
    table,
    width_of,
    wrapped,
)
from vlmcache.show.tables import SEVERITY_COLORS, labelled, state_text
from vlmcache.show.text import NOTHING, ago, outcome_text, printable
from vlmcache.units import counted, first_of, size_text

_WIDE = 110
_NARROW = 72
_SHOWN_NAMES = 3
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
    "not-in-base",
)
"""Findings that are shown although nothing is damaged."""
_SHOWN_FINDINGS = 8


def show(status: Status, *, listing: TableOptions | None = None, verbose: bool = False) -> None:
    """Print the status: models, the rest of the cache, bytes, room, problems, next steps."""
    out = console()
    listing = listing or TableOptions()
    now = datetime.now(timezone.utc)
    asked = {model.repo for model in status.models}
    others = [repo for repo in status.repos if repo.name not in asked]
    if listing.sort is None:
        others.sort(key=lambda repo: (-repo.size_on_disk, repo.name))
    if not listing.named:
        print_rows(out, [*wrapped(out, _headline(status, listing)), Text()])
    if status.models:
        _print_models(out, status.models, now, listing, verbose=verbose)
    if others and (listing.every or not status.models):
        if status.models:
            out.print()
        _print_repos(out, others, now, listing)
        others = []
    if not status.models:
        text = "No model passes the filter."
        if not status.configured:
            here = ": this is what the cache holds" if status.repos else ""
            text = f"No model is configured{here}."
        print_rows(out, wrapped(out, text))
    out.print()
    _print_cache(out, status.cache)
    if others and not listing.named:
        size = size_text(sum(repo.size_on_disk for repo in others))
        more = counted(len(others), "repo").replace(" ", " more ", 1)
        out.print(labelled("Others", f"{more}, {size}: {whole(listing.more)}"))
    _print_elsewhere(out, status)
    if listing.outdated:
        out.print(labelled("Hub", _outdated_text(status)))
    _print_schedules(out, status, now)
    cleaning = next((step for step in status.recommendations if step.cleans), None)
    if cleaning is not None:
        _print_cleaning(out, cleaning)
    # What is wrong with what was asked for is read first.
    findings = sorted(status.findings, key=lambda finding: finding.repo not in asked)
    _print_findings(out, findings, verbose=verbose)
    steps = [step for step in status.recommendations if step is not cleaning]
    if steps:
        out.print("\nNext")
    for step in steps:
        _print_step(out, step)


def _headline(status: Status, listing: TableOptions) -> Text:
    """Return how much is here: `47 models and 1 dataset, 160 GB: 46 cached, 2 partial`."""
    size = status.cache.size_on_disk
    if listing.filtered:
        size = sum(repo.size_on_disk for repo in status.repos)
    text = Text(f"{repos_text(repo.type for repo in status.repos)}, {size_text(size)}", "bold")
    states = Counter(repo.state for repo in status.repos)
    if states.keys() - {"cached"}:
        words = (f"{count} {state}" for state, count in states.most_common())
        text.append(": " + ", ".join(words), "not bold")
    return text


def _amount(size: int | None) -> str:
    return size_text(size) if size else NOTHING


def _print_models(
    out: Console,
    models: Sequence[ModelStatus],
    now: datetime,
    listing: TableOptions,
    *,
    verbose: bool,
) -> None:
    width = width_of(out)
    wide, narrow = width is None or width >= _WIDE, width is not None and width < _NARROW
    columns = ["MODEL", *(["REPO"] if wide else []), "STATE", "ON DISK", "EXPECTED"]
    columns += [] if narrow else ["PRECISION", "MEMORY", "LAST USED"]
    shown = models[: listing.limit]
    rows = []
    for model in shown:
        cells: list[str | Text] = [printable(model.name), *([printable(model.id)] if wide else [])]
        cells += [
            state_text(model.state, model.progress),
            _amount(model.size_on_disk),
            _amount(model.expected_size),
        ]
        if not narrow:
            cells += [
                # Without an estimate, nothing is known that is loaded at a precision.
                (model.precision if model.memory_estimate is not None else None) or NOTHING,
                _amount(model.memory_estimate),
                ago(model.last_used, now),
            ]
        rows.append(cells)
    numbers = ("ON DISK", "EXPECTED", "MEMORY")
    print_rows(out, table(columns, rows, width, names=("MODEL", "REPO"), numbers=numbers))
    _print_rest(out, models[len(shown) :], listing)
    if verbose:
        paths = [model for model in shown if model.path is not None]
        for model in paths:
            name = printable(model.name)
            print_rows(out, wrapped(out, f"{name}: {whole(printable(model.path or ''))}", 2))
    _print_bad_files(out, shown)
    _print_variants(out, shown)
    _print_contexts(out, shown)


def _print_rest(
    out: Console, rest: Sequence[ModelStatus | RepoStatus], listing: TableOptions
) -> None:
    """Print how much was left out of a table, and what shows it."""
    if rest:
        size = size_text(sum(row.size_on_disk for row in rest))
        text = f"and {len(rest)} more, {size}: {whole(listing.more)}"
        print_rows(out, wrapped(out, Text(text)))


def _print_bad_files(out: Console, models: Iterable[ModelStatus]) -> None:
    lines = [
        f"{printable(model.name)}, {word}: {printable(first_of(names, _SHOWN_NAMES))}"
        for model in models
        for word, names in (("damaged", model.damaged_files), ("missing", model.missing_files))
        if names
    ]
    for line in lines:
        print_rows(out, wrapped(out, line, 2))


def _print_contexts(out: Console, models: Iterable[ModelStatus]) -> None:
    """Print what of the memory is the cache of a context, if one was asked for."""
    for model in models:
        if model.memory_context is not None:
            text = f"{printable(model.name)}: the context takes {size_text(model.memory_context)}"
            text += " of the memory"
            print_rows(out, wrapped(out, "; ".join([text, *model.memory_notes]), 2))


def _print_variants(out: Console, models: Iterable[ModelStatus]) -> None:
    """Print what is here of models with several variants, and how many more the hub has."""
    for model in models:
        if len(model.variants) < 2:
            continue
        here = [
            f"{printable(variant.name)} {variant.state} ({size_text(variant.size)})"
            for variant in model.variants
            if variant.state != "missing"
        ]
        rest = [printable(variant.name) for variant in model.variants if variant.state == "missing"]
        more = f"on the hub: {first_of(rest, _SHOWN_NAMES)}" if rest else ""
        line = "; ".join(filter(None, (", ".join(here), more)))
        print_rows(out, wrapped(out, f"{printable(model.key)}, variants: {line}", 2))


def _print_repos(
    out: Console, repos: Sequence[RepoStatus], now: datetime, listing: TableOptions
) -> None:
    width = width_of(out)
    shown = repos[: listing.limit]
    # What the cache holds apart from models is rare.
    typed = any(repo.type != "model" for repo in shown)
    columns = ["REPO", *(["TYPE"] if typed else []), "STATE", "ON DISK"]
    columns += ["REVISIONS", "LAST USED"] if width is None or width >= _NARROW else []
    rows: list[list[str | Text]] = [
        [
            printable(repo.repo),
            *((repo.type,) if typed else ()),
            state_text(repo.state, repo.progress),
            size_text(repo.size_on_disk),
            str(len(repo.revisions)),
            ago(repo.last_used, now),
        ][: len(columns)]
        for repo in shown
    ]
    numbers = ("ON DISK", "REVISIONS")
    print_rows(out, table(columns, rows, width, names=("REPO",), numbers=numbers))
    _print_rest(out, repos[len(shown) :], listing)


def _print_cache(out: Console, cache: CacheSummary) -> None:
    filesystem = f", {cache.filesystem}" if cache.filesystem else ""
    where = f"{whole(printable(cache.dir))} ({cache.source}{filesystem})"
    out.print(labelled("Cache", where))
    if not cache.exists:
        out.print(labelled("", "does not exist yet: the first pull creates it"))
    elif classes := class_text(cache.by_class):
        out.print(labelled("", classes))
    if cache.trash:
        text = f"{size_text(cache.trash)}: {whole('vlmcache trash')} lists it"
        out.print(labelled("Trash", text))
    if cache.free is not None and cache.total is not None:
        limits = (
            f"minimum {size_text(cache.min_free)}, comfortable {size_text(cache.comfortable_free)}"
        )
        style = "red" if cache.free < cache.min_free else ""
        style = style or ("yellow" if cache.free < cache.comfortable_free else "")
        text = f"{size_text(cache.free)} free of {size_text(cache.total)} ({limits})"
        out.print(labelled("Disk", text, style))


def _print_elsewhere(out: Console, status: Status) -> None:
    """Print what is not among the bytes of the cache."""
    for place in status.elsewhere:
        # Which, as far as a line holds them; each model's place is its `linked_to` in JSON.
        names = printable(first_of(place.repos, _SHOWN_NAMES))
        verb = "is" if len(place.repos) == 1 else "are"
        room = "not mounted now" if place.free is None else f"{size_text(place.free)} free"
        where = f"{whole(printable(place.path))}, {size_text(place.size_on_disk)} ({room})"
        text = f"{names} {verb} at {where}"
        if place.base:
            room = "not there now" if place.free is None else "none of it in this cache"
            where = f"{whole(printable(place.path))}, {size_text(place.size_on_disk)}, {room}"
            text = f"{counted(len(place.repos), 'repo')} {verb} linked into {where}"
        style = "red" if place.free is None else ""
        label = "Base" if place.base else "Moved" if place.moved else "Linked"
        out.print(labelled(label, text, style))
    for copy in status.copies:
        outdated = "" if copy.current else ", made with other libraries than are installed now"
        text = f"{printable(copy.repo)} {copy.precision}, {size_text(copy.size)}{outdated}"
        out.print(labelled("Copy", text))


def _print_schedules(out: Console, status: Status, now: datetime) -> None:
    """Print how the last run of each schedule ended."""
    for outcome in status.schedules:
        text = f"{printable(outcome.name)}, {ago(outcome.begun, now)}: {outcome_text(outcome)}"
        bad = not outcome.running and outcome.exit_code != 0
        out.print(labelled("Timer", text, "yellow" if bad else ""))


def _outdated_text(status: Status) -> str:
    """Return what the hub said of newer revisions."""
    unknown = sum(finding.code == "hub-not-asked" for finding in status.findings)
    newer = sum(model.outdated is not None for model in status.models)
    if unknown:
        more = f", and {newer} have newer revisions" if newer else ""
        return f"not known of {counted(unknown, 'model')}{more}"
    if newer:
        verb = "has a newer revision" if newer == 1 else "have newer revisions"
        return f"{newer} of {counted(len(status.models), 'model')} {verb}"
    return "all up to date"


def _print_cleaning(out: Console, step: Recommendation) -> None:
    """Print what can be freed, and how."""
    size = f"{size_text(step.frees)} can be freed"
    out.print(labelled("Clean", Text.assemble(f"{size}: ", (whole(step.command or ""), "bold"))))
    out.print(labelled("", printable(step.text).replace(f"{size}: ", "", 1), "dim"))


def _print_step(out: Console, step: Recommendation) -> None:
    command, text = printable(step.command or ""), f"# {printable(step.text)}"
    line = Text.assemble("  ", (command, "bold"), (f"  {text}", "dim"))
    width = width_of(out)
    if command and (width is None or line.cell_len <= width):
        print_rows(out, [line])
        return
    if command:
        print_rows(out, [Text(f"  {command}", "bold")])
    # Each line is a comment, so that all of it can be pasted.
    out.print(Prose(Text(text, "dim"), 4 if command else 2, again="# "))


def _print_findings(out: Console, findings: Iterable[Finding], *, verbose: bool) -> None:
    """Print what is wrong: one line for each kind, or with `verbose` each finding."""
    if verbose:
        every = list(findings)
        if every:
            out.print("\nFindings")
        for finding in every:
            line = _finding_text(finding.code, finding.severity, [finding])
            line.append(f"\n{whole(printable(finding.path))}", "dim")
            print_rows(out, wrapped(out, line, 2))
        return
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.severity == "error" or finding.code in _ALWAYS_SHOWN:
            kinds.setdefault(finding.code, []).append(finding)
    if kinds:
        out.print("\nProblems")
    shown = list(kinds.items())[:_SHOWN_FINDINGS]
    for code, same in shown:
        print_rows(out, wrapped(out, _finding_text(code, same[0].severity, same), 2))
    rest = sum(map(len, kinds.values())) - sum(len(same) for _, same in shown)
    if rest:
        print_rows(out, [Text(f"  and {rest} more: vlmcache status -v")])


def _finding_text(code: str, severity: str, same: Sequence[Finding]) -> Text:
    """Return one line for all findings of one kind."""
    repos = list(dict.fromkeys(finding.repo for finding in same if finding.repo))
    where = printable(first_of(repos))
    details = list(dict.fromkeys(printable(finding.detail) for finding in same))
    text = details[0] if len(repos) <= 1 or len(details) == 1 else ""
    if len(details) > 1 and text:
        text += f" (and {len(details) - 1} more)"
    count = f" {len(same)} x" if len(same) > 1 else ""
    line = Text.assemble((code, SEVERITY_COLORS[severity]), count)
    return line.append(f" {where}" if where else "").append(f": {text}" if text else "")
