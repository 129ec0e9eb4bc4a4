"""Child processes: each is started fresh, does one task such as a load, answers and ends.

`run_child` starts one, `main` is what it runs. Reading ahead begins before anything slow is
imported, so this module imports little itself. The request is JSON on the command line, the answer
one line of JSON on what was standard output; whatever libraries print goes to standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vlmcache.errors import (
    CrashedError,
    SpaceError,
    UnloadableError,
    VlmcacheError,
    less_memory,
    reason_of,
    unloadable,
)
from vlmcache.load import disturbance, reader

_STDERR_LINES = 3
_WARM_UP = 4
_COMMAND = (
    "import sys; sys.path[:] = [path for path in sys.path if path];"
    " from vlmcache.load.worker import main; main()"
)
"""What a fresh interpreter is given to run: the working folder is no place to import from."""


def run_child(request: dict[str, Any], model: str | None = None) -> dict[str, Any]:
    """Run a task of the worker in a fresh process and return its answer.

    Args:
        request: the task's name, and what it needs.
        model: what to call the model in errors; `None` for a task without one.

    Raises:
        SpaceError: the disk was too full for what the child was to write.
        UnloadableError: the child reported another failure, or ended without an answer.
    """
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    # Imported here, since the child imports this module too and its clock runs.
    import tempfile

    with tempfile.TemporaryFile() as stderr:
        started = time.monotonic()
        child = subprocess.run(
            [sys.executable, "-c", _COMMAND, json.dumps(request | {"started": started})],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            check=False,
        )
        try:
            answer: dict[str, Any] = json.loads(child.stdout)
        except ValueError:
            stderr.seek(0)
            lines = stderr.read().decode(errors="replace").strip().splitlines()
            last = lines[-_STDERR_LINES:] or ["it printed nothing"]
            precision = request["source"]["precision"] if "source" in request else None
            raise crash(model, child.returncode, last, precision, request["task"]) from None
    if "error" in answer:
        error = answer["error"]
        if error["code"] == SpaceError.code:
            raise SpaceError(error["message"], error["hint"])
        raise unloadable(**error)
    return answer


def crash(
    model: str | None,
    code: int,
    last_lines: Sequence[str],
    precision: str | None = None,
    task: str = "trial",
) -> CrashedError:
    """Return the error of a child that ended without an answer.

    Args:
        model: what it was to load; `None` where it only looked at the devices.
        code: its exit code, negative for a signal.
        last_lines: the last lines of its standard error.
        precision: the one that it was to load at.
        task: what it was to do; only a trial has a choice of loaders.
    """
    what = f"the process that loaded {model}" if model else "the process that imported torch"
    if code >= 0:
        words = " ".join(" ".join(last_lines).split())
        return CrashedError(f"{what} ended with code {code}: {words[-300:]}")
    name = signal.Signals(-code).name if -code in list(signal.Signals) else str(-code)
    if -code == getattr(signal, "SIGKILL", None):
        return CrashedError(
            f"{what} was killed ({name}), most likely by the kernel because memory ran out",
            f"{less_memory(precision)}; journalctl -k shows what the kernel did",
        )
    other = "--loader plain, or another version" if task == "trial" else "another version"
    return CrashedError(f"{what} crashed ({name})", f"try {other} of torch")


def main() -> None:
    """Answer the request on the command line."""
    reader.end_with_parent()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.argv[1])
    tasks: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "trial": _trial,
        "facts": _facts,
        "quantize": _quantize,
        "compare": _compare,
        "synthesize": _synthesize,
    }
    try:
        answer = tasks[request["task"]](request)
    except VlmcacheError as error:
        answer = {"error": _error_fields(error)}
    except Exception as error:
        if "No space left on device" not in str(error):
            raise
        full = SpaceError(f"the disk is full: {reason_of(error)[:200]}")
        answer = {"error": _error_fields(full)}
    with channel:
        channel.write(json.dumps(answer) + "\n")
    sys.stderr.flush()
    # Nothing is left to do, and freeing gigabytes of a model takes its time.
    os._exit(0)


def _error_fields(error: VlmcacheError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "hint": error.hint}


class PhaseClock:
    """Measures the seconds of phases that follow each other.

    Args:
        started: when the first one began, of the monotonic clock.
    """

    def __init__(self, started: float) -> None:
        self.phases: dict[str, float] = {}
        self.weights = 0.0
        """The part of building the model that was spent on its weights."""
        self._last = started

    @property
    def seconds(self) -> float:
        """The sum of the phases."""
        return sum(self.phases.values())

    def lap(self, phase: str) -> None:
        """End a phase that began where the one before ended."""
        now = time.monotonic()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._last
        self._last = now

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count seconds of one phase, at most all of them, as part of another."""
        if source == target or source not in self.phases:
            return
        part = min(seconds, self.phases[source])
        self.phases[source] -= part
        self.phases[target] = self.phases.get(target, 0.0) + part


