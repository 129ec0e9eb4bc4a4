"""What a Tab offers, in the shells themselves too."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.caches import CacheBuilder
from tests.kit.commands import Vlmcache
from vlmcache.cli import completion, shells
from vlmcache.cli.main import command_called
from vlmcache.cli.register import ALIASES, COMMANDS, first_words, members
from vlmcache.codes import CODES
from vlmcache.commands.status import filters
from vlmcache.config_values import ATTENTIONS, PRECISIONS
from vlmcache.load import synthetic
from vlmcache.load.report import Loader

CONFIG = "models: {good: {repo: org/good}, goose: {repo: org/absent}, 'two words': {repo: x/y}}\n"


@pytest.fixture
def filled(
    cache: CacheBuilder, vlmcache: Vlmcache, monkeypatch: pytest.MonkeyPatch
) -> CacheBuilder:
    """Three configured models, of which one is cached, two other repos, and hostile folders."""
    vlmcache.config(CONFIG)
    cache.repo("org/good").revision({"model.safetensors": b"x" * 50_000})
    cache.repo("Qwen/Qwen2-VL").revision({"config.json": b"{}"})
    cache.repo("org/data", kind="dataset").revision({"a.csv": b"1"})
    for name in ("models--a--$(touch pwned)", "models--a--b;c", "models--a--x'y"):
        (cache.root / name / "blobs").mkdir(parents=True, exist_ok=True)
    for name, value in vlmcache.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(vlmcache.folder)
    return cache


def words(*typed: str) -> list[str] | None:
    """Return the words that are offered, `None` where the shell completes a path."""
    offers = completion.complete(typed)
    return None if offers is completion.FILES else [offer.word for offer in offers]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["st"], ["status"]),
        (["status", "goo"], ["good", "goose"]),
        (["ls", "goo"], ["good", "goose"]),
        (["status", "qwen/"], ["Qwen/Qwen2-VL"]),
        (["status", "Q"], ["Qwen/Qwen2-VL"]),
        (["status", "ORG/"], ["org/good"]),
        (["rm", "good", "datasets/"], ["datasets/org/data"]),
        (["rm", "-y", "--", "goo"], ["good", "goose"]),
        (["rm", "./mod"], None),
        (["warm", "datasets/"], []),
        (["status", "a/"], []),
        (["clean", "--keep", "qw"], ["Qwen/Qwen2-VL"]),
        (["clean", "--keep=qw"], ["--keep=Qwen/Qwen2-VL"]),
        (["status", "--sort", ""], list(filters.FIELDS)),
        (["load-test", "--precision", "in"], ["int8", "int4"]),
        (["load-test", "--precision", "bf16,in"], ["bf16,int8", "bf16,int4"]),
        (["load-test", "--precision=fp32,b"], ["--precision=fp32,bf16"]),
        (["quantize", "good", "--precision", ""], ["int8", "int4"]),
        (["load-test", "--loader", "r"], ["readahead", "runai"]),
        (["load-test", "--device", "c"], ["cpu", "cuda:0"]),
        (["load-test", "--trials", ""], []),
        (["load-test", "--save", "x"], None),
        (["status", "--config", ""], None),
        (["status", "--dr"], []),
        (["pull", "--dr"], ["--dry-run"]),
        (["--ver"], ["--version"]),
        (["move", ""], None),
        (["move", "/mnt", "goo"], ["good", "goose"]),
        (["explain", "no-sp"], ["no-space"]),
        (["schema", "he"], []),
        (["schema", "pu"], ["pull"]),
        (["help", "exit"], ["exit-codes"]),
        (["help", "fleet", "st"], ["status"]),
        (["schedule", ""], ["status", "clean", "verify"]),
        (["undo", ""], []),
        (["watch", ""], []),
        (["nonsense", ""], []),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_tab_offers_what_can_be_typed_there(
    filled: CacheBuilder, typed: list[str], offered: list[str] | None
) -> None:
    assert words(*typed) == offered


def test_a_tab_offers_all_commands_and_no_alias() -> None:
    assert words("") == list(first_words())
    assert words("fleet", "") == list(members("fleet"))
    assert not set(words("") or ()) & set(ALIASES)
    assert words("explain", "") == list(CODES)


def test_a_key_is_shown_with_its_repo_and_its_size_on_disk(filled: CacheBuilder) -> None:
    assert completion.complete(["pull", "goo"]) == [
        ("good", "org/good, 53.2 kB"),
        ("goose", "org/absent, not cached"),
    ]
    assert completion.complete(["pull", "org/"]) == [("org/good", "53.2 kB")]


def test_an_id_to_undo_is_shown_with_what_was_removed(
    filled: CacheBuilder, vlmcache: Vlmcache
) -> None:
    first, second = (
        vlmcache("rm", name, "--trash", "--yes", "--json").document["receipt"]["trash_id"]
        for name in ("org/good", "Qwen/Qwen2-VL")
    )
    assert completion.complete(["undo", ""]) == [(second, "Qwen/Qwen2-VL"), (first, "org/good")]


def test_the_cache_and_the_config_that_the_line_names_are_those_that_count(
    filled: CacheBuilder, tmp_path: Path
) -> None:
    (tmp_path / "other.yaml").write_text("models: {another: {repo: a/b}}\n")
    (tmp_path / "hub" / "models--else--where").mkdir(parents=True)
    assert words("pull", "--config", str(tmp_path / "other.yaml"), "a") == ["another"]
    assert words("pull", f"--cache-dir={tmp_path / 'hub'}", "e") == ["else/where"]
    assert words("pull", "--config", "nowhere.yaml", "Q") == ["Qwen/Qwen2-VL"]


def test_what_is_known_of_arguments_and_values_is_what_the_commands_say() -> None:
    options: set[str] = set()
    for name in COMMANDS:
        places: list[str] = []
        for parameter in command_called(name).params:
            if parameter.param_type_name == "option":
                options |= {*parameter.opts}
                continue
            kind = str(parameter.metavar).removesuffix("...")
            several = parameter.nargs == -1
            kind = {"BASE": "FILE", "DEST": "FILE", "SRC": "FILE"}.get(kind, kind)
            places.append(kind + "..." * several)
        assert completion.PLACES.get(name, ()) == tuple(places), name
    assert set(completion.VALUES) <= options
    values = completion.VALUES
    assert values["--precision"] == PRECISIONS
    assert values["--attention"] == ATTENTIONS
    assert values["--loader"] == ("auto", *get_args(Loader))
    assert values["--sort"] == filters.FIELDS
    assert set(values["--synthetic"]) == set(synthetic.CONFIGS)


def test_a_tab_imports_neither_typer_nor_what_shows_or_loads(
    filled: CacheBuilder, vlmcache: Vlmcache
) -> None:
    heavy = ("typer", "rich", "huggingface_hub", "torch", "transformers", "psutil", "vlmcache.api")
    program = (
        "import sys; from vlmcache.cli.completion import complete; "
        f"assert complete(['pull', 'org/g']); print(*set({heavy}) & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")


@given(st.lists(st.text("abc'\"\\ $:=-./", max_size=8), min_size=1, max_size=4))
def test_any_line_is_answered_and_nothing_is_raised(typed: list[str]) -> None:
    line = "vlmcache " + " ".join(typed)
    assert completion.split(line)
    completion.complete(typed)


@pytest.mark.parametrize(
    ("line", "typed"),
    [
        ("vlmcache pull ", ["vlmcache", "pull", ""]),
        ("vlmcache pull org", ["vlmcache", "pull", "org"]),
        ("vlmcache pull 'org/a b", ["vlmcache", "pull", "org/a b"]),
        ('vlmcache rm "x" y\\ z', ["vlmcache", "rm", "x", "y z"]),
        ("vlmcache '", ["vlmcache", ""]),
    ],
)
def test_a_line_is_split_as_the_shell_would(line: str, typed: list[str]) -> None:
    assert completion.split(line) == typed


def shell(vlmcache: Vlmcache, *arguments: str) -> str:
    """Run a shell that finds our program, and return what it prints."""
    folder = str(Path(sys.executable).parent)
    environment = vlmcache.environment | {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        arguments, env=environment, cwd=vlmcache.folder, capture_output=True, text=True, timeout=120
    )
    return done.stdout


BASH = """\
source ./script
complete_line() {
    COMP_LINE=$1 COMP_POINT=${#1}
    _vlmcache_completion vlmcache 2>/dev/null
    echo "${COMPREPLY[@]}"
}
complete_line 'vlmcache status qwen/'
complete_line 'vlmcache load-test --device cuda:'
complete_line 'vlmcache load-test --precision=in'
complete_line 'vlmcache pull tw'
complete_line 'vlmcache pull a/'
complete_line 'vlmcache move '
"""


def test_bash_completes_with_the_script(filled: CacheBuilder, vlmcache: Vlmcache) -> None:
    (vlmcache.folder / "script").write_text(shells.SHELLS["bash"].script)
    assert shell(vlmcache, "bash", "-c", BASH).splitlines() == [
        "Qwen/Qwen2-VL",
        "0",
        "int8 int4",
        "'two words'",
        "",
        "",
    ]
    assert not (vlmcache.folder / "pwned").exists()


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes_with_the_script(filled: CacheBuilder, vlmcache: Vlmcache) -> None:
    (vlmcache.folder / "script").write_text(shells.SHELLS["fish"].script)
    lines = "source ./script; complete -C 'vlmcache pull org/'; complete -C 'vlmcache stat'"
    assert shell(vlmcache, "fish", "-c", lines).splitlines() == [
        "org/good\t53.2 kB",
        f"status\t{COMMANDS['status'].summary}",
    ]


def typed_in(environment: dict[str, str], folder: Path, line: str, wanted: str) -> str:
    """Type a line into an interactive zsh, and return what it shows until that is wanted."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe("zsh", ["zsh", "-i"], environment)
    shown, sent, deadline = "", False, time.monotonic() + 120
    try:
        while wanted not in shown and time.monotonic() < deadline:
            if "ready>" in shown and not sent:
                os.write(terminal, line.encode())
                sent, shown = True, ""
            if select.select([terminal], [], [], 0.5)[0]:
                text = os.read(terminal, 65536).decode(errors="replace")
                shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]", "", shown + text)
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    return shown


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_the_first_tab_in_zsh_completes_and_shows_sizes(
    filled: CacheBuilder, vlmcache: Vlmcache
) -> None:
    home = vlmcache.folder
    (home / "functions").mkdir()
    (home / "functions" / "_vlmcache").write_text(shells.SHELLS["zsh"].script)
    # A folder of functions that others can write to would be asked about.
    (home / ".zshrc").write_text(
        "PS1='ready>'; fpath=(~/functions $fpath)\nautoload -Uz compinit; compinit -u\n"
    )
    environment = vlmcache.environment | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "ZDOTDIR": str(home),
        "TERM": "xterm",
    }
    assert "tatus" in typed_in(environment, home, "vlmcache sta\t", "tatus")
    shown = typed_in(environment, home, "vlmcache pull goo\t\t", "not cached")
    assert "org/good, 53.2 kB" in shown


