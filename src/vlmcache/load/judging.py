"""What a load test's figures mean: medians, limits, a sentence on what takes longest (pure)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import msgspec

from vlmcache import units
from vlmcache.load.disturbance import SPREAD_AT_MOST
from vlmcache.load.report import (
    MOVING,
    PHASES,
    Accelerator,
    Disk,
    Machine,
    Result,
    Spread,
    Temperature,
    Trial,
)
from vlmcache.units import seconds_text, size_text

_NO_BYTECODE = (
    "the libraries' compiled bytecode is missing, and Python compiles them at each import: unset"
    " PYTHONDONTWRITEBYTECODE, or run 'python -m compileall' on their folder once"
)
_IMPORTING = "importing torch and transformers is the limit: keep the process alive between uses"
_ADVICE = {
    "start": _IMPORTING,
    "import": _IMPORTING,
    "to_device": "the copy to the device is the limit: a smaller precision moves fewer bytes",
}
"""Phase that takes longest -> what to do, if that depends on nothing else."""

_DONE = {
    "start": "starting Python",
    "import": "importing torch",
    "device": "starting the device",
    "build": "building the model",
    "read": "reading the weights",
    "read_to_device": "reading and copying the weights",
    "to_device": "copying the weights to the device",
    "quantise": "quantizing the weights",
}
"""Phase -> what a verdict calls it."""

TIMED: tuple[Temperature, ...] = ("cold", "warm")
"""Kinds of loads that are repeated if they were disturbed."""

_SLOW_DISK = 1_000_000_000
"""Bytes per second below which a disk is slower than a common NVMe drive."""


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return the median, least and greatest of the values; `None` if none is known."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(statistics.median(known), min(known), max(known), len(known))


def mark_slow(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return trials, with those marked that took far longer than the fastest of their kind.

    A disturbance only ever makes a load longer, so all are compared with the fastest.
    """
    fastest: dict[Temperature, float] = {}
    for trial in trials:
        if trial.valid and trial.seconds is not None:
            least = fastest.get(trial.temperature, trial.seconds)
            fastest[trial.temperature] = min(least, trial.seconds)

    def marked(trial: Trial) -> Trial:
        if not trial.valid or trial.seconds is None:
            return trial
        least = fastest[trial.temperature]
        if trial.seconds <= SPREAD_AT_MOST * least:
            return trial
        return msgspec.structs.replace(
            trial,
            valid=False,
            disturbed=True,
            why_not=f"it took more than {SPREAD_AT_MOST:g} times as long as the fastest one",
        )

    return tuple(map(marked, trials))


def summarize(
    result: Result,
    disk: Disk | None,
    copy_speed: float | None,
    device_bytes: int,
    *,
    wanted: int = 1,
    machine: Machine | None = None,
) -> Result:
    """Return the result with everything that follows from its trials.

    Args:
        result: model, precision and so on, with all trials.
        disk: the measured speed of the disk.
        copy_speed: the measured speed of the copy to the device; `None` for the CPU.
        device_bytes: the bytes that are copied to the device.
        wanted: how many valid trials of each kind were wanted.
        machine: the machine that it was measured on.
    """
    valid = [trial for trial in result.trials if trial.valid]
    by = {
        temperature: spread(trial.seconds for trial in valid if trial.temperature == temperature)
        for temperature in ("cold", "warm", "hot")
    }
    measured: Temperature = "cold" if by["cold"] is not None else "warm"
    phases = [trial.phases for trial in valid if trial.temperature == measured]
    imports = spread(trial.get("start", 0.0) + trial.get("import", 0.0) for trial in phases)
    disk_limit = result.bytes / disk.best if disk is not None else None
    reading = disk_limit if measured == "cold" else 0.0
    total = by[measured]
    limit = efficiency = None
    if total is not None and imports is not None and reading is not None:
        copying = device_bytes / copy_speed if copy_speed else 0.0
        limit = max(imports.median, reading, copying)
        efficiency = limit / total.median
    loads = [trial for trial in valid if trial.temperature != "hot"]
    result = msgspec.structs.replace(
        result,
        cold=by["cold"],
        warm=by["warm"],
        hot=by["hot"],
        first_token=spread(trial.first_token for trial in loads),
        tokens_per_second=spread(trial.tokens_per_second for trial in loads),
        disk=disk,
        disk_limit_seconds=disk_limit,
        limit_seconds=limit,
        efficiency=efficiency,
        peak_memory=_greatest(trial.peak_memory for trial in valid),
        peak_device_memory=_greatest(trial.peak_device_memory for trial in valid),
        **_read_speeds(result, measured, disk, machine),
    )
    verdict, advice = _too_busy(result, wanted) or judge_phases(result)
    if advice == _IMPORTING and machine is not None and machine.bytecode is False:
        advice = _NO_BYTECODE
    return msgspec.structs.replace(result, verdict=verdict, advice=advice)


