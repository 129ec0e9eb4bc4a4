"""What a refusal means: only a hub's own signs say that a repo does not exist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.kit.hub import LoopbackHub, html, other_server
from tests.kit.pulls import QUICK, REPO, pull
from vlmcache.config import Environment, read_environment
from vlmcache.errors import ExitCode, VlmcacheError
from vlmcache.hub.client import Client
from vlmcache.hub.listing import find_commit
from vlmcache.hub.retry import how_written

FILES = {"config.json": b"{}", "model.safetensors": b"w" * 5000}
JSON = "application/json"


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        yield hub


def refused(hub: LoopbackHub, cache: Path, *names: str, **options: Any) -> VlmcacheError:
    run = pull(hub, cache, *names, **options)
    assert run.problem is not None
    return run.problem


# How the answer looks -> whether the hub itself has signed it.
SIGNS: Mapping[str, tuple[dict[str, Any], bool]] = {
    "plain text": ({}, False),
    "a page": ({"body": b"<html>Sign in</html>", "Content_Type": "text/html"}, False),
    "nothing": ({"body": b"", "Content_Type": ""}, False),
    "fastapi": ({"body": b'{"detail": "Not Found"}', "Content_Type": JSON}, False),
    "artifactory": (
        {"body": b'{"errors": [{"status": 404, "message": "x"}]}', "Content_Type": JSON},
        False,
    ),
    "spring": (
        {
            "body": b'{"timestamp": 1, "status": 404, "error": "Not Found", "path": "/x"}',
            "Content_Type": JSON,
        },
        False,
    ),
    "broken json": ({"body": b'{"error": "No', "Content_Type": JSON}, False),
    "a list": ({"body": b'["error"]', "Content_Type": JSON}, False),
    "the hub's json": (
        {"body": b'{"error": "Repository not found"}', "Content_Type": f"{JSON}; charset=utf-8"},
        True,
    ),
    "the hub's words": ({"X_Error_Message": "Repository not found"}, True),
    "the hub's code": ({"X_Error_Code": "RepoNotFound"}, True),
}


@pytest.mark.parametrize("code", [401, 404])
@pytest.mark.parametrize("sign", SIGNS)
def test_only_a_hubs_own_sign_says_that_there_is_no_such_model(
    hub: LoopbackHub, tmp_path: Path, code: int, sign: str
) -> None:
    answer, is_hubs = SIGNS[sign]
    hub.fault(other_server(code, **answer).on("/revision/"))
    problem = refused(hub, tmp_path / "cache")
    assert problem.exit_code == (ExitCode.NO_MODEL if is_hubs else ExitCode.HUB)
    assert problem.hint
    if not is_hubs:
        # One question, and the address and the status of the answer.
        assert len(hub.requests) == 1
        address = f"{hub.url}/api/models/{REPO}/revision/main"
        assert f"{address} answers {code}" in problem.message
        assert "HF_ENDPOINT" in problem.hint or "login" in problem.hint


@pytest.mark.parametrize("code", [400, 402, 403, 405, 407, 410, 418, 451])
@pytest.mark.parametrize("sign", ["plain text", "a page", "the hub's json"])
def test_any_other_refusal_of_a_question_ends_with_exit_code_8_and_a_hint(
    hub: LoopbackHub, tmp_path: Path, code: int, sign: str
) -> None:
    hub.fault(other_server(code, **SIGNS[sign][0]).on("/revision/"))
    problem = refused(hub, tmp_path / "cache")
    assert problem.exit_code == ExitCode.HUB
    assert problem.hint
    assert len(hub.requests) == 1


@pytest.mark.parametrize("code", [401, 403, 404])
def test_what_is_cached_is_used_if_something_else_than_the_hub_refuses(
    hub: LoopbackHub, tmp_path: Path, code: int
) -> None:
    cache = tmp_path / "cache"
    assert pull(hub, cache).problem is None
    hub.fault(html(code).on(times=None))
    run = pull(hub, cache)
    assert run.problem is None
    assert [finding.code for finding in run.findings] == ["hub-not-asked"]
    assert f"answers {code} with a web page" in run.findings[0].detail


def test_what_is_cached_stays_in_use_if_the_hub_has_the_repo_no_more(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert pull(hub, cache).problem is None
    hub.remove(REPO)
    run = pull(hub, cache)
    assert run.problem is None
    assert [model.state for model in run.models] == ["cached"]
    assert [finding.code for finding in run.findings] == ["hub-not-asked"]
    assert f"no such model on {hub.url}: {REPO}" in run.findings[0].detail


def test_a_hub_of_ones_own_is_not_answered_with_how_to_log_in_at_hugging_face(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.accept_token("hf_other1234")
    rejected = refused(hub, tmp_path / "cache", token="hf_mine1234")
    assert rejected.hint == f"set HF_TOKEN to a token of {hub.url}"
    unknown = refused(hub, tmp_path / "cache", "nobody/nothing")
    assert unknown.hint == (
        f"check the name; if it is private, set HF_TOKEN to a token of {hub.url}"
    )


def test_no_secret_of_an_address_is_shown(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fault(other_server(404).on("/revision/"))
    login = {"HF_ENDPOINT": hub.url.replace("http://", "http://me:geheim@")}
    problem = refused(hub, tmp_path / "cache", extra=login, token="hf_geheimgeheim")
    assert "answers 404" in problem.message
    assert "geheim" not in f"{problem.message}{problem.hint}"


@pytest.mark.parametrize("code", [401, 403])
@pytest.mark.parametrize("token", ["hf_mine1234", None])
def test_a_question_that_is_redirected_elsewhere_says_that_the_token_stays_behind(
    hub: LoopbackHub, tmp_path: Path, code: int, token: str | None
) -> None:
    if token:
        hub.accept_token(token)
    target = f"{hub.cdn_url}/api/models/{REPO}/revision/main"
    hub.fault(other_server(302, Location=target).on("/revision/", host="hub"))
    hub.fault(other_server(code).on("/revision/", host="cdn"))
    problem = refused(hub, tmp_path / "cache", token=token)
    assert problem.exit_code == ExitCode.HUB
    assert f"{target} answers {code}" in problem.message
    assert problem.hint is not None
    hint = f"the token was not forwarded: it is only sent to {hub.url}, which redirects to"
    assert (f"{hint} {hub.cdn_url}" in problem.hint) == (token is not None)


def test_a_hub_that_a_dotenv_names_is_refused_with_what_lets_one_in(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine1234")
    (tmp_path / ".env").write_text(f"HF_ENDPOINT={hub.url}\n")
    hub.fault(other_server(401).on("/revision/"))
    asking = Client(read_environment({"HF_TOKEN": "hf_mine1234"}, str(tmp_path)), patience=QUICK)
    with pytest.raises(VlmcacheError) as raised:
        find_commit(asking, REPO, "main")
    assert raised.value.exit_code == ExitCode.HUB
    assert raised.value.hint == asking.how_to_log_in
    assert not hub.requests[0].authorization


ASKED = "/api/models/org/name/revision/main"


@pytest.mark.parametrize(
    ("given", "better"),
    [
        ("https://mirror.example", None),
        ("https://mirror.example/", None),
        ("http://mirror.example:8080/hf", None),
        ("https://host/artifactory/api/huggingfaceml/remote", None),
        ("https://host/repository/hf", None),
        ("mirror.example", "https://mirror.example"),
        ("mirror.example/hf", "https://mirror.example/hf"),
        ("ftp://mirror.example", "https://mirror.example"),
        ("https://mirror.example/api", "https://mirror.example"),
        ("https://mirror.example/api/models", "https://mirror.example"),
        ("https://mirror.example/hf/api/models/org/name", "https://mirror.example/hf"),
        ("https://mirror.example/org/name/resolve/main", "https://mirror.example"),
        ("https://mirror.example/org/name/tree/main", "https://mirror.example"),
        ("https://mirror.example/org/name", "https://mirror.example"),
        ("http://me:geheim@mirror.example/hf/org/name", "http://mirror.example/hf"),
    ],
)
def test_an_endpoint_that_is_written_otherwise_is_named_as_it_must_be(
    given: str, better: str | None
) -> None:
    account = Client(Environment({"HF_ENDPOINT": given}, frozenset(), "/"))
    advice = how_written(account, urlsplit(account.endpoint).path + ASKED)
    if better is None:
        assert advice is None
    else:
        assert advice is not None
        assert advice.startswith(f"HF_ENDPOINT must be written as {better}, and not as ")
        assert "geheim" not in advice


def test_the_hint_of_a_refusal_says_how_the_endpoint_is_written(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    for end in ("/api", f"/{REPO}", f"/{REPO}/resolve/main"):
        problem = refused(hub, tmp_path / "cache", extra={"HF_ENDPOINT": hub.url + end})
        assert problem.exit_code == ExitCode.HUB, end
        assert f"HF_ENDPOINT must be written as {hub.url}, and not as" in str(problem.hint), end


@pytest.mark.parametrize("target", ["http://[::1/x", "ftp://127.0.0.1/x"])
def test_a_redirect_to_what_is_no_address_is_not_called_unencrypted(
    hub: LoopbackHub, tmp_path: Path, target: str
) -> None:
    hub.fault(other_server(302, b"", Location=target).on("/resolve/"))
    problem = refused(hub, tmp_path)
    assert problem.exit_code == ExitCode.HUB
    said = f"redirects to {target}, which is not an address: not followed" in problem.message
    # On Python 3.10, the client's library refuses the first of them before it can be looked at.
    assert said or "Invalid URL" in problem.message
