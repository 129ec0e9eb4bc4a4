"""File names of real repositories, and repositories made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.kit.contents import Content
from vlmcache.cache.formats import OTHER_CONFIGS

REPOSITORIES: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "cache" / "repositories.json").read_text()
)
"""Repo -> its files, with those that its loader needs, does not need, and a pull leaves out."""


def contents(names: Iterable[str], config: dict[str, Any] | None = None) -> dict[str, Content]:
    """Return content for files, each different: indexes name their shards, configs are JSON."""
    every = sorted(names)
    return {name: _content(name, every, config) for name in every}


def _content(name: str, names: list[str], config: dict[str, Any] | None) -> bytes:
    if name == "config.json":
        return json.dumps(config or {}).encode()
    if ".index." in name:
        stem, _, rest = name.partition(".")
        ending, _, variant = rest.removesuffix(".json").partition(".index")
        shards = [
            other.rpartition("/")[2]
            for other in names
            if other.startswith(f"{stem}{variant}-") and other.endswith(f".{ending}")
        ]
        single = f"{stem}{variant}.{ending}".rpartition("/")[2]
        weight_map = {f"layer.{number}": shard for number, shard in enumerate(shards or [single])}
        return json.dumps({"weight_map": weight_map}).encode()
    if name in OTHER_CONFIGS:
        return json.dumps({"name": name}).encode()
    return f"content of {name}".encode()
