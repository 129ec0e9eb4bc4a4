"""`load-test` and `quantize` for people: tables, bars, sentences, and a plot."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vlmcache.errors import MissingPackageError, UsageError
from vlmcache.load.judging import median_phases
from vlmcache.load.quantized import Quantization
from vlmcache.load.report import (
    PHASES,
    Change,
    Comparison,
    LoadReport,
    Remembered,
    Result,
    Spread,
    Temperature,
    Trial,
)
from vlmcache.load.warm import WarmReport
from vlmcache.show.console import console, styled
from vlmcache.show.text import NOTHING, ago, printable
from vlmcache.units import size_text

_WIDE = 110
_LINE_SECONDS = 10.0
_SOURCES = {"weights": "", "at-load": "quantized at load", "copy": "kept copy"}
_VERDICTS = {
    "faster": "green",
    "slower": "red",
    "same": "dim",
    "too-few": "yellow",
}
_TEMPERATURES: tuple[Temperature, ...] = ("cold", "warm", "hot")
_NUMBERS = (
    "COLD",
    "WARM",
    "HOT",
    "TOKEN",
    "MEMORY",
    "EXPECTED",
    "OF LIMIT",
    "THEN",
    "NOW",
)
_PLOTS = (".png", ".svg")


@contextlib.contextmanager
def progress(*, silent: bool) -> Iterator[Callable[[str], None]]:
    """Yield what shows progress on stderr: a moving line on a terminal, else some lines."""
    if silent:
        yield lambda _text: None
        return
    if styled(sys.stderr):
        with console(sys.stderr).status("") as status:
            yield lambda text: status.update(printable(text))
        return
    last = time.monotonic()

    def on_step(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _LINE_SECONDS:
            last = time.monotonic()
            print(printable(text), file=sys.stderr, flush=True)

    yield on_step


def show(report: LoadReport, *, verbose: bool = False) -> None:
    """Print a load report: times, phases, what to do, and what could not be measured."""
    out = console()
    if report.history:
        out.print(_history_table(report.history, wide=out.width >= _WIDE))
    elif report.machine is None and not report.failures:
        out.print("Nothing is remembered yet: vlmcache load-test measures.")
    if report.results:
        out.print(_result_table(report.results, wide=out.width >= _WIDE))
    for result in report.results:
        out.print()
        _print_result(out, result, verbose=verbose)
    if report.failures:
        out.print()
    for finding in report.findings:
        out.print(
            Text(f"{printable(finding.detail)}\n  {printable(finding.remedy or '')}", "yellow")
        )
    for failure in report.failures:
        at = f" {failure.precision}" if failure.precision else ""
        line = Text("not measured", "red")
        line.append(f"  {printable(failure.model)}{at}: {printable(failure.message)}", "default")
        if failure.hint:
            line.append(f"\n              {printable(failure.hint)}", "bold")
        out.print(line)
    if report.comparison is not None:
        out.print()
        _print_comparison(out, report.comparison)
    if report.machine is not None and report.results:
        out.print()
        out.print(Text(_machine_line(report), "dim"))


def _table(rows: Sequence[Mapping[str, str | Text]], *folded: str) -> Table:
    """Return a table of rows, heading -> cell; long cells of the columns named are folded."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in rows[0]:
        table.add_column(
            name,
            justify="right" if name in _NUMBERS else "left",
            no_wrap=name not in folded,
            overflow="fold" if name in folded else "ellipsis",
        )
    for row in rows:
        table.add_row(*row.values())
    return table


def _result_table(results: Sequence[Result], *, wide: bool) -> Table:
    loaders = wide or len({result.loader for result in results}) > 1
    rows = []
    for result in results:
        row = {"MODEL": printable(result.model), "PRECISION": _precision(result)}
        if loaders:
            row["LOADER"] = result.loader
        times = _spread if wide else _median
        row |= {"COLD": times(result.cold), "WARM": times(result.warm)}
        if wide or not loaders:
            row["HOT"] = _median(result.hot)
        row |= {"TOKEN": _median(result.first_token), "MEMORY": _memory(result)}
        if wide:
            row["EXPECTED"] = _amount(result.expected.memory if result.expected else None)
        row["OF LIMIT"] = NOTHING if result.efficiency is None else f"{result.efficiency:.0%}"
        rows.append(row)
    return _table(rows, "MODEL")


