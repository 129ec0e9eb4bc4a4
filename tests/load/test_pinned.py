"""Weights read through buffers are the files' own, and no buffer is filled before it is free."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.kit.models import HAS_TORCH

if not HAS_TORCH:
    pytest.skip("needs torch: pip install 'vlmcache[load]'", allow_module_level=True)

import torch
from safetensors.torch import load_file, save_file

from vlmcache.errors import UnloadableError
from vlmcache.load import pinned, streams


def weights(folder: Path) -> list[str]:
    """Two files of tensors of many types and lengths, some larger than a piece."""
    torch.manual_seed(0)
    types = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.int64)
    paths = []
    for number in range(2):
        tensors = {
            f"layer{number}.{at}.weight": (torch.randn(37 * at + 1, 9) * 9).to(dtype)
            for at, dtype in enumerate(types)
        }
        tensors[f"layer{number}.scalar"] = torch.tensor(3.5)
        tensors[f"layer{number}.empty"] = torch.empty(0, 4)
        paths.append(str(folder / f"{number}.safetensors"))
        save_file(tensors, paths[-1])
    return paths


def same(found: dict[str, Any], paths: list[str]) -> None:
    expected = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("piece", [64, 1000, 10_000_000])
def test_tensors_are_those_of_the_files_however_they_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(pinned, "PIECE", piece)
    paths = weights(tmp_path)
    same(pinned.read_pinned(paths, {"": "cpu"}), paths)


class Device:
    """Stands for `torch.cuda`: copies are done late, and what happens is written down."""

    def __init__(self) -> None:
        self.streams: list[str] = []
        self.copies: list[tuple[Any, Any]] = []
        self.waits = 0
        self.lock = threading.Lock()

    def Stream(self, device: str) -> Any:  # noqa: N802
        self.streams.append(device)
        return Stream(self)

    def stream(self, stream: Any) -> Any:
        return stream

    def Event(self) -> Any:  # noqa: N802
        return Event(self)


class Stream:
    def __init__(self, device: Device) -> None:
        self.device = device

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def synchronize(self) -> None:
        self.device.waits += 1


class Event:
    """Does the copy that was asked for before it only when it is waited for."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def record(self, _stream: Stream) -> None:
        self.copy = self.device.copies.pop()

    def synchronize(self) -> None:
        target, source = self.copy
        target.copy_(source)


class Target:
    """A tensor of the device: a copy into it is only noted."""

    def __init__(self, memory: Any, device: Device) -> None:
        self.memory, self.device = memory, device

    def copy_(self, source: Any, *, non_blocking: bool) -> None:
        assert non_blocking
        # Not a copy: what the buffer holds when the event is waited for is what arrives.
        self.device.copies.append((self.memory, source))


def test_a_buffer_is_filled_again_only_once_its_copy_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device()
    monkeypatch.setattr(pinned, "PIECE", 64)
    monkeypatch.setattr(pinned, "module_of", lambda _name: device)
    copy, empty = pinned._Queue.copy, torch.empty

    def noted(queue: Any, target: Any, source: Any) -> Any:
        return copy(queue, Target(target, device), source)

    def unpinned(*sizes: Any, **more: Any) -> Any:
        assert more.pop("pin_memory", True)
        return empty(*sizes, **more)

    monkeypatch.setattr(pinned._Queue, "copy", noted)
    queue = pinned._Queue("cuda:0")
    paths = weights(tmp_path)
    tensors, pieces = pinned._lay_out(paths[0], {"": "cpu"})
    # The memory is the CPU's here, and its buffers cannot be pinned.
    monkeypatch.setattr(pinned, "full_name", lambda _device: "cuda:0")
    monkeypatch.setattr(torch, "empty", unpinned)
    pinned._work(iter(pieces), {"cuda:0": queue})
    queue.finish()
    same(tensors, paths[:1])
    assert device.streams == ["cuda:0"]
    assert device.waits == 1


def test_a_tensor_goes_to_the_device_of_the_longest_module_that_it_is_in() -> None:
    where = {"layers": "cuda:0", "layers.1": "cuda:1", "head": "cuda:2"}
    names = {"layers.0.w": "cuda:0", "layers.1.w": "cuda:1", "layers.11.w": "cuda:0"}
    names |= {"head.w": "cuda:2", "header.w": "cuda:0"}
    assert {name: pinned._device_of(name, where) for name in names} == names


def test_a_type_that_torch_does_not_have_is_reported(tmp_path: Path) -> None:
    header = {"w": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}
    encoded = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"1234")
    with pytest.raises(UnloadableError, match="cannot read F8_E8M0"):
        streams.read_weights("pinned", [str(path)], {"": "cpu"})


@pytest.mark.parametrize(
    ("loader", "converted", "on_device", "extra"),
    [
        ("plain", True, True, (0, 0)),
        ("pinned", False, True, (0, 0)),
        ("pinned", True, True, (100, 0)),
        ("runai", False, True, (0, 100)),
        ("runai", True, False, (200, 0)),
    ],
)
def test_the_memory_that_a_loader_takes_in_addition_to_the_model_is_known(
    loader: Any, converted: bool, on_device: bool, extra: tuple[int, int]
) -> None:
    found = streams.extra_memory(loader, 100, converted=converted, on_device=on_device)
    assert found == extra
