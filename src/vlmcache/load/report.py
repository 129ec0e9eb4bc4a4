"""What a load test found, as values; and what the figures say (pure).

Times are seconds, sizes bytes, speeds bytes per second.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from vlmcache import units
from vlmcache.cache.weights import Precision
from vlmcache.errors import PartlyError, VlmcacheError, unloadable
from vlmcache.report import Report
from vlmcache.units import size_text

Temperature = Literal["cold", "warm", "hot"]
"""Weights on the disk only; weights in the machine's memory; a second load in one process."""

QUANTIZED: tuple[Precision, ...] = ("int8", "int4")

Loader = Literal["plain", "readahead", "fastsafetensors", "runai"]

WeightsSource = Literal["weights", "at-load", "copy"]
"""The stored weights; the same, quantized at the load; a kept quantized copy."""

PHASES = {
    "start": "starting Python",
    "import": "importing",
    "build": "building",
    "read": "reading",
    "to_device": "copying",
    "quantise": "quantizing",
}
"""Phase -> what to call it, in the order in which they come. Together they are the load.

build: the model without its weights. read: the weights into memory, with their conversion to
another precision. to_device: the weights onto an accelerator, and waiting for it.
"""

_FEWEST = 3
"""Trials on each side without which a difference is not called one."""

_IMPORTING = "importing torch and transformers is the limit: keep the process alive between uses"
_ADVICE = {
    "start": _IMPORTING,
    "import": _IMPORTING,
    "to_device": "the copy to the device is the limit: a smaller precision moves fewer bytes",
}
"""Phase that takes longest -> what to do, where that depends on nothing else."""

_SLOW_DISK = 1_000_000_000
"""Below this many bytes a second a disk is slower than a common NVMe drive."""


class Spread(msgspec.Struct, frozen=True):
    """Median, least and most of the valid trials' seconds, and how many there were."""

    median: float
    min: float
    max: float
    count: int


class Trial(msgspec.Struct, frozen=True):
    """One load in a fresh process (or, hot, a second one in the same process)."""

    temperature: Temperature
    phases: dict[str, float]
    seconds: float | None
    """From the start of the process until every weight was on the device; the sum of the phases."""
    bytes_read: int | None
    """What the kernel says came from the disk for this process."""
    resident_before: float | None
    """The part of the weight files that was in memory before, 0 to 1."""
    peak_memory: int | None
    peak_device_memory: int | None
    valid: bool
    why_not: str | None
    first_token: float | None = None
    """Seconds that the first token took after the load."""
    tokens_per_second: float | None = None
    """The rate of the tokens after the first one."""
    read_ahead: float | None = None
    """Seconds that reading ahead took, in parallel with other phases."""
    no_token: str | None = None
    """Why there is no first token, or no more than that."""
    processor: float | None = None
    """Seconds that making the processor took after the load."""
    no_processor: str | None = None
    """Why it cannot be made."""
    notes: tuple[str, ...] = ()
    """What the user should know of a model that loads nevertheless."""


class Disk(msgspec.Struct, frozen=True):
    """How fast the weight files themselves come from their disk, evicted before."""

    sequential: float
    parallel: float
    bytes: int

    @property
    def best(self) -> float:
        """The greater of both."""
        return max(self.sequential, self.parallel)


class Expectation(msgspec.Struct, frozen=True):
    """What can be expected of a model, and who says so."""

    memory: int | None
    download: int | None
    source: str


class Result(msgspec.Struct, frozen=True):
    """One model at one precision by one loader."""

    model: str
    precision: Precision
    device: str
    loader: Loader
    bytes: int
    """Length of the weight files that are read."""
    trials: tuple[Trial, ...]
    cold: Spread | None
    warm: Spread | None
    disk_limit_seconds: float | None
    """What reading the files takes at the disk's best measured speed."""
    efficiency: float | None
    """limit_seconds as a fraction of the median cold load, or of the warm one if no cold trial is
    valid; then the disk has no part in the limit."""
    hot: Spread | None = None
    first_token: Spread | None = None
    limit_seconds: float | None = None
    """The largest of the disk's limit, the imports and the copy to the device."""
    repo: str | None = None
    commit: str | None = None
    source: WeightsSource = "weights"
    disk: Disk | None = None
    memory_estimate: int | None = None
    """What was estimated before; the trials say what was measured."""
    memory_context: int | None = None
    """Of `memory_estimate`, the key-value cache of the context that `--context` names."""
    memory_notes: tuple[str, ...] = ()
    """What of `memory_estimate` is only approximate."""
    peak_memory: int | None = None
    peak_device_memory: int | None = None
    expected: Expectation | None = None
    verdict: str | None = None
    advice: str | None = None


