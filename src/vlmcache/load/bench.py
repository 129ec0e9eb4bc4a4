"""Load tests: each trial in a fresh process, its conditions measured and not assumed."""

from __future__ import annotations

import importlib.util
import itertools
import os
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, Literal

import msgspec

from vlmcache.cache.free_memory import available_memory
from vlmcache.cache.memory import MemoryEstimate
from vlmcache.cache.state import Finding
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
from vlmcache.load import quantized, streams, synthetic
from vlmcache.load.conditions import describe_machine
from vlmcache.load.device import CPU
from vlmcache.load.disk import measure_disk, readers_for, remember_readers
from vlmcache.load.explain import require_packages
from vlmcache.load.judging import copy_speed_of, short_of, spread, summarize
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
from vlmcache.load.source import (
    ModelFiles,
    ModelFinder,
    check_fits,
    estimate_memory,
    read_source,
)
from vlmcache.load.steps import OnStep, Schedule, Step
from vlmcache.load.trials import Run, hot_trial
from vlmcache.load.worker import run_child
from vlmcache.units import size_text

_SAME_SIZE = 0.02
"""Part by which weights may differ from their files in size and still be as they are stored."""


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
        on_step: is called with what happens now.

    Returns:
        What was measured. Whoever ends it by Ctrl-C or SIGTERM gets what was measured until then.

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
            "name one that is cached: 'vlmcache status' lists them",
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
        # Ctrl-C, under whatever name, keeps what was measured before it.
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
        findings=_findings(bench.machine),
        complete=ended_by is None,
        ended_by=ended_by,
        trials_made=bench.schedule.made,
        trials_planned=bench.schedule.count,
        written={"history": os.path.join(bench.home, FILE)} if bench.results else {},
    )


def _findings(machine: Machine | None) -> tuple[Finding, ...]:
    """Return what slows every load on this machine."""
    if machine is None or machine.bytecode is not False:
        return ()
    spec = importlib.util.find_spec("torch")
    folder = os.path.dirname(os.path.dirname((spec.origin if spec else None) or ""))
    return (
        Finding(
            "no-bytecode",
            "warning",
            None,
            folder,
            "torch and transformers are compiled anew by every process that imports them",
            f"unset PYTHONDONTWRITEBYTECODE; or once: python -m compileall -q {folder}",
        ),
    )


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
        self.schedule = Schedule()
        self._disks: dict[tuple[str, ...], Disk | None] = {}
        self._planned: dict[int, list[tuple[ModelFiles, Loader]]] = {}

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
        self.on_step(Step("looking for devices"))
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
            facts["versions"],
            bytecode=facts["bytecode"],
        )

    def plan(self) -> None:
        """Count the trials of all that was found, so that progress says how many there are."""
        for _, source in self.sources:
            if source.precision not in self.refused:
                runs = self._planned[id(source)] = _choose(self, source)
                for files, loader in runs:
                    self._plan_trials(_key(files, loader))
        for name in dict.fromkeys(self.options.synthetic):
            for precision in self.options.precisions or ("bf16",):
                for number in range(len(self.options.loaders or ("auto",))):
                    self._plan_trials((name, precision, number))

    def _plan_trials(self, run: Hashable) -> None:
        for temperature in self.options.temperatures:
            self.schedule.plan(run, temperature, self.options.trials)

    def measure_synthetic(self, name: str) -> None:
        """Make a synthetic model, measure it and remove it.

        Raises:
            SpaceError: it does not fit on the disk, and nothing was measured before.
            UnloadableError: it cannot be made, and nothing was measured before.
        """
        min_free = self.session.config.limits.min_free
        try:
            with made(self.home, name, min_free, self.on_step) as folder:
                for precision in self.options.precisions or ("bf16",):
                    source = read_source(folder, model=name, precision=precision)
                    for number in range(len(self.options.loaders or ("auto",))):
                        self.schedule.drop((name, precision, number))
                    self.measure(shipped_config().models.get(name), source)
        except (SpaceError, UnloadableError) as error:
            if not self.results:
                raise
            # What was measured before counts, however the rest ends.
            self.fail(name, None, error)

    def measure(self, model: ModelConfig | None, source: ModelFiles) -> None:
        """Measure one model at one precision, with each loader, from the copy and without."""
        refusal = self.refused.get(source.precision)
        if refusal is not None:
            self.fail(source.model, source.precision, unloadable(**refusal))
            return
        runs = self._planned.pop(id(source), None) or _choose(self, source)
        try:
            self._take_turns(model, runs)
        except UnloadableError as error:
            self.fail(source.model, source.precision, error)
        except OSError as error:
            problem = f"{source.model}: {in_words(error, source.folder)}"
            self.fail(source.model, source.precision, UnloadableError(problem))

    def _take_turns(
        self, model: ModelConfig | None, runs: Sequence[tuple[ModelFiles, Loader]]
    ) -> None:
        """Measure in turn, so that what else the machine does meets all of them alike."""
        running = [Run(source, loader, self._need(source), self.home) for source, loader in runs]
        for run in running:
            self._plan_trials(_key(run.source, run.loader))
        running = [run for run in running if _fits(self, run)]
        for run in running:
            run.readers = self._measure_disk(run.source)
        wanted, complete = self.options.trials, False
        try:
            # Disturbed trials are repeated, as many times again at most.
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
                    self.schedule.drop(_key(run.source, run.loader))
                if run.trials:
                    self._conclude(model, run, wanted=wanted if complete else 1)
        if running:
            remember_use(self.home, self.session.cache, runs[0][0], "load-test")
        _judge_copy(running)

    def _try(self, run: Run, temperature: Temperature, number: int) -> None:
        """Make one trial more, of which a failure ends that run's."""
        source, key = run.source, _key(run.source, run.loader)
        again = number >= self.options.trials
        self.schedule.plan(key, temperature, 1 if again else self.options.trials - number)
        figures: dict[str, float] = {}
        for kind in self.options.temperatures:
            of_kind = [one for one in run.trials if one.temperature == kind]
            so_far = spread(one.seconds for one in of_kind if one.valid)
            disturbed = spread(one.seconds for one in of_kind)
            if so_far is not None:
                figures[kind] = so_far.median
            elif disturbed is not None:
                figures[f"disturbed, {kind}"] = disturbed.min
        text = f"{temperature} load of {source.model} {source.precision}, {run.loader}"
        if again:
            text += " (again: others were disturbed)"
        step = Step(text, self.schedule.made + 1, self.schedule.count, figures=figures)
        self.on_step(step._replace(left=self.schedule.left()))
        hot = temperature == "warm" and (source.kind != "at-load" or number == 0)
        begun = time.monotonic()
        try:
            trial, answer = run.make_trial(self.options, temperature, again=hot)
        except UnloadableError as error:
            # What was measured before counts, however the rest would end.
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
        """Work out what a run's trials say, keep it and remember it."""
        assert self.machine is not None
        source = run.source
        bare = Result(
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
            bare,
            self._disks.get(source.weights),
            speeds.get(self.device),
            run.weights_memory,
            wanted=wanted,
            machine=self.machine,
        )
        self.results.append(result)
        remembered = Remembered(_now(), self.machine, msgspec.structs.replace(result, trials=()))
        with Journal(self.home) as memory:
            memory.record_load(msgspec.json.encode(remembered))

    def _need(self, source: ModelFiles) -> MemoryEstimate:
        accelerator = self.device != CPU
        return estimate_memory(source, accelerator=accelerator, context=self.options.context)

    def _measure_disk(self, source: ModelFiles) -> int:
        """Return how many readers suit the disk of a model, which is measured once."""
        if source.weights not in self._disks:
            self.on_step(Step(f"measuring the disk of {source.model}"))
            disk = self._disks[source.weights] = measure_disk(source.weights)
            if disk is not None:
                remember_readers(self.home, source.weights, disk)
        known = self._disks[source.weights]
        return known.readers if known is not None else readers_for(self.home, source.weights)


