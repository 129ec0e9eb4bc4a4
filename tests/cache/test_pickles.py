"""The names in pickled weights are read as PyTorch wrote them, and nothing of them is executed."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.caches import torch_weights
from tests.kit.hostile import examples
from vlmcache.cache import pickles
from vlmcache.cache.pickles import PickledTensor, PickleError, read_pickle


def saved(value: Callable[[Any], Any], **options: Any) -> bytes:
    """Return what `torch.save` writes for a value, which is made from the module `torch`."""
    torch = pytest.importorskip("torch")
    packed = io.BytesIO()
    torch.save(value(torch), packed, **options)
    return packed.getvalue()


def archive(code: bytes, **parts: bytes) -> bytes:
    """Return an archive around a pickle, as `torch.save` lays it out."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as packing:
        for name, part in {"data.pkl": code, "data/0": bytes(64), **parts}.items():
            packing.writestr(f"archive/{name}", part)
    return packed.getvalue()


def tensors(content: bytes, folder: Path) -> dict[str, PickledTensor]:
    path = folder / "pytorch_model.bin"
    path.write_bytes(content)
    return read_pickle(str(path))


def module(torch: Any) -> Any:
    layer = torch.nn.Linear(3, 2)
    return OrderedDict(layer.state_dict())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_names_shapes_and_types_are_those_that_were_saved(tmp_path: Path, protocol: int) -> None:
    found = tensors(
        saved(
            lambda torch: {
                **{
                    str(dtype).removeprefix("torch."): torch.zeros(2, 3, dtype=dtype)
                    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.float8_e4m3fn)
                },
                "scalar": torch.tensor(1.0),
                "none": torch.zeros(0, 5, dtype=torch.float16),
                "parameter": torch.nn.Parameter(torch.zeros(4)),
            },
            pickle_protocol=protocol,
        ),
        tmp_path,
    )
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == {
        "float32": ("F32", (2, 3)),
        "bfloat16": ("BF16", (2, 3)),
        "int64": ("I64", (2, 3)),
        "float8_e4m3fn": ("F8_E4M3", (2, 3)),
        "scalar": ("F32", ()),
        "none": ("F16", (0, 5)),
        "parameter": ("F32", (4,)),
    }


def test_a_modules_state_is_read_with_its_metadata(tmp_path: Path) -> None:
    content = saved(lambda torch: torch.nn.Linear(3, 2).state_dict())
    assert {name: tensor.shape for name, tensor in tensors(content, tmp_path).items()} == {
        "weight": (2, 3),
        "bias": (2,),
    }


def test_tied_tensors_and_views_share_a_storage_and_say_where_they_begin(tmp_path: Path) -> None:
    def value(torch: Any) -> Any:
        whole = torch.arange(12, dtype=torch.float32).reshape(4, 3)
        return {"a": whole, "tied": whole, "rows": whole[1:3], "turned": whole.T}

    content = saved(value)
    found = tensors(content, tmp_path)
    assert len({tensor.storage for tensor in found.values()}) == 1
    assert found["a"] == found["tied"]
    assert [found[name].dense for name in ("a", "rows", "turned")] == [True, True, False]
    start = found["rows"].start
    assert struct.unpack("<6f", content[start : start + 24]) == (3, 4, 5, 6, 7, 8)


def test_the_kits_pickles_are_what_torch_reads() -> None:
    torch = pytest.importorskip("torch")
    data = struct.pack("<6e", *range(6))
    content = torch_weights({"a": ([2, 3], data), "b": ([6], data)})
    found = torch.load(io.BytesIO(content), weights_only=True)
    assert found["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["a"].data_ptr() == found["b"].data_ptr()


ODD: dict[str, Callable[[Any], Any]] = {
    "nested": lambda torch: {"state_dict": module(torch)},
    "list": lambda torch: [torch.zeros(2)],
    "bare": lambda torch: torch.zeros(2),
    "epoch": lambda torch: {**module(torch), "epoch": 3},
    "text": lambda torch: {**module(torch), "name": "x"},
    "none": lambda torch: {**module(torch), "bias": None},
    "quantized": lambda torch: {
        "a": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)
    },
    "sparse": lambda torch: {"a": torch.eye(3).to_sparse()},
    "conjugate": lambda torch: {"a": torch.zeros(2, dtype=torch.complex64).conj()},
    "module": lambda torch: torch.nn.Linear(3, 2),
    "numbered": lambda torch: {3: torch.zeros(2)},
}


@pytest.mark.filterwarnings("ignore:.*quantize.*", "ignore:.*[Ss]parse.*", "ignore:.*TypedStorage")
@pytest.mark.parametrize("kind", ODD)
def test_what_is_not_a_flat_dict_of_plain_tensors_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(PickleError):
        tensors(saved(ODD[kind]), tmp_path)


def test_the_format_before_zip_archives_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PickleError):
        tensors(saved(module, _use_new_zipfile_serialization=False), tmp_path)


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_of_a_pickle_is_executed(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "executed"
    code = pickle.dumps({"a": Touch(mark)}, protocol)
    with pytest.raises(PickleError):
        tensors(archive(code), tmp_path)
    assert not mark.exists()
    pickle.loads(code)
    assert mark.exists()


FLAT = torch_weights({"a": ([2, 2], bytes(8)), "b": ([4], bytes(range(8)))})


def _compressed() -> bytes:
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(FLAT)) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return packed.getvalue()


