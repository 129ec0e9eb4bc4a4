"""Load tests: each trial in a fresh process, its conditions measured and not assumed."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, Literal

import msgspec

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
    ExitCode,
    NotDownloadedError,
    NotEnoughMemoryError,
    SpaceError,
    UnloadableError,
    UsageError,
    VlmcacheError,
    in_words,
    unloadable,
)
from vlmcache.home.journal import FILE, Journal
from vlmcache.load import quantized, scratch, streams, synthetic
from vlmcache.load.conditions import describe_machine, findings_of
from vlmcache.load.device import CPU
from vlmcache.load.disk import measure_disk, readers_for, remember_readers
from vlmcache.load.explain import require_packages
from vlmcache.load.finder import ModelFinder
from vlmcache.load.judging import copy_speed_of, short_of, summarize
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
)
from vlmcache.load.saved import best_loader
from vlmcache.load.source import ModelFiles, estimate_memory, read_source
from vlmcache.load.steps import OnStep, Step, TrialSchedule
from vlmcache.load.trials import Run, hot_trial, run_key
from vlmcache.load.worker import run_child


def load_test(
    session: Session,
    names: Sequence[str] = (),
    options: LoadTestOptions | None = None,
    on_step: OnStep = lambda _step: None,
) -> LoadReport:
    """Return how fast models load on this machine, cold and warm.

    Args:
        session: the hub cache and the configuration.
        names: keys or repo ids; the configured models that are cached if neither these nor
            synthetic models are given.
        options: what is to be measured.
        on_step: is called at the beginning of each step.

    Returns:
        What was measured; after Ctrl-C or SIGTERM, what was measured until then.

    Raises:
        UsageError: no model is named, and none is configured.
        UnknownModelError: a name is neither a key nor a repo id.
        MissingPackageError: torch or transformers, or a loader's package, is not installed.
        NoDeviceError: there is no such device.
        SpaceError: a synthetic model does not fit on the disk.
    """
    options = options or LoadTestOptions()
    for name in options.synthetic:
        synthetic.check_name(name)
    if not names and not options.synthetic and not session.config.listed:
        raise UsageError(
            "no MODEL is named, and none is configured",
            "name a model that is cached: 'vlmcache status' lists them",
        )
    bench = _Bench(session, options, on_step)
    bench.find(names)
    require_packages()
    for loader in options.loaders or ():
        streams.require_loader(loader)
    bench.probe_devices()
    bench.plan()
    ended_by: Literal["interrupted", "terminated"] | None = None
    try:
        for model, source in bench.sources:
            bench.measure(model, source)
        for name in dict.fromkeys(options.synthetic):
            bench.measure_synthetic(name)
    except BaseException as error:
        # What ends it early, such as Ctrl-C, keeps what was measured before.
        if isinstance(error, Exception) or not bench.results:
            raise
        by_signal = getattr(error, "exit_code", None) == ExitCode.TERMINATED
        ended_by = "terminated" if by_signal else "interrupted"
    return LoadReport(
        bench.machine,
        tuple(bench.results),
        tuple(bench.failures),
        at=_now(),
        interrupted=ended_by is not None,
        findings=findings_of(bench.machine),
        complete=ended_by is None,
        ended_by=ended_by,
        trials_made=bench.schedule.made,
        trials_planned=bench.schedule.count,
        written={"history": os.path.join(bench.home, FILE)} if bench.results else {},
    )


class _Bench:
    """One load test: the models that were found, and what was measured and failed so far."""

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
        self.schedule = TrialSchedule()
        self._disks: dict[tuple[str, ...], Disk | None] = {}
        self._planned: dict[int, list[tuple[ModelFiles, Loader]]] = {}

    def fail(
        self,
        model: str,
        precision: Precision | None,
        error: VlmcacheError,
        loader: Loader | None = None,
    ) -> None:
        """Record a model that cannot be measured."""
        self.failures.append(
            LoadFailure(model, precision, error.code, error.message, error.hint, loader)
        )

    def find(self, names: Sequence[str]) -> None:
        """Find the files of the models asked for; those that cannot be loaded become failures."""
        all_configured = not names and not self.options.synthetic
        if all_configured:
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
        if all_configured and self.sources:
            # Without names, only the cached models are meant.
            self.failures = [
                failure for failure in self.failures if failure.code != NotDownloadedError.code
            ]

    def probe_devices(self) -> None:
        """Ask a child process for the devices, unless there is nothing to load on them."""
        if not self.sources and not self.options.synthetic:
            return
        self.on_step(Step("looking for devices"))
        precisions = {source.precision for _, source in self.sources}
        if self.options.synthetic:
            precisions |= set(self.options.synthetic_precisions)
        facts = run_child(
            {"task": "facts", "device": self.options.device, "precisions": sorted(precisions)}
        )
        self.device = facts["device"]
        self.device_free = facts["free"]
        self.refused = facts["refused"]
        self.machine = describe_machine(
            msgspec.convert(facts["accelerators"], tuple[Accelerator, ...]),
            self.session.cache.dir if self.sources else self.home,
            facts["versions"],
            bytecode=facts["bytecode"],
        )

    def plan(self) -> None:
        """Count the trials of all models, so that progress shows how many there are."""
        for _, source in self.sources:
            if source.precision not in self.refused:
                runs = self._planned[id(source)] = _choose(self, source)
                for files, loader in runs:
                    self._plan_trials(run_key(files, loader))
        for name in dict.fromkeys(self.options.synthetic):
            for precision in self.options.synthetic_precisions:
                self._plan_trials((name, precision), len(self.options.loaders or ("auto",)))

    def _plan_trials(self, run: Hashable, loaders: int = 1) -> None:
        for temperature in self.options.temperatures:
            self.schedule.plan(run, temperature, self.options.trials * loaders)

    def measure_synthetic(self, name: str) -> None:
        """Make a synthetic model, measure it and remove it.

        Raises:
            SpaceError: it does not fit on the disk, and nothing was measured before.
            UnloadableError: it cannot be made, and nothing was measured before.
        """
        min_free = self.session.config.limits.min_free
        try:
            with made(self.home, name, min_free, self.on_step) as folder:
                for precision in self.options.synthetic_precisions:
                    source = read_source(folder, model=name, precision=precision)
                    self.schedule.drop((name, precision))
                    self.measure(shipped_config().models.get(name), source)
        except (SpaceError, UnloadableError) as error:
            if not self.results:
                raise
            # What was measured before counts, however the rest ends.
            self.fail(name, None, error)
            for precision in self.options.synthetic_precisions:
                self.schedule.drop((name, precision))

    def measure(self, model: ModelConfig | None, source: ModelFiles) -> None:
        """Measure one model at one precision, with each loader and with and without its copy."""
        refusal = self.refused.get(source.precision)
        if refusal is not None:
            self.fail(source.model, source.precision, unloadable(**refusal))
            return
        runs = self._planned.pop(id(source), None) or _choose(self, source)
        try:
            self._take_turns(model, runs)
        except (OSError, UnloadableError) as error:
            if isinstance(error, OSError):
                error = UnloadableError(f"{source.model}: {in_words(error, source.folder)}")
            self.fail(source.model, source.precision, error)
            for files, loader in runs:
                self.schedule.drop(run_key(files, loader))

    def _take_turns(
        self, model: ModelConfig | None, runs: Sequence[tuple[ModelFiles, Loader]]
    ) -> None:
        """Measure runs in turn, so that the machine's other work affects all of them alike."""
        running = []
        for source, loader in runs:
            need = estimate_memory(
                source, accelerator=self.device != CPU, context=self.options.context
            )
            run = Run(source, loader, need, self.home)
            self._plan_trials(run.key)
            if _fits(self, run):
                running.append(run)
        for run in running:
            run.readers = self._measure_disk(run.source)
        wanted, complete = self.options.trials, False
        try:
            # At most as many trials again are made in place of disturbed ones.
            for number in range(2 * wanted):
                for temperature, run in itertools.product(self.options.temperatures, running):
                    if run.error is None and (
                        number < wanted or short_of(run.marked(), temperature, wanted)
                    ):
                        self._try(run, temperature, number)
            complete = True
        finally:
            for run in running:
                if complete:
                    self.schedule.drop(run.key)
                if run.trials:
                    self._conclude(model, run, wanted=wanted if complete else 1)
        if running:
            remember_use(self.home, self.session.cache, runs[0][0], "load-test")
        _judge_copy(running)

    def _try(self, run: Run, temperature: Temperature, number: int) -> None:
        """Make one more trial of a run; if that fails, it is the run's last."""
        source, key = run.source, run.key
        again = number >= self.options.trials
        self.schedule.plan(key, temperature, 1 if again else self.options.trials - number)
        text = f"{temperature} load of {source.model} {source.precision}, {run.loader}"
        if again:
            text += " (again: others were disturbed)"
        figures = run.figures(self.options.temperatures)
        step = Step(text, self.schedule.made + 1, self.schedule.count, figures=figures)
        self.on_step(step._replace(left=self.schedule.left()))
        hot = temperature == "warm" and (source.kind != "at-load" or number == 0)
        begun = time.monotonic()
        try:
            trial, answer = run.make_trial(self.options, temperature, again=hot)
        except UnloadableError as error:
            self.fail(source.model, source.precision, error, run.loader)
            self.schedule.drop(key)
            run.error = error
            return
        self.schedule.took(key, temperature, time.monotonic() - begun)
        self.schedule.plan(key, temperature, max(0, self.options.trials - number - 1))
        run.trials.append(trial)
        run.weights_memory = answer["weights_memory"]
        if "again" in answer:
            run.trials.append(hot_trial(trial, answer["again"]))

    def _conclude(self, model: ModelConfig | None, run: Run, wanted: int) -> None:
        """Summarize the trials of a run, and record the result here and in the journal."""
        assert self.machine is not None
        source = run.source
        measured = Result(
            model=source.model,
            precision=source.precision,
            device=self.device,
            loader=run.loader,
            bytes=source.bytes,
            trials=run.marked(),
            cold=None,
            warm=None,
            disk_limit_seconds=None,
            efficiency=None,
            source=source.kind,
            memory_estimate=run.need.total,
            memory_context=run.need.context if self.options.context else None,
            memory_notes=run.need.notes,
            expected=_expected(model, source),
            cold_libraries=self.options.cold_libraries,
            **source.origin,
        )
        speeds = {device.device: copy_speed_of(device) for device in self.machine.accelerators}
        result = summarize(
            measured,
            self._disks.get(source.weights),
            speeds.get(self.device),
            run.weights_memory,
            wanted=wanted,
            machine=self.machine,
        )
        self.results.append(result)
        remembered = Remembered(_now(), self.machine, msgspec.structs.replace(result, trials=()))
        with Journal(self.home) as journal:
            journal.record_load(msgspec.json.encode(remembered))

    def _measure_disk(self, source: ModelFiles) -> int:
        """Return how many readers suit the disk of a model's weights; it is measured once."""
        if source.weights not in self._disks:
            self.on_step(Step(f"measuring the disk of {source.model}"))
            disk = self._disks[source.weights] = measure_disk(source.weights)
            if disk is not None:
                remember_readers(self.home, source.weights, disk)
        known = self._disks[source.weights]
        return known.readers if known is not None else readers_for(self.home, source.weights)


