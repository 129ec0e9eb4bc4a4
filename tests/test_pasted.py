"""What is shown to be typed can be typed: pasted into a shell, it is what it says it is.

Hints, remedies, next steps and examples are given to a real shell, in which `vlmcache` is a
function that keeps the words it gets. What these mean is asked of the command line itself.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.kit.caches import CacheBuilder, model_files
from tests.kit.commands import Done, Vlmcache, run_here
from tests.test_architecture import MODULES
from tests.test_examples import PAGES, blocks_of
from vlmcache.cli.main import app
from vlmcache.cli.register import ALIASES, COMMANDS, load
from vlmcache.codes import CODES
from vlmcache.errors import ExitCode
from vlmcache.units import command

KEEP = "vlmcache() { printf '%s\\0' \"$@\" >&3; printf '\\n\\0' >&3; }\n"
KEEP += "command_not_found_handle() { :; }\n"
SEARCH = re.compile(r"[\\^]")
"""What a regular expression has, and no text for people."""
QUOTED = re.compile(r"(?<!\w)'(vlmcache [^'\n]*)'(?!\w)")
AT_THE_END = re.compile(r"^(vlmcache .*)$|: (vlmcache .*)$|\((vlmcache .*)\)$")
ODD = 'a b\'s $none; "x" & `y`'
"""A name in which every sign means something to a shell."""


def words_of(lines: Iterable[str]) -> list[list[str]]:
    """Return the words of each call of `vlmcache` in lines of shell, as bash reads them."""
    reading, writing = os.pipe()
    try:
        script = KEEP + "\n".join(lines)
        arguments = ["bash", "-c", f"exec 3>&{writing}\n{script}\n"]
        done = subprocess.run(
            arguments, pass_fds=[writing], stdin=subprocess.DEVNULL, capture_output=True
        )
        os.close(writing)
        writing = -1
        assert done.returncode == 0, done.stderr
        with os.fdopen(reading, "rb", closefd=False) as stream:
            kept = stream.read().decode()
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    return [call.split("\0")[:-1] for call in kept.split("\n\0")[:-1]]


def understood(words: list[str]) -> None:
    """Make sure that a command line has a meaning, without running it.

    What is only mentioned may leave out what the command works on; `--help` ends early.
    """
    group: Any = typer.main.get_command(app)
    context = typer.Context(group, info_name="vlmcache")
    if words and words[0].startswith("-"):
        group.make_context("vlmcache", list(words), resilient_parsing=True)
        return
    name, found, rest = group.resolve_command(context, list(words))
    try:
        found.make_context(name, rest, parent=context)
    except Exception as error:
        if type(error).__name__ not in ("MissingParameter", "Exit"):
            raise


def commands_in(text: str) -> list[str]:
    """Return the commands that a hint or remedy names: in quotes, or at its end."""
    ending = AT_THE_END.search(text)
    if ending is None:
        return QUOTED.findall(text)
    return [line for line in ending.groups() if line is not None]


def strings() -> Iterator[tuple[str, str]]:
    """Yield (module, string) of the source, what is computed left out."""
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in node.values
        }
        described = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if id(node) in parts | described or not isinstance(node, ast.Constant):
                continue
            if isinstance(node.value, str) and not SEARCH.search(node.value):
                yield module, node.value


PLACEHOLDERS = {"MODEL": "org/name", "SIZE": "1GB", "FOLDER": "there", "COMMAND": "pull"}


def filled(line: str) -> str:
    """Return a command with something in the place of each word that stands for others."""
    return re.sub(r"\b[A-Z]{3,}\b", lambda word: PLACEHOLDERS.get(word[0], "x"), line)


def test_every_command_that_the_source_names_in_quotes_is_understood() -> None:
    named = {line for _, text in strings() for line in QUOTED.findall(text)}
    named |= {line for meaning in CODES.values() for line in QUOTED.findall(meaning[1])}
    assert len(named) > 20
    for words in words_of(map(filled, sorted(named))):
        understood(words)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_of_the_help_is_understood(name: str) -> None:
    module = name.replace("-", "")
    examples = load(f"vlmcache.cli.{module}.EXAMPLES")
    lines = [line.strip() for line in examples.splitlines() if line.startswith("  ")]
    # The other side of a pipe through ssh runs elsewhere.
    calls = words_of(f'ssh() {{ shift; "$@"; }}; sudo() {{ "$@"; }}; {line}' for line in lines)
    assert len(calls) >= len(lines) > 0
    for words in calls:
        understood(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_understood(page: Path) -> None:
    """Also what no test runs, and what stands in a sentence."""
    text = page.read_text(encoding="utf-8")
    lines = [
        line.removeprefix("$ ")
        for block in blocks_of(page)
        if block.kind in ("console", "sh")
        for line in block.content.splitlines()
        if line.startswith(("vlmcache ", "$ vlmcache ")) and not line.endswith("\\")
    ]
    inline = re.findall(r"(?<!`)`(vlmcache [^`\n]+)`", text)
    lines += [filled(line) for line in inline if not re.search(r"[…\[\]|<>{}]", line)]
    for words in words_of(lines):
        understood(words)


@pytest.mark.parametrize("words", [[ODD], [f"org/{ODD}", "--to", f"/mnt/{ODD}"], ["-x", "~", "*"]])
def test_a_command_that_is_made_of_odd_words_has_them_again_in_a_shell(words: list[str]) -> None:
    assert words_of([command("rm", *words)]) == [["rm", *words]]


@pytest.fixture
def odd(tmp_path: Path, vlmcache: Vlmcache, monkeypatch: pytest.MonkeyPatch) -> Vlmcache:
    """A cache in an odd folder, with models under odd keys: in part, damaged, absent, waste."""
    root = tmp_path / ODD.replace("/", "") / "hub"
    root.parent.mkdir()
    cache = CacheBuilder(root)
    part = cache.repo("org/part")
    part.revision(model_files())
    part.dangling_link("config.json")
    damaged = cache.repo("org/damaged")
    damaged.revision(model_files())
    damaged.flipped_bit("model.safetensors", 10)
    old = cache.repo("org/old")
    old.revision(model_files(), refs=())
    old.revision({**model_files(), "extra.json": b"{}"})
    old.orphan_blob()
    cache.repo("org/begun").partial(size=5000, age=9e6)
    data = cache.repo("org/data", "dataset")
    data.revision({"data.csv": b"1"})
    data.dangling_link("data.csv")
    cache.stray_file()
    keys = {"part": "org/part", "damaged": "org/damaged", "absent": "org/absent"}
    models = {f"{name} {ODD}": {"repo": repo} for name, repo in keys.items()}
    vlmcache.config(json.dumps({"models": models, "vlmcache": {"min_free": 0}}))
    vlmcache.environment.update(HF_HUB_CACHE=str(root), HF_HUB_OFFLINE="1")
    for name, value in vlmcache.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(vlmcache.folder)
    return vlmcache


ASKED = [
    ["status", "--all"],
    ["status", "org/data", "--check"],
    ["status", f"part {ODD}", "--check"],
    ["verify", "--max-age", "0"],
    ["pull", f"absent {ODD}"],
    ["pull", f"part {ODD[:-3]}"],
    ["rm", f"absent {ODD}"],
    ["rm", "org/ol"],
    ["clean", "--dry-run"],
    ["clean"],
    ["backup", f"./{ODD.replace('/', '')}.tar"],
    ["backup", "datasets.tar", "datasets/org/data"],
    ["backup", f"{ODD}/x.tar", "org/old"],
    ["restore", f"{ODD}.tar"],
    ["warm", f"part {ODD}"],
    ["move", f"./{ODD.replace('/', '')}", "org/none"],
    ["quantize", f"part {ODD}"],
    ["doctor"],
    ["explain", "no-spac"],
]
"""Commands that have something to say about such a cache."""


def shown_by(done: Done) -> Iterator[str]:
    """Yield every text of a JSON document that says what to do."""
    said = done.document
    for error in said.get("errors", ()):
        yield error["hint"] or ""
    for finding in said.get("findings", ()):
        yield finding["remedy"] or ""
    for step in said.get("recommendations", ()) or ():
        yield step["command"] or ""
    use = said.get("unknown_use")
    if use:
        yield use["command"]


def test_every_hint_and_next_step_of_an_odd_cache_runs_in_a_shell(odd: Vlmcache) -> None:
    texts = {text for words in ASKED for text in shown_by(run_here(*words, "--json"))}
    lines = sorted({line for text in texts for line in commands_in(text)})
    assert len(lines) > 6, [(w, run_here(*w, "--json").out[-300:]) for w in ASKED]
    calls = words_of(map(filled, lines))
    assert len(calls) == len(lines)
    assert any(ODD in word for words in calls for word in words), "\n".join(lines)
    wrong = []
    # What removes comes last, so that the others still find what they name.
    for words in sorted(calls, key=lambda words: words[0] in ("rm", "clean")):
        once = ["--once"] if words[0] == "watch" else []
        done = run_here(*words, *once)
        named = [word for word in words if word.startswith(("org/", "datasets/")) or ODD in word]
        if done.code == ExitCode.USAGE or (done.code == ExitCode.NO_MODEL and named):
            wrong.append((words, done.code, done.err))
    assert wrong == []
    # And as a user does it, with nothing in between.
    path = f"{os.path.dirname(odd.command[0])}{os.pathsep}{os.environ['PATH']}"
    pasted = next(line for line, words in zip(lines, calls, strict=True) if ODD in words[-1])
    real = subprocess.run(
        ["bash", "-c", pasted],
        env={**odd.environment, "PATH": path},
        cwd=odd.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert real.returncode not in (2, 7, 127), real.stderr


def test_aliases_are_commands() -> None:
    assert set(ALIASES.values()) <= set(COMMANDS)
