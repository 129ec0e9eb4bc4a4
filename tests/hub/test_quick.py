"""The quick question answers only where it is sure, and never gives a token away."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.hub import (
    Fault,
    LoopbackHub,
    hang,
    html,
    malformed_json,
    rate_limited,
    reset,
    status,
)
from tests.kit.pulls import REPO, pull, variables, vlmcache
from vlmcache.config import Environment
from vlmcache.hub.client import Client
from vlmcache.hub.quick import commit_of

FILES = {"config.json": b"{}", "model.safetensors": b"w" * 5000}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


def ask(hub: LoopbackHub, repo: str = REPO, **extra: str) -> str | None:
    environment = Environment(
        {"HF_ENDPOINT": hub.url, "HF_HOME": "/none"} | extra, frozenset(), "/"
    )
    return commit_of(Client(environment), repo, "main")


def test_a_plain_answer_names_the_commit(hub: LoopbackHub) -> None:
    commit = hub.add_repo(REPO).commit(FILES)
    assert ask(hub) == commit
    assert len(hub.requests) == 1


def test_the_token_is_sent_to_the_hub_from_wherever_it_is(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.add_repo(REPO, private=True).commit(FILES)
    hub.accept_token("hf_x")
    assert ask(hub) is None
    assert ask(hub, HF_TOKEN="hf_x") == commit
    (tmp_path / "token").write_text("hf_x\n")
    assert ask(hub, HF_HOME=str(tmp_path)) == commit
    assert ask(hub, HF_HOME=str(tmp_path), HF_HUB_DISABLE_IMPLICIT_TOKEN="1") is None


UNSURE: dict[str, Fault] = {
    "down": status(503),
    "limited": rate_limited(1),
    "portal": html(),
    "half": malformed_json(),
    "reset": reset(),
    "moved": status(307),
}


@pytest.mark.parametrize("case", UNSURE)
def test_anything_else_is_left_to_the_client(hub: LoopbackHub, case: str) -> None:
    hub.add_repo(REPO).commit(FILES)
    hub.fault(UNSURE[case])
    assert ask(hub) is None


def test_a_renamed_repo_a_proxy_and_no_network_are_left_to_the_client(hub: LoopbackHub) -> None:
    hub.add_repo(REPO).commit(FILES)
    hub.rename(REPO, "org/new")
    assert ask(hub) is None
    assert ask(hub, "org/new", HTTPS_PROXY="http://127.0.0.1:9") is None
    assert ask(hub, "org/new", HF_HUB_OFFLINE="1") is None
    assert ask(hub, "org/new") is not None


def test_a_hub_that_hangs_does_not_hold_up_what_is_cached(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_repo(REPO).commit(FILES)
    assert pull(hub, tmp_path / "cache").problem is None
    hub.fault(hang().on(times=None))
    run = pull(hub, tmp_path / "cache")
    assert run.models[0].state == "cached"
    assert run.findings[0].code == "hub-not-asked"


def test_what_is_cached_is_reported_without_huggingface_hub(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.add_repo(REPO).commit(FILES)
    cache = tmp_path / "cache"
    assert vlmcache(hub, cache, "pull", REPO).returncode == 0
    script = (
        "import sys\n"
        "from vlmcache.cli.main import _run\n"
        f"assert _run(['pull', '{REPO}', '-q']) == 0\n"
        "heavy = {'huggingface_hub', 'httpx2', 'httpx', 'rich', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], env=variables(hub, cache), cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def test_a_cache_without_a_listing_is_asked_about_and_gets_one(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    commit = hub.add_repo(REPO).commit(FILES)
    cache = tmp_path / "cache"
    assert pull(hub, cache).problem is None
    tree = cache / f"models--org--name/trees/{commit}.json"
    tree.unlink()
    offline = pull(hub, cache, extra={"HF_HUB_OFFLINE": "1"})
    assert offline.problem is None
    assert offline.models[0].size == 5002
    assert pull(hub, cache, f"{REPO}@{commit}").models[0].state == "cached"
    assert tree.exists()
