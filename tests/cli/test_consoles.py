"""Consoles of any kind: pipes, encodings other than UTF-8, names that cannot be shown."""

from __future__ import annotations

import errno
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.kit.caches import CacheBuilder, model_files
from tests.kit.commands import Vlmcache, offline_without_torch, run_here, take_variables
from vlmcache import units
from vlmcache.cli.register import COMMANDS
from vlmcache.show.console import console
from vlmcache.show.tables import plain_table
from vlmcache.show.text import printable
from vlmcache.units import shell_words

HOSTILE = "org/\x1b[31mred"
WIDE = "org/視覚言語モデル"
LINES = {
    "pull": [["org/begun", "--dry-run"]],
    "rm": [["org/good", "--dry-run", "-v"], [HOSTILE, "--dry-run"]],
    "clean": [["--dry-run", "-v", "--partials"], ["--all", "--dry-run"]],
    "status": [["--all"], ["-v"], ["good"]],
    "watch": [["--once"]],
    "undo": [["--dry-run"]],
    "trash": [["-v"]],
    "verify": [["-v"]],
    "move": [["elsewhere", "--dry-run"]],
    "recall": [["org/good"]],
    "backup": [["saved/", "org/good"]],
    "restore": [["there.tar", "--dry-run"], ["there.tar"]],
    "load-test": [["--history"]],
    "quantize": [["nobody/nothing"]],
    "warm": [["org/good"]],
    "serve": [["nobody/nothing"]],
    "schema": [["status"]],
    "explain": [["no-space"]],
    "help": [["pull"]],
}
"""Arguments with which each command is run; one without a line here is run without any."""


@pytest.fixture
def filled(
    cache: CacheBuilder, vlmcache: Vlmcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Vlmcache:
    """Models of many states, and names that are hard to show."""
    vlmcache.config(
        "models:\n  good: {repo: org/good}\n  begun: {repo: org/begun}\n  none: {repo: org/none}\n"
        "vlmcache: {min_free: 0}\n"
    )
    cache.repo("org/good").revision(model_files())
    cache.repo(HOSTILE).revision({"config.json": b"{}"}, refs=())
    cache.repo(WIDE).revision({"config.json": b"{}", "重み.safetensors": b"w" * 500})
    cache.repo("org/begun").revision(
        {"config.json": b"{}", "model.safetensors": b"w" * 900}, downloaded={"config.json"}
    )
    offline_without_torch(vlmcache, tmp_path)
    monkeypatch.chdir(vlmcache.folder)
    take_variables(vlmcache, monkeypatch)
    assert run_here("backup", "there.tar", "org/good").code == 0
    return vlmcache


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_pipe_gets_no_trailing_blanks_no_escape_codes_and_only_what_its_encoding_has(
    filled: Vlmcache, encoding: str
) -> None:
    for command in COMMANDS:
        for words in LINES.get(command, [[]]):
            done = run_here(command, *words, encoding=encoding)
            for line in (done.out + done.err).split("\n"):
                assert line == line.rstrip(), (command, words, line)
                assert line == "" or line.isprintable(), (command, words, line)
                assert encoding != "ascii" or line.isascii(), (command, words, line)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_columns_stay_in_line_whatever_the_names(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    # A process of pytest-xdist says that it has 80 columns.
    monkeypatch.delenv("COLUMNS", raising=False)
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    table = plain_table("NAME", "SIZE", "STATE", numbers=("SIZE",))
    for name in ("org/good", HOSTILE, WIDE, "e\u0301", "caf\xe9", "\udcff\u202e", "x" * 100):
        table.add_row(printable(name), "1 kB", "cached")
    console().print(table)
    stream.flush()
    stream.seek(0)
    shown = stream.read().splitlines()
    widths = {
        cell_len(line[: line.index("STATE" if n == 0 else "cached")])
        for n, line in enumerate(shown)
    }
    assert len(shown) == 8
    assert len(widths) == 1, shown


def test_what_we_draw_has_the_same_width_in_ascii() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    out = console(stream)
    out.print("x" * (out.width + 9), no_wrap=True, overflow="ellipsis")
    stream.flush()
    stream.seek(0)
    assert stream.read() == "x" * (out.width - 1) + "~\n"


@pytest.mark.parametrize(
    "name", ["plain", "it's", "a b", "\x1b[31mred", "back\\slash\n'", "\udcff"]
)
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_command_that_is_pasted_means_the_name_that_was_escaped(shell: str, name: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    line = shell_words("printf", "%s", name)
    assert line.isprintable()
    done = subprocess.run([shell, "-c", line], capture_output=True, check=True)
    assert done.stdout == os.fsencode(name)


def test_in_an_encoding_without_its_characters_a_name_is_typed_in_ascii(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert shell_words("rm", WIDE) == f"rm {shlex.quote(WIDE)}"
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    line = shell_words("printf", "%s", WIDE)
    assert line.isascii()
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert done.stdout.decode() == WIDE


def test_a_hint_for_a_name_with_control_characters_runs(filled: Vlmcache) -> None:
    shown = run_here("verify").out
    assert "\x1b" not in shown
    hostile = units.command("rm", HOSTILE, "--dry-run")
    environment = filled.environment | {"VLMCACHE": " ".join(filled.command)}
    pasted = hostile.replace("vlmcache", "$VLMCACHE", 1)
    done = subprocess.run(
        ["bash", "-c", pasted], env=environment, cwd=filled.folder, capture_output=True, text=True
    )
    assert (done.returncode, "Frees" in done.stdout) == (0, True), done


@pytest.mark.parametrize("columns", ["1", "60", "0", "wide", "²"])
def test_columns_says_how_wide_a_pipe_is_and_nonsense_is_ignored(
    filled: Vlmcache, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", "²")
    done = run_here("status", "--all")
    assert done.code == 0, done.err
    if columns == "60":
        assert max(map(cell_len, done.out.splitlines())) >= 40


def test_a_reader_that_goes_away_changes_no_exit_code(filled: Vlmcache) -> None:
    # More than a pipe holds is printed after its reader has gone.
    for number in range(700):
        folder = filled.environment["HF_HUB_CACHE"]
        snapshot = Path(folder, f"models--org--{'x' * 80}{number:03}", "snapshots", "0" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
    process = filled.start("status", "--all", "--check")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=120) == 4
    assert re.fullmatch(r"(error: [^\n]+\n(hint: [^\n]+\n)?)?", errors), errors


def test_a_command_whose_stderr_nobody_reads_does_all_its_work(filled: Vlmcache) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*filled.command, "rm", "org/good", "org/b*", "--yes"],
        env=filled.environment,
        cwd=filled.folder,
        stdout=subprocess.DEVNULL,
        stderr=writing,
    )
    os.close(writing)
    assert done.returncode == 0
    hub = Path(filled.environment["HF_HUB_CACHE"])
    assert not [name for name in ("good", "begun") if (hub / f"models--org--{name}").exists()]


def test_a_pipe_that_breaks_before_the_report_has_cut_the_work_and_is_no_success(
    filled: Vlmcache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr("vlmcache.commands.remove.remove.remove", broken)
    done = run_here("rm", "org/good", "--yes")
    assert done.code == 1
    assert done.err == "error: the output was closed before the work was done\nhint: run it again\n"
