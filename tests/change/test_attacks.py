"""A member who swaps parts of a shared cache while root works on it: nothing outside is touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.attacks import FILES, SharedCache, as_command, attacks, shared_cache
from tests.kit.caches import CacheBuilder
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import small_config

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

TRIES = int(os.environ.get("ATTACKS", "2"))
"""At how many of its calls each attack befalls a command."""
NEW = {**FILES, "model.safetensors": b"other weights " * 500, "more/new.json": b"{}"}

with shared_cache() as _sample:
    ATTACKS = list(attacks(_sample))


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        repo = hub.add_repo("org/name")
        for files in (FILES, {**FILES, "config.json": b"{}"}, NEW):
            repo.commit(files)
        yield hub


def backed_up(shared: SharedCache) -> str:
    """Return a store that holds a newer revision of the member's repo."""
    source = CacheBuilder(shared.folder / "source")
    source.repo("org/name").revision(NEW)
    store = f"{shared.folder}/store/"
    variables = {"HF_HUB_CACHE": str(source.root), "VLMCACHE_HOME": str(shared.folder / "own")}
    done = shared.run(as_command("backup", store, "--yes", variables=variables))
    assert done.code == 0, done.errors
    return store


def damaged(shared: SharedCache) -> list[str]:
    shared.repo.blob("model.safetensors").write_bytes(b"damaged " * 500)
    return ["verify", "--repair", "--yes"]


COMMANDS: dict[str, Callable[[SharedCache], list[str]]] = {
    "rm": lambda _: ["rm", "org/name", "--yes"],
    "clean": lambda _: ["clean", "--partials", "--yes"],
    "status": lambda _: ["status"],
    "verify": lambda _: ["verify"],
    "repair": damaged,
    "pull": lambda _: ["pull", "org/name", "--yes"],
    "backup": lambda shared: ["backup", f"{shared.folder}/store/"],
    "restore": lambda shared: ["restore", backed_up(shared), "--overwrite"],
    "move": lambda shared: ["move", f"{shared.folder}/destination", "org/name", "--yes"],
    "doctor": lambda _: ["doctor", "--fix"],
}
HELD = [name for name in COMMANDS if name not in ("repair", "pull", "restore")]
CALLS: dict[str, int] = {}


def prepared(command: str, shared: SharedCache, hub: LoopbackHub) -> Callable[[], None]:
    variables = {
        name: value
        for name, value in hub.environment(shared.root).items()
        if name.startswith(("HF_", "NO_PROXY"))
    }
    own = {
        "VLMCACHE_HOME": str(shared.folder / "own"),
        "VLMCACHE_CONFIG": str(small_config(shared.folder)),
    }
    return as_command(*COMMANDS[command](shared), variables=variables | own)


@pytest.mark.parametrize("command", HELD)
@pytest.mark.parametrize("attack", ATTACKS)
def test_whatever_a_member_swaps_at_any_call_nothing_outside_is_touched(
    hub: LoopbackHub, command: str, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmcache.change.tree.WAIT_SECONDS", 0.2)
    if command not in CALLS:
        with shared_cache() as shared:
            CALLS[command] = shared.run(prepared(command, shared, hub)).calls
    calls = CALLS[command]
    assert calls > 20
    for turn in range(TRIES):
        # At other calls for each attack, so that all of them together cover the command.
        nth = 1 + (calls * turn + calls * ATTACKS.index(attack) // len(ATTACKS)) // TRIES
        with shared_cache() as shared:
            command_line = prepared(command, shared, hub)
            done = shared.run(command_line, attacks(shared)[attack], nth)
            shared.check(done, *_others(shared.folder))


def _others(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name not in ("hub", "outside")]
