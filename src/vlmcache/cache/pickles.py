"""The tensors in a file that `torch.save` wrote, read from its pickle without executing it.

The pickle's instructions are followed on plain values: nothing is imported and nothing is called.
Only what PyTorch writes for a flat dict of plain tensors is understood; anything else is an error.
The format: https://docs.pytorch.org/docs/stable/notes/serialization.html.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import struct
import zipfile
from typing import BinaryIO, NamedTuple

import msgspec

from vlmcache.cache.reading import open_quietly
from vlmcache.cache.weights import DTYPE_BITS, Tensor
from vlmcache.errors import reason_of

_PICKLE_LIMIT = 64_000_000
"""The longest pickle that is read, in bytes; a tensor takes some 300."""

_OPCODE_LIMIT = 5_000_000
_DIRECTORY_LIMIT = 16_000_000
_MOST_DIMENSIONS = 64
_LONGEST_NAME = 1000

_STORAGES = {
    "BFloat16Storage": "BF16",
    "BoolStorage": "BOOL",
    "ByteStorage": "U8",
    "CharStorage": "I8",
    "ComplexFloatStorage": "C64",
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "IntStorage": "I32",
    "LongStorage": "I64",
    "ShortStorage": "I16",
}
"""PyTorch's names of typed storages -> safetensors' names of the types."""

_DTYPES = {
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
}
"""The same for types that have no storage of their own."""


class PickleError(ValueError):
    """A file that is not a flat dict of plain tensors, or cannot safely be read as one."""


def _require(fact: bool, problem: str) -> None:
    """Make sure of a fact about a file; without it, the problem is raised."""
    if not fact:
        raise PickleError(problem)


class PickledTensor(msgspec.Struct, frozen=True, gc=False):
    """One tensor of a pickle; offset, shape and strides count elements of its storage."""

    dtype: str
    """As safetensors names it."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    storage: str
    """The name of its storage in the file; tensors that are tied share one."""
    start: int = 0
    """Where the tensor's first element lies, in bytes from the beginning of the file."""

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def extent(self) -> int:
        """Number of elements of the storage from its first to its last."""
        if not self.elements:
            return 0
        steps = zip(self.shape, self.strides, strict=True)
        return 1 + sum((size - 1) * stride for size, stride in steps)

    @property
    def dense(self) -> bool:
        """Whether the elements lie one after another, in the order of the dimensions."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    dtype: str | None
    key: str
    elements: int
    """Bytes, if the type is not known."""


_MARK = object()
_VALUE = object()
"""Stands for any number, flag or list: they are not needed."""

_CONSTANTS = {
    "MARK": _MARK,
    **dict.fromkeys(("EMPTY_LIST", "NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT"), _VALUE),
}
_NUMBERS = frozenset({"BININT", "BININT1", "BININT2", "LONG1"})
_STRINGS = frozenset({"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"})
_PUTS = frozenset({"BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"BINGET", "LONG_BINGET"})
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine(msgspec.Struct):
    """Follows the instructions of a pickle, as `pickle` does, on values that cannot act."""

    stack: list[object] = []
    memo: dict[int, object] = {}

    def run(self, content: bytes) -> object:
        """Return what the pickle describes."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            _require(count < _OPCODE_LIMIT, "too many instructions")
            self._step(opcode.name, argument)
        (value,) = self.stack
        return value

    def _step(self, name: str, argument: object) -> None:
        stack = self.stack
        if name in _PUTS or name == "MEMOIZE":
            place = argument if isinstance(argument, int) else len(self.memo)
            self.memo[place] = stack[-1]
        elif name in _GETS:
            assert isinstance(argument, int)
            stack.append(self.memo[argument])
        elif name in _STRINGS or name in _NUMBERS:
            stack.append(argument)
        elif name == "GLOBAL":
            stack.append(_Global(str(argument)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Global(f"{_text(module)} {_text(attribute)}"))
        elif name in _TUPLES:
            count = _TUPLES[name]
            _require(len(stack) >= count, "an empty stack")
            items = tuple(stack[len(stack) - count :])
            del stack[len(stack) - count :]
            stack.append(items)
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("APPEND", "APPENDS"):
            # The items of a list do not matter: no tensor of a flat dict is in a list.
            if name == "APPENDS":
                self._since_mark()
            else:
                stack.pop()
            _require(stack[-1] is _VALUE, "no list to append to")
        elif name in ("SETITEM", "SETITEMS"):
            items = (
                tuple(self._since_mark()) if name == "SETITEMS" else (stack.pop(-2), stack.pop())
            )
            target = _dict(stack[-1])
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[_text(key)] = value
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_built(function, arguments))
        elif name == "BUILD":
            # An OrderedDict's attributes: `_metadata`, which says what wrote the tensors.
            _dict(stack.pop())
            _dict(stack[-1])
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise PickleError(f"an instruction that is not expected: {name}")

    def _since_mark(self) -> list[object]:
        items: list[object] = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]


