"""Devices as torch names them: which there are, what they hold, and when they are done.

Everything goes through torch's accelerator interface (CUDA, ROCm under the name `cuda`, XPU, MPS);
where torch is older than it, through the device's own module. torch is imported by the functions.
"""

from __future__ import annotations

import time
from typing import Any

from vlmcache.cache.weights import Precision
from vlmcache.errors import MissingPackageError, NoDeviceError, UnsupportedPrecisionError
from vlmcache.load.report import QUANTIZED, Accelerator

CPU = "cpu"
_COPIED_BYTES = 256 * 1024 * 1024
_COPIES = 3


def _kind() -> str | None:
    """Return the type of this machine's accelerator as torch calls it, or `None`."""
    import torch

    accelerator = getattr(torch, "accelerator", None)
    if accelerator is not None and accelerator.is_available():
        return str(accelerator.current_accelerator().type)
    modules = {"cuda": torch.cuda, "xpu": getattr(torch, "xpu", None), "mps": torch.backends.mps}
    available = (kind for kind, module in modules.items() if module and module.is_available())
    return next(available, None)


def _module(device: str) -> Any:
    """Return torch's module for the type of a device: `torch.cuda`."""
    import torch

    return getattr(torch, device.partition(":")[0])


def names() -> list[str]:
    """Return the devices of this machine, accelerators first: `["cuda:0", "cpu"]`."""
    kind = _kind()
    count = 0 if kind is None else int(_module(kind).device_count())
    return [f"{kind}:{number}" for number in range(count)] + [CPU]


def resolve_device(name: str) -> str:
    """Return the device that a name means: `auto` is the first accelerator, else the CPU.

    Raises:
        NoDeviceError: there is no such device.
    """
    known = names()
    if name == "auto":
        return known[0]
    full = name if name == CPU or ":" in name else f"{name}:0"
    if full not in known:
        raise NoDeviceError(
            f"no device {name!r} on this machine", "choose one of: " + ", ".join(known)
        )
    return full


def placement(name: str, device_map: str | dict[str, Any]) -> str | dict[str, Any]:
    """Return the device map that transformers is to follow.

    Args:
        name: the device asked for; only `auto` leaves the choice to `device_map`.
        device_map: the configured one. `auto` spreads a model over several accelerators.

    Raises:
        NoDeviceError: there is no such device.
    """
    known = names()
    if name == "auto" and len(known) > 1 and (isinstance(device_map, dict) or len(known) > 2):
        return device_map
    return {"": resolve_device(name)}


def memory(device: str) -> tuple[int | None, int | None]:
    """Return an accelerator's free bytes and all; `None` for the CPU or where it does not say."""
    import torch

    if device != CPU:
        module = _module(device)
        if hasattr(module, "mem_get_info"):
            free, total = module.mem_get_info(torch.device(device))
            return int(free), int(total)
        if hasattr(module, "recommended_max_memory"):
            total = int(module.recommended_max_memory())
            return total - int(module.driver_allocated_memory()), total
    return None, None


def peak_memory(devices: list[str]) -> int | None:
    """Return the most bytes that this process had allocated on the devices; `None` for the CPU."""
    peaks = [_peak(device) for device in devices if device != CPU]
    return sum(peaks) if peaks else None


def _peak(device: str) -> int:
    module = _module(device)
    if hasattr(module, "max_memory_allocated"):
        return int(module.max_memory_allocated(device))
    # MPS keeps no peak; what the driver holds now is the nearest figure.
    return int(module.driver_allocated_memory())


def synchronize(devices: list[str]) -> None:
    """Return when the devices have done all that was asked of them."""
    for device in devices:
        if device.startswith("mps"):
            _module(device).synchronize()
        elif device != CPU:
            _module(device).synchronize(device)


def accelerators(*, measure: bool = True) -> tuple[Accelerator, ...]:
    """Return this machine's accelerators, with the measured speed of a copy to each if asked."""
    accelerators = []
    *others, _ = names()
    for device in others:
        module = _module(device)
        name = module.get_device_name(device) if hasattr(module, "get_device_name") else "Apple GPU"
        _, total = memory(device)
        accelerators.append(
            Accelerator(device, str(name), total, _copy_speed(device) if measure else None)
        )
    return tuple(accelerators)


def _copy_speed(device: str) -> float | None:
    import torch

    try:
        content = torch.ones(_COPIED_BYTES, dtype=torch.uint8)
        best = 0.0
        # The first copy pays for the device's context.
        for _ in range(_COPIES + 1):
            begun = time.perf_counter()
            copied = content.to(device)
            synchronize([device])
            best = max(best, _COPIED_BYTES / (time.perf_counter() - begun))
            del copied
        return best
    except RuntimeError:
        return None


def dtype_of(precision: Precision) -> Any:
    """Return torch's type for a precision that is not quantized."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def check_precision(device: str, precision: Precision) -> None:
    """Make sure that a device can work at a precision.

    Raises:
        MissingPackageError: int8 or int4, and bitsandbytes is not installed.
        UnsupportedPrecisionError: the device cannot.
    """
    import torch

    kind = device.partition(":")[0]
    if precision in QUANTIZED:
        try:
            import bitsandbytes
        except Exception as error:
            # One that is broken or was built for another torch fails in other ways too.
            words = (str(error).splitlines() or [""])[0]
            raise MissingPackageError(
                f"{precision} needs bitsandbytes, which cannot be imported: {words}",
                "pip install bitsandbytes",
            ) from None
        supported = getattr(bitsandbytes, "supported_torch_devices", {"cuda", "xpu", CPU})
        if kind not in supported:
            raise UnsupportedPrecisionError(
                f"bitsandbytes has no {precision} on {kind}", "--device cpu"
            )
        return
    try:
        square = torch.ones(8, 8, dtype=dtype_of(precision), device=device)
        (square @ square).sum().item()
    except (RuntimeError, TypeError) as error:
        raise UnsupportedPrecisionError(
            f"{device} cannot work in {precision}: {str(error).splitlines()[0]}",
            "--precision fp16" if precision != "fp16" else "--precision fp32",
        ) from None