def _trial(request: dict[str, Any]) -> dict[str, Any]:
    clock = PhaseClock(request["started"])
    clock.lap("start")
    ahead = None
    if request["loader"] == "readahead":
        weights, count = request["source"]["weights"], request.get("readers", reader.READERS)
        ahead = reader.ReadAhead(weights, request.get("read_ahead_limit"), count)
    import msgspec

    from vlmcache.load import class_list, conditions, device, disk, models, residency
    from vlmcache.load.explain import explained
    from vlmcache.load.source import ModelFiles

    source = msgspec.convert(request["source"], ModelFiles)
    notes: list[str] = []
    # The plain loader does only what a program does that calls transformers.
    with contextlib.ExitStack() as stack:
        stack.enter_context(explained(source))
        if request["loader"] != "plain":
            stack.enter_context(models.no_collection())
            stack.enter_context(class_list.kept(request.get("home")))
        models.import_for(source)
        clock.lap("import")
        chosen = device.resolve_device(request["device"])
        if chosen != device.CPU:
            device.first_use(chosen)
            clock.lap("device")
        model = _load(source, request, clock, ahead, notes)
        answer: dict[str, Any] = {"counters": _counted(clock.seconds)} | {
            "phases": clock.phases,
            "seconds": clock.seconds,
            "devices": residency.model_devices(model),
            "weights_memory": residency.weights_memory(model),
        }
        # The bytes that the kernel fetched from disks for this process: see proc_pid_io(5).
        read = disk.line_of("/proc/self/io", "read_bytes:")
        answer["bytes_read"] = None if read is None else int(read)
        models.refuse_non_finite(source, model)
        answer["notes"] = notes
        if ahead is not None:
            answer["read_ahead"] = ahead.seconds
        answer |= _tokens(model, request["tokens"])
        answer["peak_memory"] = conditions.peak_memory()
        answer["device_peaks"] = msgspec.to_builtins(device.peaks(answer["devices"]))
        answer |= _processor(source)
        if request["again"]:
            del model
            again = PhaseClock(time.monotonic())
            model = _load(source, request | {"temperature": "hot"}, again, None, [])
            answer["again"] = {
                "phases": again.phases,
                "first_token": _tokens(model, 1).get("first_token"),
            }
    return answer


def _counted(seconds: float) -> dict[str, Any]:
    """Return what the kernel counted until the end of the load, and the load's seconds."""
    import msgspec

    times = os.times()
    ours = times.user + times.system + times.children_user + times.children_system
    counters = msgspec.to_builtins(disturbance.read_counters())
    return {"after": counters, "ours": ours, "seconds": seconds}


def _load(
    source: Any,
    request: dict[str, Any],
    clock: PhaseClock,
    ahead: reader.ReadAhead | None,
    notes: list[str],
) -> Any:
    from vlmcache.load import models, residency

    in_memory = request["temperature"] != "cold" or (ahead is not None and ahead.is_done())
    with _timed_weights(clock):
        model = models.build_model(
            source, request["device"], loader=request["loader"], notes=notes, checked=True
        )
    clock.lap("build")
    if ahead is not None:
        ahead.wait()
    residency.touch_all_weights(model)
    clock.lap("read")
    on_device = any(name != "cpu" for name in residency.model_devices(model))
    phase = "read"
    if source.kind == "at-load":
        phase = "quantise"
    elif on_device:
        phase = "to_device" if in_memory else "read_to_device"
    clock.move("build", phase, clock.weights)
    if on_device:
        # Waiting for the device belongs to the copy, not to reading.
        clock.move("read", phase, clock.phases["read"])
        del clock.phases["read"]
    return model


