"""The nodes of a cluster: their names, the wanted ones, and whether their versions fit (pure)."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from vlmcache import late
from vlmcache.commands.fleet.calls import Node
from vlmcache.commands.fleet.values import VersionsError
from vlmcache.errors import UsageError
from vlmcache.units import first_of

if TYPE_CHECKING:
    from vlmcache.commands.fleet.actor import Hello
    from vlmcache.commands.fleet.wire import NodeFacts

_SHORT = 6
"""Digits of a node's id that tell nodes of the same name apart."""
_RANGES = late.pattern(r"\[([0-9,\-]+)\]")
_MOST = 10_000


def named_nodes(facts: Sequence[NodeFacts]) -> tuple[Node, ...]:
    """Return the nodes that are alive, sorted by name, each with a name of its own."""
    alive = [node for node in facts if node.alive]
    taken = Counter(node.name for node in alive)
    nodes = [
        Node(
            node.id,
            node.name if taken[node.name] == 1 else f"{node.name}-{node.id[:_SHORT]}",
            node.address,
            node.labels,
        )
        for node in alive
    ]
    return tuple(sorted(nodes, key=lambda node: _natural(node.name)))


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts gpu2 before gpu10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def select_nodes(nodes: Sequence[Node], wanted: Iterable[str]) -> tuple[Node, ...]:
    """Return the nodes that are wanted, all if none is named.

    Args:
        nodes: all of them.
        wanted: names, addresses, labels `KEY=VALUE`, patterns of names, or ranges `gpu[1-4]`,
            several of them separated by commas.

    Raises:
        UsageError: a name matches no node.
    """
    words = [word for text in wanted for word in _split(text)]
    if not words:
        if not nodes:
            raise UsageError("the cluster has no nodes that are alive")
        return tuple(nodes)
    chosen: set[str] = set()
    for word in words:
        for name in expand_ranges(word):
            matched = [node.id for node in nodes if _matches(node, name)]
            if not matched:
                raise _unknown(name, nodes)
            chosen.update(matched)
    return tuple(node for node in nodes if node.id in chosen)


def _split(text: str) -> list[str]:
    """Return the parts between commas that are not in brackets."""
    parts = re.split(r",(?![^\[]*\])", text)
    return [part.strip() for part in parts if part.strip()]


def expand_ranges(word: str) -> Iterator[str]:
    """Yield the names that `gpu[1-4,7]` means; `[01-10]` keeps its zeros.

    Raises:
        UsageError: what is in brackets is not a range.
    """
    pieces = _RANGES.split(word)
    choices = [
        [piece] if number % 2 == 0 else list(_numbers(word, piece))
        for number, piece in enumerate(pieces)
    ]
    for combination in itertools.islice(itertools.product(*choices), _MOST):
        yield "".join(combination)


def _numbers(word: str, text: str) -> Iterator[str]:
    for part in text.split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        # Python refuses to read thousands of digits.
        numbers = first.isdecimal() and last.isdecimal() and len(part) < 100
        if not numbers or int(first) > int(last):
            raise UsageError(f"not a range of nodes: '{word}'", "write it as in 'gpu[1-4,7]'")
        width = len(first) if first.startswith("0") else 0
        for number in range(int(first), min(int(last), int(first) + _MOST) + 1):
            yield str(number).zfill(width)


def _matches(node: Node, name: str) -> bool:
    if "=" in name:
        key, _, value = name.partition("=")
        return node.labels.get(key) == value
    by_id = len(name) >= _SHORT and node.id.startswith(name)
    return name == node.address or by_id or fnmatchcase(node.name.casefold(), name.casefold())


def _unknown(name: str, nodes: Sequence[Node]) -> UsageError:
    if "=" in name:
        return UsageError(f"no node has the label '{name}'")
    return UsageError(
        f"no such node: '{name}'", f"the cluster has {first_of([node.name for node in nodes])}"
    )


def require_same_versions(own: Hello, hellos: Mapping[str, Hello]) -> None:
    """Make sure that all nodes have the versions of this machine.

    Args:
        own: the versions of this machine.
        hellos: name of a node -> its versions.

    Raises:
        VersionsError: some have other versions.
    """
    here = _versions(own)
    others: dict[str, list[str]] = {}
    for node, hello in hellos.items():
        versions = _versions(hello)
        words = [f"{name} {versions[name]}" for name in here if versions[name] != here[name]]
        if words:
            others.setdefault(", ".join(words), []).append(node)
    if others:
        text = "; ".join(f"{words} on {first_of(names)}" for words, names in others.items())
        mine = ", ".join(f"{name} {version}" for name, version in here.items())
        raise VersionsError(
            f"nodes have other versions: {text}; here {mine}",
            "install the same versions on all nodes",
        )


def _versions(hello: Hello) -> dict[str, str]:
    return {
        "vlmcache": hello.vlmcache,
        # Ray itself compares the rest of Python's version, as strictly as it needs it.
        "Python": ".".join(hello.python.split(".")[:2]),
        "Ray": hello.ray,
    }
