"""Ctrl-C on a terminal, in the middle of each command that shows bars: what stays on the screen."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.caches import CacheBuilder
from tests.kit.commands import Vlmcache
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import small_weights
from tests.kit.screens import Screen

SIZE = 2_000_000
HOLD = """
import os, time
from vlmcache import progress

reported = progress.Tally.moved

def moved(self, repo, file, position):
    # What is large stays half done until the file is there.
    reported(self, repo, file, position // 2)
    while position >= 1_000_000 and not os.path.exists(os.environ["RELEASED"]):
        time.sleep(0.02)

progress.Tally.moved = moved
"""
"""Is imported by each Python that starts, and holds commands where they have begun."""

WORK = {
    "pull": ["org/far", "org/farther"],
    "verify": [],
    "move": ["elsewhere"],
    "backup": ["saved/"],
    "restore": ["kept.tar", "org/good"],
}
DONE = {
    "pull": "on disk",
    "verify": "verified",
    "move": "copied",
    "backup": "saved",
    "restore": "restored",
}


@pytest.fixture
def halfway(cache: CacheBuilder, vlmcache: Vlmcache, tmp_path: Path) -> Vlmcache:
    """A model in the cache, and commands that stop in the middle."""
    vlmcache.config("models: {good: {repo: org/good}}\nvlmcache: {min_free: 0}\n")
    cache.repo("org/good").revision(
        {"config.json": b"{}", "model.safetensors": small_weights(SIZE)}
    )
    folder = tmp_path / "hold"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HOLD)
    vlmcache.environment.update(PYTHONPATH=str(folder), RELEASED=str(tmp_path / "released"))
    return vlmcache


@contextlib.contextmanager
def prepared(vlmcache: Vlmcache, command: str, cache: Path) -> Iterator[None]:
    """Have what a command needs: a hub, or a backup of what is no longer cached."""
    with contextlib.ExitStack() as stack:
        if command == "pull":
            hub = stack.enter_context(LoopbackHub())
            for name in ("org/far", "org/farther"):
                weights = small_weights(SIZE)
                hub.add_repo(name).commit({"config.json": b"{}", "model.safetensors": weights})
            vlmcache.environment.update(HF_ENDPOINT=hub.url, HF_HUB_DISABLE_XET="1")
            vlmcache.environment.update(NO_PROXY="127.0.0.1", HF_HUB_OFFLINE="0")
        if command == "restore":
            done = vlmcache("backup", "kept.tar", RELEASED=os.devnull)
            assert done.code == 0, done.err
            shutil.rmtree(cache / "models--org--good")
        yield


@pytest.mark.parametrize("command", WORK)
def test_ctrl_c_replaces_the_bars_by_what_is_done_what_is_left_and_how_to_continue(
    halfway: Vlmcache, cache: CacheBuilder, command: str, tmp_path: Path
) -> None:
    with prepared(halfway, command, cache.root):
        screen = Screen(halfway, command, *WORK[command])
        assert "%" in screen.wait_for("━", "─")
        screen.press(b"\x03")
        (tmp_path / "released").touch()
        code, shown = screen.end()
    assert code == 130, shown
    one_line = shown.replace("\n", "")
    assert "━" not in one_line
    assert "─" not in one_line
    assert "error: interrupted: " in one_line
    assert f"{DONE[command]}, " in one_line
    assert " left" in one_line
    assert f"hint: 'vlmcache {command}" in one_line
    # The cursor was never hidden, and no other screen was left open.
    assert b"\x1b[?25l" not in screen.sent
    assert b"\x1b[?1049h" not in screen.sent


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"CLICOLOR": "0"}])
def test_without_colors_a_terminal_gets_one_line_without_escape_codes(
    halfway: Vlmcache, tmp_path: Path, variables: dict[str, str]
) -> None:
    screen = Screen(halfway, "verify", size=(60, 24), **variables)
    shown = screen.wait_for("━", "─")
    assert len(shown.splitlines()) == 1
    screen.press(b"\x03")
    (tmp_path / "released").touch()
    code, shown = screen.end()
    assert code == 130
    assert shown.startswith("error: interrupted: ")
    assert b"\x1b" not in screen.sent


@pytest.mark.parametrize(
    "variables", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C"}]
)
def test_without_unicode_the_bars_are_ascii(
    halfway: Vlmcache, tmp_path: Path, variables: dict[str, str]
) -> None:
    screen = Screen(halfway, "verify", size=(60, 24), **variables)
    shown = screen.wait_for("#", "--")
    (tmp_path / "released").touch()
    code, after = screen.end()
    assert code == 0, after
    assert shown.isascii()
    assert screen.sent.isascii()
