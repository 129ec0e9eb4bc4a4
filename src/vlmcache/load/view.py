"""`load-test`, `quantize` and `warm` for people: a verdict first, then tables and bars."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vlmcache.load import words
from vlmcache.load.judging import median_phases
from vlmcache.load.live import Progressing
from vlmcache.load.quantized import Quantization
from vlmcache.load.report import (
    PHASES,
    Change,
    Comparison,
    LoadReport,
    Remembered,
    Result,
    Temperature,
)
from vlmcache.load.steps import OnStep, Step
from vlmcache.load.warm import WarmReport
from vlmcache.show.console import console, print_line
from vlmcache.show.live import live_lines
from vlmcache.show.tables import labelled
from vlmcache.show.text import NOTHING, ago, printable
from vlmcache.units import command, seconds_text, size_text

_WIDE, _NARROW = 110, 78
_MOST_ROWS = 20
_VERDICTS = {"faster": "green", "slower": "red", "same": "dim", "too-few": "yellow"}
_LEFT = ("MODEL", "PRECISION", "LOADER", "WHEN", "DEVICE", "TORCH", "CHANGE", "")
"""Headings of columns that do not hold numbers."""


@contextlib.contextmanager
def progress(*, silent: bool) -> Iterator[OnStep]:
    """Yield what shows progress on stderr: moving lines on a terminal, elsewhere plain lines."""
    if silent:
        yield lambda _step: None
        return
    shown = Progressing()
    with live_lines(sys.stderr, shown) as changed:

        def on_step(step: Step) -> None:
            shown.on_step(step)
            # A step that is not counted ends soon.
            if step.of:
                changed.set()

        yield on_step


def show(report: LoadReport, *, verbose: bool = False) -> None:
    """Print a load report: verdicts, figures, what to do, and what could not be measured."""
    out = console()
    if report.history:
        _print_history(out, report.history, verbose=verbose)
    elif report.machine is None and not report.failures:
        out.print("No earlier results: 'vlmcache load-test' measures.")
    for result in report.results:
        _print_verdict(out, result, report.results)
    if len(report.results) > 1:
        out.print()
        out.print(_result_table(report.results, out.width))
        for line in words.fastest(report.results):
            out.print(line)
    for result in report.results:
        out.print()
        if len(report.results) > 1:
            out.print(Text(_title(result), "bold"))
        _print_result(out, result, verbose=verbose)
    if report.results and (report.failures or report.findings):
        out.print()
    _print_failures(out, report)
    if report.comparison is not None:
        out.print()
        _print_comparison(out, report.comparison)
    if report.results:
        out.print()
        _print_ending(out, report)


def _print_verdict(out: Console, result: Result, results: Sequence[Result]) -> None:
    verdict = result.verdict or "nothing was measured"
    line = Text()
    line.append(words.name_text(result, results), "bold")
    line.append(f"{' ' if verdict.startswith('loads in ') else ': '}{printable(verdict)}")
    out.print(line)
    if result.advice:
        advice, _, hint = printable(result.advice).partition(": vlmcache ")
        text = Text(f"{advice}:" if hint else advice, "bold")
        out.print(Padding(text, (0, 0, 0, 2), expand=False))
        if hint:
            # A recommended command is never wrapped.
            out.print(Text(f"  vlmcache {hint}", "bold"), soft_wrap=True)


def _title(result: Result) -> str:
    source = ", quantized at load" if result.source == "at-load" else ""
    name = f"{printable(result.model)} {words.precision_text(result)}"
    return f"{name} on {result.device}, {result.loader}{source}"


def _print_failures(out: Console, report: LoadReport) -> None:
    for finding in report.findings:
        out.print(
            Text(f"{printable(finding.detail)}\n  {printable(finding.remedy or '')}", "yellow")
        )
    for failure in report.failures:
        at = f" {failure.precision}" if failure.precision else ""
        line = Text("not measured", "red")
        line.append(f"  {printable(failure.model)}{at}: {printable(failure.message)}", "default")
        print_line(out, line)
        if failure.hint:
            out.print(Text(f"  {printable(failure.hint)}", "bold"), soft_wrap=True)


def _print_ending(out: Console, report: LoadReport) -> None:
    if not report.complete:
        counts = f"{report.trials_made or 0} of {report.trials_planned or 0}"
        out.print(Text(f"Not complete: {counts} trials were made before it was ended.", "yellow"))
    for line in words.machine_lines(report):
        out.print(Text(line, "dim"))
    for what, path in report.written.items():
        out.print(f"{what}: {printable(path)}", style="dim", soft_wrap=True)


def _table(rows: Sequence[Mapping[str, str | Text]], *folded: str) -> Table:
    """Return a table of rows, heading -> cell; long cells of the columns named are folded."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in rows[0]:
        table.add_column(
            name,
            justify="left" if name in _LEFT else "right",
            no_wrap=name not in folded,
            overflow="fold" if name in folded else "ellipsis",
        )
    for row in rows:
        table.add_row(*row.values())
    return table