class LoadFailure(msgspec.Struct, frozen=True):
    """A model that could not be loaded with these settings, and why."""

    model: str
    precision: Precision | None
    code: str
    message: str
    hint: str | None
    loader: Loader | None = None


class Accelerator(msgspec.Struct, frozen=True):
    """A device that torch can use in addition to the CPU."""

    device: str
    name: str
    memory: int | None
    copy_speed: float | None = None
    """Bytes per second from the host to the device."""


class Machine(msgspec.Struct, frozen=True):
    """The conditions of a measurement. Hardware makes machines unlike; versions do not."""

    system: str
    cpu: str
    cores: int
    memory: int
    accelerators: tuple[Accelerator, ...]
    filesystem: str | None
    disk: str | None
    versions: dict[str, str]
    load_average: float | None = None

    def hardware(self) -> dict[str, str]:
        """Return what two machines must share for their times to be compared."""
        return {
            "system": self.system.split("-")[0],
            "cpu": self.cpu,
            "cores": str(self.cores),
            # What the firmware keeps to itself varies a little from boot to boot.
            "memory": f"{self.memory / 1e9:.0f} GB",
            "accelerators": ", ".join(device.name for device in self.accelerators) or "none",
            "filesystem": self.filesystem or "unknown",
            "disk": self.disk or "unknown",
        }


class Change(msgspec.Struct, frozen=True):
    """One result then and now."""

    model: str
    precision: Precision
    device: str
    loader: Loader
    source: WeightsSource
    temperature: Temperature
    then: Spread
    now: Spread
    ratio: float
    """Now divided by then, of the medians."""
    verdict: Literal["faster", "slower", "same", "too-few"]


class Comparison(msgspec.Struct, frozen=True):
    """An earlier report next to this one. Nothing is compared if the machines are unlike."""

    alike: bool
    differences: tuple[str, ...]
    changes: tuple[Change, ...]
    only_then: tuple[str, ...] = ()
    only_now: tuple[str, ...] = ()


class Remembered(msgspec.Struct, frozen=True):
    """A result of an earlier run, without its trials."""

    at: datetime
    machine: Machine
    result: Result


class LoadReport(Report, frozen=True):
    """The result of `vlmcache load-test`."""

    machine: Machine | None
    results: tuple[Result, ...]
    failures: tuple[LoadFailure, ...] = ()
    comparison: Comparison | None = None
    history: tuple[Remembered, ...] = ()
    at: datetime | None = None

    @property
    def ids(self) -> list[str]:
        """One line for each result, of now or remembered: model, precision, loader."""
        results = (*self.results, *(earlier.result for earlier in self.history))
        return [f"{result.model} {result.precision} {result.loader}" for result in results]

    @property
    def problem(self) -> VlmcacheError | None:
        """What the failures come to: `None`, a part, or the first of them."""
        if not self.failures:
            return None
        first = self.failures[0]
        count = len(self.failures)
        if not self.results:
            message = first.message if count == 1 else f"{first.message}; and {count - 1} more"
            return unloadable(first.code, message, first.hint)
        names = ", ".join(sorted({failure.model for failure in self.failures}))
        return PartlyError(f"not measured: {names}: {first.message}", first.hint)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return median, least and most of the values that are there."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(statistics.median(known), min(known), max(known), len(known))


