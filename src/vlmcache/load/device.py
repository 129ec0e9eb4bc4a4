"""Devices as torch names them: which there are, what they hold, and when they are done.

Everything goes through torch's accelerator interface (CUDA, ROCm under the name `cuda`, XPU, MPS);
in a torch without it, through the device's own module. torch is imported by the functions.
"""

from __future__ import annotations

import contextlib
import re
import time
from typing import Any

from vlmcache.cache.weights import Precision
from vlmcache.errors import MissingPackageError, NoDeviceError, UnsupportedPrecisionError, reason_of
from vlmcache.installing import install_package
from vlmcache.load.report import QUANTIZED, Accelerator, DevicePeak

CPU = "cpu"
_DRIVER = "/proc/driver/nvidia/version"
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


def module_of(device: str) -> Any:
    """Return torch's module for the type of a device: `torch.cuda`."""
    import torch

    return getattr(torch, device.partition(":")[0])


def names() -> list[str]:
    """Return the devices of this machine, accelerators first: `["cuda:0", "cpu"]`."""
    kind = _kind()
    count = 0 if kind is None else int(module_of(kind).device_count())
    return [f"{kind}:{number}" for number in range(count)] + [CPU]


def full_name(name: str) -> str:
    """Return a device's name with its number: `cuda` means `cuda:0`."""
    return name if name == CPU or ":" in name else f"{name}:0"


def resolve_device(name: str) -> str:
    """Return the device that a name means: `auto` is the first accelerator, else the CPU.

    Raises:
        NoDeviceError: there is no such device.
    """
    known = names()
    if name == "auto":
        return known[0]
    full = full_name(name)
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
    """Return an accelerator's free and total bytes; `None` if not known, and for the CPU."""
    import torch

    if device != CPU:
        module = module_of(device)
        if hasattr(module, "mem_get_info"):
            free, total = module.mem_get_info(torch.device(device))
            return int(free), int(total)
        if hasattr(module, "recommended_max_memory"):
            total = int(module.recommended_max_memory())
            return total - int(module.driver_allocated_memory()), total
    return None, None


def first_use(device: str) -> None:
    """Return when a device has its context, whose making the first work on it would include."""
    if device != CPU:
        import torch

        torch.ones(1, device=device)
        synchronize([device])


def peaks(devices: list[str]) -> tuple[DevicePeak, ...]:
    """Return the most that this process held on each device other than the CPU."""
    return tuple(_peak(device) for device in devices if device != CPU)


def _peak(device: str) -> DevicePeak:
    module = module_of(device)
    free, total = memory(device)
    used = None if free is None or total is None else total - free
    if hasattr(module, "max_memory_allocated"):
        return DevicePeak(
            device,
            int(module.max_memory_allocated(device)),
            int(module.max_memory_reserved(device)),
            used,
        )
    # MPS keeps no peak; what the driver has allocated now is the nearest figure.
    return DevicePeak(device, int(module.driver_allocated_memory()), None, used)


def versions() -> dict[str, str]:
    """Return the known versions of the software between torch and an accelerator."""
    import torch

    versions = {"cuda": torch.version.cuda, "hip": torch.version.hip}
    with contextlib.suppress(OSError), open(_DRIVER, encoding="utf-8") as file:
        number = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", file.readline())
        versions["driver"] = number[1] if number else None
    return {name: str(version) for name, version in versions.items() if version is not None}


def synchronize(devices: list[str]) -> None:
    """Return when the devices have finished their work."""
    for device in devices:
        if device.startswith("mps"):
            module_of(device).synchronize()
        elif device != CPU:
            module_of(device).synchronize(device)


def accelerators(*, measure: bool = True) -> tuple[Accelerator, ...]:
    """Return this machine's accelerators, with the measured speed of a copy to each if asked."""
    accelerators = []
    for device in names()[:-1]:
        module = module_of(device)
        name = module.get_device_name(device) if hasattr(module, "get_device_name") else "Apple GPU"
        _, total = memory(device)
        pageable = _copy_speed(device) if measure else None
        pinned = _copy_speed(device, pinned=True) if measure else None
        accelerators.append(Accelerator(device, str(name), total, pageable, pinned))
    return tuple(accelerators)


def _copy_speed(device: str, *, pinned: bool = False) -> float | None:
    import torch

    try:
        content = torch.ones(_COPIED_BYTES, dtype=torch.uint8, pin_memory=pinned)
        best = 0.0
        # The first copy includes making the device's context.
        for _ in range(_COPIES + 1):
            begun = time.perf_counter()
            copied = content.to(device, non_blocking=pinned)
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
        UnsupportedPrecisionError: the device cannot work at it.
    """
    import torch

    kind = device.partition(":")[0]
    if precision in QUANTIZED:
        try:
            import bitsandbytes
        except Exception as error:
            # A broken one, or one built for another torch, raises other errors too.
            reinstall = [] if isinstance(error, ModuleNotFoundError) else ["--force-reinstall"]
            raise MissingPackageError(
                f"{precision} needs bitsandbytes, which cannot be imported:"
                f" {reason_of(error)[:200]}",
                install_package(*reinstall, "bitsandbytes"),
            ) from None
        supported = getattr(bitsandbytes, "supported_torch_devices", {"cuda", "xpu", CPU})
        if kind not in supported:
            raise UnsupportedPrecisionError(
                f"bitsandbytes does not support {precision} on {kind}", "--device cpu"
            )
        return
    try:
        square = torch.ones(8, 8, dtype=dtype_of(precision), device=device)
        (square @ square).sum().item()
    except (RuntimeError, TypeError) as error:
        raise UnsupportedPrecisionError(
            f"{device} cannot compute in {precision}: {reason_of(error)[:200]}",
            "--precision fp16" if precision != "fp16" else "--precision fp32",
        ) from None
