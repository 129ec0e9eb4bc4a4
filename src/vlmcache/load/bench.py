"""Load tests: each trial in a fresh process, its conditions measured and not assumed."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import msgspec

from vlmcache.cache.free_memory import available_memory
from vlmcache.cache.memory import MemoryEstimate
from vlmcache.cache.weights import Precision
from vlmcache.config import (
    ModelConfig,
    Session,
    cached_models,
    names_of_all,
    own_home,
    shipped_config,
)
from vlmcache.errors import (
    NotDownloadedError,
    SpaceError,
    UnloadableError,
    VlmcacheError,
    unloadable,
)
from vlmcache.home.journal import Journal
from vlmcache.load import quantized, streams, synthetic
from vlmcache.load.conditions import (
    counts_reads,
    describe_machine,
    measure_disk,
    set_temperature,
)
from vlmcache.load.device import CPU
from vlmcache.load.explain import require_packages
from vlmcache.load.models import remember_use
from vlmcache.load.options import LoadTestOptions
from vlmcache.load.report import (
    Accelerator,
    Disk,
    Expectation,
    Loader,
    LoadFailure,
    LoadReport,
    Machine,
    Remembered,
    Result,
    Temperature,
    Trial,
    summarize,
)
from vlmcache.load.saved import best_loader
from vlmcache.load.source import (
    ModelFiles,
    ModelFinder,
    check_fits,
    estimate_memory,
    read_ahead_limit,
    read_source,
)
from vlmcache.load.worker import run_child
from vlmcache.units import size_text

_READ_AT_LEAST = 0.5
"""Part of the weight files that a cold trial must have fetched from the disk itself."""

OnStep = Callable[[str], None]
"""Is called with a few words on what happens now."""


def load_test(
    session: Session,
    names: Sequence[str] = (),
    options: LoadTestOptions | None = None,
    on_step: OnStep = lambda _step: None,
) -> LoadReport:
    """Return how fast models load on this machine, cold and warm.

    Args:
        session: what it works on.
        names: keys or repo ids; the configured models that are cached if neither these nor
            synthetic models are given.
        options: what is to be measured.
        on_step: is called with a few words on what happens now.

    Raises:
        UnknownModelError: a name is neither a key nor a repo id.
        MissingPackageError: torch or transformers, or a loader's package, is not installed.
        NoDeviceError: there is no such device.
        SpaceError: a synthetic model does not fit on the disk.
    """
    options = options or LoadTestOptions()
    for name in options.synthetic:
        synthetic.check_name(name)
    bench = _Bench(session, options, on_step)
    bench.find(names)
    require_packages()
    for loader in options.loaders or ():
        streams.require_loader(loader)
    bench.probe_devices()
    for model, source in bench.sources:
        bench.measure(model, source)
    for name in dict.fromkeys(options.synthetic):
        try:
            with made(bench.home, name, session.config.limits.min_free, on_step) as folder:
                for precision in options.precisions or ("bf16",):
                    source = read_source(folder, model=name, precision=precision)
                    bench.measure(shipped_config().models.get(name), source)
        except (SpaceError, UnloadableError) as error:
            if not bench.results:
                raise
            # What was measured before counts, however the rest ends.
            bench.fail(name, None, error)
    return LoadReport(bench.machine, tuple(bench.results), tuple(bench.failures), at=_now())


class _Bench:
    """One run: what was found, measured and failed so far."""

    def __init__(self, session: Session, options: LoadTestOptions, on_step: OnStep) -> None:
        self.session = session
        self.home, _ = own_home(session.environment)
        self.options = options
        self.on_step = on_step
        self.sources: list[tuple[ModelConfig, ModelFiles]] = []
        self.results: list[Result] = []
        self.failures: list[LoadFailure] = []
        self.machine: Machine | None = None
        self.device = ""
        self.device_free: int | None = None
        self.refused: dict[str, dict[str, Any]] = {}
        self._disks: dict[tuple[str, ...], Disk | None] = {}

    def fail(
        self,
        model: str,
        precision: Precision | None,
        error: VlmcacheError,
        loader: Loader | None = None,
    ) -> None:
        """Keep what could not be measured."""
        self.failures.append(
            LoadFailure(model, precision, error.code, error.message, error.hint, loader)
        )

    def find(self, names: Sequence[str]) -> None:
        """Find the files of the models asked for; what cannot be loaded becomes a failure."""
        every = not names and not self.options.synthetic
        if every:
            names = names_of_all(self.session.config, cached_models(self.session.cache))
        names = tuple(dict.fromkeys(names))
        if not names:
            return
        finder = ModelFinder(
            self.session,
            names,
            trust_remote_code=self.options.trust_remote_code,
            attention=self.options.attention,
        )
        for name in names:
            for precision in self.options.precisions or (None,):
                try:
                    self.sources.append(finder.find(name, precision))
                except UnloadableError as error:
                    self.fail(name, precision, error)
                    break
        if every and self.sources:
            # Whoever names no model means those that are there.
            self.failures = [
                failure for failure in self.failures if failure.code != NotDownloadedError.code
            ]

    def probe_devices(self) -> None:
        """Ask a child process for the devices, unless there is nothing to load on them."""
        if not self.sources and not self.options.synthetic:
            return
        self.on_step("looking for devices")
        precisions = {source.precision for _, source in self.sources}
        if self.options.synthetic:
            precisions |= set(self.options.precisions or ("bf16",))
        facts = run_child(
            {"task": "facts", "device": self.options.device, "precisions": sorted(precisions)}
        )
        self.device = facts["device"]
        self.device_free = facts["free"]
        self.refused = facts["refused"]
        self.machine = describe_machine(
            msgspec.convert(facts["accelerators"], tuple[Accelerator, ...]),
            self.session.cache.dir if self.sources else self.home,
        )

    def measure(self, model: ModelConfig | None, source: ModelFiles) -> None:
        """Measure one model at one precision, with each loader, from the copy and without."""
        refusal = self.refused.get(source.precision)
        if refusal is not None:
            self.fail(source.model, source.precision, unloadable(**refusal))
            return
        kept = quantized.preferred(self.home, source)
        loaders = self.options.loaders or (
            best_loader(
                self.home,
                kept,
                self.device,
                self.machine,
                cold="cold" in self.options.temperatures,
            ),
        )
        try:
            earlier, failures = len(self.results), len(self.failures)
            self._measure(model, kept, loaders, self.options.trials)
            if kept.kind == "copy":
                failed = self.failures[failures:] if len(self.results) == earlier else []
                earlier = len(self.results)
                # One trial of each temperature suffices to see what the copy is worth.
                self._measure(model, source, ("plain",), 1)
                if failed and len(self.results) > earlier:
                    error = unloadable(failed[0].code, failed[0].message, failed[0].hint)
                    if quantized.is_the_copys(kept, error):
                        quantized.set_aside(kept, error)
        except UnloadableError as error:
            self.fail(source.model, source.precision, error)
        except OSError as error:
            problem = f"{source.model}: {error.strerror or error}: {error.filename}"
            self.fail(source.model, source.precision, UnloadableError(problem))

    def _measure(
        self,
        model: ModelConfig | None,
        source: ModelFiles,
        loaders: Sequence[Loader],
        trials: int,
    ) -> None:
        """Measure loaders in turn, so that what else the machine does meets all of them alike."""
        need = self._need(source)
        free = available_memory() if self.device_free is None else self.device_free
        check_fits(source, need, free, self.device)
        disk = self._disk(source)
        done: dict[Loader, list[Trial]] = {loader: [] for loader in loaders}
        broken: set[Loader] = set()
        weights_memory = 0
        kinds = itertools.product(range(trials), self.options.temperatures, loaders)
        for number, temperature, loader in kinds:
            if loader in broken:
                continue
            self.on_step(
                f"{source.model} {source.precision} {loader}: {temperature}"
                f" trial {number + 1} of {trials}"
            )
            again = temperature == "warm" and (source.kind != "at-load" or number == 0)
            try:
                trial, answer = self._trial(source, loader, temperature, again=again)
            except UnloadableError as error:
                # What was measured before counts, however the rest would end.
                self.fail(source.model, source.precision, error, loader)
                broken.add(loader)
                continue
            done[loader].append(trial)
            weights_memory = answer["weights_memory"]
            if "again" in answer:
                done[loader].append(_hot(trial, answer["again"]))
        for loader, its_trials in done.items():
            if its_trials:
                self._conclude(
                    Result(
                        model=source.model,
                        precision=source.precision,
                        device=self.device,
                        loader=loader,
                        bytes=source.bytes,
                        trials=tuple(its_trials),
                        cold=None,
                        warm=None,
                        disk_limit_seconds=None,
                        efficiency=None,
                        repo=source.repo,
                        commit=source.commit,
                        source=source.kind,
                        memory_estimate=need.total,
                        memory_context=need.context if self.options.context else None,
                        memory_notes=need.notes,
                        expected=_expected(model, source),
                    ),
                    disk,
                    weights_memory,
                )
        remember_use(self.home, self.session.cache, source, "load-test")

    def _conclude(self, bare: Result, disk: Disk | None, weights_memory: int) -> None:
        """Work out what a result's trials say, keep it and remember it."""
        assert self.machine is not None
        speeds = {device.device: device.copy_speed for device in self.machine.accelerators}
        result = summarize(bare, disk, speeds.get(self.device), weights_memory)
        self.results.append(result)
        remembered = Remembered(_now(), self.machine, msgspec.structs.replace(result, trials=()))
        with Journal(self.home) as memory:
            memory.record_load(msgspec.json.encode(remembered))

    def _need(self, source: ModelFiles) -> MemoryEstimate:
        accelerator = self.device != CPU
        return estimate_memory(source, accelerator=accelerator, context=self.options.context)

    def _disk(self, source: ModelFiles) -> Disk | None:
        if source.weights not in self._disks:
            self.on_step(f"{source.model}: measuring its disk")
            self._disks[source.weights] = measure_disk(source.weights)
        return self._disks[source.weights]

    def _trial(
        self, source: ModelFiles, loader: Loader, temperature: Temperature, *, again: bool
    ) -> tuple[Trial, dict[str, Any]]:
        before, why_not = set_temperature(source.weights, temperature)
        answer = run_child(
            {
                "task": "trial",
                "source": msgspec.to_builtins(source),
                "device": self.options.device,
                "loader": loader,
                "read_ahead_limit": read_ahead_limit(self._need(source)),
                "tokens": self.options.tokens,
                "again": again,
            },
            source.model,
        )
        read = answer["bytes_read"]
        counted = temperature == "cold" and read is not None and counts_reads(source.folder)
        if why_not is None and counted and read < _READ_AT_LEAST * source.bytes:
            why_not = (
                f"only {size_text(read)} of {size_text(source.bytes)} came from the disk:"
                " another process was reading the same files"
            )
        trial = Trial(
            temperature=temperature,
            phases=answer["phases"],
            seconds=answer["seconds"],
            bytes_read=read,
            resident_before=before,
            peak_memory=answer["peak_memory"],
            peak_device_memory=answer["peak_device_memory"],
            valid=why_not is None,
            why_not=why_not,
            first_token=answer.get("first_token"),
            tokens_per_second=answer.get("tokens_per_second"),
            read_ahead=answer.get("read_ahead"),
            no_token=answer.get("no_token"),
            processor=answer.get("processor"),
            no_processor=answer.get("no_processor"),
            notes=tuple(answer.get("notes", ())),
        )
        return trial, answer


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)


def _hot(warm: Trial, again: dict[str, Any]) -> Trial:
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
    )


def _expected(model: ModelConfig | None, source: ModelFiles) -> Expectation | None:
    """Return the configured expectation; memory only where it was stated for this precision."""
    if model is None or (model.expected_memory is None and model.expected_size is None):
        return None
    halves = ("fp16", "bf16")
    stated = model.precision or source.stored
    same = stated == source.precision or (stated in halves and source.precision in halves)
    return Expectation(model.expected_memory if same else None, model.expected_size, "config.yaml")


@contextmanager
def made(home: str, name: str, min_free: int, on_step: OnStep) -> Iterator[str]:
    """Make a synthetic model for as long as the context lasts; yield its folder.

    Raises:
        SpaceError: it would leave less than `min_free` bytes on the disk.
    """
    shipped = shipped_config().models.get(name)
    if shipped is not None and shipped.expected_size:
        quantized.check_space(home, f"synthetic {name}", shipped.expected_size, min_free)
    with quantized.new_folder(os.path.join(home, "synthetic")) as folder:
        on_step(f"making the synthetic {name}")
        run_child({"task": "synthesize", "folder": folder, "config": synthetic.CONFIGS[name]}, name)
        yield folder