def _with(name: str, content: bytes) -> bytes:
    packed = io.BytesIO(FLAT)
    with zipfile.ZipFile(packed, "a") as adding:
        adding.writestr(name, content)
    return packed.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\3\4",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"#!/bin/sh\n" + FLAT,
        _compressed(),
        _with("pytorch_model/constants.pkl", b"\x80\x02)."),
        _with("other/data.pkl", b"\x80\x02}."),
        _with("pytorch_model/byteorder", b"big"),
        archive(b""),
        archive(b"}"),
        archive(b"\x80\x02)}."),
        archive(b"\x80\x02}\x940."),
        archive(b"\x80\x02h\x07."),
        archive(b"\x80\x02}]s."),
        archive(b"\x80\x02}(]Ks."),
        archive(b"\x80\x02(((((."),
        archive(b"\x80\x02u."),
        archive(b"\x80\x02\x86."),
        archive(b"\x80\x02NQ."),
        archive(b"\x80\x02]]\x86Q."),
        archive(b"\x80\x02cos\\l\nsystem\n."),
        archive(b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R."),
        archive(b"\x80\x02ccollections\nOrderedDict\n)\x81."),
        archive(b"I" + b"9" * 5000 + b"\n."),
        archive(b"\x80\x02" + b")\x85" * 200_000 + b"."),
        archive(b"\x8d" + struct.pack("<Q", 2**63) + b"x."),
        # A string of 1,000,000 characters from the memo, joined to itself once per instruction.
        archive(
            b"\x80\x04\x8d"
            + struct.pack("<Q", 10**6)
            + b"x" * 10**6
            + b"\x940"
            + b"h\0h\0\x93" * 10**5
        ),
    ],
    ids=range(27),
)
def test_an_archive_that_makes_no_sense_is_a_pickle_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(PickleError):
        tensors(content, tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"J\x04\0\0\0", b"J\x09\0\0\0"),
        (b"J\x00\0\0\0", b"J\x01\0\0\0"),
        (b"J\x02\0\0\0", b"J\xff\xff\xff\xff"),
        (b"X\x01\0\0\x000", b"X\x01\0\0\x007"),
        (b"HalfStorage", b"QUInStorage"),
    ],
    ids=["longer-storage", "offset", "negative", "no-such-storage", "kind"],
)
def test_a_tensor_that_cannot_be_where_it_says_is_refused(
    tmp_path: Path, old: bytes, new: bytes
) -> None:
    with zipfile.ZipFile(io.BytesIO(FLAT)) as packed:
        code, data = packed.read("pytorch_model/data.pkl"), packed.read("pytorch_model/data/1")
    assert tensors(archive(code, **{"data/0": bytes(8), "data/1": data}), tmp_path)
    assert old in code
    with pytest.raises(PickleError):
        tensors(archive(code.replace(old, new), **{"data/0": bytes(8), "data/1": data}), tmp_path)


def test_sizes_and_steps_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, most in (("_PICKLE_LIMIT", 100), ("_OPCODE_LIMIT", 30), ("_DIRECTORY_LIMIT", 200)):
        with monkeypatch.context() as patch:
            patch.setattr(pickles, limit, most)
            with pytest.raises(PickleError):
                tensors(FLAT, tmp_path)
    assert tensors(FLAT, tmp_path)


def test_a_missing_file_and_a_pipe_are_errors_of_the_system(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "pipe"):
        with pytest.raises(OSError):
            read_pickle(str(tmp_path / name))


def test_reading_needs_no_torch() -> None:
    code = "import sys, vlmcache.cache.duplicates; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pickles")


def read_or_refuse(content: bytes, place: Path) -> None:
    try:
        found = tensors(content, place)
    except PickleError:
        return
    for name, tensor in found.items():
        assert isinstance(name, str)
        assert 0 <= tensor.start <= len(content)


OPCODES = [
    b"}", b"]", b")", b"(", b"t", b"u", b"s", b"R", b"b", b"Q", b"a", b"e", b"0", b"2", b"N",
    b"\x85", b"\x86", b"\x87", b"\x88", b"\x94", b"q\0", b"h\0", b"K\x02", b"X\x01\0\0\0a", b"\x93",
    b"X\x07\0\0\0storage", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"cos\nsystem\n", b"\x8a\x01\xff", b"\x81", b".",
]  # fmt: skip


@examples(300)
@given(st.lists(st.sampled_from(OPCODES), max_size=40))
def test_any_instructions_are_read_or_refused(place: Path, code: list[bytes]) -> None:
    read_or_refuse(archive(b"\x80\x02" + b"".join(code) + b"."), place)


@examples(200)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(place: Path, content: bytes) -> None:
    read_or_refuse(content, place)
    read_or_refuse(b"PK\3\4" + content, place)
    read_or_refuse(archive(content), place)


@examples(200)
@given(
    st.lists(st.tuples(st.integers(0, len(FLAT) - 1), st.integers(0, 255)), max_size=4),
    st.integers(0, len(FLAT)),
    st.booleans(),
)
def test_a_spoiled_or_truncated_file_is_read_or_refused(
    place: Path, changes: list[tuple[int, int]], end: int, whole: bool
) -> None:
    content = bytearray(FLAT)
    for at, byte in changes:
        content[at] = byte
    read_or_refuse(bytes(content if whole else content[:end]), place)
