"""The words and sentences of a load test's screen (no rich)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from vlmcache.load.report import (
    PHASES,
    Change,
    LoadReport,
    Result,
    Spread,
    Temperature,
    Trial,
)
from vlmcache.show.text import NOTHING, printable
from vlmcache.units import command, counted, seconds_text, size_text

TEMPERATURES: tuple[Temperature, ...] = ("cold", "warm", "hot")
_SOURCES = {"weights": "", "at-load": "", "copy": " copy"}


def exact_seconds(seconds: float) -> str:
    """Return seconds for a column of them: `3.71 s`, `0.05 s`."""
    return f"{seconds:.2f} s"


def median_text(spread: Spread | None) -> str:
    """Return the median for a column."""
    return NOTHING if spread is None else exact_seconds(spread.median)


def range_text(spread: Spread) -> str:
    """Return the shortest and longest trial, and how many trials there were."""
    if spread.count < 2:
        return "1 trial"
    return f"{spread.min:.2f} to {spread.max:.2f} s, {counted(spread.count, 'trial')}"


def precision_text(result: Result) -> str:
    """Return the precision, with `copy` for a kept copy."""
    return result.precision + _SOURCES[result.source]


def name_text(result: Result, results: Sequence[Result]) -> str:
    """Return the name of a result, with its loader if there are several."""
    loader = len({other.loader for other in results}) > 1
    name = f"{printable(result.model)} {precision_text(result)}"
    return f"{name}, {result.loader}" if loader else name


def memory_text(result: Result) -> str:
    """Return the memory that was measured."""
    size = result.peak_device_memory or result.peak_memory
    return NOTHING if size is None else size_text(size)


def date_text(at: datetime | None) -> str:
    """Return when something was measured."""
    return "" if at is None else f"{at:%Y-%m-%d %H:%M} UTC"


def machine_lines(report: LoadReport) -> Iterator[str]:
    """Yield lines on the machine and the time of the measurement."""
    machine = report.machine
    if machine is None:
        return
    devices = ", ".join(device.name for device in machine.accelerators) or "no accelerator"
    cores = counted(machine.cores, "core")
    yield printable(f"{machine.cpu}, {cores}, {size_text(machine.memory)}, {devices}")
    versions = [
        f"{name} {machine.versions[name]}"
        for name in ("torch", "transformers", "bitsandbytes")
        if name in machine.versions
    ]
    load = [] if machine.load_average is None else [f"load average {machine.load_average:.1f}"]
    parts = [machine.filesystem or "unknown filesystem", *versions, *load, date_text(report.at)]
    yield printable(", ".join(filter(None, parts)))


def facts(result: Result) -> Iterator[tuple[str, str]]:
    """Yield labels and facts on a result in addition to its times."""
    if result.elsewhere is not None:
        back = command("recall", result.repo or result.model)
        yield "place", f"it is at {result.elsewhere}; {back} brings it back"
    if result.limit_seconds is not None and result.efficiency is not None:
        text = f"{seconds_text(result.limit_seconds)}, the longest of imports, disk and copy"
        yield "limit", f"{text}; {result.efficiency:.0%} of the load"
    if result.disk is not None:
        disk = result.disk
        text = (
            f"{size_text(result.bytes)} at {size_text(round(disk.best))}/s take"
            f" {seconds_text(result.disk_limit_seconds or 0)} at best"
            f" (one reader {size_text(round(disk.sequential))}/s,"
            f" several {size_text(round(disk.parallel))}/s; readers at once: {disk.readers})"
        )
        yield "disk", text
    if result.read_speed is not None:
        yield "weights", _reading(result)
    parts = {part: None for trial in result.trials for part in trial.cold_parts}
    if parts:
        yield "cold", f"only the {' and the '.join(parts)} had to come from the disk"
    measured = result.peak_device_memory or result.peak_memory
    if measured is not None and result.memory_estimate is not None:
        text = f"{size_text(measured)} at most; {size_text(result.memory_estimate)} estimated"
        expected = result.expected
        if expected is not None and expected.memory is not None:
            text += f", {size_text(expected.memory)} expected ({expected.source})"
        yield "memory", text
    if result.peak_device_memory is not None:
        yield from _device_lines(result)
    made = [trial.processor for trial in result.trials if trial.processor is not None]
    if made:
        yield "processor", f"{seconds_text(statistics.median(made))} more"
    yield from _token_lines(result)


def _token_lines(result: Result) -> Iterator[tuple[str, str]]:
    texts = []
    if result.first_token is not None:
        texts.append(f"the first one {seconds_text(result.first_token.median)} after the load")
    if result.tokens_per_second is not None:
        texts.append(f"then {result.tokens_per_second.median:.1f} a second")
    if texts:
        yield "tokens", ", ".join(texts)


def _reading(result: Result) -> str:
    """Return how fast the weights came, compared with what the disk and the memory can do."""
    shares = [
        f"{share:.0%} of {what}'s speed"
        for share, what in ((result.read_of_disk, "the disk"), (result.read_of_memory, "memory"))
        if share is not None
    ]
    compared = f", {' and '.join(shares)}" if shares else ""
    return f"{size_text(round(result.read_speed or 0))}/s{compared}"


def _device_lines(result: Result) -> Iterator[tuple[str, str]]:
    """Yield the most that each device held, and what that includes."""
    of_all = [peak for trial in result.trials if trial.valid for peak in trial.device_peaks]
    for device in dict.fromkeys(peak.device for peak in of_all):
        peaks = [peak for peak in of_all if peak.device == device]
        reserved = max((peak.reserved for peak in peaks if peak.reserved), default=None)
        used = max((peak.used for peak in peaks if peak.used), default=None)
        text = f"{size_text(max(peak.allocated for peak in peaks))} of tensors at most"
        if reserved is not None:
            text += f", {size_text(reserved)} reserved by torch"
        if used is not None:
            text += f", {size_text(used)} used by all, as the driver says (context included)"
        yield device, text


def doubts(result: Result) -> Iterator[str]:
    """Yield which trials do not count and why, and the notes on a model that was loaded."""
    reasons: dict[tuple[str, str | None], list[Trial]] = {}
    for trial in result.trials:
        if not trial.valid:
            # The reasons of disturbances differ only by a figure; the last one is shown for all.
            kind = None if trial.disturbed else trial.why_not
            reasons.setdefault((trial.temperature, kind), []).append(trial)
    for (temperature, _), trials in reasons.items():
        plural = "trial does" if len(trials) == 1 else "trials do"
        taken = [trial.seconds for trial in trials if trial.seconds is not None]
        least = f"; the fastest took {seconds_text(min(taken))}" if taken else ""
        yield f"{len(trials)} {temperature} {plural} not count: {trials[-1].why_not}{least}"
    yield from dict.fromkeys(remark for trial in result.trials for remark in _remarks(trial))


def _remarks(trial: Trial) -> Iterator[str]:
    if trial.no_token:
        yield f"no token, or no more of them: {trial.no_token[:200]}"
    if trial.no_processor:
        yield f"no processor: {trial.no_processor[:200]}"
    yield from trial.notes


def trial_text(trial: Trial) -> str:
    """Return the figures of one trial in one line."""
    phases = ", ".join(f"{PHASES[name]} {trial.phases[name]:.2f}" for name in trial.phases)
    seconds = NOTHING if trial.seconds is None else exact_seconds(trial.seconds)
    resident = "" if trial.resident_before is None else f", {trial.resident_before:.0%} resident"
    read = "" if trial.bytes_read is None else f", {size_text(trial.bytes_read)} read"
    return f"{seconds}: {phases}{read}{resident}"


def fastest(results: Sequence[Result]) -> Iterator[str]:
    """Yield how each model loads fastest, cold and warm, and how much longer it takes otherwise."""
    by_model = {
        result.model: [other for other in results if other.model == result.model]
        for result in results
    }
    for model, results_of_model in by_model.items():
        for temperature in ("cold", "warm"):
            timed = sorted(
                (spread.median, name_text(result, results).partition(" ")[2])
                for result in results_of_model
                if (spread := getattr(result, temperature)) is not None
            )
            if len(timed) < 2 or not timed[0][0]:
                continue
            (least, best), *others = timed
            slower = (f"{name} takes {median / least:.2f} x as long" for median, name in others)
            of = f" of {printable(model)}" if len(by_model) > 1 else ""
            yield f"fastest {temperature}{of}: {best}; {'; '.join(slower)}"


def change_text(change: Change) -> str:
    """Return how a result differs from an earlier one, in a few words."""
    if change.verdict == "too-few":
        return "too few trials to compare"
    if change.verdict == "same":
        return "no clear difference"
    return f"{abs(1 - change.ratio):.0%} {'less' if change.ratio < 1 else 'more'} time"


def grouped(changes: Iterable[Change]) -> dict[str, list[Change]]:
    """Return changes by model, precision, device and loader."""
    groups: dict[str, list[Change]] = {}
    for change in changes:
        source = " copy" if change.source == "copy" else ""
        name = f"{printable(change.model)} {change.precision}{source}"
        groups.setdefault(f"{name} on {change.device}, {change.loader}", []).append(change)
    return groups
