"""What holds for every command, future ones included: forms, signals, pipes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import jsonschema
import pytest

from tests.kit.caches import CacheBuilder, fingerprint, model_files
from tests.kit.commands import (
    Vlmcache,
    is_failure,
    offline_without_torch,
    run_here,
    take_variables,
)
from vlmcache.cli.register import ALIASES, COMMANDS

LINES = {
    "fleet-pull": ["org/good", "--dry-run"],
    "fleet-rm": ["org/good", "--dry-run"],
    "fleet-clean": ["--dry-run"],
    "pull": ["org/good"],
    "rm": ["org/good", "--dry-run"],
    "clean": ["--dry-run"],
    "undo": ["--dry-run"],
    "trash": ["--empty", "--dry-run"],
    "watch": ["--once"],
    "move": ["elsewhere", "--dry-run"],
    "recall": ["org/good"],
    "attach": ["base", "--dry-run"],
    "backup": ["saved.tar", "org/good"],
    "restore": ["there.tar", "--dry-run"],
    "load-test": ["--history"],
    "quantize": ["nobody/nothing"],
    "warm": ["org/good"],
    "serve": ["nobody/nothing"],
    "schedule": ["--show"],
    "schema": ["status"],
    "init": ["--dry-run"],
    "explain": ["no-space"],
}
"""Arguments with which a command answers soon; one without a line here is run without any."""

WITHOUT_JSON = {"schema", "help"}
HARDLY_CAUGHT = {"schema", "explain", "help"}
"""Commands that read neither configuration nor cache, and are over before a signal comes."""


@pytest.fixture
def filled(
    cache: CacheBuilder, vlmcache: Vlmcache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Vlmcache:
    """A complete model, a detached one and a backup; torch, which is slow to import, is missing."""
    vlmcache.config("models: {good: {repo: org/good}}\nvlmcache: {min_free: 0}\n")
    cache.repo("org/good").revision(model_files())
    cache.repo("org/\x1b[31mred").revision({"config.json": b"{}"}, refs=())
    CacheBuilder(vlmcache.folder / "base").repo("org/based").revision(model_files())
    offline_without_torch(vlmcache, tmp_path)
    take_variables(vlmcache, monkeypatch)
    assert run_here("backup", "there.tar", "org/good").code == 0
    return vlmcache


def line(command: str) -> list[str]:
    return [command, *LINES.get(command, [])]


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - WITHOUT_JSON))
def test_json_is_one_document_of_its_schema_even_if_the_command_fails(
    filled: Vlmcache, command: str
) -> None:
    schema = json.loads(run_here("schema", command).out)
    jsonschema.Draft202012Validator.check_schema(schema)
    for more in ([], ["--config", "."], ["--nonsense"]):
        done = run_here(*line(command), "--json", *more)
        assert done.err == ""
        texts = done.out.splitlines() if COMMANDS[command].lines else [done.out]
        for text in texts:
            document = json.loads(text)
            jsonschema.validate(document, schema)
        if more:
            assert len(texts) == 1
            assert (done.code, document["exit_code"], document["ok"]) == (2, 2, False)


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"schema", "help"}))
def test_every_command_has_the_common_options(command: str) -> None:
    shown = run_here(command, "--help").out
    wanted = ["--json", "-q, --quiet", "-v, --verbose", "-h, --help"]
    if command != "explain":
        wanted += ["--config FILE", "--cache-dir FOLDER"]
    assert [option for option in wanted if not re.search(rf"\n +{option} ", shown)] == []


CHANGES_NOTHING = {
    "status": "reads",
    "watch": "reads, and writes only the file of --metrics",
    "serve": "reads, and answers other machines",
    "load-test": "measures, and writes only the files that its options name",
    "explain": "prints what is in the package",
    "schema": "prints what is in the package",
    "help": "prints what is in the package",
    "fleet-status": "reads",
    "fleet-verify": "reads",
    "fleet-load-test": "measures",
}
"""Commands without --dry-run, and why they need none."""
ASKS = {"serve": "before it serves everything"}
"""Commands that change nothing and have --yes all the same, and what they ask about."""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_changes_something_takes_yes_and_dry_run_and_no_other_does(
    command: str,
) -> None:
    shown = run_here(command, "--help").out
    taken = [bool(re.search(rf"\n +{option} ", shown)) for option in ("-y, --yes", "--dry-run")]
    changes = command not in CHANGES_NOTHING
    assert taken == [changes or command in ASKS, changes]


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - CHANGES_NOTHING))
def test_yes_with_a_dry_run_changes_nothing_and_asks_nothing(
    filled: Vlmcache, cache: CacheBuilder, command: str
) -> None:
    words = {"verify": ["--repair"], "doctor": ["--fix"], "init": []}.get(command, [])
    typed = [word for word in line(command) if word != "--dry-run"]
    before = fingerprint(cache.root), sorted(filled.folder.iterdir())
    done = run_here(*typed, *words, "--dry-run", "--yes")
    assert done.code in (0, 1, 4, 7), done.err
    assert (fingerprint(cache.root), sorted(filled.folder.iterdir())) == before


NAMES_A_MODEL = ("backup x.tar", "load-test", "move x", "quantize", "rm", "serve", "verify", "warm")


@pytest.mark.parametrize("command", NAMES_A_MODEL)
def test_a_model_that_is_not_in_the_cache_is_exit_7(filled: Vlmcache, command: str) -> None:
    if command == "load-test":
        pytest.importorskip("torch")
    done = run_here(*command.split(), "nobody/nothing", "--json")
    assert (done.code, done.document["exit_code"]) == (7, 7), done.out


@pytest.mark.parametrize(("alias", "command"), ALIASES.items())
def test_an_alias_is_the_command_and_is_in_no_help(
    filled: Vlmcache, alias: str, command: str
) -> None:
    assert run_here(alias, "--help").out == run_here(command, "--help").out
    assert f"\n  {alias} " not in run_here("--help").out
    failed = run_here(alias, "--json", "--nonsense")
    assert (failed.code, failed.document["schema"]) == (2, f"vlmcache.{command}/1")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_wrong_option_is_exit_2_and_one_line(filled: Vlmcache, command: str) -> None:
    done = run_here(*line(command), "--nonsense")
    assert (done.code, done.out) == (2, "")
    assert "--nonsense" in done.err
    assert is_failure(done.err)


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - WITHOUT_JSON))
def test_quiet_is_one_id_per_line(filled: Vlmcache, command: str) -> None:
    done = run_here(*line(command), "-q")
    assert all(text and " " not in text and text.isprintable() for text in done.out.splitlines())
    assert not done.err or is_failure(done.err)


def test_a_terminal_that_wants_no_color_is_sent_no_escape_codes(filled: Vlmcache) -> None:
    for number, command in enumerate(COMMANDS):
        variables = {"NO_COLOR": "1"} if number % 2 else {"TERM": "dumb"}
        assert "\x1b" not in filled.on_terminal(*line(command), **variables), command


def test_a_pipe_is_sent_no_escape_codes_and_may_be_closed_at_once(filled: Vlmcache) -> None:
    # One after the other: a model that one of them reads is in use for the next.
    for command in COMMANDS:
        process = filled.start(*line(command), FORCE_COLOR="1")
        assert process.stdout is not None
        process.stdout.close()
        _, written = process.communicate(timeout=60)
        code, errors = process.returncode, written.decode()
        open_to_the_end = run_here(*line(command))
        assert "\x1b" not in open_to_the_end.out + errors, command
        assert code == open_to_the_end.code, command
        assert not errors or is_failure(errors), command
        assert "Traceback" not in errors, command
        assert "Exception" not in errors, command


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.mark.parametrize(
    "turn", [0, pytest.param(1, marks=pytest.mark.full)], ids=["one-each", "the-other"]
)
def test_a_signal_at_work_is_one_line_and_its_code(
    filled: Vlmcache, tmp_path: Path, turn: int
) -> None:
    # Each command is held where it has begun: the .env is read by a module of ours.
    (filled.folder / ".env").write_text("HF_X=1\n")
    (tmp_path / "trap/dotenv").mkdir()
    (tmp_path / "trap/dotenv/__init__.py").touch()
    (tmp_path / "trap/dotenv/parser.py").write_text(
        "import os, time\n"
        "def parse_stream(stream):\n"
        "    open(os.environ['STARTED'], 'w').close()\n"
        "    time.sleep(60)\n"
    )
    commands = sorted(COMMANDS.keys() - HARDLY_CAUGHT)
    left: dict[str, subprocess.Popen[bytes]] = {}
    for command in commands:
        left[command] = filled.start(*line(command), STARTED=str(tmp_path / command))
    deadline = time.monotonic() + 60
    while missing := [c for c in commands if not (tmp_path / c).exists()]:
        assert time.monotonic() < deadline, missing
        time.sleep(0.02)
    sent = {c: SIGNALS[(place + turn) % 2] for place, c in enumerate(commands)}
    for command, process in left.items():
        process.send_signal(sent[command][0])
    for command, process in left.items():
        _, errors = process.communicate(timeout=60)
        assert process.returncode == sent[command][1], command
        assert is_failure(errors), command
