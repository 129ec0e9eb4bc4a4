"""Which files of a snapshot hold weights that other files hold too, by their content.

`formats.second_formats` judges names. Here the files are read: the twin must be complete, and
pickled weights must be the same tensors. In doubt a file is not a duplicate.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from vlmcache.cache import formats
from vlmcache.cache.completeness import read_shards
from vlmcache.cache.pickles import PickledTensor, read_pickle
from vlmcache.cache.reading import open_quietly
from vlmcache.cache.state import Revision
from vlmcache.cache.weights import Tensor, read_header

_SAMPLE = 4096
"""Bytes at the beginning of each tensor that are compared."""

Stored = tuple[Tensor, str, int]
"""A tensor, the path of its safetensors file, and the offset of its first byte in the file."""


def find_duplicates(revision: Revision) -> dict[str, str]:
    """Return the duplicates among a snapshot's files -> words for where their weights are too.

    The caller has to check that the files that stay have the length that the Hub listed.
    """
    here = {file.name for file in revision.files}
    pickled_stays = False
    duplicates: dict[str, str] = {}
    pickled: dict[str, str] = {}
    listed = here | set(revision.tree or ())
    for second in formats.second_formats(listed):
        files = second.weights.files & here
        if not files:
            continue
        where = next(
            (
                words
                for ending, twin in second.twins
                if (words := _same_weights(revision, here, second, ending, twin)) is not None
            ),
            None,
        )
        if second.ending != "bin":
            duplicates |= dict.fromkeys(files, where) if where is not None else {}
        elif where is not None:
            pickled |= dict.fromkeys(files, where)
        elif second.key.folder:
            pickled_stays = True
    if not (pickled_stays and formats.PIPELINE in listed):
        duplicates |= pickled
    return duplicates


def _same_weights(
    revision: Revision,
    here: AbstractSet[str],
    second: formats.SecondFormat,
    ending: str,
    twin: formats.WeightSet,
) -> str | None:
    """Return the words for a twin that is complete and holds the weights; `None` in doubt."""
    if twin.single is not None and twin.single in here:
        names, words = frozenset({twin.single}), twin.single
    elif twin.index_file is not None and twin.index_file in here:
        names = read_shards(revision, twin.index_file) or frozenset()
        words = f"the {len(names)} shards of {twin.index_file}"
        if not names or not names <= twin.shards & here:
            return None
    else:
        return None
    try:
        if ending == "bin":
            for name in names - set(revision.tree or ()):
                # Without a listing, its length was compared with nothing.
                read_pickle(revision.file_path(name))
            return words
        stored: dict[str, Stored] = {}
        for name in names:
            stored |= _read_safetensors(revision.file_path(name))
        alike = second.ending != "bin" or all(
            _agree(revision.file_path(name), stored)
            for name in second.weights.files & here - {second.weights.index_file}
        )
    except (OSError, ValueError):
        return None
    return words if alike else None


def _read_safetensors(path: str) -> dict[str, Stored]:
    tensors = read_header(path)
    start = 8 + int.from_bytes(_read_at(path, 0, 8), "little")
    return {
        name: (tensor, path, start + tensor.data_offsets[0]) for name, tensor in tensors.items()
    }


def _agree(path: str, stored: Mapping[str, Stored]) -> bool:
    """Return whether all tensors of a pickled file are among those of the safetensors files.

    Tied tensors are often stored under one of their names only: a name that only the pickle has
    agrees if its elements are those of a tensor that both have.
    """
    pickled = read_pickle(path)
    shared: dict[str, tuple[int, int]] = {}
    for name in pickled.keys() & stored.keys():
        tensor, twin = pickled[name], stored[name]
        if (tensor.dtype, tensor.shape) != (twin[0].dtype, twin[0].shape):
            return False
        if not _begin_alike(path, tensor, twin):
            return False
        begin, end = shared.get(tensor.storage, (0, 0))
        if tensor.dense and tensor.extent > end - begin:
            shared[tensor.storage] = tensor.offset, tensor.offset + tensor.extent
    for name in pickled.keys() - stored.keys():
        tensor = pickled[name]
        begin, end = shared.get(tensor.storage, (0, -1))
        if tensor.offset < begin or tensor.offset + tensor.extent > end:
            return False
    return bool(shared)


def _begin_alike(path: str, tensor: PickledTensor, twin: Stored) -> bool:
    """Return whether the first bytes are the same: other weights can have the same names."""
    other, other_path, other_start = twin
    length = other.stored
    if not tensor.dense:
        length //= max(1, tensor.elements)
    length = min(length, _SAMPLE)
    return _read_at(path, tensor.start, length) == _read_at(other_path, other_start, length)


def _read_at(path: str, start: int, length: int) -> bytes:
    with open(open_quietly(path), "rb", buffering=0) as file:
        file.seek(start)
        return file.read(length)