def _result_table(results: Sequence[Result], width: int) -> Table:
    loaders = len({result.loader for result in results}) > 1
    rows = []
    for result in results:
        row = {"MODEL": printable(result.model), "PRECISION": words.precision_text(result)}
        if loaders or width >= _WIDE:
            row["LOADER"] = result.loader
        row |= {"COLD": words.median_text(result.cold), "WARM": words.median_text(result.warm)}
        if width >= _NARROW:
            row["HOT"] = words.median_text(result.hot)
        if width >= _WIDE:
            row["TOKEN"] = words.median_text(result.first_token)
        if width >= _NARROW or not loaders:
            row["MEMORY"] = words.memory_text(result)
        if width >= _WIDE:
            expected = result.expected.memory if result.expected else None
            row["EXPECTED"] = NOTHING if expected is None else size_text(expected)
            limit = result.efficiency
            row["OF LIMIT"] = NOTHING if limit is None else f"{limit:.0%}"
        rows.append(row)
    return _table(rows, "MODEL")


def _print_result(out: Console, result: Result, *, verbose: bool) -> None:
    longest = max(sum(median_phases(result, kind).values()) for kind in words.TEMPERATURES)
    for temperature in words.TEMPERATURES:
        _print_bars(out, result, temperature, longest)
    if longest:
        out.print()
    for label, text in words.facts(result):
        _print_labelled(out, label, Text(printable(text)))
    for text in words.doubts(result):
        _print_labelled(out, "note", Text(printable(text), "yellow"))
    for trial in result.trials if verbose else ():
        _print_labelled(out, trial.temperature, Text(words.trial_text(trial), "dim"))


def _print_labelled(out: Console, label: str, text: Text) -> None:
    out.print(Padding(labelled(label, text, width=9), (0, 0, 0, 2), expand=False))


def _print_bars(out: Console, result: Result, temperature: Temperature, longest: float) -> None:
    phases = median_phases(result, temperature)
    spread = getattr(result, temperature)
    if not phases or spread is None:
        return
    line = Text(f"  {temperature:<6}", "bold")
    line.append(f"{'':<12}{words.exact_seconds(spread.median):>9}", "bold")
    line.append(f"  {words.range_text(spread)}", "dim")
    if temperature == "hot":
        line.append(", again in one process", "dim")
    out.print(line)
    if temperature == "hot":
        return
    total = sum(phases.values()) or 1.0
    room = max(8, min(60, out.width - 40))
    full = "█" if (out.encoding or "").lower().startswith("utf") else "#"
    for phase, seconds in phases.items():
        line = Text(f"    {PHASES[phase]:<16}", "dim")
        line.append(f"{words.exact_seconds(seconds):>9}{seconds / total:>6.0%}  ", "default")
        line.append(
            full * round(room * seconds / (longest or 1.0)),
            "blue" if temperature == "cold" else "yellow",
        )
        line.rstrip()
        out.print(line)


def _print_comparison(out: Console, comparison: Comparison) -> None:
    then = f" of {words.date_text(comparison.then_at)}" if comparison.then_at else ""
    if not comparison.alike:
        line = f"Not compared: the earlier report{then} is from another machine."
        out.print(Text(line, "yellow"))
        for difference in comparison.differences:
            out.print(Text(f"  {printable(difference)}", "dim"))
        return
    out.print(f"Compared with the earlier report{then}")
    if not comparison.then_complete:
        out.print(Text("  which is not complete: it was ended before all was measured", "yellow"))
    for name, changes in words.grouped(comparison.changes).items():
        out.print(Text(name, "bold"))
        rows = [_change_row(change, wide=out.width >= _NARROW) for change in changes]
        out.print(Padding(_table(rows), (0, 0, 0, 2), expand=False))
    for label, names in (
        ("since then", comparison.differences),
        ("only then", comparison.only_then),
        ("only now", comparison.only_now),
    ):
        for name in names:
            out.print(labelled(label, Text(printable(name), "dim"), width=10))


def _change_row(change: Change, *, wide: bool) -> dict[str, str | Text]:
    row: dict[str, str | Text] = {"": change.temperature}
    for heading, spread in (("THEN", change.then), ("NOW", change.now)):
        row[heading] = words.exact_seconds(spread.median)
        if wide:
            # Headings tell columns apart; these have none of their own.
            row[" " * len(heading)] = Text(f"{spread.min:.2f} to {spread.max:.2f}", "dim")
    return row | {"CHANGE": Text(words.change_text(change), _VERDICTS[change.verdict])}


