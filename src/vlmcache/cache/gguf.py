"""The variants of a model, by the names of its GGUF files (pure)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vlmcache import late
from vlmcache.cache import layout

_PART = late.pattern(r"(.+)-(\d{5})-of-(\d{5})")
_QUANTIZATION = late.pattern(r"(?:I?Q\d|TQ\d|MXFP\d|NVFP\d|BF16|FP?(?:8|16|32))\w*", re.IGNORECASE)
_MOST_PARTS = 2000
"""More than any model has; a name that claims more is not believed."""


class Variant(NamedTuple):
    """One quantization of a model: a file, or a split set of files."""

    name: str
    """What follows the colon in `org/name:Q4_K_M`; unique in its repo."""
    files: tuple[str, ...]
    """All its files in order, those of a split set that are missing included."""
    aliases: frozenset[str]
    """Other names for it, in lower case."""


class Variants(NamedTuple):
    """The GGUF files of a repo."""

    variants: tuple[Variant, ...]
    projectors: tuple[str, ...]
    """The mmproj files: the part of a model that sees or hears. Each works with every variant."""

    def called(self, word: str) -> list[Variant]:
        """Return the variants that a word names, by their tag, folder or file name, in any case."""
        word = word.casefold()
        exact = [variant for variant in self.variants if variant.name.casefold() == word]
        return exact or [variant for variant in self.variants if word in variant.aliases]

    def sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Return the name of each variant -> its bytes.

        Args:
            sizes: file name -> bytes, as far as they are known.
        """
        return {
            variant.name: sum(sizes.get(name, 0) for name in variant.files)
            for variant in self.variants
        }

    def projector(self, sizes: Mapping[str, int]) -> str | None:
        """Return the mmproj file to have next to a variant: f16, else the smallest.

        Args:
            sizes: file name -> bytes, as far as they are known.
        """

        def preference(name: str) -> tuple[bool, int, str]:
            return _tag(_stem(name)).casefold() not in ("f16", "fp16"), sizes.get(name, 0), name

        return min(self.projectors, key=preference, default=None)


@layout.by_name
def is_gguf(name: str) -> bool:
    """Return whether a name is that of GGUF weights, and not of an importance matrix."""
    return name.lower().endswith(".gguf") and "imatrix" not in name.rpartition("/")[2].lower()


def variants(names: Iterable[str]) -> Variants:
    """Return the variants among the names of a repo's files, sorted by their own names.

    A variant is named by the tag between the last `-` or `.` and `.gguf`, by its folder if its tag
    is not a quantization, and by its path if several variants would get the same name.
    """
    named = sorted(set(filter(is_gguf, names)))
    if not named:
        return Variants((), ())
    projectors: list[str] = []
    sets: dict[tuple[str, int], tuple[str, ...]] = {}
    for name in named:
        if "mmproj" in name.rpartition("/")[2].lower():
            projectors.append(name)
            continue
        stem, count = _stem(name), 0
        part = _PART.fullmatch(stem)
        if part is not None and 0 < int(part[2]) <= int(part[3]) <= _MOST_PARTS:
            stem, count = part[1], int(part[3])
        ending = name[-len(".gguf") :]
        sets[stem, count] = (
            tuple(f"{stem}-{number:05}-of-{count:05}{ending}" for number in range(1, count + 1))
            if count
            else (name,)
        )
    short_names = {key: _name(key[0]) for key in sets}
    uses = Counter(name.casefold() for name in short_names.values())
    stems = Counter(stem.casefold() for stem, _ in sets)
    found = []
    for (stem, count), files in sets.items():
        name = short_names[stem, count]
        if uses[name.casefold()] > 1:
            # If the same weights are in one file and in parts too, the one file has the plain path.
            name = files[0][: -len(".gguf")] if stems[stem.casefold()] > 1 else stem
        found.append(Variant(name, files, _aliases(stem)))
    return Variants(tuple(sorted(found)), tuple(projectors))


def _stem(name: str) -> str:
    return name[: -len(".gguf")]


def _tag(stem: str) -> str:
    return re.split(r"[-./]", stem)[-1]


def _name(stem: str) -> str:
    folder, _, base = stem.rpartition("/")
    tag = _tag(stem)
    if _QUANTIZATION.fullmatch(tag):
        return tag
    return folder.rpartition("/")[2] or base


def _aliases(stem: str) -> frozenset[str]:
    folder, _, base = stem.rpartition("/")
    tag = _tag(stem)
    words = {tag, folder, folder.rpartition("/")[2], base, stem, f"{base}.gguf", f"{stem}.gguf"}
    if base[: -len(tag)].casefold().endswith(("-ud-", ".ud-")):
        words.add(f"UD-{tag}")  # Unsloth's dynamic quantizations
    return frozenset(word.casefold() for word in words if word)
