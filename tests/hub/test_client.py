"""Addresses, waits and secrets, as the client of the hub handles them."""

from __future__ import annotations

import email.utils
import gzip
import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.hub import LoopbackHub, status
from tests.kit.pulls import REPO, pull
from vlmcache import log
from vlmcache.config import Environment, read_environment
from vlmcache.errors import HostileListingError, SettingError, UsageError
from vlmcache.hub import client as hub_client
from vlmcache.hub.client import Client
from vlmcache.hub.listing import find_commit, list_files
from vlmcache.hub.quick import commit_of
from vlmcache.hub.retry import asked_wait

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
        assert pull(hub, tmp_path / "cache", extra=environment).problem is None


def test_a_home_that_a_dotenv_names_is_not_where_the_libraries_keep_their_side_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HOME", "HF_XET_CACHE", "HF_MODULES_CACHE"):
        # Set first, so that what is handed on to the libraries is taken back afterwards.
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    (tmp_path / ".env").write_text(f"HF_HOME={tmp_path}/theirs\n")
    home = os.environ["HOME"]
    assert Client(read_environment({"HOME": home}, str(tmp_path))).headers
    assert os.environ["HF_HOME"] == f"{tmp_path}/theirs"
    assert os.environ["HF_XET_CACHE"] == f"{home}/.cache/huggingface/xet"
    assert os.environ["HF_MODULES_CACHE"] == f"{home}/.cache/huggingface/modules"


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
        assert commit_of(asking, REPO, "main") == find_commit(asking, REPO, "main").commit
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
    assert asked_wait(headers) == seconds


def test_a_wait_can_be_given_as_a_date() -> None:
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    wait = asked_wait({"Retry-After": date})
    assert wait is not None
    assert 25 < wait <= 31


def test_secrets_are_cut_out_of_every_text() -> None:
    account = client("https://me:pass@mirror.example/hf", token="hf_topsecret")
    assert account.name == "https://mirror.example/hf"
    text = log.scrub(
        "Bearer hf_topsecret at https://me:pass@mirror.example/x?X-Signature=abc and 'done'"
    )
    assert text == "Bearer *** at https://mirror.example/x and 'done'"


@pytest.mark.parametrize(
    ("address", "target", "may", "may_if_checked"),
    [
        ("https://a/x", "https://b/y", True, True),
        ("https://a/x", "http://a/y", False, True),
        ("HTTPS://a/x", "HTTP://a/y", False, True),
        ("http://a/x", "http://b/y", True, True),
        ("http://a/x", "https://b/y", True, True),
        ("https://a/x", "file:///etc/passwd", False, False),
        ("https://a/x", "ftp://b/y", False, False),
        ("http://a/x", "http://b:99999/y", False, False),
        ("http://a/x", "http://[b/y", False, False),
    ],
)
def test_a_redirect_leads_to_a_less_safe_place_only_for_what_a_hash_checks(
    address: str, target: str, may: bool, may_if_checked: bool
) -> None:
    for checked, followed in ((False, may), (True, may_if_checked)):
        found = hub_client._followed(address, target, checked=checked)
        assert found == (target if followed else None)


def test_a_token_in_the_hubs_own_words_is_not_repeated(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        hub.accept_token("hf_topsecret")
        hub.fault(status(418).on(times=None))
        run = pull(hub, tmp_path / "cache", token="hf_topsecret")
    assert run.problem is not None
    assert "hf_topsecret" not in f"{run.problem.message}{run.problem.hint}"
    assert run.problem.exit_code == 8


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", " "])
def test_a_token_with_the_end_of_its_line_is_used_without_it(tmp_path: Path, end: str) -> None:
    with LoopbackHub() as hub:
        hub.accept_token("hf_topsecret")
        hub.add_repo(REPO, private=True).commit(FILES)
        assert pull(hub, tmp_path / "cache", token=f"hf_topsecret{end}").problem is None


@pytest.mark.parametrize("token", ["", " ", "hf_top secret", "hf_top\nsecret", "hf_geheim\u00e4"])
def test_what_cannot_be_a_token_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(UsageError) as raised:
        client("http://127.0.0.1:9", token=token)
    assert "secret" not in str(raised.value)


def test_a_secret_is_cut_out_as_python_writes_it_too() -> None:
    account = client("http://127.0.0.1:9", token="hf_a\\b")
    assert log.scrub(f"header {account.token!r}") == "header '***'"


@pytest.mark.parametrize("endpoint", ["http://localhost:99999", "http://[bad", "http://h:x"])
def test_an_endpoint_that_is_not_an_address_is_reported_in_one_line(endpoint: str) -> None:
    with pytest.raises(SettingError, match="HF_ENDPOINT is not an address"):
        find_commit(client(endpoint), REPO, "main")


def test_an_endpoint_that_is_not_an_address_is_shown_without_its_password() -> None:
    with pytest.raises(SettingError) as raised:
        find_commit(client("http://me:pass@localhost:99999"), REPO, "main")
    assert raised.value.message.endswith("http://localhost:99999")


@pytest.mark.parametrize("endpoint", ["mirror.example", "ftp://127.0.0.1", "http://"])
def test_no_address_but_http_and_https_is_asked_quickly(endpoint: str) -> None:
    assert commit_of(client(endpoint, token="hf_topsecret"), REPO, "main") is None


def test_a_next_page_stays_below_the_path_of_the_endpoint() -> None:
    mirror = client("http://127.0.0.1:9/mirror/hf")
    page = "/api/models/a/b/tree/main?cursor=2"
    assert mirror.within(f"https://huggingface.co{page}") == f"http://127.0.0.1:9/mirror/hf{page}"
    named = f"http://127.0.0.1:9/mirror/hf{page}"
    assert mirror.within(named) == named


class _Odd(http.server.BaseHTTPRequestHandler):
    """A hub that compresses its answers, or whose listing never ends."""

    def do_GET(self) -> None:
        body = gzip.compress(json.dumps({"sha": "c" * 40, "id": REPO}).encode())
        if "/tree/" in self.path:
            body = gzip.compress(b"[]")
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        if "/tree/" in self.path:
            self.send_header("Link", f'<{self.path}>; rel="next"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def odd() -> Iterator[Client]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Odd)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield client(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def test_a_hub_that_compresses_although_asked_not_to_is_understood(odd: Client) -> None:
    assert find_commit(odd, REPO, "main").commit == "c" * 40


def test_a_listing_whose_next_page_is_itself_is_refused(odd: Client) -> None:
    with pytest.raises(HostileListingError, match="does not end"):
        list_files(odd, REPO, "c" * 40)
