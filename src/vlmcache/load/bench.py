"""Load tests: each trial in a fresh process, its conditions measured and not assumed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import msgspec

from vlmcache.cache.hashing import cores
from vlmcache.cache.mounts import mount_of, nearest_folder
from vlmcache.cache.reading import JSON_ERRORS
from vlmcache.cache.weights import Precision
from vlmcache.config import (
    CacheLocation,
    Config,
    Environment,
    ModelConfig,
    cached_models,
    find_model,
    names_of_all,
    own_home,
    shipped_config,
)
from vlmcache.errors import (
    NotDownloadedError,
    PartlyError,
    SpaceError,
    UnloadableError,
    VlmcacheError,
    unloadable,
)
from vlmcache.home.journal import Journal
from vlmcache.load import capacity, quantized, reader, streams, synthetic
from vlmcache.load.child import run_child
from vlmcache.load.models import remember_use, require_packages
from vlmcache.load.report import (
    Accelerator,
    Disk,
    Expected,
    Failure,
    Loader,
    LoadReport,
    Machine,
    Remembered,
    Result,
    Spread,
    Temperature,
    Trial,
    faster_or_slower,
    summarise,
)
from vlmcache.load.source import Source, find_source, read_source
from vlmcache.load.wishes import Wishes
from vlmcache.units import size_text

COLD_AT_MOST = 0.01
"""Part of the weight files that may be in memory before a cold trial."""
WARM_AT_LEAST = 0.98
"""Part of the weight files that must be in memory before a warm trial."""
_READ_AT_LEAST = 0.5
"""Part of the weight files that a cold trial must have fetched from the disk itself."""
_SYNTHETIC = "synthetic"
_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "safetensors",
    "fastsafetensors",
    "runai-model-streamer",
)

Tell = Callable[[str], None]
"""Is told in a few words what happens now."""


def load_test(
    environment: Environment,
    config: Config,
    location: CacheLocation,
    names: Sequence[str] = (),
    wishes: Wishes | None = None,
    synthetic_names: Sequence[str] = (),
    tell: Tell = lambda _text: None,
) -> LoadReport:
    """Return how fast models load on this machine, cold and warm.

    Args:
        environment: the variables in force.
        config: the configuration in force.
        location: the hub cache.
        names: keys or repo ids; the configured models that are cached if neither these nor
            `synthetic_names` are given.
        wishes: what is to be measured.
        synthetic_names: names of `synthetic.NAMES` to make, measure and remove.
        tell: is told what happens now.

    Raises:
        UnknownModelError: a name is neither a key nor a repo id.
        MissingPackageError: torch or transformers, or a loader's package, is not installed.
        NoDeviceError: there is no such device.
        SpaceError: a synthetic model does not fit on the disk.
    """
    wishes = wishes or Wishes()
    for name in synthetic_names:
        synthetic.check_name(name)
    home, _ = own_home(environment)
    bench = _Bench(home, location, wishes, tell)
    bench.find(config, names, every=not names and not synthetic_names)
    require_packages()
    for loader in wishes.loaders or ():
        streams.require_loader(loader)
    bench.look_around(synthetic_names)
    for model, source in bench.found:
        bench.measure(model, source)
    for name in dict.fromkeys(synthetic_names):
        try:
            with made(home, name, config.limits.min_free, tell) as folder:
                for precision in wishes.precisions or ("bf16",):
                    source = read_source(folder, model=name, precision=precision)
                    bench.measure(shipped_config().models.get(name), source)
        except (SpaceError, UnloadableError) as error:
            if not bench.results:
                raise
            # What was measured before counts, however the rest ends.
            bench.fail(name, None, error)
    return bench.report()


class _Bench:
    """One run: what was found, measured and failed so far."""

    def __init__(self, home: str, location: CacheLocation, wishes: Wishes, tell: Tell) -> None:
        self.home = home
        self.location = location
        self.wishes = wishes
        self.tell = tell
        self.found: list[tuple[ModelConfig | None, Source]] = []
        self.results: list[Result] = []
        self.failures: list[Failure] = []
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
            Failure(model, precision, error.code, error.message, error.hint, loader)
        )

    def find(self, config: Config, names: Sequence[str], *, every: bool) -> None:
        """Find the files of the models asked for; what cannot be loaded becomes a failure."""
        if every:
            names = names_of_all(config, cached_models(self.location))
        for name in dict.fromkeys(names):
            for precision in self.wishes.precisions or (None,):
                try:
                    found = find_source(
                        config,
                        self.location,
                        name,
                        precision,
                        trust_remote_code=self.wishes.trust_remote_code,
                    )
                except UnloadableError as error:
                    self.fail(name, precision, error)
                    break
                self.found.append(found)
        if every and self.found:
            # Whoever names no model means those that are there.
            self.failures = [one for one in self.failures if one.code != NotDownloadedError.code]

    def look_around(self, synthetic_names: Sequence[str]) -> None:
        """Ask a child process for the devices, unless there is nothing to load on them."""
        if not self.found and not synthetic_names:
            return
        self.tell("looking at the devices")
        precisions = {source.precision for _, source in self.found}
        if synthetic_names:
            precisions |= set(self.wishes.precisions or ("bf16",))
        facts = run_child(
            {"task": "facts", "device": self.wishes.device, "precisions": sorted(precisions)}
        )
        self.device = facts["device"]
        self.device_free = facts["free"]
        self.refused = facts["refused"]
        accelerators = msgspec.convert(facts["accelerators"], tuple[Accelerator, ...])
        folder = self.location.dir if self.found else self.home
        self.machine = describe_machine(accelerators, folder)

    def measure(self, model: ModelConfig | None, source: Source) -> None:
        """Measure one model at one precision, with each loader, from the copy and without."""
        refusal = self.refused.get(source.precision)
        if refusal is not None:
            self.fail(source.model, source.precision, unloadable(**refusal))
            return
        kept = quantized.preferred(self.home, source)
        loaders = self.wishes.loaders or (self._best_loader(kept),)
        try:
            self._measure(model, kept, loaders, self.wishes.trials)
            if kept.kind == "copy":
                # One trial of each temperature suffices to see what the copy is worth.
                self._measure(model, source, ("plain",), 1)
        except UnloadableError as error:
            self.fail(source.model, source.precision, error)
        except OSError as error:
            problem = f"{source.model}: {error.strerror or error}: {error.filename}"
            self.fail(source.model, source.precision, UnloadableError(problem))

    def _best_loader(self, source: Source) -> Loader:
        """Return reading ahead, or what was faster here beyond the spread when last measured."""
        latest: dict[Loader, Spread] = {}
        for one in remembered(self.home):
            then = one.result
            same = (then.model, then.repo, then.precision, then.device, then.source) == (
                source.model,
                source.repo,
                source.precision,
                self.device,
                source.kind,
            )
            whole = then.cold if "cold" in self.wishes.temperatures else then.warm
            if not same or whole is None or self.machine is None or not _is_installed(then.loader):
                continue
            if one.machine.hardware() == self.machine.hardware():
                latest.setdefault(then.loader, whole)
        usual = latest.get("readahead")
        faster = [
            (whole.median, loader)
            for loader, whole in latest.items()
            if usual is not None and faster_or_slower(usual, whole) == "faster"
        ]
        return min(faster)[1] if faster else "readahead"

    def _measure(
        self,
        model: ModelConfig | None,
        source: Source,
        loaders: Sequence[Loader],
        trials: int,
    ) -> None:
        """Measure loaders in turn, so that what else the machine does meets all of them alike."""
        need = capacity.estimate(source)
        free = capacity.available_memory() if self.device_free is None else self.device_free
        capacity.check_fits(source, need, free, self.device)
        disk = self._disk(source)
        done: dict[Loader, list[Trial]] = {loader: [] for loader in loaders}
        broken: set[Loader] = set()
        weights_memory = 0
        for number in range(trials):
            for temperature in self.wishes.temperatures:
                for loader in loaders:
                    if loader in broken:
                        continue
                    self.tell(
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
                        expected=_expected(model, source),
                    ),
                    disk,
                    weights_memory,
                )
        remember_use(self.home, self.location, source, "load-test")

    def _conclude(self, bare: Result, disk: Disk | None, weights_memory: int) -> None:
        """Work out what a result's trials say, keep it and remember it."""
        assert self.machine is not None
        speeds = {one.device: one.copy_speed for one in self.machine.accelerators}
        result = summarise(bare, disk, speeds.get(self.device), weights_memory)
        self.results.append(result)
        one = Remembered(_now(), self.machine, msgspec.structs.replace(result, trials=()))
        with Journal(self.home) as memory:
            memory.record_load(msgspec.json.encode(one))

    def _disk(self, source: Source) -> Disk | None:
        if source.weights not in self._disks:
            self.tell(f"{source.model}: measuring its disk")
            speed = reader.measure_speed(source.weights)
            self._disks[source.weights] = Disk(*speed) if speed is not None else None
        return self._disks[source.weights]

    def _trial(
        self, source: Source, loader: Loader, temperature: Temperature, *, again: bool
    ) -> tuple[Trial, dict[str, Any]]:
        before, why_not = prepare(source.weights, temperature)
        answer = run_child(
            {
                "task": "trial",
                "source": msgspec.to_builtins(source),
                "device": self.wishes.device,
                "loader": loader,
                "tokens": self.wishes.tokens,
                "again": again,
            },
            source.model,
        )
        read = answer["bytes_read"]
        told = temperature == "cold" and read is not None and _counts_reads(source.folder)
        if why_not is None and told and read < _READ_AT_LEAST * source.bytes:
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
        )
        return trial, answer

    def report(self) -> LoadReport:
        return LoadReport(self.machine, tuple(self.results), tuple(self.failures), at=_now())


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)


