"""The weights of a model's repo: for each set of them, the files that suffice, in order (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import msgspec

from vlmcache.cache import formats, layout
from vlmcache.cache.gguf import Variant, variants
from vlmcache.cache.model_configs import KnownFiles
from vlmcache.cache.reading import JSON_ERRORS

_LOADED = ("safetensors", "bin", "h5", "msgpack", "ot")
"""Endings of weights in the order in which they are preferred; no library loads the last three."""


class Option(NamedTuple):
    """Files that are enough together, and the one that a loader looks for first."""

    entry: str
    files: frozenset[str]
    note: str | None = None
    """A remark on weights that not every loader finds, see `Division.note`."""


class Weights:
    """The sets of weights of a repo."""

    def __init__(self, files: KnownFiles) -> None:
        self._names, self._present, self._read, self._listed, _ = files
        self.sets = formats.weight_sets(files.names)
        self.left_out = formats.why_left_out(files.names, self.sets)
        self.gguf = variants(files.names)
        self.broken: set[str] = set()
        """Indexes that are here and name no shards, or some that the Hub does not have.

        Filled while the options are made.
        """

    @property
    def all_gguf(self) -> bool:
        """Whether all weights are GGUF files."""
        return bool(self.gguf.variants) and all(
            name.lower().endswith(".gguf") for name in self._names if formats.is_weights(name)
        )

    def gguf_groups(
        self, variant: str | None, sizes: Mapping[str, int]
    ) -> list[tuple[Option, ...]]:
        """Return the options for the GGUF variants, and for the projector of pictures.

        The variant that is closest to complete comes first.
        """
        choices = self.gguf.called(variant) if variant else list(self.gguf.variants)
        choices.sort(key=lambda choice: len({*choice.files} - self._present) / len(choice.files))
        groups = [tuple(map(self._variant_option, choices))] if choices else []
        preferred = self.gguf.projector(sizes)
        if preferred is not None:
            others = [name for name in self.gguf.projectors if name != preferred]
            groups.append(tuple(one_file(name) for name in (preferred, *others)))
        return groups

    def _variant_option(self, variant: Variant) -> Option:
        files = frozenset(variant.files)
        return Option(min(self._present & files, default=variant.files[0]), files)

    def groups(
        self, folders: AbstractSet[str] | None = None, kind: str = ""
    ) -> Iterator[tuple[Option, ...]]:
        """Yield the options for each set of weights; any other file of weights is its own set.

        Args:
            folders: the folders at the top whose sets are loaded; all if not given.
            kind: the preferred variant.
        """
        grouped: dict[formats.WeightKey, list[formats.WeightKey]] = {}
        for key in self.sets:
            if folders is None or key.folder.partition("/")[0] in folders:
                plain = key._replace(variant="") if key.variant in formats.VARIANTS else key
                grouped.setdefault(plain, []).append(key)
        for keys in grouped.values():
            keys.sort(key=lambda key: (key.variant != kind, key.variant))
            options = [option for key in keys for option in self._options(key)]
            if any(option.files - self.left_out.keys() for option in options):
                yield tuple(options)
        parsed = {
            name
            for by_ending in self.sets.values()
            for weights in by_ending.values()
            for name in weights.files
        }
        gguf = self.all_gguf
        for name in self._names - parsed - self.left_out.keys():
            if (
                formats.is_weights(name)
                and (folders is None or name.partition("/")[0] in folders)
                and (gguf or not name.lower().endswith(".gguf"))
            ):
                yield (one_file(name),)

    def _options(self, key: formats.WeightKey) -> list[Option]:
        """Return the formats of a set of weights in the order in which loaders look for them."""
        by_ending = self.sets[key]
        order = [ending for ending in _LOADED if ending in by_ending]
        complete = [ending for ending in order if self._is_usable(by_ending[ending])]
        sound = [ending for ending in complete if ending in ("safetensors", "bin")]
        options = []
        for ending in sound or complete or order:
            note = key.variant if key.variant in formats.VARIANTS else None
            if ending not in ("safetensors", "bin") and key == formats.WEIGHTS:
                note = "no-loader"
            weights = by_ending[ending]
            if weights.single is not None:
                options.append(Option(weights.single, frozenset({weights.single}), note))
            if weights.index_file is not None or weights.shards:
                options.append(self._sharded(weights, note))
        return options

    def _is_usable(self, weights: formats.WeightSet) -> bool:
        """Return whether a set is complete by its names, or by what its index says."""
        if weights.complete or weights.index_file is None:
            return weights.complete
        shards = self._shards(weights)
        return not self._listed or (shards is not None and shards <= self._names)

    def _sharded(self, weights: formats.WeightSet, note: str | None) -> Option:
        index = weights.index_name
        shards = self._shards(weights)
        unknown = shards is None or (self._listed and not shards <= self._names)
        if index in self._present and unknown and self._read(index) is not None:
            self.broken.add(index)
        if shards is None:
            files = weights.expected | {index}
            return Option(index, files & self._names if self._listed else files, note)
        return Option(index, shards | {index}, note)

    def _shards(self, weights: formats.WeightSet) -> frozenset[str] | None:
        """Return the shards that the index names; `None` if it is not here or makes no sense."""
        index = weights.index_name
        if weights.complete and index not in self._present:
            return None
        content = self._read(index)
        return index_shards(index, content) if content is not None else None


def index_shards(index: str, content: bytes) -> frozenset[str] | None:
    """Return the shards that an index names; `None` if it makes no sense.

    It is content of a repo and so not to be trusted: a shard that is not a plain name below the
    index's folder makes it invalid.

    Args:
        index: its name in the repo. Shards lie in the same folder.
        content: its content.
    """
    try:
        shards = frozenset(_INDEX_DECODER.decode(content).weight_map.values())
    except JSON_ERRORS:
        return None
    if not shards or any(map(layout.file_name_problem, shards)):
        return None
    folder = index[: index.rfind("/") + 1]
    return frozenset(folder + name for name in shards)


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


_INDEX_DECODER = msgspec.json.Decoder(_Index)


@layout.by_name
def one_file(name: str) -> Option:
    """Return an option of one file."""
    return Option(name, frozenset({name}))


def is_index(name: str) -> bool:
    """Return whether a file is an index of shards."""
    return ".index." in name and name.endswith(".json")
