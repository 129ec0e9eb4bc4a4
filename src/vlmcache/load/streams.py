"""Other people's readers of weights, used where they are installed: fastsafetensors, Run:ai's."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, Literal

from vlmcache.errors import MissingPackageError, UnloadableError
from vlmcache.load.report import Loader

PACKAGES: dict[Loader, tuple[str, str]] = {
    "fastsafetensors": ("fastsafetensors", "pip install fastsafetensors"),
    "runai": ("runai_model_streamer", "pip install runai-model-streamer"),
}
"""Loader -> module and how to install it."""


def is_installed(loader: Loader) -> bool:
    """Return whether a loader can be imported, without importing it."""
    return loader not in PACKAGES or importlib.util.find_spec(PACKAGES[loader][0]) is not None


def require_loader(loader: Loader) -> None:
    """Make sure that a loader is installed.

    Raises:
        MissingPackageError: it is not.
    """
    if not is_installed(loader):
        module, install = PACKAGES[loader]
        raise MissingPackageError(f"--loader {loader} needs {module}", install)


def read(
    loader: Literal["fastsafetensors", "runai"],
    paths: Sequence[str],
    where: str | dict[str, Any],
) -> dict[str, Any]:
    """Return the tensors of weight files by name, read by one of the other libraries.

    Args:
        loader: which.
        paths: safetensors files.
        where: the device map; these readers need a single device.

    Raises:
        MissingPackageError: the library is not installed.
        UnloadableError: the files or the device map are not for it.
    """
    require_loader(loader)
    if not all(path.endswith(".safetensors") for path in paths):
        raise UnloadableError(f"--loader {loader} reads safetensors only", "--loader plain")
    if not isinstance(where, dict) or len(where) != 1:
        raise UnloadableError(f"--loader {loader} needs one device", "--device cuda:0")
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
    try:
        loader.add_filenames({0: list(paths)})
        buffer = loader.copy_files_to_device()
        return {name: buffer.get_tensor(name).clone().detach() for name in buffer.key_to_rank_lidx}
    finally:
        loader.close()