def failure(report: LoadReport) -> VlmcacheError | None:
    """Return what a report's failures come to: nothing, a part, or the first of them."""
    if not report.failures:
        return None
    first = report.failures[0]
    count = len(report.failures)
    if not report.results:
        message = first.message if count == 1 else f"{first.message}; and {count - 1} more"
        return unloadable(first.code, message, first.hint)
    names = ", ".join(sorted({one.model for one in report.failures}))
    return PartlyError(f"not measured: {names}: {first.message}", first.hint)


def ids(report: LoadReport) -> list[str]:
    """Return a line for each result, of now or remembered: model, precision, loader."""
    results = (*report.results, *(one.result for one in report.history))
    return [f"{one.model} {one.precision} {one.loader}" for one in results]


def history(environment: Environment, config: Config, names: Sequence[str]) -> LoadReport:
    """Return the results of earlier runs, the latest first, of all models or of those named.

    Raises:
        UnknownModelError: a name is neither a key, nor a repo id, nor one that is remembered.
    """
    home, _ = own_home(environment)
    every = remembered(home)
    known = {one.result.model for one in every}
    repos = {one.result.repo for one in every if one.result.repo is not None}
    wanted = {*names}
    wanted |= {find_model(config, name, repos).repo for name in names if name not in known}
    found = [
        one
        for one in every
        if not wanted or one.result.model in wanted or one.result.repo in wanted
    ]
    return LoadReport(None, (), history=tuple(found))


