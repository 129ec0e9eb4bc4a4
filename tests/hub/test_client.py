"""Addresses, waits and secrets, as the client of the hub handles them."""

from __future__ import annotations

import email.utils
import time
from pathlib import Path

import pytest

from tests.kit.hub import LoopbackHub, status
from tests.kit.pulls import REPO, pull
from vlmcache.config import Environment, read_environment
from vlmcache.hub import client as hub_client
from vlmcache.hub.client import Client
from vlmcache.hub.listing import resolve
from vlmcache.hub.quick import commit_of

FILES = {"config.json": b"{}", "model.safetensors": b"w" * 5000, "z.json": b"{}"}


def client(endpoint: str, token: str | None = None) -> Client:
    return Client(Environment({"HF_ENDPOINT": endpoint}, frozenset(), "/"), token=token)


def test_a_next_page_is_asked_of_the_hub_itself_whatever_host_it_names(tmp_path: Path) -> None:
    mirror = client("http://127.0.0.1:9")
    named = "https://huggingface.co/api/models/a/b/tree/main?cursor=2"
    assert mirror.within(named) == "http://127.0.0.1:9/api/models/a/b/tree/main?cursor=2"
    with LoopbackHub(page_size=1) as hub:
        hub.add_repo(REPO).commit(FILES)
        hub.url, real = "http://hub.invalid", hub.url
        environment = {"HF_ENDPOINT": real}
        assert pull(hub, tmp_path / "cache", extra=environment).error is None


@pytest.mark.parametrize(
    ("named_by", "lines", "sent"),
    [
        ("environment", "", "hf_mine"),
        (".env", "HF_ENDPOINT={}", None),
        (".env", "HF_ENDPOINT={}\nHF_TOKEN=hf_theirs", "hf_theirs"),
    ],
)
def test_a_hub_that_the_working_folder_names_gets_no_token_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named_by: str, lines: str, sent: str | None
) -> None:
    variables = {} if sent == "hf_theirs" else {"HF_TOKEN": "hf_mine"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        for token in ("hf_mine", "hf_theirs"):
            hub.accept_token(token)
        if named_by == "environment":
            variables["HF_ENDPOINT"] = hub.url
        (tmp_path / ".env").write_text(lines.format(hub.url))
        asking = Client(read_environment(variables, str(tmp_path)))
        assert commit_of(asking, REPO, "main") == resolve(asking, REPO, "main").commit
        assert [request.authorization for request in hub.requests] == [sent is not None] * 2
        assert asking.headers.get("authorization") == (sent and f"Bearer {sent}")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "17"}, 17.0),
        ({"RateLimit": '"api";r=0;t=55'}, 55.0),
        ({"RateLimit": '"api";r=3;t=55'}, None),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_the_wait_that_an_answer_asks_for_is_read(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert hub_client._asked_wait(headers) == seconds


def test_a_wait_can_be_given_as_a_date() -> None:
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    wait = hub_client._asked_wait({"Retry-After": date})
    assert wait is not None
    assert 25 < wait <= 31


def test_secrets_are_cut_out_of_every_text() -> None:
    one = client("https://me:pass@mirror.example/hf", token="hf_topsecret")
    assert one.name == "https://mirror.example/hf"
    text = one.scrub(
        "Bearer hf_topsecret at https://me:pass@mirror.example/x?X-Signature=abc and 'done'"
    )
    assert text == "Bearer *** at https://mirror.example/x and 'done'"


@pytest.mark.parametrize(
    ("address", "target", "may"),
    [
        ("https://a/x", "https://b/y", True),
        ("https://a/x", "http://a/y", False),
        ("http://a/x", "http://b/y", True),
        ("http://a/x", "https://b/y", True),
        ("https://a/x", "file:///etc/passwd", False),
    ],
)
def test_a_redirect_never_leads_to_a_less_safe_place(address: str, target: str, may: bool) -> None:
    assert hub_client._may_follow(address, target) is may


def test_a_token_in_the_hubs_own_words_is_not_repeated(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        hub.accept_token("hf_topsecret")
        hub.fault(status(418).on(times=None))
        run = pull(hub, tmp_path / "cache", token="hf_topsecret")
    assert run.error is not None
    assert "hf_topsecret" not in f"{run.error.message}{run.error.hint}"
    assert run.error.exit_code == 8
