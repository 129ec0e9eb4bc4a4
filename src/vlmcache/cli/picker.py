"""Which models and variants a person means by the numbers typed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlmcache import late
from vlmcache.commands.status.values import ModelStatus
from vlmcache.errors import UsageError
from vlmcache.units import did_you_mean

if TYPE_CHECKING:
    from vlmcache.commands.pull.plan import VariantError

_PART = late.pattern(r"(\d+)(?:\s*-\s*(\d+))?")


def variant(error: VariantError) -> str:
    """Ask on stderr which variant of a model is meant, and return its name.

    Raises:
        VariantError: nothing, or none of them, was typed.
    """
    from vlmcache.commands.pull.view import ask_variant

    names, text = list(error.sizes), ask_variant(error).strip()
    if text.isdecimal() and 1 <= int(text) <= len(names):
        return names[int(text) - 1]
    if text in names:
        return text
    raise error


def _named(text: str, models: Sequence[ModelStatus]) -> list[int]:
    """Return the numbers of the models that a name means.

    Raises:
        UsageError: it means none.
    """
    name = text.lower()
    numbers = [
        number
        for number, model in enumerate(models, 1)
        if name in (model.key.lower(), model.repo.lower(), model.repo.lower().rpartition("/")[2])
    ]
    if not numbers:
        near = did_you_mean(text, [model.key for model in models])
        raise UsageError(
            f"no such model in the list: {text!r}",
            near or "type numbers as 1,3 or 1-3, names, or all",
        )
    return numbers


def chosen(text: str, models: Sequence[ModelStatus]) -> list[str]:
    """Return the keys that `1,3`, `1-3`, names or `all` mean, without those that are cached.

    A name is a key or a repo id, in any case, or the end of one after its last slash.

    Raises:
        UsageError: `text` means none of the models, or everything that it means is cached.
    """
    numbers: list[int] = []
    for part in re.split(r"[,\s]+", re.sub(r"\s*-\s*", "-", text.strip())):
        match = _PART.fullmatch(part)
        if part == "all":
            numbers += range(1, len(models) + 1)
        elif match is not None:
            first, last = int(match[1]), int(match[2] or match[1])
            if not 1 <= first <= last <= len(models):
                raise UsageError(f"no such number: {part}", f"type 1 to {len(models)}, or all")
            numbers += range(first, last + 1)
        elif part:
            numbers += _named(part, models)
    if not numbers:
        raise UsageError("nothing chosen")
    picked = [models[number - 1] for number in dict.fromkeys(numbers)]
    missing = [model.key for model in picked if model.state != "cached"]
    if not missing:
        raise UsageError(
            "everything that was chosen is cached already", "'vlmcache status' shows them"
        )
    return missing