def remembered(home: str) -> list[Remembered]:
    """Return the results of earlier runs, the latest first. What cannot be read is left out."""
    found = []
    with Journal(home) as memory:
        for content in memory.loads():
            try:
                found.append(msgspec.json.decode(content, type=Remembered))
            except JSON_ERRORS:
                continue
    return found


def _is_installed(loader: Loader) -> bool:
    try:
        streams.require_loader(loader)
    except UnloadableError:
        return False
    return True


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


def _expected(model: ModelConfig | None, source: Source) -> Expected | None:
    """Return the configured expectation; memory only where it was stated for this precision."""
    if model is None or (model.expected_memory is None and model.expected_size is None):
        return None
    halves = ("fp16", "bf16")
    same = model.precision == source.precision or (
        model.precision in halves and source.precision in halves
    )
    return Expected(model.expected_memory if same else None, model.expected_size, "config.yaml")


def prepare(paths: Sequence[str], temperature: Temperature) -> tuple[float | None, str | None]:
    """Bring files to a temperature; return the part of them in memory then, and what is wrong.

    What is wrong is a sentence, or `None` where the trial is under the conditions it names.
    """
    if temperature == "warm":
        reader.ReadAhead(paths).start().wait()
        resident = reader.resident_fraction(paths)
        if resident is not None and resident < WARM_AT_LEAST:
            return (
                resident,
                f"only {resident:.0%} of the weights stay in memory: there is too little",
            )
        return resident, None
    if not reader.can_evict():
        return None, f"{sys.platform} has no way to evict files from memory"
    reader.evict(paths)
    resident = reader.resident_fraction(paths)
    if resident is None:
        return (
            None,
            "the weight files are another user's, so the kernel does not tell what is in memory",
        )
    if resident > COLD_AT_MOST:
        mount = mount_of(paths[0])
        if mount is not None and mount.type in ("tmpfs", "ramfs"):
            return resident, f"the weights are on {mount.type}, which is memory"
        return resident, (
            f"{resident:.0%} of the weights stay in memory after eviction: a process uses them"
        )
    return resident, None


