"""The child process: one load from process start to first token, then the process ends.

Reading ahead begins before anything slow is imported, so this module imports little itself. The
request is JSON on the command line, the answer one line of JSON on what was standard output;
whatever libraries print goes to standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from vlmcache.errors import SpaceError, UnloadableError, VlmcacheError
from vlmcache.load import reader

COMMAND = (
    "import sys; sys.path[:] = [path for path in sys.path if path];"
    " from vlmcache.load.worker import main; main()"
)
"""What a fresh interpreter is given to run: the working folder is no place to import from."""


def main() -> None:
    """Answer the request on the command line."""
    reader.end_with_parent()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.argv[1])
    answer: dict[str, Any]
    tasks: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "trial": _trial,
        "facts": _facts,
        "quantize": _quantize,
        "synthesize": _synthesize,
    }
    try:
        answer = tasks[request["task"]](request)
    except VlmcacheError as error:
        answer = {"error": _told(error)}
    except Exception as error:
        if "No space left on device" not in str(error):
            raise
        full = SpaceError(f"the disk is full: {' '.join(str(error).split())[:200]}")
        answer = {"error": _told(full)}
    _say(channel, answer)
    channel.close()
    sys.stderr.flush()
    # Nothing is left to do, and freeing gigabytes of a model takes its time.
    os._exit(0)


def _told(error: VlmcacheError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "hint": error.hint}


def _say(channel: IO[str], answer: dict[str, Any]) -> None:
    channel.write(json.dumps(answer) + "\n")
    channel.flush()


class _Clock:
    """Seconds of each phase, one after another, from the start of the process on."""

    def __init__(self, started: float) -> None:
        self.phases: dict[str, float] = {}
        self._last = started

    def lap(self, phase: str) -> None:
        """End a phase that began where the one before ended."""
        now = time.monotonic()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._last
        self._last = now

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count a part of one phase to another."""
        part = min(seconds, self.phases[source])
        self.phases[source] -= part
        self.phases[target] = self.phases.get(target, 0.0) + part


def _trial(request: dict[str, Any]) -> dict[str, Any]:
    clock = _Clock(request["started"])
    clock.lap("start")
    loader = request["loader"]
    ahead = None
    if loader == "readahead":
        ahead = reader.ReadAhead(request["source"]["weights"]).start()
    import msgspec

    from vlmcache.load import models
    from vlmcache.load.source import ModelFiles

    source = msgspec.convert(request["source"], ModelFiles)
    with models.explained(source), models.no_collection():
        models.import_for(source)
        clock.lap("import")
        model = _load(source, request, clock, ahead)
        answer: dict[str, Any] = {
            "phases": clock.phases,
            "seconds": sum(clock.phases.values()),
            "bytes_read": _bytes_read(),
            "devices": models.model_devices(model),
            "weights_memory": models.weights_memory(model),
        }
        if ahead is not None:
            answer["read_ahead"] = ahead.seconds
        answer |= _tokens(model, request["tokens"])
        answer["peak_memory"] = _peak_memory()
        from vlmcache.load import device

        answer["peak_device_memory"] = device.peak_memory(answer["devices"])
        if request["again"]:
            del model
            again = _Clock(time.monotonic())
            again.lap("start")
            model = _load(source, request, again, None)
            answer["again"] = {
                "phases": {name: took for name, took in again.phases.items() if name != "start"},
                "first_token": _tokens(model, 1).get("first_token"),
            }
    return answer


def _load(
    source: Any, request: dict[str, Any], clock: _Clock, ahead: reader.ReadAhead | None
) -> Any:
    from vlmcache.load import models

    with _timed_weights() as spent:
        model = models.build_model(source, request["device"], loader=request["loader"])
    clock.lap("build")
    if ahead is not None:
        ahead.wait()
    models.touch_all_weights(model)
    clock.lap("read")
    on_device = any(name != "cpu" for name in models.model_devices(model))
    phase = "read"
    if source.kind == "at-load":
        phase = "quantise"
    elif on_device:
        phase = "to_device"
    clock.move("build", phase, spent())
    if on_device:
        # Waiting for the device belongs to the copy, not to reading.
        clock.move("read", phase, clock.phases["read"])
    return model


@contextlib.contextmanager
def _timed_weights() -> Iterator[Callable[[], float]]:
    """Measure how much of `from_pretrained` is spent on weights, the rest being the bare model.

    transformers offers no such figure; where the function that does it is not there, it all counts
    as building.
    """
    from transformers import PreTrainedModel

    name = "_load_pretrained_model"
    original = PreTrainedModel.__dict__.get(name)
    seconds = 0.0

    def spent() -> float:
        return seconds

    if not isinstance(original, staticmethod):
        yield spent
        return

    def timed(*arguments: Any, **named: Any) -> Any:
        nonlocal seconds
        begun = time.monotonic()
        try:
            return original.__func__(*arguments, **named)
        finally:
            seconds += time.monotonic() - begun

    setattr(PreTrainedModel, name, staticmethod(timed))
    try:
        yield spent
    finally:
        setattr(PreTrainedModel, name, original)


def _tokens(model: Any, count: int) -> dict[str, Any]:
    """Return how long the first token took, and how many a second follow it.

    A model whose code wants more than token ids has none; that is no failure of loading.
    """
    from vlmcache.load import models

    begun = time.monotonic()
    try:
        models.first_token(model)
    except Exception as error:
        return {"no_token": f"{type(error).__name__}: {error}"}
    answer: dict[str, Any] = {"first_token": time.monotonic() - begun}
    if count > 1:
        try:
            begun = time.monotonic()
            models.more_tokens(model, 1)
            first = time.monotonic() - begun
            begun = time.monotonic()
            models.more_tokens(model, count)
            rest = time.monotonic() - begun - first
        except Exception as error:
            return answer | {"no_token": f"{type(error).__name__}: {error}"}
        if rest > 0:
            answer["tokens_per_second"] = (count - 1) / rest
    return answer


def _bytes_read() -> int | None:
    """Return what the kernel fetched from disks for this process so far (see proc_pid_io(5))."""
    try:
        with open("/proc/self/io", encoding="ascii") as file:
            for line in file:
                if line.startswith("read_bytes:"):
                    return int(line.partition(":")[2])
    except OSError:
        pass
    return None


def _peak_memory() -> int | None:
    """Return the most memory that this process had resident, mapped files included."""
    try:
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _facts(request: dict[str, Any]) -> dict[str, Any]:
    import msgspec

    from vlmcache.load import device

    chosen = device.resolve_device(request["device"])
    refused = {}
    for precision in request["precisions"]:
        try:
            device.check_precision(chosen, precision)
        except UnloadableError as error:
            refused[precision] = _told(error)
    return {
        "device": chosen,
        "refused": refused,
        "accelerators": msgspec.to_builtins(
            device.accelerators(measure=request.get("measure", True))
        ),
        "free": device.free_memory(chosen),
    }


def _quantize(request: dict[str, Any]) -> dict[str, Any]:
    import msgspec

    from vlmcache.load import models
    from vlmcache.load.source import ModelFiles

    source = msgspec.convert(request["source"], ModelFiles)
    with models.explained(source):
        model = models.build_model(source, request["device"])
        models.touch_all_weights(model)
        model.save_pretrained(request["folder"])
    return {"seconds": time.monotonic() - request["started"]}


def _synthesize(request: dict[str, Any]) -> dict[str, Any]:
    from vlmcache.load import synthetic

    return {"bytes": synthetic.make(request["folder"], request["config"])}
