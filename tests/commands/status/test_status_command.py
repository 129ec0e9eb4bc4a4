"""`vlmcache status` as users and scripts run it: a real process, its streams and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kit.caches import CacheBuilder, du_allocated, fingerprint, model_files
from tests.kit.commands import Vlmcache, is_failure
from tests.kit.disks import common_folder, read_only_view

TWO = "models:\n  good: {repo: org/good}\n  bad: {repo: org/bad, precision: int8}\n"


@pytest.fixture
def filled(cache: CacheBuilder, vlmcache: Vlmcache) -> CacheBuilder:
    """A configuration of two models, one complete and one without its weights."""
    vlmcache.config(TWO)
    cache.repo("org/good").revision(model_files())
    files = model_files()
    cache.repo("org/bad").revision(files, downloaded=set(files) - {"model.safetensors"})
    cache.repo("org/other", "dataset").revision({"README.md": b"x"})
    return cache


def test_the_document_has_the_keys_that_scripts_rely_on(
    filled: CacheBuilder, vlmcache: Vlmcache
) -> None:
    done = vlmcache("status", "--json")
    assert done.code == 0
    assert done.err == ""
    document = done.document
    assert document["schema"] == "vlmcache.status/1"
    assert (document["ok"], document["exit_code"], document["errors"]) == (True, 0, [])
    cache = document["cache"]
    assert cache["dir"] == str(filled.root)
    assert cache["source"] == "HF_HUB_CACHE"
    assert cache["size_on_disk"] == du_allocated(filled.root) == sum(cache["by_class"].values())
    assert list(cache["by_class"]) == [
        "referenced",
        "detached",
        "orphan",
        "partial",
        "shared",
        "metadata",
        "foreign",
        "trash",
    ]
    good, bad = document["models"]
    assert (good["key"], good["state"], bad["key"], bad["state"]) == (
        "good",
        "cached",
        "bad",
        "partial",
    )
    assert bad["missing_files"] == ["model.safetensors"]
    assert {repo["repo"] for repo in document["repos"]} == {"org/good", "org/bad", "org/other"}
    assert document["recommendations"][0]["command"] == "vlmcache pull bad"


def test_check_ends_with_4_unless_every_model_asked_for_is_cached(
    filled: CacheBuilder, vlmcache: Vlmcache
) -> None:
    assert vlmcache("status", "good", "--check").code == 0
    done = vlmcache("status", "--check")
    assert done.code == 4
    assert done.err == "error: not every model is cached: bad is partial\nhint: vlmcache pull bad\n"
    document = vlmcache("status", "--check", "--json").document
    assert (document["ok"], document["exit_code"]) == (False, 4)
    assert document["errors"][0]["code"] == "not-cached"
    assert len(document["models"]) == 2


def test_quiet_prints_one_id_per_line(filled: CacheBuilder, vlmcache: Vlmcache) -> None:
    assert vlmcache("status", "-q").out == "org/good\norg/bad\n"
    assert vlmcache("status", "-q", "--filter", "state=cached").out == "org/good\n"
    assert vlmcache("status", "-q", "--all").out == "org/good\norg/bad\ndatasets/org/other\n"
    assert vlmcache("status", "-q", "good@v1").out == "org/good@v1\n"


def test_a_pipe_gets_no_escape_codes_and_no_folded_lines(
    filled: CacheBuilder, vlmcache: Vlmcache
) -> None:
    done = vlmcache("status", "--all", FORCE_COLOR="1", TERM="xterm-256color")
    assert "\x1b" not in done.out
    assert "partial" in done.out
    assert "missing: model.safetensors" in done.out
    assert "vlmcache pull bad" in done.out


def test_a_terminal_gets_color_and_only_a_path_is_longer_than_a_line(
    filled: CacheBuilder, vlmcache: Vlmcache
) -> None:
    import re

    shown = vlmcache.on_terminal("status", "--all")
    assert "\x1b[" in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    long = [line.strip() for line in plain.splitlines() if len(line) > 80]
    assert all(line.split()[0] in ("Cache", "vlmcache") or line[0] == "/" for line in long), long
    assert "org/other" in plain


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_color_means_no_escape_codes_at_all(
    filled: CacheBuilder, vlmcache: Vlmcache, variables: dict[str, str]
) -> None:
    assert "\x1b" not in vlmcache.on_terminal("status", "--all", **variables)


def test_names_from_the_disk_cannot_command_the_terminal(
    cache: CacheBuilder, vlmcache: Vlmcache
) -> None:
    vlmcache.config("models: {}")
    evil = "models--org--x\x1b]0;owned\x07\u202e"
    (cache.root / evil / "snapshots").mkdir(parents=True)
    (cache.root / os.fsdecode(b"models--org--\xff")).mkdir()
    for done in (vlmcache("status", "--all", "-v"), vlmcache("status", "-q", "--all")):
        assert done.code == 0
        assert not set("\x1b\x07\u202e") & set(done.out)
        assert "\\x1b" in done.out
        assert "\\xff" in done.out
    assert vlmcache("status", "--json").document["repos"]


def test_an_absent_cache_is_not_an_error_and_is_not_created(
    vlmcache: Vlmcache, tmp_path: Path
) -> None:
    done = vlmcache("status", "--cache-dir", str(tmp_path / "absent"))
    assert done.code == 0
    assert "does not exist yet" in done.out
    assert "vlmcache pull" not in done.out
    assert not (tmp_path / "absent").exists()


def test_an_empty_cache_is_not_an_error(vlmcache: Vlmcache, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    document = vlmcache("status", "--json").document
    assert document["cache"]["exists"]
    assert (document["models"], document["repos"]) == ([], [])


def test_a_read_only_cache_and_home_are_no_obstacle(vlmcache: Vlmcache) -> None:
    with common_folder() as folder:
        cache = CacheBuilder(folder / "hub")
        cache.repo("org/good").revision(model_files())
        vlmcache.config("models: {good: {repo: org/good}}")
        with read_only_view(folder) as view:
            done = vlmcache(
                "status", "--check", HF_HUB_CACHE=str(view / "hub"), VLMCACHE_HOME=str(view)
            )
    assert done.code == 0, done.err


def test_status_changes_nothing_and_uses_no_network(
    filled: CacheBuilder, vlmcache: Vlmcache, tmp_path: Path
) -> None:
    before = fingerprint(filled.root)
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*arguments, **options):\n"
        "    raise AssertionError('the network was asked')\n"
        "socket.socket.connect = refuse\nsocket.getaddrinfo = refuse\n"
    )
    done = vlmcache("status", "--json", PYTHONPATH=str(trap))
    assert done.code == 0, done.err
    assert fingerprint(filled.root) == before
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["status", "qwen_2b"], 7, "no such model: qwen_2b\nhint: did you mean qwen_vl_2b"),
        (["status", "a/b/c"], 7, "no such model: a/b/c"),
        (["status", "qwen_vl_2b@.."], 2, "is not a branch, tag or commit"),
        (["status", "--config", "no.yaml"], 2, "no.yaml: no such file"),
        (["status", "--cache-dir", "config.yaml"], 2, "the cache path is not a folder"),
        (["status", "--filter", "size~1"], 2, "--filter 'size~1' is not a filter"),
        (["status", "--filter", "size>big"], 2, "not a size: 'big'"),
        (["status", "--sort", "colour"], 2, "--sort 'colour' is not one of"),
        (["status", "--nonsense"], 2, "--nonsense"),
        (["nonsense"], 2, "no such command: nonsense\nhint: see 'vlmcache --help'"),
        (["statis"], 2, "no such command: statis\nhint: did you mean 'vlmcache status'?"),
        (["schema", "nonsense"], 2, "no schema for 'nonsense'"),
        (["schema"], 2, "missing argument 'COMMAND'\nhint: see"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code_with_and_without_json(
    vlmcache: Vlmcache, arguments: list[str], code: int, words: str
) -> None:
    if "config.yaml" in arguments:
        vlmcache.config("models: {}")
    done = vlmcache(*arguments)
    assert (done.code, done.out) == (code, "")
    assert words in done.err
    assert is_failure(done.err)
    asked = vlmcache(*arguments, "--json")
    assert asked.code == code
    assert asked.err == ""
    document = asked.document
    assert (document["ok"], document["exit_code"]) == (False, code)
    if arguments[0] != "schema":
        error = document["errors"][0]
        assert words in f"{error['message']}\nhint: {error['hint']}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("models: {a: {repo: org/name, precision: fp17}}", 1),
        ("vlmcache:\n  - a\n", 2),
        ("\ta: b", 1),
    ],
)
def test_a_wrong_configuration_is_exit_2_and_names_its_line(
    vlmcache: Vlmcache, text: str, line: int
) -> None:
    path = vlmcache.config(text)
    done = vlmcache("status")
    assert done.code == 2
    assert done.err.startswith(f"error: {path}:{line}: ")
    assert is_failure(done.err)


def test_a_fault_of_our_own_is_one_line_without_a_traceback(
    vlmcache: Vlmcache, tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "sitecustomize.py").write_text(
        "import shutil\ndef broken(path):\n    raise RuntimeError('surprise')\n"
        "shutil.disk_usage = broken\n"
    )
    done = vlmcache("status", PYTHONPATH=str(trap))
    assert done.code == 1
    assert "internal error: RuntimeError: surprise" in done.err
    assert "Traceback" not in done.err


def test_help_names_every_command_and_says_how_to_see_every_exit_code(vlmcache: Vlmcache) -> None:
    from vlmcache.cli.register import COMMANDS, first_words
    from vlmcache.errors import ExitCode

    done = vlmcache("--help")
    assert done.code == 0
    assert "\n  vlmcache help exit-codes " in done.out
    codes = " ".join(vlmcache("help", "exit-codes").out.split())
    for code in ExitCode:
        assert f" {code.value} {code.meaning}" in codes
    for word, summary in first_words().items():
        assert f"\n  {word} " in done.out
        assert summary in done.out
    for command in COMMANDS:
        shown = vlmcache(command, "-h")
        assert shown.code == 0
        assert "Examples:" in shown.out
    assert vlmcache().out == done.out


def test_the_version_is_shown(vlmcache: Vlmcache) -> None:
    import vlmcache as package

    assert vlmcache("--version").out == f"vlmcache {package.__version__}\n"


def test_completion_offers_the_keys_of_the_configuration(
    filled: CacheBuilder, vlmcache: Vlmcache
) -> None:
    program = Path(sys.executable).parent / "vlmcache"
    shell = Vlmcache(vlmcache.environment, vlmcache.folder, (str(program),))
    done = shell(_VLMCACHE_COMPLETE="bash", _VLMCACHE_LINE="vlmcache status g")
    assert done.out.split() == ["words", "good"]


def heavy_modules(program: str) -> Any:
    names = "'torch', 'transformers', 'huggingface_hub', 'pydantic', 'rich', 'psutil', 'yaml'"
    imported = f"[name for name in ({names}) if name in sys.modules]"
    code = f"import sys, json\n{program}\nprint(json.dumps({imported}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert heavy_modules("import vlmcache") == []
    assert heavy_modules("import vlmcache.cli.main") == []


def test_status_itself_imports_no_model_library_and_no_hub_client(
    filled: CacheBuilder, vlmcache: Vlmcache
) -> None:
    assert heavy_modules("import vlmcache\nvlmcache.Cache().status()") == ["yaml"]


def test_the_status_command_as_json_imports_neither_pydantic_nor_rich(
    filled: CacheBuilder, vlmcache: Vlmcache
) -> None:
    arguments = ["status", "good", "--json", "--sort", "name", "--filter", "size>1B"]
    program = (
        "import contextlib, io\nfrom vlmcache.cli.main import app\n"
        f"app({arguments!r}, standalone_mode=False)"
    )
    assert heavy_modules(program) == ["yaml"]