def _counts_reads(path: str) -> bool:
    """Return whether the kernel counts reads of this filesystem as reads of a block device."""
    return os.major(os.stat(path).st_dev) != 0


@contextmanager
def made(home: str, name: str, min_free: int, tell: Tell) -> Iterator[str]:
    """Make a synthetic model for as long as the context lasts; yield its folder.

    Raises:
        SpaceError: it would leave less than `min_free` bytes on the disk.
    """
    root = os.path.join(home, _SYNTHETIC)
    os.makedirs(root, exist_ok=True)
    quantized.discard_leftovers(root)
    shipped = shipped_config().models.get(name)
    size = shipped.expected_size if shipped is not None and shipped.expected_size else 0
    free = shutil.disk_usage(root).free
    if size and free - size < min_free:
        raise SpaceError(
            f"the synthetic {name} takes {size_text(size)}, and {root} has {size_text(free)} free"
            f" with {size_text(min_free)} to be kept",
            "name another folder with VLMCACHE_HOME",
        )
    folder = os.path.join(root, f"{quantized.MAKING}{os.getpid()}")
    tell(f"making the synthetic {name}")
    try:
        run_child({"task": "synthesise", "folder": folder, "config": synthetic.CONFIGS[name]}, name)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def describe_machine(accelerators: tuple[Accelerator, ...], folder: str) -> Machine:
    """Return the conditions of measurements on files below a folder."""
    import psutil

    mount = mount_of(folder)
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Machine(
        system=platform.platform(),
        cpu=_cpu_name(),
        cores=cores(),
        memory=int(psutil.virtual_memory().total),
        accelerators=accelerators,
        filesystem=mount.type if mount else None,
        disk=_disk_name(folder),
        versions=versions,
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _disk_name(folder: str) -> str | None:
    """Return the model of the drive below a folder, or the drive's name (Linux's sysfs)."""
    device = os.stat(nearest_folder(folder)).st_dev
    if not hasattr(os, "major"):
        return None
    link = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    if not os.path.exists(link):
        return None
    block = os.path.realpath(link)
    for candidate in (block, os.path.dirname(block)):
        try:
            with open(os.path.join(candidate, "device", "model"), encoding="utf-8") as file:
                return file.read().strip()
        except OSError:
            continue
    return os.path.basename(block)