def summarize(
    result: Result, disk: Disk | None, copy_speed: float | None, device_bytes: int
) -> Result:
    """Return the result with everything that follows from its trials.

    Args:
        result: model, precision and so on, with all trials.
        disk: the measured speed of the disk.
        copy_speed: the measured speed of the copy to the device; `None` for the CPU.
        device_bytes: what is copied there.
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
    whole = by[measured]
    limit = efficiency = None
    if whole is not None and imports is not None and reading is not None:
        copying = device_bytes / copy_speed if copy_speed else 0.0
        limit = max(imports.median, reading, copying)
        efficiency = limit / whole.median
    result = msgspec.structs.replace(
        result,
        cold=by["cold"],
        warm=by["warm"],
        hot=by["hot"],
        first_token=spread(trial.first_token for trial in valid if trial.temperature != "hot"),
        disk=disk,
        disk_limit_seconds=disk_limit,
        limit_seconds=limit,
        efficiency=efficiency,
        peak_memory=_greatest(trial.peak_memory for trial in valid),
        peak_device_memory=_greatest(trial.peak_device_memory for trial in valid),
    )
    verdict, advice = judge_phases(result)
    return msgspec.structs.replace(result, verdict=verdict, advice=advice)


def _greatest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def median_phases(result: Result, temperature: Temperature) -> dict[str, float]:
    """Return the median of each phase over the valid trials of a temperature, in order."""
    trials = [t for t in result.trials if t.valid and t.temperature == temperature]
    if not trials:
        return {}
    return {
        phase: statistics.median(trial.phases.get(phase, 0.0) for trial in trials)
        for phase in PHASES
        if any(phase in trial.phases for trial in trials)
    }


def judge_phases(result: Result) -> tuple[str | None, str | None]:
    """Return what dominates the load, and what to do about it, as sentences for a person."""
    temperature: Temperature = "cold" if result.cold is not None else "warm"
    whole = result.cold or result.warm
    phases = median_phases(result, temperature)
    if whole is None or not phases:
        invalid = [trial for trial in result.trials if not trial.valid]
        if not invalid:
            return None, None
        return f"no trial is valid: {invalid[0].why_not}", None
    name = max(phases, key=lambda phase: phases[phase])
    share = phases[name] / sum(phases.values())
    verdict = (
        f"{PHASES[name]} takes {share:.0%} of a {temperature} load"
        f" ({phases[name]:.1f} of {whole.median:.1f} s)"
    )
    return verdict, _advise(result, name, temperature)


def _advise(result: Result, dominant: str, temperature: Temperature) -> str | None:
    if dominant == "quantise" or (result.source == "at-load" and dominant in ("read", "build")):
        return "keep a quantized copy: " + units.command(
            "quantize", result.model, "--precision", result.precision
        )
    if dominant == "read" and temperature == "cold":
        if result.loader == "plain":
            return "read ahead: --loader readahead, or vlmcache.load_model in your program"
        speed = f" ({size_text(round(result.disk.best))} a second)" if result.disk else ""
        if result.disk is not None and result.disk.best >= _SLOW_DISK and result.efficiency:
            if result.efficiency > 0.8:
                return f"the disk{speed} is the limit: a smaller precision or a faster disk helps"
            return "other work on this machine slows the reading: try again when it is idle"
        return f"the disk{speed} is the limit: a faster disk, or a kept int8 or int4 copy, helps"
    if dominant == "read":
        return "more memory would keep the weights from being read and converted again"
    return _ADVICE.get(dominant)


def compare(then: LoadReport, now: LoadReport) -> Comparison:
    """Return an earlier report compared with this one.

    A difference is called one only where both sides have three valid trials and their ranges do
    not meet: of two equal sets of three, one time in ten do not meet by chance.
    """
    if then.machine is None or now.machine is None:
        return Comparison(False, ("one of the reports names no machine",), ())
    before, after = then.machine.hardware(), now.machine.hardware()
    unlike = tuple(
        f"{name}: {before[name]}, now {after[name]}"
        for name in before
        if before[name] != after[name]
    )
    if unlike:
        return Comparison(False, unlike, ())
    versions = tuple(
        f"{name}: {then.machine.versions.get(name, 'none')},"
        f" now {now.machine.versions.get(name, 'none')}"
        for name in sorted({*then.machine.versions, *now.machine.versions})
        if then.machine.versions.get(name) != now.machine.versions.get(name)
    )
    old = {_identity(result): result for result in then.results}
    new = {_identity(result): result for result in now.results}
    changes = (change for key in new if key in old for change in _changes(old[key], new[key]))
    return Comparison(
        True,
        versions,
        tuple(changes),
        tuple(" ".join(key) for key in old if key not in new),
        tuple(" ".join(key) for key in new if key not in old),
    )


def _identity(result: Result) -> tuple[str, ...]:
    # A synthetic model bears the name of the one that it stands for.
    model = result.model if result.repo is not None else f"{result.model} (synthetic)"
    return (model, result.precision, result.device, result.loader, result.source)


def _changes(then: Result, now: Result) -> Iterable[Change]:
    pairs: Sequence[tuple[Temperature, Spread | None, Spread | None]] = (
        ("cold", then.cold, now.cold),
        ("warm", then.warm, now.warm),
        ("hot", then.hot, now.hot),
    )
    for temperature, before, after in pairs:
        if before is None or after is None:
            continue
        yield Change(
            now.model,
            now.precision,
            now.device,
            now.loader,
            now.source,
            temperature,
            before,
            after,
            after.median / before.median if before.median else 1.0,
            faster_or_slower(before, after),
        )


def faster_or_slower(then: Spread, now: Spread) -> Literal["faster", "slower", "same", "too-few"]:
    """Return what can be said of two sets of trials: see `compare`."""
    if min(then.count, now.count) < _FEWEST:
        return "too-few"
    if now.max < then.min:
        return "faster"
    if now.min > then.max:
        return "slower"
    return "same"