def _choose(bench: _Bench, source: ModelFiles) -> list[tuple[ModelFiles, Loader]]:
    """Return what is loaded of a model, and by which loaders."""
    kept = quantized.preferred(bench.home, source)
    cold = "cold" in bench.options.temperatures
    loaders = bench.options.loaders or (
        best_loader(bench.home, kept, bench.device, bench.machine, cold=cold),
    )
    runs = [(kept, loader) for loader in loaders]
    if kept.kind == "copy":
        # What the copy is worth shows beside the original, loaded in the same way.
        runs.append((source, loaders[0]))
    return runs


def _fits(bench: _Bench, run: Run) -> bool:
    """Return whether a model fits with what its loader takes beside it; else that is a failure.

    Raises:
        DamagedWeightsError: the weight files contradict themselves.
    """
    source, loader, need = run.source, run.loader, run.need
    on_device, of_host = streams.extra_memory(
        loader,
        source.bytes,
        converted=abs(need.weights - source.bytes) > _SAME_SIZE * source.bytes,
        on_device=bench.device_free is not None,
    )
    host = available_memory()
    free = host if bench.device_free is None else bench.device_free
    # As `load_model` does: what is only computed with comes later.
    held = msgspec.structs.replace(need.held, overhead=on_device)
    try:
        check_fits(source, held, free, bench.device)
        if of_host > host:
            raise NotEnoughMemoryError(
                f"--loader {loader} takes {size_text(of_host)} of memory for {source.model},"
                f" and {size_text(host)} are free",
                "--loader readahead",
            )
    except NotEnoughMemoryError as error:
        bench.fail(source.model, source.precision, error, loader)
        bench.schedule.drop(_key(source, loader))
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


def _key(source: ModelFiles, loader: Loader) -> Hashable:
    return source.model, source.precision, source.kind, loader


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
    """Make a synthetic model for as long as the context lasts; yield its folder.

    Raises:
        SpaceError: it would leave less than `min_free` bytes on the disk.
    """
    shipped = shipped_config().models.get(name)
    if shipped is not None and shipped.expected_size:
        quantized.check_space(home, f"synthetic {name}", shipped.expected_size, min_free)
    with quantized.new_folder(os.path.join(home, "synthetic")) as folder:
        on_step(Step(f"making the synthetic {name}"))
        run_child({"task": "synthesize", "folder": folder, "config": synthetic.CONFIGS[name]}, name)
        yield folder