def _print_history(out: Console, history: Sequence[Remembered], *, verbose: bool) -> None:
    now = datetime.now(timezone.utc)
    by_model: dict[str, list[Remembered]] = {}
    for earlier in history if verbose else history[:_MOST_ROWS]:
        by_model.setdefault(earlier.result.model, []).append(earlier)
    for number, (model, group) in enumerate(by_model.items()):
        if number:
            out.print()
        out.print(Text(printable(model), "bold"))
        rows = [_history_row(earlier, now, out.width) for earlier in group]
        out.print(Padding(_table(rows), (0, 0, 0, 2), expand=False))
    more = len(history) - _MOST_ROWS
    if more > 0 and not verbose:
        out.print(Text(f"and {more} more; -v shows all", "dim"))


def _history_row(earlier: Remembered, now: datetime, width: int) -> dict[str, str]:
    result = earlier.result
    row = {"WHEN": ago(earlier.at, now), "PRECISION": words.precision_text(result)}
    if width >= _NARROW:
        row["LOADER"] = result.loader
    if width >= _WIDE:
        version = printable(earlier.machine.versions.get("torch", NOTHING))
        row |= {"DEVICE": result.device, "TORCH": version}
    row |= {"COLD": words.median_text(result.cold), "WARM": words.median_text(result.warm)}
    if width >= _WIDE:
        row["HOT"] = words.median_text(result.hot)
    row["MEMORY"] = words.memory_text(result)
    if width >= _WIDE:
        limit = result.efficiency
        row["OF LIMIT"] = NOTHING if limit is None else f"{limit:.0%}"
    return row


def show_quantization(value: Quantization) -> None:
    """Print the result for a quantized copy: its size, how long it took, how it is used."""
    out = console()
    model = f"{printable(value.model)} {value.precision}"
    if value.freed is not None:
        done = "freed" if value.removed else "would be freed"
        out.print(
            f"{model}: {size_text(value.freed)} {done}" if value.freed else f"{model}: no copy"
        )
        return
    saved = "" if value.size is None else _saved_text(value.size, value.source_bytes)
    if value.made and value.seconds is not None:
        out.print(f"{model}: kept {saved}, in {seconds_text(value.seconds)}")
        out.print(Text(f"  {_phases_text(value.phases)}", "dim"))
    elif value.size is not None:
        out.print(f"{model}: kept already, {saved}")
    else:
        expected = _saved_text(value.expected, value.source_bytes)
        out.print(f"{model}: would keep about {expected}; {size_text(value.free)} are free")
    out.print(Text(f"  {printable(value.path)}", "dim"), soft_wrap=True)
    if value.size is None:
        return
    out.print("Loads use it automatically:")
    wanted = ("--precision", value.precision)
    name = value.model.replace("\\", "\\\\").replace('"', '\\"')
    for line in (
        f'vlmcache.load_model("{name}", precision="{value.precision}")   # Python',
        command("load-test", value.model, *wanted),
    ):
        out.print(Text(f"  {printable(line)}", "bold"), soft_wrap=True)
    out.print("To remove it:")
    remove = command("quantize", value.model, *wanted, "--remove")
    out.print(Text(f"  {printable(remove)}", "bold"), soft_wrap=True)


def _saved_text(size: int, of: int) -> str:
    share = f" ({size / of:.0%})" if of else ""
    return f"{size_text(size)} in place of {size_text(of)}{share}"


def _phases_text(phases: Mapping[str, float]) -> str:
    done = {"quantize": "quantized", "compare": "loaded again and compared", "keep": "hashed"}
    return ", ".join(
        f"{text} in {seconds_text(phases[phase])}"
        for phase, text in done.items()
        if phase in phases
    )


def show_warm(value: WarmReport) -> None:
    """Print how much of each model was in memory, and is now."""
    out = console()
    for model in value.models:
        shares = [
            "unknown" if count is None else f"{count / model.bytes:.0%}" if model.bytes else "all"
            for count in (model.resident_before, model.resident_after)
        ]
        if value.dry_run:
            plan = f"{size_text(model.bytes)} would be read, {shares[0]} in memory"
            out.print(Text(f"{printable(model.model)}: {plan}"), soft_wrap=True)
            continue
        in_memory = f"{shares[1]} in memory, {shares[0]} before"
        if shares == ["unknown"] * 2:
            in_memory = "read; the files are another user's, so the kernel does not say more"
        text = f"{printable(model.model)}: {size_text(model.bytes)}, {in_memory}"
        out.print(Text(f"{text} ({seconds_text(model.seconds)})"), soft_wrap=True)
