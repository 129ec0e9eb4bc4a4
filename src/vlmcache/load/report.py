"""The values of a load test (pure); what they mean is in `judging`.

Times are seconds, sizes bytes, speeds bytes per second.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from vlmcache.cache.state import Finding
from vlmcache.cache.weights import Precision
from vlmcache.errors import ExitCode, PartlyError, VlmcacheError, unloadable
from vlmcache.report import Report
from vlmcache.units import counted

Temperature = Literal["cold", "warm", "hot"]
"""Weights on the disk only; weights in the machine's memory; a second load in the same process."""

QUANTIZED: tuple[Precision, ...] = ("int8", "int4")

Loader = Literal["plain", "readahead", "pinned", "fastsafetensors", "runai"]

WeightsSource = Literal["weights", "at-load", "copy"]
"""The stored weights; the stored weights, quantized at each load; a kept quantized copy."""

PHASES = {
    "start": "starting Python",
    "import": "importing",
    "device": "starting device",
    "build": "building",
    "read": "reading",
    "read_to_device": "read and copied",
    "to_device": "copying",
    "quantise": "quantizing",
}
"""Phase -> what to call it, in their order. Together they are the load.

device: an accelerator's first use. build: the model without its weights. read: the weights into
memory, with their conversion to another precision. read_to_device: the weights from the disk onto
an accelerator, reading and copying at the same time. to_device: the weights from memory onto an
accelerator, and waiting for it.
"""

MOVING = ("read", "read_to_device", "to_device")
"""Phases in which the weights are moved to where they are used."""


class Spread(msgspec.Struct, frozen=True):
    """Median, least and greatest of the valid trials' seconds, and the number of these trials."""

    median: float
    min: float
    max: float
    count: int


class DevicePeak(msgspec.Struct, frozen=True):
    """What one accelerator held for a load, in bytes."""

    device: str
    allocated: int
    """The most that torch's tensors took."""
    reserved: int | None
    """The most that torch had taken from the driver, for tensors now and later."""
    used: int | None
    """What all processes use after the load, as the driver says: with the device's context."""


class Trial(msgspec.Struct, frozen=True):
    """One load in a fresh process (or, hot, a second one in the same process)."""

    temperature: Temperature
    phases: dict[str, float]
    seconds: float | None
    """From the start of the process until every weight was on the device; the sum of the phases."""
    bytes_read: int | None
    """The bytes that the kernel fetched from the disk for this process."""
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
    """Why there is no first token, or no further one."""
    processor: float | None = None
    """Seconds that making the processor took after the load."""
    no_processor: str | None = None
    """Why it cannot be made."""
    notes: tuple[str, ...] = ()
    """Notes for the user on a model that loads nevertheless."""
    disturbed: bool = False
    """Whether it is invalid because other work slowed it down; such trials are repeated."""
    waited: float | None = None
    """Seconds for which the main thread waited for a processor in use by others."""
    others: float | None = None
    """The part of the processors that other processes used meanwhile, 0 to 1."""
    cold_parts: tuple[str, ...] = ()
    """The parts that were not in memory before: `weights`, and `libraries` if asked for."""
    device_peaks: tuple[DevicePeak, ...] = ()


class Disk(msgspec.Struct, frozen=True):
    """How fast the weight files themselves come from their disk, evicted before."""

    sequential: float
    """Bytes per second of one reader."""
    parallel: float
    """The best of several readers."""
    bytes: int
    """How many were read to measure it."""
    readers: int = 1
    """The fewest readers at once that are as fast as any."""

    @property
    def best(self) -> float:
        """The greater speed of the two."""
        return max(self.sequential, self.parallel)