def _text(value: object) -> str:
    # Each instruction can take a string from the memo and append it to another.
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        raise PickleError("a key or name that is not a string, or too long")
    return value


def _dict(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise PickleError("not a dict")
    return value


def _counts(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > _MOST_DIMENSIONS:
        raise PickleError("a shape that makes no sense")
    return tuple(map(_count, value))


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise PickleError("a number that makes no sense")
    return value


def _storage(value: object) -> _Storage:
    if not isinstance(value, tuple) or len(value) != 5 or value[0] != "storage":
        raise PickleError("a reference that is not to a storage")
    kind = value[1].name if isinstance(value[1], _Global) else ""
    dtype = _STORAGES.get(kind.removeprefix("torch "))
    typed = dtype is not None or kind == "torch.storage UntypedStorage"
    _require(typed, "a storage of another kind")
    return _Storage(dtype, _text(value[2]), _count(value[4]))


def _built(function: object, arguments: object) -> object:
    """Return what a call would return, for the few calls that make up plain tensors."""
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise PickleError("a call that is not expected")
    name, count = function.name, len(arguments)
    if name == "collections OrderedDict" and not arguments:
        return {}
    if name == "torch._utils _rebuild_parameter" and count == 3:
        if not isinstance(arguments[0], PickledTensor):
            raise PickleError("a parameter without a tensor")
        return arguments[0]
    if name == "torch._utils _rebuild_tensor_v2" and count == 6:
        return _tensor(arguments, None)
    if name == "torch._utils _rebuild_tensor_v3" and count == 7:
        dtype = arguments[6].name if isinstance(arguments[6], _Global) else ""
        return _tensor(arguments, _DTYPES.get(dtype.removeprefix("torch ")))
    raise PickleError("a call that is not expected")


def _tensor(arguments: tuple[object, ...], dtype: str | None) -> PickledTensor:
    storage = arguments[0]
    if not isinstance(storage, _Storage):
        raise PickleError("a tensor without a storage")
    dtype = storage.dtype or dtype
    if dtype is None:
        raise PickleError("a tensor of another kind")
    shape, strides = _counts(arguments[2]), _counts(arguments[3])
    _require(len(shape) == len(strides), "a shape that makes no sense")
    tensor = PickledTensor(dtype, shape, strides, _count(arguments[1]), storage.key)
    elements = storage.elements if storage.dtype else storage.elements * 8 // DTYPE_BITS[dtype]
    _require(tensor.offset + tensor.extent <= elements, "a tensor outside its storage")
    return tensor


class _Archive:
    """The zip file around a pickle and its storages."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        _require(file.read(4) == b"PK\3\4", "not a zip archive")
        with zipfile.ZipFile(_Bounded(file)) as archive:
            entries = archive.infolist()
        self.entries = {entry.filename: entry for entry in entries}
        roots = [
            name for name in self.entries if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        alone = len(roots) == 1 and len(entries) == len(self.entries)
        _require(alone, "not an archive of one pickle")
        self.root = roots[0].removesuffix("data.pkl")
        _require(f"{self.root}constants.pkl" not in self.entries, "a program, not weights")
        if f"{self.root}byteorder" in self.entries and self.read("byteorder", 16) != b"little":
            raise PickleError("another byte order")

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of an entry below the archive's folder."""
        start, size = self.place(name)
        _require(size <= limit, f"longer than the {limit} bytes that make sense here")
        self.file.seek(start)
        content = self.file.read(size)
        _require(len(content) == size, "an entry outside the file")
        return content

    def place(self, name: str) -> tuple[int, int]:
        """Return where the content of an entry begins in the file, and its length in bytes."""
        entry = self.entries.get(self.root + name)
        if entry is None:
            raise PickleError("an entry is missing")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise PickleError("a compressed entry")
        self.file.seek(entry.header_offset)
        header = self.file.read(30)
        valid = len(header) == 30 and header[:4] == b"PK\3\4"
        _require(valid, "an entry without its header")
        names, extra = struct.unpack("<HH", header[26:])
        return entry.header_offset + 30 + names + extra, entry.file_size


class _Bounded(io.BufferedIOBase):
    """A file that is read in bounded parts: `zipfile` reads as much as the file tells it to."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int | None = -1) -> bytes:
        size = _DIRECTORY_LIMIT if size is None or size < 0 else size
        _require(size <= _DIRECTORY_LIMIT, "a directory of too many entries")
        return self._file.read(size)


def read_pickle(path: str) -> dict[str, PickledTensor]:
    """Return the tensors that a file of PyTorch weights lists, by name.

    The file is content of a repo and so not to be trusted. Tensors that lie outside their storage
    or the file, quantized and sparse ones, nested dicts, other values and the formats before
    PyTorch 1.6 are errors.

    Raises:
        PickleError: the file is not a flat dict of plain tensors in a zip archive.
        OSError: the file cannot be read.
    """
    with open(open_quietly(path), "rb") as file:
        try:
            archive = _Archive(file)
            content = archive.read("data.pkl", _PICKLE_LIMIT)
            tensors = _dict(_Machine().run(content))
            return {
                name: _placed(archive, tensor, os.fstat(file.fileno()).st_size)
                for name, tensor in tensors.items()
            }
        except PickleError:
            raise
        except (
            ArithmeticError,
            EOFError,
            LookupError,
            NotImplementedError,
            OSError,
            RuntimeError,
            ValueError,
            Warning,
            struct.error,
            zipfile.BadZipFile,
        ) as error:
            raise PickleError(f"cannot be read: {reason_of(error)}: {path}") from error


def read_pickled(path: str) -> dict[str, Tensor]:
    """Return the tensors of a file of PyTorch weights as a safetensors header would list them.

    If several names stand for the same piece of the file, the first is returned.

    Raises:
        PickleError: the file is not a flat dict of plain tensors in a zip archive.
        OSError: the file cannot be read.
    """
    first: dict[tuple[str, int, tuple[int, ...]], tuple[str, PickledTensor]] = {}
    for name, tensor in read_pickle(path).items():
        first.setdefault((tensor.storage, tensor.offset, tensor.shape), (name, tensor))
    return {
        name: Tensor(
            tensor.dtype, tensor.shape, (0, tensor.elements * DTYPE_BITS[tensor.dtype] // 8)
        )
        for name, tensor in first.values()
    }


def _placed(archive: _Archive, tensor: object, size: int) -> PickledTensor:
    if not isinstance(tensor, PickledTensor):
        raise PickleError("a value that is not a tensor")
    start, length = archive.place(f"data/{tensor.storage}")
    each = DTYPE_BITS[tensor.dtype] // 8
    if start + length > size or (tensor.offset + tensor.extent) * each > length:
        raise PickleError("a tensor outside the file")
    return msgspec.structs.replace(tensor, start=start + tensor.offset * each)
