"""Which models a person means by the numbers that were typed (pure)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmcache.commands.status.values import ModelStatus
from vlmcache.errors import UsageError

_PART = re.compile(r"(\d+)(?:\s*-\s*(\d+))?")


def chosen(text: str, models: Sequence[ModelStatus]) -> list[str]:
    """Return the keys that `1,3`, `1-3` or `all` mean, without those that are cached already.

    Raises:
        UsageError: the text means none of the models, or all that it means is cached.
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
            raise UsageError(f"not understood: {part!r}", "type numbers as 1,3 or 1-3, or all")
    if not numbers:
        raise UsageError("nothing chosen")
    picked = [models[number - 1] for number in dict.fromkeys(numbers)]
    lacking = [model.key for model in picked if model.state != "cached"]
    if not lacking:
        raise UsageError("all that was chosen is cached already", "'vlmcache status' shows them")
    return lacking
