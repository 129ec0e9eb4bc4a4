"""What the environment says of the connection: each odd value of each variable that counts.

Nothing cached: a sentence with variable and value, exit 2. Everything cached: the cache is used,
offline without a client, online with a note.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub.utils import _http

from tests.kit.hub import LoopbackHub
from tests.kit.pulls import REPO, pull, vlmcache
from vlmcache.commands.status.outdated import check_connection
from vlmcache.config import Environment
from vlmcache.hub import settings
from vlmcache.hub.account import Account
from vlmcache.hub.client import Client

FILES = {"config.json": b"{}", "model.safetensors": b"w" * 5000}
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
TIMEOUTS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
Row = tuple[str, str, str]
"""Variable, value, and a part of the sentence."""

ODD: list[Row] = [
    *(
        (name, value, "of a kind that is not supported")
        for name in PROXIES
        for value in ("socks://me:pass@h:1", "socks4://h:1", "ftp://me:pass@h:1", " http://h:1")
    ),
    *((name, "socks5://me:pass@h:1", "pip install socksio") for name in PROXIES),
    *(
        (name, value, "address cannot be used")
        for name in PROXIES
        for value in ("http://me:pass@h:abc", "h:abc", "me:pass@h:abc")
    ),
    *(
        (name, value, "address cannot be used")
        for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy")
        for value in ("http://me:pass@h:99999", "http://", "http://[bad", "http://me:pass@")
    ),
    *(
        (name, value, "is not a number of seconds")
        for name in TIMEOUTS
        for value in ("abc", "1.5", "-1", "1e3", "inf", "", "99999999999999999999")
    ),
    *(
        ("HF_TOKEN", value, f"holds {value[9]!r}, which no token has")
        for value in ("hf_secret\u00e4", "hf_secret x", "hf_secret\u20ac", "hf_secret\x07")
    ),
    *(
        ("HF_ENDPOINT", value, "is not an address")
        for value in (
            "mirror.example",
            "mirror.example:8080/hf",
            "ftp://mirror.example",
            "http://",
            "http://[bad",
            "http://me:pass@h:99999",
            "http://h:x",
            "'http://h'",
            '"http://h"',
            "http://h h",
            "http://h/?a=b",
            "http://h/#x",
        )
    ),
]


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        yield hub


@pytest.fixture
def cached(hub: LoopbackHub, tmp_path: Path) -> Path:
    """Return a cache in which everything is."""
    cache = tmp_path / "full"
    assert pull(hub, cache).problem is None
    return cache


@pytest.fixture
def no_socks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def shown(value: str) -> str:
    """Return what a sentence may show of a value."""
    return value.strip().rpartition("@")[2].rpartition("/")[2][:20]


@pytest.mark.usefixtures("no_socks")
@pytest.mark.parametrize(("variable", "value", "words"), ODD)
def test_an_odd_value_is_a_sentence_and_what_is_cached_is_used_all_the_same(
    hub: LoopbackHub,
    cached: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    words: str,
) -> None:
    extra = {"NO_PROXY": "", "no_proxy": "", variable: value}
    if variable == "HF_TOKEN":
        # huggingface_hub itself looks for it.
        monkeypatch.setenv(variable, value)
    problem = pull(hub, tmp_path / "empty", extra=extra).problem
    assert problem is not None
    text = f"{problem.message} {problem.hint}"
    assert (problem.exit_code, problem.code) == (2, "configuration")
    assert variable in problem.message
    assert words in text
    assert "me:pass" not in text
    assert "secret" not in text
    assert variable == "HF_TOKEN" or shown(value) in text
    online = pull(hub, cached, extra=extra)
    assert (online.problem, online.models[0].state) == (None, "cached")
    assert online.findings[0].code == "hub-not-asked"
    assert variable in online.findings[0].detail
    monkeypatch.setattr(Account, "library", property(lambda _: pytest.fail("a client was built")))
    offline = pull(hub, cached, extra=extra | {"HF_HUB_OFFLINE": "1"})
    assert (offline.problem, offline.models[0].state) == (None, "cached")
    assert offline.findings[0].severity == "info"


CERTIFICATES = {
    "missing": "a file that does not exist",
    "empty": "an empty file",
    "text": "a file without certificates",
    "folder": "a folder",
}


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """Return a folder with what is not a file of certificates."""
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("no certificate\n")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.fixture
def own_session() -> Iterator[None]:
    """Let huggingface_hub build its session anew afterwards."""
    yield
    _http.close_session()


@pytest.mark.usefixtures("own_session")
@pytest.mark.parametrize("case", CERTIFICATES)
def test_a_file_of_certificates_that_cannot_be_read_is_named_with_its_variable(
    hub: LoopbackHub, cached: Path, places: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    path = str(places / case)
    _http.close_session()
    monkeypatch.setenv("SSL_CERT_FILE", path)
    problem = pull(hub, places / "none", extra={"SSL_CERT_FILE": path}).problem
    assert problem is not None
    assert problem.message == f"SSL_CERT_FILE names {CERTIFICATES[case]}: '{path}'"
    assert problem.exit_code == 2
    assert pull(hub, cached, extra={"SSL_CERT_FILE": path}).models[0].state == "cached"


@pytest.mark.parametrize("case", CERTIFICATES)
@pytest.mark.parametrize("variable", ["SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_what_the_client_does_not_need_stops_no_pull_and_doctor_names_it(
    hub: LoopbackHub, places: Path, variable: str, case: str
) -> None:
    path = str(places / case)
    extra = {variable: path}
    assert pull(hub, places / "cache", extra=extra).problem is None
    findings = check_connection(Environment(extra, frozenset(), "/"), "/cache")
    severity = "warning" if variable == "SSL_CERT_DIR" else "info"
    assert [finding.severity for finding in findings] == [severity]
    assert f"'{path}'" in findings[0].detail
    assert variable in findings[0].detail
    assert variable in settings.certificate_hint(Environment(extra, frozenset(), "/"))


def test_a_certificate_that_cannot_be_verified_names_the_file_that_was_to_hold_it() -> None:
    where = Environment({"SSL_CERT_FILE": "/etc/mine.pem"}, frozenset(), "/")
    assert settings.certificate_hint(where).startswith("SSL_CERT_FILE names '/etc/mine.pem'")


@pytest.mark.parametrize("content", ["hf_secret\u00e4\n".encode(), b"\xff\xfe", b"hf_secret\x07"])
def test_an_odd_token_in_its_file_names_the_file(
    hub: LoopbackHub, cached: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/token").write_bytes(content)
    home = {"HF_HOME": str(tmp_path / "own")}
    # What huggingface_hub has imported knows another home.
    result = vlmcache(hub, tmp_path / "none", "pull", REPO, **home)
    assert result.returncode == 2
    assert f"'{tmp_path}/own/token'" in result.stderr
    assert "secret" not in result.stderr
    offline = pull(hub, cached, extra=home | {"HF_HUB_OFFLINE": "1"})
    assert offline.models[0].state == "cached"


@pytest.mark.parametrize("end", ["/", " ", "\n", "//"])
def test_what_pasting_leaves_around_an_address_is_left_away(
    hub: LoopbackHub, tmp_path: Path, end: str
) -> None:
    assert pull(hub, tmp_path / "cache", extra={"HF_ENDPOINT": hub.url + end}).problem is None


FINE: list[tuple[str, str]] = [
    *((name, value) for name in TIMEOUTS for value in ("7", " 7 ", "0")),
    *((name, "h:80") for name in PROXIES),
    *((name, "http://[::1]:80") for name in PROXIES),
    *((name, "http://me:p:w@h") for name in PROXIES),
    ("HTTP_PROXY", "http://h:99999"),
]


@pytest.mark.parametrize(("variable", "value"), FINE)
def test_what_the_client_takes_is_not_refused(variable: str, value: str) -> None:
    where = Environment({variable: value}, frozenset(), "/")
    assert list(settings.unusable(where)) == []


@pytest.mark.parametrize("hosts", ["*", "huggingface.co", ".co"])
def test_a_proxy_that_the_hub_is_excepted_from_is_not_the_one_in_use(hosts: str) -> None:
    variables = {"HTTPS_PROXY": "http://h:1", "NO_PROXY": hosts}
    assert settings.proxy_in_use(Environment(variables, frozenset(), "/")) is None
    del variables["NO_PROXY"]
    proxy = settings.proxy_in_use(Environment(variables, frozenset(), "/"))
    assert proxy == ("HTTPS_PROXY", "http://h:1")


def test_a_failure_that_nobody_knows_is_a_sentence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr(_http, "get_session", fail)
    findings = check_connection(Environment({"HF_TOKEN": "hf_x"}, frozenset(), "/"), "/cache")
    assert [finding.detail for finding in findings] == [
        "the connection to a hub cannot be set up: odd"
    ]


EVERYTHING = {
    "HTTPS_PROXY": "socks://h:1",
    "SSL_CERT_FILE": "/none.pem",
    "SSLKEYLOGFILE": "/none/keys",
    "HF_HUB_ETAG_TIMEOUT": "abc",
    "HF_HUB_DOWNLOAD_TIMEOUT": "1.5",
    "HF_TOKEN": "hf_x\u00e4",
    "HF_ENDPOINT": "nonsense",
    "HF_HUB_USER_AGENT_ORIGIN": "caf\u00e9",
}


@pytest.mark.parametrize(
    "arguments",
    [
        ["pull", "one"],
        ["status", "one", "--check"],
        ["verify", "one"],
        ["verify", "one", "--repair"],
        ["status", "one", "--outdated", "--check"],
        ["doctor"],
    ],
)
def test_offline_every_command_works_whatever_the_variables_say(
    hub: LoopbackHub, cached: Path, arguments: list[str]
) -> None:
    result = vlmcache(hub, cached, *arguments, **EVERYTHING, HF_HUB_OFFLINE="1")
    assert result.returncode == 0, result.stderr


def test_doctor_names_every_variable_that_keeps_the_client_from_being_built(
    hub: LoopbackHub, cached: Path
) -> None:
    result = vlmcache(hub, cached, "doctor", "--json", **EVERYTHING)
    found = [
        finding["detail"]
        for finding in json.loads(result.stdout)["findings"]
        if (finding["code"], finding["severity"]) == ("configuration", "error")
    ]
    for name in EVERYTHING.keys() - {"HF_TOKEN"}:
        assert any(detail.startswith(name) for detail in found), name
    token = vlmcache(hub, cached, "doctor", "--json", HF_TOKEN="hf_x\u00e4")
    assert "HF_TOKEN holds" in token.stdout


@pytest.mark.parametrize("variable", ["HF_HUB_ETAG_TIMEOUT", "SSL_CERT_FILE", "HTTPS_PROXY"])
def test_a_process_of_its_own_says_the_same(
    hub: LoopbackHub, tmp_path: Path, variable: str
) -> None:
    result = vlmcache(hub, tmp_path / "c", "pull", REPO, **{variable: EVERYTHING[variable]})
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {variable} ")
    assert EVERYTHING[variable] in result.stderr


def test_a_folder_in_the_place_of_the_token_is_called_one(hub: LoopbackHub, tmp_path: Path) -> None:
    result = vlmcache(hub, tmp_path / "c", "pull", REPO, HF_TOKEN_PATH=str(tmp_path))
    assert result.returncode == 2
    assert result.stderr == (
        f"error: HF_TOKEN_PATH names a folder: '{tmp_path}'\n"
        "hint: name a file with a token, or unset it\n"
    )


def test_a_token_in_a_note_is_hidden_before_a_client_is_built() -> None:
    notes: list[str] = []
    one = Client(Environment({}, frozenset(), "/"), token="hf_x_early", note=notes.append)
    one.note("Bearer hf_x_early")
    assert notes == ["Bearer ***"]
