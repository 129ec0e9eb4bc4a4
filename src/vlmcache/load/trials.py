"""One trial: files brought to a temperature, a load in a fresh process, what got in its way."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import msgspec

from vlmcache.cache.free_memory import available_memory
from vlmcache.cache.hashing import cores
from vlmcache.cache.memory import MemoryEstimate
from vlmcache.errors import NotEnoughMemoryError, UnloadableError
from vlmcache.load import disturbance
from vlmcache.load.conditions import counts_reads, library_files, set_temperature
from vlmcache.load.judging import mark_slow, spread
from vlmcache.load.options import LoadTestOptions
from vlmcache.load.reader import READERS
from vlmcache.load.report import DevicePeak, Loader, Temperature, Trial
from vlmcache.load.source import ModelFiles, check_fits, read_ahead_limit
from vlmcache.load.streams import extra_memory
from vlmcache.load.worker import run_child
from vlmcache.units import size_text

_READ_AT_LEAST = 0.5
"""Part of the weight files that a cold trial must have fetched from the disk itself."""
_SAME_SIZE = 0.02
"""Part by which weights may differ from their files in size and still be as they are stored."""


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

    @property
    def key(self) -> Hashable:
        """What its trials are planned by."""
        return run_key(self.source, self.loader)

    def check_fits(self, device: str, device_free: int | None) -> None:
        """Make sure that the model fits with the memory that its loader takes in addition.

        Args:
            device: where it will be loaded.
            device_free: that device's free bytes; `None` for the CPU.

        Raises:
            NotEnoughMemoryError: it does not.
            DamagedWeightsError: the weight files contradict themselves.
        """
        source, loader = self.source, self.loader
        on_device, on_host = extra_memory(
            loader,
            source.bytes,
            converted=abs(self.need.weights - source.bytes) > _SAME_SIZE * source.bytes,
            on_device=device_free is not None,
        )
        host_free = available_memory()
        # As in `load_model`, the memory for computing is not counted: it is taken later.
        held = msgspec.structs.replace(self.need.held, overhead=on_device)
        check_fits(source, held, host_free if device_free is None else device_free, device)
        if on_host > host_free:
            raise NotEnoughMemoryError(
                f"--loader {loader} takes {size_text(on_host)} of memory for {source.model},"
                f" and {size_text(host_free)} are free",
                "--loader readahead",
            )

    def marked(self) -> tuple[Trial, ...]:
        """Return the trials, with those that took far longer than the fastest marked."""
        return mark_slow(self.trials)

    def figures(self, temperatures: Iterable[Temperature]) -> dict[str, float]:
        """Return the median seconds so far by kind of load, or the least of disturbed trials."""
        figures: dict[str, float] = {}
        for kind in temperatures:
            of_kind = [trial for trial in self.trials if trial.temperature == kind]
            valid = spread(trial.seconds for trial in of_kind if trial.valid)
            disturbed = spread(trial.seconds for trial in of_kind)
            if valid is not None:
                figures[kind] = valid.median
            elif disturbed is not None:
                figures[f"{kind} (disturbed)"] = disturbed.min
        return figures

    def make_trial(
        self, options: LoadTestOptions, temperature: Temperature, *, again: bool
    ) -> tuple[Trial, dict[str, Any]]:
        """Load once in a fresh process; return the trial and the process's answer.

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
        others = _disturbance_since(counted, answer["counters"])
        why_not = why_not or _why_not_read(source, loader, temperature, answer["bytes_read"])
        disturbed = disturbance.why_disturbed(others, answer["seconds"])
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
            waited=others.waited,
            others=others.others,
            cold_parts=cold_parts,
            device_peaks=peaks,
            processor=answer.get("processor"),
            no_processor=answer.get("no_processor"),
            notes=tuple(answer["notes"]),
        )
        return trial, answer


def run_key(source: ModelFiles, loader: Loader) -> Hashable:
    """Return what the trials of a source with a loader are planned by."""
    return source.model, source.precision, source.kind, loader


def _prepare(
    source: ModelFiles, temperature: Temperature, *, cold_libraries: bool
) -> tuple[float | None, str | None, tuple[str, ...]]:
    """Bring the files to a temperature.

    Returns:
        The part of the weights in memory then, what is wrong, and what is cold.
    """
    before, why_not = set_temperature(source.weights, temperature)
    if temperature != "cold":
        return before, why_not, ()
    if not cold_libraries:
        return before, why_not, ("weights",)
    _, libraries_why_not = set_temperature(library_files(), "cold", "libraries")
    return before, why_not or libraries_why_not, ("weights", "libraries")


def _disturbance_since(
    before: disturbance.Counters, counted: dict[str, Any]
) -> disturbance.Disturbance:
    """Return what other processes did during a load, by what its process counted at the end."""
    return disturbance.disturbance_between(
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
    """Return why a trial does not count, by the bytes that it read from the disk."""
    if read is None or not counts_reads(source.folder):
        return None
    amount = f"{size_text(read)} of {size_text(source.bytes)} came from the disk"
    if temperature == "cold" and read < _READ_AT_LEAST * source.bytes:
        return f"only {amount}: another process was reading the same files"
    if temperature == "warm" and read > _READ_AT_LEAST * source.bytes:
        return f"{amount}, although the weights are in memory: {loader} bypasses it (direct I/O)"
    return None


def hot_trial(warm: Trial, again: dict[str, Any]) -> Trial:
    """Return the second load in a warm trial's process as a trial of its own."""
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
