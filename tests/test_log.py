"""The log: silent unless asked for, on stderr or in a file, and never with a token."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder
from tests.kit.commands import Vlmcache
from tests.kit.contents import Content
from tests.kit.hub import LoopbackHub
from vlmcache import log

TOKEN = "hf_Secret0123456789abcdef"
SECRET = "ho/use;key"
FILES: dict[str, Content] = {
    "config.json": b"{}",
    "model.safetensors": b"w",
    "pytorch_model.bin": b"w2",
}


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    logger = logging.getLogger("vlmcache")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], level, logger.propagate = before
    logger.setLevel(level)
    log._SECRETS.clear()


def test_an_application_that_listens_hears_what_was_decided(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "vlmcache")
    log.info("area", "kept '%s'", "name")
    log.debug("area", "unheard")
    assert caplog.record_tuples == [("vlmcache.area", logging.INFO, "kept 'name'")]


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {TOKEN}",
        f"key {SECRET}",
        "https://user:ho%2Fuse@hub.example/x",
        "https://cdn.example/x?Signature=abcdef&Key-Pair-Id=1",
        repr(SECRET),
    ],
)
def test_no_secret_reaches_a_record(caplog: pytest.LogCaptureFixture, text: str) -> None:
    caplog.set_level(logging.DEBUG, "vlmcache")
    log.hide(SECRET)
    log.debug("hub", "sent %s", text)
    for secret in (TOKEN, SECRET, "user", "%2F", "Signature", "abcdef"):
        assert secret not in caplog.text


@pytest.mark.parametrize("command", [("--help",), ("status",), ("clean", "--dry-run")])
def test_logging_is_not_imported_unless_asked_for(
    vlmcache: Vlmcache, command: tuple[str, ...]
) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "vlmcache", *command],
        env=vlmcache.environment,
        cwd=vlmcache.folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "vlmcache.log" in imported or command == ("--help",)
    assert "logging" not in imported


def test_verbose_shows_decisions_and_twice_shows_each_step(
    cache: CacheBuilder, vlmcache: Vlmcache
) -> None:
    """The document on stdout is the same; a control character of a name reaches no terminal."""
    repo = cache.repo("org/name")
    repo.revision({"config.json": b"{}"})
    (cache.root / "odd\x1b[31m").write_text("stray")
    silent = vlmcache("clean", "--dry-run", "--json")
    once = vlmcache("clean", "--dry-run", "--json", "-v")
    assert silent.err == ""
    assert once.document == silent.document
    assert "vlmcache.scan: left alone: " in once.err
    assert "\x1b" not in once.err
    gone = vlmcache("rm", "org/name", "--yes", "-v")
    assert "vlmcache.remove: planned: remove-tree " in gone.err
    assert "renamed" not in gone.err
    repo.revision({"config.json": b"{}"})
    assert "vlmcache.remove: renamed " in vlmcache("rm", "org/name", "--yes", "-vv").err


def test_a_file_gets_every_request_and_no_token(
    cache: CacheBuilder, vlmcache: Vlmcache, tmp_path: Path
) -> None:
    path = tmp_path / "vlmcache.log"
    vlmcache.config("models: {}\nvlmcache: {min_free: 0}\n")
    with LoopbackHub() as hub:
        hub.add_repo("org/name").commit(FILES)
        hub.accept_token(TOKEN)
        variables = hub.environment(cache.root, token=TOKEN) | {"VLMCACHE_LOG": str(path)}
        done = vlmcache("pull", "org/name", "--json", **variables)
    assert (done.code, done.err.count("vlmcache.")) == (0, 0)
    text = path.read_text(encoding="utf-8")
    assert "DEBUG vlmcache.hub: GET http" in text
    assert "INFO vlmcache.pull: planned: fetch " in text
    assert "DEBUG vlmcache.place: renamed " in text
    assert "INFO vlmcache.pull: skipped: " in text
    assert TOKEN not in text


def test_a_log_that_cannot_be_written_is_exit_2(vlmcache: Vlmcache, tmp_path: Path) -> None:
    done = vlmcache("status", VLMCACHE_LOG=str(tmp_path))
    assert (done.code, done.out) == (2, "")
    assert "the log cannot be written" in done.err