def _precision(result: Result) -> str:
    return result.precision + {"weights": "", "at-load": "", "copy": " copy"}[result.source]


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"


def _median(spread: Spread | None) -> str:
    return NOTHING if spread is None else _seconds(spread.median)


def _spread(spread: Spread | None) -> str:
    if spread is None or spread.count < 2:
        return _median(spread)
    return f"{_seconds(spread.median)} ({spread.min:.1f}-{spread.max:.1f})"


def _amount(size: int | None) -> str:
    return NOTHING if size is None else size_text(size)


def _memory(result: Result) -> str:
    return _amount(result.peak_device_memory or result.peak_memory)


def _print_result(out: Console, result: Result, *, verbose: bool) -> None:
    source = f", {_SOURCES[result.source]}" if _SOURCES[result.source] else ""
    title = Text(f"{printable(result.model)} {result.precision}", "bold")
    title.append(f" on {result.device}, {result.loader}{source}", "default")
    out.print(title)
    for temperature in ("cold", "warm"):
        _print_bars(out, result, temperature)
    for line in _facts(result):
        out.print(_indented(Text(line, "dim")))
    reasons: dict[tuple[str, str | None], list[str]] = {}
    for trial in result.trials:
        if not trial.valid:
            # Disturbances differ by a figure; one of them stands for the others.
            kind = None if trial.disturbed else trial.why_not
            reasons.setdefault((trial.temperature, kind), []).append(trial.why_not or "")
    for (temperature, _), said in reasons.items():
        plural = "trial does" if len(said) == 1 else "trials do"
        line = f"{len(said)} {plural} not count: {temperature}: {said[-1]}"
        out.print(_indented(Text(line, "yellow")))
    for remark in dict.fromkeys(remark for trial in result.trials for remark in _remarks(trial)):
        out.print(_indented(Text(printable(remark), "yellow")))
    if verbose:
        _print_trials(out, result)
    if result.verdict:
        out.print(_indented(Text(result.verdict)))
    if result.advice:
        out.print(_indented(Text(printable(result.advice), "bold")))


def _remarks(trial: Trial) -> Iterator[str]:
    """Yield what is to be known of a model that was loaded."""
    if trial.no_token:
        yield f"no token, or no more of them: {trial.no_token[:200]}"
    if trial.no_processor:
        yield f"no processor: {trial.no_processor[:200]}"
    yield from trial.notes


def _indented(text: Text) -> Padding:
    """Return a line whose further lines, where it is too long, begin below its first word."""
    return Padding(text, (0, 0, 0, 2), expand=False)


def _print_bars(out: Console, result: Result, temperature: Temperature) -> None:
    phases = median_phases(result, temperature)
    if not phases:
        return
    whole = max(sum(median_phases(result, kind).values()) for kind in ("cold", "warm"))
    room = max(10, min(48, out.width - 38))
    full = "█" if (out.encoding or "").lower().startswith("utf") else "#"
    for number, (phase, seconds) in enumerate(phases.items()):
        length = round(room * seconds / whole) if whole else 0
        label = temperature if number == 0 else ""
        line = Text(f"  {label:<5}")
        line.append(f"{PHASES[phase]:<16}", "dim")
        line.append(full * length, "blue" if temperature == "cold" else "yellow")
        line.append(f" {_seconds(seconds)}" if length else _seconds(seconds))
        out.print(line)


def _facts(result: Result) -> Iterator[str]:
    if result.disk is not None:
        yield (
            f"disk: {size_text(result.bytes)} at {size_text(round(result.disk.best))}/s take"
            f" {_seconds(result.disk_limit_seconds or 0)} at best"
            f" (one reader {size_text(round(result.disk.sequential))}/s,"
            f" several {size_text(round(result.disk.parallel))}/s, readers at once:"
            f" {result.disk.readers})"
        )
    if result.limit_seconds is not None and result.efficiency is not None:
        yield (
            f"limit: {_seconds(result.limit_seconds)}, the larger of imports, disk and copy;"
            f" reached to {result.efficiency:.0%}"
        )
    if result.read_speed is not None:
        yield _reading(result)
    parts = {part: None for trial in result.trials for part in trial.cold_parts}
    if parts:
        yield f"cold: the {' and the '.join(parts)}"
    measured = result.peak_device_memory or result.peak_memory
    if measured is not None and result.memory_estimate is not None:
        text = (
            f"memory: {size_text(measured)} at most, {size_text(result.memory_estimate)} estimated"
        )
        expected = result.expected
        if expected is not None and expected.memory is not None:
            text += f", {size_text(expected.memory)} expected ({expected.source})"
        yield text
    if result.peak_device_memory is not None:
        yield from _device_lines(result)
    made = [trial.processor for trial in result.trials if trial.processor is not None]
    if made:
        yield f"processor: {_seconds(statistics.median(made))} more"
    if result.tokens_per_second is not None:
        yield f"tokens: {result.tokens_per_second.median:.1f} a second"


