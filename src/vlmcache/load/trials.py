"""One trial: files brought to a temperature, a load in a fresh process, what got in its way."""

from __future__ import annotations

from typing import Any

import msgspec

from vlmcache.cache.hashing import cores
from vlmcache.cache.memory import MemoryEstimate
from vlmcache.errors import UnloadableError
from vlmcache.load import disturbance
from vlmcache.load.conditions import counts_reads, library_files, set_temperature
from vlmcache.load.judging import mark_slow
from vlmcache.load.options import LoadTestOptions
from vlmcache.load.reader import READERS
from vlmcache.load.report import DevicePeak, Loader, Temperature, Trial
from vlmcache.load.source import ModelFiles, read_ahead_limit
from vlmcache.load.worker import run_child
from vlmcache.units import size_text

_READ_AT_LEAST = 0.5
"""Part of the weight files that a cold trial must have fetched from the disk itself."""


class Run:
    """The trials of one source with one loader."""

    def __init__(
        self, source: ModelFiles, loader: Loader, need: MemoryEstimate, home: str | None = None
    ) -> None:
        self.source = source
        self.loader = loader
        self.need = need
        self.trials: list[Trial] = []
        self.weights_memory = 0
        self.home = home
        """vlmcache's own folder, with what it remembers for a loader."""
        self.readers = READERS
        """Threads of the loader that reads ahead."""
        self.error: UnloadableError | None = None
        """What ended the trials before all were made."""

    def marked(self) -> tuple[Trial, ...]:
        """Return the trials, those marked that are far from the fastest."""
        return mark_slow(self.trials)

    def make_trial(
        self, options: LoadTestOptions, temperature: Temperature, *, again: bool
    ) -> tuple[Trial, dict[str, Any]]:
        """Load once in a fresh process; return the trial, and all that the process answered.

        Raises:
            UnloadableError: it cannot be loaded.
            OSError: its files cannot be read.
        """
        source, loader = self.source, self.loader
        before, why_not, cold_parts = _prepare(
            source, temperature, cold_libraries=options.cold_libraries
        )
        counted = disturbance.read_counters()
        answer = run_child(
            {
                "task": "trial",
                "source": msgspec.to_builtins(source),
                "device": options.device,
                "loader": loader,
                "temperature": temperature,
                "read_ahead_limit": read_ahead_limit(self.need),
                "readers": self.readers,
                "home": self.home,
                "tokens": options.tokens,
                "again": again,
            },
            source.model,
        )
        found = _what_disturbed(counted, answer["counters"])
        why_not = why_not or _why_not_read(source, loader, temperature, answer["bytes_read"])
        disturbed = disturbance.why_disturbed(found, answer["seconds"])
        peaks = msgspec.convert(answer["device_peaks"], tuple[DevicePeak, ...])
        trial = Trial(
            temperature=temperature,
            phases=answer["phases"],
            seconds=answer["seconds"],
            bytes_read=answer["bytes_read"],
            resident_before=before,
            peak_memory=answer["peak_memory"],
            peak_device_memory=sum(peak.allocated for peak in peaks) if peaks else None,
            valid=why_not is None and disturbed is None,
            why_not=why_not or disturbed,
            first_token=answer.get("first_token"),
            tokens_per_second=answer.get("tokens_per_second"),
            read_ahead=answer.get("read_ahead"),
            no_token=answer.get("no_token"),
            disturbed=why_not is None and disturbed is not None,
            waited=found.waited,
            others=found.others,
            cold_parts=cold_parts,
            device_peaks=peaks,
            processor=answer.get("processor"),
            no_processor=answer.get("no_processor"),
            notes=tuple(answer["notes"]),
        )
        return trial, answer


def _prepare(
    source: ModelFiles, temperature: Temperature, *, cold_libraries: bool
) -> tuple[float | None, str | None, tuple[str, ...]]:
    """Bring the files to a temperature: the part in memory, what is wrong, what is cold."""
    before, why_not = set_temperature(source.weights, temperature)
    if temperature != "cold":
        return before, why_not, ()
    if not cold_libraries:
        return before, why_not, ("weights",)
    _, libraries_why_not = set_temperature(library_files(), "cold", "libraries")
    return before, why_not or libraries_why_not, ("weights", "libraries")


def _what_disturbed(
    before: disturbance.Counters, counted: dict[str, Any]
) -> disturbance.Disturbance:
    """Return what others did during a load, from what its process counted at its end."""
    return disturbance.measure(
        before,
        msgspec.convert(counted["after"], disturbance.Counters),
        seconds=counted["seconds"],
        ours=counted["ours"],
        cores=cores(),
        quota=disturbance.has_quota(),
    )


def _why_not_read(
    source: ModelFiles, loader: Loader, temperature: Temperature, read: int | None
) -> str | None:
    """Return what is wrong with what a trial read from the disk, as the kernel counts it."""
    if read is None or not counts_reads(source.folder):
        return None
    amount = f"{size_text(read)} of {size_text(source.bytes)} came from the disk"
    if temperature == "cold" and read < _READ_AT_LEAST * source.bytes:
        return f"only {amount}: another process was reading the same files"
    if temperature == "warm" and read > _READ_AT_LEAST * source.bytes:
        return f"{amount}, though it is in memory: {loader} reads around it (direct I/O)"
    return None


def hot_trial(warm: Trial, again: dict[str, Any]) -> Trial:
    """Return the second load in the process of a warm one as a trial of its own."""
    return msgspec.structs.replace(
        warm,
        temperature="hot",
        phases=again["phases"],
        seconds=sum(again["phases"].values()),
        bytes_read=None,
        resident_before=None,
        first_token=again["first_token"],
        tokens_per_second=None,
        read_ahead=None,
        waited=None,
        others=None,
        processor=None,
    )
