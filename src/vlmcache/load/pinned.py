"""Weights read straight into pinned memory and copied to devices while the next ones are read.

Threads read pieces of the files, each into a buffer of its own; each device has one stream, which
copies the pieces in the order in which they come. A buffer is filled again once its copy is done.
On the CPU nothing is pinned, and the pieces are copied as they come.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from vlmcache.cache.weights import Tensor, read_header
from vlmcache.errors import UnloadableError
from vlmcache.load.device import CPU, full_name, module_of

PIECE = 16 * 1024 * 1024
"""Bytes of one read and one copy."""
BUFFERS = 8
"""Threads, with a buffer each. On an H200 eight took 30 GB/s from memory, four 19."""
_ALIGNED = 256
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""Type as safetensors names it -> torch's name."""


class _Piece(NamedTuple):
    path: str
    begin: int
    """Offset in the file."""
    length: int
    target: Any
    """The part of a device's memory that it is copied to, as bytes."""


def read_pinned(paths: Sequence[str], where: Mapping[str, str]) -> dict[str, Any]:
    """Return the tensors of safetensors files by name, each on its device.

    Args:
        paths: the files.
        where: module's name -> device; the longest name that a tensor's begins with counts.

    Raises:
        UnloadableError: the type of a tensor is unknown.
        OSError: a file cannot be read.
        ValueError: a file contradicts itself.
    """
    tensors: dict[str, Any] = {}
    pieces: list[_Piece] = []
    for path in paths:
        of_file, pieces_of_file = _lay_out(path, where)
        tensors |= of_file
        pieces += pieces_of_file
    devices = sorted({str(device) for device in where.values()})
    queues = {device: _Queue(device) for device in devices}
    pending = iter(pieces)
    lock = threading.Lock()

    def take() -> Iterator[_Piece]:
        while True:
            with lock:
                piece = next(pending, None)
            if piece is None:
                return
            yield piece

    with ThreadPoolExecutor(min(BUFFERS, max(1, len(pieces)))) as pool:
        for done in [pool.submit(_work, take(), queues) for _ in range(BUFFERS)]:
            done.result()
    for queue in queues.values():
        queue.finish()
    return tensors


def _lay_out(path: str, where: Mapping[str, str]) -> tuple[dict[str, Any], list[_Piece]]:
    """Return the tensors of a file, still without content, and the pieces to read into them."""
    import torch

    header = sorted(read_header(path).items(), key=lambda item: item[1].data_offsets)
    with open(path, "rb") as file:
        data = 8 + int.from_bytes(file.read(8), "little")
    by_device: dict[str, list[tuple[str, Tensor]]] = {}
    for name, tensor in header:
        by_device.setdefault(_device_of(name, where), []).append((name, tensor))
    tensors: dict[str, Any] = {}
    pieces: list[_Piece] = []
    for device, named in by_device.items():
        sizes = [-(-tensor.stored // _ALIGNED) * _ALIGNED for _, tensor in named]
        memory = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        at = 0
        for (name, tensor), size in zip(named, sizes, strict=True):
            content = memory[at : at + tensor.stored]
            tensors[name] = content.view(_dtype(path, tensor)).reshape(tensor.shape)
            pieces += [
                _Piece(path, data + tensor.data_offsets[0] + part, length, content[part:][:length])
                for part in range(0, tensor.stored, PIECE)
                for length in (min(PIECE, tensor.stored - part),)
            ]
            at += size
    return tensors, pieces


def _dtype(path: str, tensor: Tensor) -> Any:
    import torch

    dtype = getattr(torch, _DTYPES.get(tensor.dtype, ""), None)
    if dtype is None:
        raise UnloadableError(
            f"--loader pinned cannot read {tensor.dtype}: {path}", "--loader readahead"
        )
    return dtype


def _device_of(name: str, where: Mapping[str, str]) -> str:
    above = [module for module in where if not module or f"{name}.".startswith(f"{module}.")]
    # A tensor of no module goes to the first device; transformers moves it where it belongs.
    return str(where[max(above, key=len)] if above else next(iter(where.values())))


def _work(pieces: Iterator[_Piece], queues: Mapping[str, _Queue]) -> None:
    """Read pieces and hand them to their devices until there are no more."""
    import torch

    pinned = any(queue.is_accelerator for queue in queues.values())
    buffer: Any = None
    busy: Any = None
    for path, begin, length, target in pieces:
        if buffer is None:
            buffer = torch.empty(PIECE, dtype=torch.uint8, pin_memory=pinned)
        if busy is not None:
            busy.synchronize()
        _fill(memoryview(buffer.numpy())[:length], path, begin)
        busy = queues[full_name(str(target.device))].copy(target, buffer[:length])
    if busy is not None:
        # Memory that a copy still reads must not be freed.
        busy.synchronize()


def _fill(view: memoryview, path: str, begin: int) -> None:
    with open(path, "rb", buffering=0) as file:
        file.seek(begin)
        filled = 0
        while filled < len(view):
            count = file.readinto(view[filled:])
            if not count:
                raise ValueError(f"{path} ends at byte {begin + filled}")
            filled += count


class _Queue:
    """One device's stream of copies."""

    def __init__(self, device: str) -> None:
        self.is_accelerator = device != CPU
        self._lock = threading.Lock()
        if self.is_accelerator:
            self._module = module_of(device)
            self._stream = self._module.Stream(device=device)

    def copy(self, target: Any, source: Any) -> Any:
        """Begin a copy; return an event that it has ended, `None` if it has."""
        if not self.is_accelerator:
            target.copy_(source)
            return None
        with self._lock, self._module.stream(self._stream):
            target.copy_(source, non_blocking=True)
            event = self._module.Event()
            event.record(self._stream)
        return event

    def finish(self) -> None:
        """Return when all copies are done."""
        if self.is_accelerator:
            self._stream.synchronize()