def _reading(result: Result) -> str:
    """Return how fast the weights came, beside what the disk and the memory can do."""
    shares = [
        f"{share:.0%} of {what}'s speed"
        for share, what in ((result.read_of_disk, "the disk"), (result.read_of_memory, "memory"))
        if share is not None
    ]
    beside = f", {' and '.join(shares)}" if shares else ""
    return f"weights: {size_text(round(result.read_speed or 0))}/s{beside}"


def _device_lines(result: Result) -> Iterator[str]:
    """Yield what each device held at most, and what that includes."""
    peaks = [peak for trial in result.trials if trial.valid for peak in trial.device_peaks]
    for device in dict.fromkeys(peak.device for peak in peaks):
        its_own = [peak for peak in peaks if peak.device == device]
        reserved = max((peak.reserved for peak in its_own if peak.reserved), default=None)
        used = max((peak.used for peak in its_own if peak.used), default=None)
        text = f"{device}: {size_text(max(peak.allocated for peak in its_own))} of tensors at most"
        if reserved is not None:
            text += f", {size_text(reserved)} reserved by torch"
        if used is not None:
            text += f", {size_text(used)} used by all, as the driver says (context included)"
        yield text


def _print_trials(out: Console, result: Result) -> None:
    for trial in result.trials:
        phases = ", ".join(f"{PHASES[name]} {trial.phases[name]:.2f}" for name in trial.phases)
        seconds = NOTHING if trial.seconds is None else _seconds(trial.seconds)
        resident = (
            "" if trial.resident_before is None else f", {trial.resident_before:.0%} resident"
        )
        read = "" if trial.bytes_read is None else f", {size_text(trial.bytes_read)} read"
        text = f"{trial.temperature:<5}{seconds}: {phases}{read}{resident}"
        out.print(_indented(Text(text, "dim")))


def _print_comparison(out: Console, comparison: Comparison) -> None:
    if not comparison.alike:
        out.print(Text("Not compared: the earlier report is of an unlike machine.", "yellow"))
        for difference in comparison.differences:
            out.print(Text(f"  {printable(difference)}", "dim"))
        return
    rows: list[dict[str, str | Text]] = [
        {
            "MODEL": printable(change.model),
            "PRECISION": f"{change.precision} {change.loader}",
            "": change.temperature,
            "THEN": _seconds(change.then.median),
            "NOW": _seconds(change.now.median),
            "VERDICT": Text(_verdict(change), _VERDICTS[change.verdict]),
        }
        for change in comparison.changes
    ]
    if rows:
        out.print(_table(rows, "MODEL", "PRECISION", "VERDICT"))
    for label, names in (
        ("since then", comparison.differences),
        ("only then", comparison.only_then),
        ("only now", comparison.only_now),
    ):
        for name in names:
            out.print(Text(f"  {label}: {printable(name)}", "dim"))


def _verdict(change: Change) -> str:
    if change.verdict == "too-few":
        return "too few valid trials to compare (3 each)"
    if change.verdict == "same":
        return "no difference beyond the spread"
    return f"{change.verdict}: {change.ratio:.2f} x"


