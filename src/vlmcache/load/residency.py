"""Where the weights of a model that was built are, and making all of them resident there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlmcache.cache import page_cache
from vlmcache.errors import UnloadableError
from vlmcache.load import device as devices


def model_devices(model: Any) -> list[str]:
    """Return the devices that hold the model's weights, as in `devices.names`."""
    return sorted({devices.full_name(str(tensor.device)) for tensor in _tensors(model)})


def weights_memory(model: Any) -> int:
    """Return the bytes that the model's weights and buffers take, tied ones counted once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in _tensors(model)}.values())


def _tensors(model: Any) -> Iterator[Any]:
    yield from model.parameters()
    yield from model.buffers()


def touch_all_weights(model: Any) -> None:
    """Return when every weight is resident on its device.

    On the CPU the kernel makes its pages resident; where it cannot, each is read. An accelerator
    is waited for.

    Raises:
        UnloadableError: a weight was never loaded.
    """
    import torch

    on_cpu = []
    for tensor in _tensors(model):
        if tensor.is_meta:
            raise UnloadableError("a weight was left without content")
        if tensor.device.type == devices.CPU and tensor.numel():
            on_cpu.append(tensor)
    for begin, end, tensors in _joined(on_cpu):
        if page_cache.populate(begin, end - begin):
            continue
        for tensor in tensors:
            content = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            content[:: page_cache.PAGE].sum().item()
    devices.synchronize(model_devices(model))


def _joined(tensors: list[Any]) -> list[tuple[int, int, list[Any]]]:
    """Return the ranges of memory that tensors lie in, each with its tensors.

    Tensors on the same page, or on pages that follow each other, share a range: tied weights, and
    most of those of one file.
    """
    ranges: list[tuple[int, int, list[Any]]] = []
    for tensor in sorted(tensors, key=lambda tensor: tensor.data_ptr()):
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        begin = tensor.data_ptr()
        end = begin + (1 + sum((size - 1) * step for size, step in steps)) * tensor.element_size()
        if ranges and begin // page_cache.PAGE <= -(-ranges[-1][1] // page_cache.PAGE):
            first, last, members = ranges[-1]
            ranges[-1] = first, max(last, end), [*members, tensor]
        else:
            ranges.append((begin, end, [tensor]))
    return ranges
