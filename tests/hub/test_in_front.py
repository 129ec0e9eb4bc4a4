"""What stands between a user and the hub: a proxy with a password, a company's own certificates."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.caches import fingerprint
from tests.kit.contents import Content, Synthetic
from tests.kit.hub import LoopbackHub
from tests.kit.mirrors import MIRRORS
from tests.kit.proxy import PASSWORD, Proxy, proxy
from tests.kit.pulls import REPO, expected, lies, pull, vlmcache
from tests.kit.tls import Authority, authority

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