def installed(monkeypatch: pytest.MonkeyPatch, home: Path, name: str) -> Sequence[str]:
    monkeypatch.setenv("HOME", str(home))
    first = shells.install(name)
    assert Path(first).read_text() == shells.SHELLS[name].script
    start = home / shells.SHELLS[name].start if shells.SHELLS[name].start else None
    text = start.read_text() if start else ""
    assert shells.install(name) == first
    assert (start.read_text() if start else "") == text, "named twice"
    return text.splitlines()


def test_the_script_is_installed_where_each_shell_reads_it_and_named_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".bashrc").write_text("alias x=y")
    assert installed(monkeypatch, tmp_path, "bash") == [
        "alias x=y",
        "source ~/.bash_completions/vlmcache.sh",
    ]
    assert installed(monkeypatch, tmp_path, "zsh") == [shells.SHELLS["zsh"].line]
    assert installed(monkeypatch, tmp_path, "fish") == []


def test_the_shell_that_is_asked_about_is_the_one_that_started_the_command(
    vlmcache: Vlmcache,
) -> None:
    line = f"{sys.executable} -m vlmcache --show-completion; true"
    assert shell(vlmcache, "bash", "-c", line) == shells.SHELLS["bash"].script
    assert "bash" in shell(vlmcache, "bash", "-c", line.replace("show", "install"))


def test_an_unknown_shell_and_a_script_of_an_earlier_version_are_answered_too(
    filled: CacheBuilder, vlmcache: Vlmcache, monkeypatch: pytest.MonkeyPatch
) -> None:
    old: Any = vlmcache(_VLMCACHE_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="vlmcache sta")
    assert (old.code, old.err) == (0, "")
