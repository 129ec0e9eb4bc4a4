"""Loaders that replace transformers' own reading of weights: pinned, fastsafetensors, Run:ai's."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import Any

from vlmcache.errors import MissingPackageError, UnloadableError
from vlmcache.installing import install_package
from vlmcache.load.report import Loader

STREAMING: tuple[Loader, ...] = ("pinned", "fastsafetensors", "runai")
"""Loaders that read the weights themselves and hand them to transformers."""

PACKAGES: dict[Loader, tuple[str, str]] = {
    "fastsafetensors": ("fastsafetensors", "fastsafetensors"),
    "runai": ("runai_model_streamer", "runai-model-streamer"),
}
"""Loader -> its module, and the package that contains it."""


def is_installed(loader: Loader) -> bool:
    """Return whether a loader can be imported, without importing it."""
    return loader not in PACKAGES or importlib.util.find_spec(PACKAGES[loader][0]) is not None


def require_loader(loader: Loader) -> None:
    """Make sure that a loader is installed.

    Raises:
        MissingPackageError: it is not.
    """
    if not is_installed(loader):
        module, package = PACKAGES[loader]
        raise MissingPackageError(f"--loader {loader} needs {module}", install_package(package))


_RUNAI_BYTES = 40_000_000_000
"""The most host memory that Run:ai's reader takes, unless RUNAI_STREAMER_MEMORY_LIMIT is set."""


def extra_memory(loader: Loader, size: int, *, converted: bool, on_device: bool) -> tuple[int, int]:
    """Return the bytes that a loader takes in addition to the model: on its device, on the host.

    Args:
        loader: the loader.
        size: length of the weight files.
        converted: whether the weights do not stay as they are stored.
        on_device: whether the model goes to an accelerator; without one all is on its device.
    """
    if loader not in STREAMING:
        return 0, 0
    # All stored weights are in memory at once, and so is what they are converted or copied to.
    copied = loader == "fastsafetensors" and not _owns_memory()
    extra = size if converted or copied else 0
    host = 0
    if loader == "runai":
        limit = os.environ.get("RUNAI_STREAMER_MEMORY_LIMIT", str(_RUNAI_BYTES))
        host = min(size, int(limit)) if limit.isdigit() else size
    return (extra, host) if on_device else (extra + host, 0)


def _owns_memory() -> bool:
    """Return whether fastsafetensors' tensors keep their memory alive, as in its newer versions."""
    return (
        is_installed("fastsafetensors")
        and importlib.util.find_spec("fastsafetensors.allocation") is not None
    )


@contextlib.contextmanager
def nothing_reserved() -> Iterator[None]:
    """Keep transformers from reserving device memory for the weights, which are there already.

    A version of it without the function that reserves memory is left alone.
    """
    from transformers import modeling_utils

    name = "caching_allocator_warmup"
    original = getattr(modeling_utils, name, None)
    if original is None:
        yield
        return
    setattr(modeling_utils, name, lambda *_arguments, **_named: None)
    try:
        yield
    finally:
        setattr(modeling_utils, name, original)


def read_weights(
    loader: Loader, paths: Sequence[str], where: str | dict[str, Any]
) -> dict[str, Any]:
    """Return the tensors of weight files by name.

    Args:
        loader: one of `STREAMING`.
        paths: safetensors files.
        where: the device map; all but `pinned` need a single device.

    Raises:
        MissingPackageError: the loader's package is not installed.
        UnloadableError: the loader cannot read such files, or load by such a device map.
    """
    require_loader(loader)
    if not all(path.endswith(".safetensors") for path in paths):
        raise UnloadableError(f"--loader {loader} reads safetensors only", "--loader plain")
    if not isinstance(where, dict) or (len(where) != 1 and loader != "pinned"):
        raise UnloadableError(f"--loader {loader} needs one device", "--device cuda:0")
    if loader == "pinned":
        from vlmcache.load import pinned

        return pinned.read_pinned(paths, where)
    device = str(next(iter(where.values())))
    return _runai(paths, device) if loader == "runai" else _fastsafetensors(paths, device)


def _runai(paths: Sequence[str], device: str) -> dict[str, Any]:
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files(list(paths))
        # The streamer reuses its buffer.
        return {
            name: tensor.clone() if device == "cpu" else tensor.to(device)
            for name, tensor in streamer.get_tensors()
        }


def _fastsafetensors(paths: Sequence[str], device: str) -> dict[str, Any]:
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    loader = SafeTensorsFileLoader(SingleGroup(), device, nogds=device == "cpu")
    buffer = None
    try:
        loader.add_filenames({0: list(paths)})
        buffer = loader.copy_files_to_device()
        tensors = {name: buffer.get_tensor(name) for name in buffer.key_to_rank_lidx}
        if _owns_memory():
            return tensors
        return {name: tensor.clone() for name, tensor in tensors.items()}
    finally:
        if buffer is not None:
            buffer.close()
        loader.close()
