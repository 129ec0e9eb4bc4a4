"""What a pull learns of a repo's gate, which `serve` asks for before it passes files on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.hub import LoopbackHub
from tests.kit.pulls import environment, pull
from vlmcache.config import own_home
from vlmcache.home.journal import Journal

TOKEN = "hf_" + "t" * 20
FILES = {"config.json": b"{}"}


def learned(hub: LoopbackHub, cache: Path) -> dict[tuple[str, str], str]:
    with Journal(own_home(environment(hub, cache))[0]) as journal:
        return journal.restricted()


@pytest.mark.parametrize(
    ("gated", "private", "how"), [(True, False, "gated"), (False, True, "private")]
)
def test_a_pull_remembers_a_gated_or_private_repo_until_it_is_open(
    tmp_path: Path, gated: bool, private: bool, how: str
) -> None:
    cache = tmp_path / "hub"
    with LoopbackHub() as hub:
        repo = hub.add_repo("org/name", gated=gated, private=private)
        repo.commit(FILES)
        hub.accept_token(TOKEN)
        pull(hub, cache, token=TOKEN, dry_run=True).check()
        assert learned(hub, cache) == {}
        pull(hub, cache, token=TOKEN).check()
        assert learned(hub, cache) == {("model", "org/name"): how}
        repo.gated = repo.private = False
        repo.commit({"config.json": b"{}", "new.json": b"{}"})
        pull(hub, cache, token=TOKEN).check()
        assert learned(hub, cache) == {}


def test_a_pull_of_a_commit_asks_for_it_too_and_a_dataset_is_remembered(tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    with LoopbackHub() as hub:
        hub.accept_token(TOKEN)
        commit = hub.add_repo("org/name", gated=True).commit(FILES)
        hub.add_repo("org/set", kind="dataset", gated=True).commit({"a.txt": b"a"})
        pull(hub, cache, f"org/name@{commit}", "datasets/org/set", token=TOKEN).check()
        assert learned(hub, cache) == {
            ("model", "org/name"): "gated",
            ("dataset", "org/set"): "gated",
        }


def test_an_open_repo_leaves_no_record(tmp_path: Path) -> None:
    cache = tmp_path / "hub"
    with LoopbackHub() as hub:
        commit = hub.add_repo("org/name").commit(FILES)
        pull(hub, cache, f"org/name@{commit}").check()
        assert learned(hub, cache) == {}
        assert hub.count(contains="auth-check") == 0