@contextlib.contextmanager
def _timed_weights(clock: PhaseClock) -> Iterator[None]:
    """Measure how much of building is spent on weights; the rest is the bare model.

    transformers offers no such figure. In a version without the function that loads the weights,
    all counts as building. The loaders that read the weights themselves do so before that function.
    """
    from transformers import PreTrainedModel

    from vlmcache.load import streams

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            begun = time.monotonic()
            try:
                return function(*arguments, **named)
            finally:
                clock.weights += time.monotonic() - begun

        return call

    name = "_load_pretrained_model"
    original, read = PreTrainedModel.__dict__.get(name), streams.read_weights
    if isinstance(original, staticmethod):
        setattr(PreTrainedModel, name, staticmethod(timed(original.__func__)))
    setattr(streams, "read_weights", timed(read))  # noqa: B010
    try:
        yield
    finally:
        setattr(streams, "read_weights", read)  # noqa: B010
        if isinstance(original, staticmethod):
            setattr(PreTrainedModel, name, original)


def _processor(source: Any) -> dict[str, Any]:
    """Return how long making the processor took, or why it cannot be made."""
    from vlmcache.load.explain import explained
    from vlmcache.load.processors import load_processor

    try:
        with explained(source):
            begun = time.monotonic()
            made = load_processor(source)
            return {} if made is None else {"processor": time.monotonic() - begun}
    except UnloadableError as error:
        return {"no_processor": error.message}


def _tokens(model: Any, count: int) -> dict[str, Any]:
    """Return how long the first token took, and how many per second follow it.

    A model whose code needs more than token ids produces none; loading has not failed then.
    """
    from vlmcache.load import models

    answer: dict[str, Any] = {}
    try:
        answer["first_token"] = _seconds(models.first_token, model)
        if count > 1:
            # The first steps of decoding include work that is done only once.
            models.more_tokens(model, min(count, _WARM_UP))
            first = _seconds(models.more_tokens, model, 1)
            rest = _seconds(models.more_tokens, model, count) - first
            if rest > 0:
                answer["tokens_per_second"] = (count - 1) / rest
    except Exception as error:
        answer["no_token"] = f"{type(error).__name__}: {reason_of(error)}"
    return answer


def _seconds(work: Callable[..., object], *arguments: object) -> float:
    begun = time.monotonic()
    work(*arguments)
    return time.monotonic() - begun


def _facts(request: dict[str, Any]) -> dict[str, Any]:
    import msgspec

    from vlmcache.load import device

    chosen = device.resolve_device(request["device"])
    refused = {}
    for precision in request["precisions"]:
        try:
            device.check_precision(chosen, precision)
        except UnloadableError as error:
            refused[precision] = _error_fields(error)
    return {
        "device": chosen,
        "refused": refused,
        "accelerators": msgspec.to_builtins(
            device.accelerators(measure=request.get("measure", True))
        ),
        "free": device.memory(chosen)[0],
        "versions": device.versions(),
        "bytecode": _keeps_bytecode(),
    }


def _keeps_bytecode() -> bool:
    """Return whether the next process finds torch and transformers compiled."""
    import importlib.util

    import torch
    import transformers

    paths = (importlib.util.cache_from_source(module.__file__) for module in (torch, transformers))
    return all(map(os.path.isfile, paths))


@contextlib.contextmanager
def _built(request: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the source of a request and its model; errors of the libraries are explained."""
    import msgspec

    from vlmcache.load import models, residency
    from vlmcache.load.explain import explained
    from vlmcache.load.source import ModelFiles

    source = msgspec.convert(request["source"], ModelFiles)
    with explained(source):
        model = models.build_model(source, request["device"])
        residency.touch_all_weights(model)
        yield source, model


def _quantize(request: dict[str, Any]) -> dict[str, Any]:
    from vlmcache.load import models, outcome

    with _built(request) as (source, model):
        models.refuse_non_finite(source, model)
        # It is saved before it computes, for which some kernels rearrange the weights.
        model.save_pretrained(request["folder"])
        try:
            outcome.save(model, request["logits"])
        except Exception as error:
            words = reason_of(error)[:300]
            if isinstance(error, ImportError) or "memory" in words:
                raise
            raise UnloadableError(
                f"no copy of {source.model} was kept: at {source.precision} it computes nothing:"
                f" {type(error).__name__}: {words}"
            ) from error
    return {}


def _compare(request: dict[str, Any]) -> dict[str, Any]:
    from vlmcache.load import outcome

    with _built(request) as (_, model):
        return {"difference": outcome.difference(model, request["logits"])}


def _synthesize(request: dict[str, Any]) -> dict[str, Any]:
    from vlmcache.load import synthetic

    return {"bytes": synthetic.make_model(request["folder"], request["config"])}
