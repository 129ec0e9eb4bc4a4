"""What stands between a user and the hub: a proxy with a password, a company's own certificates."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.kit.caches import fingerprint
from tests.kit.contents import Content, Synthetic
from tests.kit.hub import (
    LoopbackHub,
    altered_headers,
    altered_json,
    cut,
    other_server,
    wrong_bytes,
)
from tests.kit.mirrors import MIRRORS
from tests.kit.proxy import PASSWORD, Proxy, proxy
from tests.kit.pulls import REPO, expected, lies, pull, vlmcache
from tests.kit.tls import Authority, authority
from vlmcache.errors import ExitCode

FILES: dict[str, Content] = {
    "config.json": b'{"model_type": "qwen2_vl"}',
    "model.safetensors": Synthetic(200_000, 3),
    "tokenizer.json": b"{}" * 30,
}


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("company"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("stranger"))


@pytest.fixture(scope="module")
def between(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with proxy(tmp_path_factory.mktemp("proxy")) as running:
        yield running


@pytest.fixture(scope="module")
def safe_hub(company: Authority) -> Iterator[LoopbackHub]:
    with LoopbackHub(tls=company.context) as hub:
        hub.add_repo(REPO).commit(FILES)
        yield hub


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(FILES)
        yield hub


def check_refused(done: subprocess.CompletedProcess[str], cache: Path) -> None:
    """Make sure that a pull ended in one sentence and a hint, and that nothing is wrong."""
    assert done.returncode not in (0, 1, 2), done.stderr
    lines = done.stderr.splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "internal" not in done.stderr
    assert PASSWORD not in done.stderr + done.stdout
    assert lies(cache) == []


def test_a_pull_goes_through_a_proxy_that_asks_for_a_password(
    hub: LoopbackHub, between: Proxy, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    done = vlmcache(hub, cache, "pull", REPO, **between.variables(between.with_password))
    assert done.returncode == 0, done.stderr
    assert fingerprint(cache) == expected(tmp_path / "right", FILES)


def test_a_pull_is_encrypted_through_a_proxy_with_a_companys_certificates(
    safe_hub: LoopbackHub, company: Authority, between: Proxy, tmp_path: Path
) -> None:
    cache, before = tmp_path / "cache", between.connects
    variables = between.variables(between.with_password)
    trusted = {"SSL_CERT_FILE": str(company.certificate)}
    done = vlmcache(safe_hub, cache, "pull", REPO, **variables, **trusted)
    assert done.returncode == 0, done.stderr
    assert between.connects > before
    assert fingerprint(cache) == expected(tmp_path / "right", FILES)


def test_without_the_password_the_refusal_is_the_proxys_and_one_sentence(
    safe_hub: LoopbackHub, company: Authority, between: Proxy, tmp_path: Path
) -> None:
    variables = between.variables(between.address)
    trusted = {"SSL_CERT_FILE": str(company.certificate)}
    done = vlmcache(safe_hub, tmp_path / "cache", "pull", REPO, **variables, **trusted)
    check_refused(done, tmp_path / "cache")
    assert "proxy" in done.stderr.lower()


def test_a_certificate_of_somebody_else_is_refused_in_one_sentence(
    safe_hub: LoopbackHub, stranger: Authority, tmp_path: Path
) -> None:
    trusted = {"SSL_CERT_FILE": str(stranger.certificate)}
    done = vlmcache(safe_hub, tmp_path / "cache", "pull", REPO, **trusted)
    check_refused(done, tmp_path / "cache")
    assert "certificate" in done.stderr.lower()


def test_a_file_for_the_keys_that_cannot_be_written_is_named_with_its_variable(
    safe_hub: LoopbackHub, company: Authority, tmp_path: Path
) -> None:
    variables = {"SSL_CERT_FILE": str(company.certificate), "SSLKEYLOGFILE": str(tmp_path)}
    done = vlmcache(safe_hub, tmp_path / "cache", "pull", REPO, **variables)
    assert done.returncode == 2
    assert done.stderr.startswith("error: SSLKEYLOGFILE names a file that cannot be written")


@pytest.mark.parametrize("mirror", sorted(MIRRORS))
def test_whatever_a_mirror_leaves_out_nothing_wrong_is_published(
    hub: LoopbackHub, tmp_path: Path, mirror: str
) -> None:
    hub.changes.append(MIRRORS[mirror])
    cache = tmp_path / "cache"
    run = pull(hub, cache)
    assert lies(cache) == []
    if run.problem is None:
        snapshot = next(cache.glob("models--*/snapshots/*"))
        assert (snapshot / "config.json").read_bytes() == FILES["config.json"]
        assert (snapshot / "model.safetensors").stat().st_size == 200_000
    else:
        assert "internal" not in run.problem.message


TOKEN = "hf_mine1234"


@pytest.fixture
def half_safe(company: Authority) -> Iterator[LoopbackHub]:
    """A private repo of a hub that speaks https, and keeps its files at a host that does not."""
    with LoopbackHub(tls=company.context, tls_of_cdn=False) as hub:
        hub.accept_token(TOKEN)
        hub.add_repo(REPO, private=True).commit(FILES)
        yield hub


def pull_half_safe(
    hub: LoopbackHub, company: Authority, cache: Path
) -> subprocess.CompletedProcess[str]:
    return vlmcache(
        hub, cache, "pull", REPO, SSL_CERT_FILE=str(company.certificate), HF_TOKEN=TOKEN
    )


def test_bytes_that_a_hash_checks_may_come_over_http_without_the_token(
    half_safe: LoopbackHub, company: Authority, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    half_safe.fault(cut(100_000).on("model.safetensors", host="cdn"))
    done = pull_half_safe(half_safe, company, cache)
    assert done.returncode == 0, done.stderr
    assert fingerprint(cache) == expected(tmp_path / "right", FILES)
    safe, plain = (urlsplit(url).netloc for url in (half_safe.url, half_safe.cdn_url))
    said = f"{safe} redirects to {plain} over http; the content is checked by its hash"
    assert done.stderr.count(said) == 1
    asked = {(one.host, one.authorization) for one in half_safe.requests}
    assert asked == {("hub", True), ("cdn", False)}


def test_the_token_stays_behind_if_http_leads_back_to_the_hub(
    half_safe: LoopbackHub, company: Authority, tmp_path: Path
) -> None:
    back = f"{half_safe.url}/{REPO}/resolve/main/model.safetensors"
    half_safe.fault(other_server(302, Location=back).on("model.safetensors", host="cdn"))
    done = pull_half_safe(half_safe, company, tmp_path / "cache")
    asked = [one for one in half_safe.requests if one.path.endswith("main/model.safetensors")]
    assert [(one.host, one.authorization, one.status) for one in asked] == [("hub", False, 401)]
    assert lies(tmp_path / "cache") == []
    assert "internal" not in done.stderr


def test_wrong_bytes_over_http_are_never_published(
    half_safe: LoopbackHub, company: Authority, tmp_path: Path
) -> None:
    half_safe.fault(wrong_bytes(5).on("*.*", host="cdn", times=None))
    done = pull_half_safe(half_safe, company, tmp_path / "cache")
    assert done.returncode == ExitCode.FAILED
    assert not list((tmp_path / "cache").glob("models--*/snapshots/*/*.safetensors"))
    assert lies(tmp_path / "cache") == []


def names_only(value: dict[str, Any]) -> dict[str, Any]:
    return {"sha": value["sha"], "siblings": [{"rfilename": name} for name in FILES]}


WITHOUT_LISTING = (other_server(404).on("/tree/"), altered_json(names_only).on("/revision/"))
WITHOUT_HASH = altered_headers(ETag='"65f1c2a0-1388"', X_Linked_ETag="")
UNCHECKED = {
    "a question": (("/revision/", None), ()),
    "what a file is": (("model.safetensors", "HEAD"), WITHOUT_LISTING),
    "a file without a hash": (
        ("model.safetensors", "GET"),
        (*WITHOUT_LISTING, WITHOUT_HASH.on("model.safetensors", method="HEAD")),
    ),
}


@pytest.mark.parametrize("case", UNCHECKED)
def test_what_no_hash_checks_is_not_asked_over_http(
    half_safe: LoopbackHub, company: Authority, tmp_path: Path, case: str
) -> None:
    (part, method), faults = UNCHECKED[case]
    for fault in faults:
        half_safe.fault(fault)
    target = f"{half_safe.cdn_url}/elsewhere"
    moved = other_server(302, Location=f"{target}?secret=1")
    half_safe.fault(moved.on(part, method=method, host="hub", times=None))
    done = pull_half_safe(half_safe, company, tmp_path / "cache")
    check_refused(done, tmp_path / "cache")
    assert f"redirects to {target}, which is not encrypted: not followed" in done.stderr
    assert half_safe.url in done.stderr
    assert "HF_ENDPOINT" in done.stderr
    assert "secret" not in done.stderr
    assert not [one for one in half_safe.requests if "elsewhere" in one.path]