def _read_speeds(
    result: Result, measured: Temperature, disk: Disk | None, machine: Machine | None
) -> dict[str, float | None]:
    """Return how fast the weights came, and its share of the disk's and the memory's speed."""
    seconds = spread(
        max(trial.read_ahead or 0.0, sum(trial.phases.get(phase, 0.0) for phase in MOVING))
        for trial in result.trials
        if trial.valid and trial.temperature == measured and "quantise" not in trial.phases
    )
    if seconds is None or not seconds.median:
        return {}
    speed = result.bytes / seconds.median
    memory = machine.memory_speed if machine is not None else None
    return {
        "read_speed": speed,
        "read_of_disk": speed / disk.best if disk is not None and measured == "cold" else None,
        "read_of_memory": speed / memory if memory else None,
    }


def copy_speed_of(device: Accelerator) -> float | None:
    """Return the greatest measured speed of copies to a device; `None` if none was measured."""
    return max((speed for speed in (device.copy_speed, device.pinned_speed) if speed), default=None)


def short_of(trials: Sequence[Trial], temperature: Temperature, wanted: int) -> int:
    """Return how many valid trials of a kind are missing because trials were disturbed."""
    of_kind = [trial for trial in trials if trial.temperature == temperature]
    broken = sum(not trial.valid and not trial.disturbed for trial in of_kind)
    return max(0, wanted - broken - sum(trial.valid for trial in of_kind))


def _too_busy(result: Result, wanted: int) -> tuple[str, str] | None:
    """Return verdict and advice if too many trials were disturbed for a cause to be named."""
    for temperature in TIMED:
        of_kind = [trial for trial in result.trials if trial.temperature == temperature]
        disturbed = [trial for trial in of_kind if trial.disturbed]
        if disturbed and short_of(result.trials, temperature, wanted):
            verdict = (
                f"the machine was too busy: {len(disturbed)} of {len(of_kind)} {temperature} trials"
                f" were disturbed ({disturbed[-1].why_not})"
            )
            return verdict, "try again when nothing else runs here"
    return None


def _greatest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def median_phases(result: Result, temperature: Temperature) -> dict[str, float]:
    """Return the median of each phase over the valid trials of a temperature, in order."""
    trials = [trial for trial in result.trials if trial.valid and trial.temperature == temperature]
    return {
        phase: statistics.median(trial.phases.get(phase, 0.0) for trial in trials)
        for phase in PHASES
        if any(phase in trial.phases for trial in trials)
    }


def judge_phases(result: Result) -> tuple[str | None, str | None]:
    """Return which phase takes longest, and what to do about it, as sentences for a person."""
    temperature: Temperature = "cold" if result.cold is not None else "warm"
    total = result.cold or result.warm
    phases = median_phases(result, temperature)
    if total is None or not phases:
        invalid = [trial for trial in result.trials if not trial.valid]
        if not invalid:
            return None, None
        return f"no trial is valid: {invalid[0].why_not}", None
    name = max(phases, key=lambda phase: phases[phase])
    share = phases[name] / sum(phases.values())
    warm = result.warm if result.cold is not None else None
    also = "" if warm is None else f" ({seconds_text(warm.median)} warm)"
    load = f"loads in {seconds_text(total.median)} {temperature}{also}"
    return f"{load}; {_DONE[name]} is {share:.0%} of it", _advise(result, name, temperature)


def _advise(result: Result, dominant: str, temperature: Temperature) -> str | None:
    if dominant == "quantise" or (result.source == "at-load" and dominant in ("read", "build")):
        return "keep a quantized copy: " + units.command(
            "quantize", result.model, "--precision", result.precision
        )
    if dominant in ("read", "read_to_device") and temperature == "cold":
        if result.loader == "plain":
            return "read ahead: --loader readahead, or vlmcache.load_model in your program"
        speed = f" ({size_text(round(result.disk.best))}/s)" if result.disk else ""
        if result.disk is not None and result.disk.best >= _SLOW_DISK and result.efficiency:
            if result.efficiency > 0.8:
                return f"the disk{speed} is the limit: a smaller precision or a faster disk helps"
            return "other work on this machine slows down reading: try again when it is idle"
        return f"the disk{speed} is the limit: a faster disk, or a kept int8 or int4 copy, helps"
    if dominant == "read":
        return "with more memory, the weights would not be read and converted again"
    return _ADVICE.get(dominant)