def _choose(bench: _Bench, source: ModelFiles) -> list[tuple[ModelFiles, Loader]]:
    """Return the files that are loaded of a model (its copy, the original), each with a loader."""
    preferred = quantized.preferred(bench.home, source)
    cold = "cold" in bench.options.temperatures
    loaders = bench.options.loaders or (
        best_loader(bench.home, preferred, bench.device, bench.machine, cold=cold),
    )
    runs = [(preferred, loader) for loader in loaders]
    if preferred.kind == "copy":
        # The original, loaded in the same way, shows what the copy is worth.
        runs.append((source, loaders[0]))
    return runs


def _fits(bench: _Bench, run: Run) -> bool:
    """Return whether a model fits into memory; if not, record a failure.

    Raises:
        DamagedWeightsError: the weight files contradict themselves.
    """
    try:
        run.check_fits(bench.device, bench.device_free)
    except NotEnoughMemoryError as error:
        bench.fail(run.source.model, run.source.precision, error, run.loader)
        bench.schedule.drop(run.key)
        return False
    return True


def _judge_copy(runs: Sequence[Run]) -> None:
    """Set a kept copy aside that no loader could load while its original was loaded."""
    copies = [run for run in runs if run.source.kind == "copy"]
    if any(run.trials for run in copies) or not any(run.trials for run in runs):
        return
    for run in copies:
        if run.error is not None and quantized.is_the_copys(run.source, run.error):
            quantized.set_aside(run.source, run.error)
            return


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)


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
    """Make a synthetic model that lasts as long as the context, and yield its folder.

    Raises:
        SpaceError: it would leave less than `min_free` bytes on the disk.
    """
    shipped = shipped_config().models.get(name)
    if shipped is not None and shipped.expected_size:
        scratch.check_space(home, f"synthetic {name}", shipped.expected_size, min_free)
    with scratch.new_folder(os.path.join(home, "synthetic")) as folder:
        on_step(Step(f"making the synthetic {name}"))
        run_child({"task": "synthesize", "folder": folder, "config": synthetic.CONFIGS[name]}, name)
        yield folder