class Expectation(msgspec.Struct, frozen=True):
    """The memory and download to expect of a model, in bytes, and the source that states them."""

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
    """The estimate before the load; the trials have what was measured."""
    memory_context: int | None = None
    """The part of `memory_estimate` for the key-value cache of the context from `--context`."""
    memory_notes: tuple[str, ...] = ()
    """The parts of `memory_estimate` that are only approximate."""
    peak_memory: int | None = None
    peak_device_memory: int | None = None
    expected: Expectation | None = None
    verdict: str | None = None
    advice: str | None = None
    read_speed: float | None = None
    """Bytes of weights per second while they were read (or copied), in the median trial."""
    read_of_disk: float | None = None
    """`read_speed` as a part of the disk's best speed; `None` if nothing was read from it."""
    read_of_memory: float | None = None
    """`read_speed` as a part of the speed at which one thread copies memory."""
    tokens_per_second: Spread | None = None
    cold_libraries: bool = False
    """Whether the libraries' files too were evicted from memory before a cold trial."""
    path: str | None = None
    """The folder that it is loaded from; for a moved model, where its link leads."""
    elsewhere: str | None = None
    """The other cache that it was moved to, such as an archive; `None` if it is here."""


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
    """Bytes per second from the host's pageable memory to the device."""
    pinned_speed: float | None = None
    """The same from pinned memory."""


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
    memory_speed: float | None = None
    """Bytes per second that one thread copies in memory."""
    bytecode: bool | None = None
    """Whether the libraries' compiled bytecode is kept; `None` if not known."""

    def hardware(self) -> dict[str, str]:
        """Return what two machines must share for their times to be compared."""
        return {
            "system": self.system.split("-")[0],
            "cpu": self.cpu,
            "cores": str(self.cores),
            # The firmware reserves a little more or less from boot to boot.
            "memory": f"{self.memory / 1e9:.0f} GB",
            "accelerators": ", ".join(device.name for device in self.accelerators) or "none",
            "filesystem": self.filesystem or "unknown",
            "disk": self.disk or "unknown",
        }


class Change(msgspec.Struct, frozen=True):
    """How one result differs from an earlier one."""

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
    then_at: datetime | None = None
    then_complete: bool = True
    """Whether the earlier report has all trials that were planned then."""


class Remembered(msgspec.Struct, frozen=True):
    """A result of an earlier run, without its trials."""

    at: datetime
    machine: Machine
    result: Result


class InterruptedLoadError(VlmcacheError):
    """A load test was ended by the user; what it had measured is kept."""

    code = "interrupted"
    exit_code = ExitCode.INTERRUPTED


class TerminatedLoadError(VlmcacheError):
    """A load test was ended by SIGTERM; what it had measured is kept."""

    code = "terminated"
    exit_code = ExitCode.TERMINATED


class LoadReport(Report, frozen=True):
    """The result of `vlmcache load-test`."""

    machine: Machine | None
    results: tuple[Result, ...]
    failures: tuple[LoadFailure, ...] = ()
    comparison: Comparison | None = None
    history: tuple[Remembered, ...] = ()
    at: datetime | None = None
    interrupted: bool = False
    """Whether it was ended before all was measured."""
    findings: tuple[Finding, ...] = ()
    complete: bool = True
    """Whether all trials that were planned were made, as far as the models can be loaded."""
    ended_by: Literal["interrupted", "terminated"] | None = None
    """What ended it early: Ctrl-C, or SIGTERM."""
    trials_made: int | None = None
    trials_planned: int | None = None
    """The trials made, and those that were still to come."""
    written: dict[str, str] = msgspec.field(default_factory=dict)
    """Kind of file that was written (`report`, `plot`, `history`) -> path."""

    @property
    def ids(self) -> list[str]:
        """One line for each result, new or remembered: model, precision, loader."""
        results = (*self.results, *(earlier.result for earlier in self.history))
        return [f"{result.model} {result.precision} {result.loader}" for result in results]

    @property
    def problem(self) -> VlmcacheError | None:
        """Why not all was measured: an interruption, or the failures; `None` if all was."""
        if self.interrupted:
            kind = TerminatedLoadError if self.ended_by == "terminated" else InterruptedLoadError
            return kind(
                f"{kind.code} after {self.trials_made or 0} of"
                f" {counted(self.trials_planned or 0, 'trial')}; what was measured is kept"
            )
        if not self.failures:
            return None
        first = self.failures[0]
        count = len(self.failures)
        if not self.results:
            message = first.message if count == 1 else f"{first.message}; and {count - 1} more"
            return unloadable(first.code, message, first.hint)
        names = ", ".join(sorted({failure.model for failure in self.failures}))
        return PartlyError(f"not measured: {names}: {first.message}", first.hint)