def _history_table(history: Iterable[Remembered], *, wide: bool) -> Table:
    now = datetime.now(timezone.utc)
    rows = []
    for earlier in history:
        result = earlier.result
        row = {
            "WHEN": ago(earlier.at, now),
            "MODEL": printable(result.model),
            "PRECISION": _precision(result),
        }
        if wide:
            version = printable(earlier.machine.versions.get("torch", NOTHING))
            row |= {"LOADER": result.loader, "DEVICE": result.device, "TORCH": version}
        row |= {
            "COLD": _median(result.cold),
            "WARM": _median(result.warm),
            "HOT": _median(result.hot),
            "MEMORY": _memory(result),
        }
        rows.append(row)
    return _table(rows, "WHEN", "MODEL", "PRECISION")


def _machine_line(report: LoadReport) -> str:
    machine = report.machine
    assert machine is not None
    devices = ", ".join(device.name for device in machine.accelerators) or "no accelerator"
    versions = ", ".join(
        f"{name} {machine.versions[name]}"
        for name in ("torch", "transformers", "bitsandbytes")
        if name in machine.versions
    )
    load = "" if machine.load_average is None else f", load average {machine.load_average:.1f}"
    cores = "1 core" if machine.cores == 1 else f"{machine.cores} cores"
    return printable(
        f"{machine.cpu}, {cores}, {size_text(machine.memory)}, {devices};"
        f" {machine.filesystem or 'unknown filesystem'}; {versions}{load}"
    )


def check_plot(path: str) -> None:
    """Make sure that a plot can be drawn, before minutes of measuring.

    Raises:
        UsageError: the file's name ends in no known kind of picture.
        MissingPackageError: matplotlib is not installed.
    """
    import importlib.util

    if os.path.splitext(path)[1].lower() not in _PLOTS:
        raise UsageError(f"{path}: a plot is a {' or '.join(_PLOTS)} file")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingPackageError("--plot needs matplotlib", "pip install 'vlmcache[plot]'")


def plot(path: str, report: LoadReport) -> None:
    """Draw the median phases of each result as stacked bars.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    rows = [
        (f"{result.model} {_precision(result)} {result.loader}, {temperature}", phases)
        for result in report.results
        for temperature in _TEMPERATURES
        if (phases := median_phases(result, temperature))
    ]
    figure = Figure(figsize=(9, 1.5 + 0.45 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    left = [0.0] * len(rows)
    labels = [label for label, _ in rows]
    for phase, name in PHASES.items():
        widths = [phases.get(phase, 0.0) for _, phases in rows]
        if any(widths):
            axes.barh(labels, widths, left=left, label=name)
            left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds from process start to every weight on the device (median)")
    if rows:
        axes.legend(loc="best", fontsize="small")
    figure.savefig(path, metadata={"Date": None} if path.lower().endswith(".svg") else {})


def show_quantization(value: Quantization) -> None:
    """Print the result for a quantized copy."""
    out = console()
    model = f"{printable(value.model)} {value.precision}"
    if value.freed is not None:
        done = "freed" if value.removed else "would be freed"
        out.print(
            f"{model}: {size_text(value.freed)} {done}" if value.freed else f"{model}: no copy"
        )
    elif value.made and value.size is not None and value.seconds is not None:
        out.print(
            f"{model}: kept, {size_text(value.size)} in place of {size_text(value.source_bytes)},"
            f" in {_seconds(value.seconds)}"
        )
    elif value.size is not None:
        out.print(f"{model}: kept already, {size_text(value.size)}")
    else:
        out.print(
            f"{model}: would take about {size_text(value.expected)} of {size_text(value.free)} free"
        )
    if value.freed is None:
        out.print(Text(printable(value.path), "dim"), soft_wrap=True)


def show_warm(value: WarmReport) -> None:
    """Print what of each model was in memory, and is now."""
    out = console()
    for model in value.models:
        shares = [
            "unknown" if count is None else f"{count / model.bytes:.0%}" if model.bytes else "all"
            for count in (model.resident_before, model.resident_after)
        ]
        if value.dry_run:
            words = f"{size_text(model.bytes)} would be read, {shares[0]} in memory"
            out.print(Text(f"{printable(model.model)}: {words}"), soft_wrap=True)
            continue
        in_memory = f"{shares[1]} in memory, {shares[0]} before"
        if shares == ["unknown"] * 2:
            in_memory = "read; the files are another user's, so the kernel does not tell more"
        text = f"{printable(model.model)}: {size_text(model.bytes)}, {in_memory}"
        out.print(Text(f"{text} ({_seconds(model.seconds)})"), soft_wrap=True)
