"""With only the config.yaml that ships, and with mistakes in one: what every command says."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.cli.test_every_command import filled, line
from tests.kit.caches import CacheBuilder, model_files
from tests.kit.commands import Done, Vlmcache, run_here
from vlmcache.cli.completion import complete
from vlmcache.cli.register import COMMANDS
from vlmcache.config import load_config, read_environment, shipped_config

__all__ = ["filled"]

SHIPPED = shipped_config().models
NAMES = [name for model in SHIPPED.values() for name in (model.key, model.repo)]
WITHOUT_CONFIG = {"schema", "explain", "help", "init"}

TABLE: list[tuple[list[str], int]] = [
    (["status"], 0),
    (["status", "--all"], 0),
    (["status", "--check"], 4),
    (["pull", "--all"], 2),
    (["pull", "--all", "--dry-run"], 2),
    (["pull"], 2),
    (["clean", "--dry-run"], 0),
    (["clean", "--all", "--dry-run"], 0),
    (["watch", "--once"], 0),
    (["verify"], 4),
    (["move", "elsewhere", "--dry-run"], 4),
    (["backup", "saved.tar", "--dry-run"], 0),
    (["load-test"], 2),
    (["load-test", "--history"], 0),
    (["doctor"], 0),
    (["init", "--dry-run"], 0),
]
"""What is typed without a MODEL -> the exit code, with a complete model and a damaged one."""


@pytest.fixture
def place(tmp_path: Path, cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch) -> CacheBuilder:
    """A cache, and no config.yaml anywhere."""
    monkeypatch.setenv("HF_HUB_CACHE", str(cache.root))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "torch.py").write_text("raise ImportError('not in this test')\n")
    monkeypatch.setenv("PYTHONPATH", str(trap))
    return cache


@pytest.mark.parametrize(("typed", "code"), TABLE, ids=str)
def test_no_command_lists_or_chooses_what_nobody_configured(
    place: CacheBuilder, typed: list[str], code: int
) -> None:
    place.repo("org/good").revision(model_files())
    place.repo("org/bad").revision(model_files())
    (snapshot,) = (place.repo("org/bad").folder / "snapshots").iterdir()
    os.truncate((snapshot / "model.safetensors").resolve(), 10)
    for more in ([], ["-q"], ["--json"]):
        done = run_here(*typed, *more)
        said = done.out + done.err
        assert done.code == code or typed[0] == "doctor", said
        assert [name for name in NAMES if name in said] == []
        assert "[Errno" not in said


def test_every_command_is_in_the_table_or_needs_a_model() -> None:
    needs = {"rm", "restore", "quantize", "warm"}
    tried = {typed[0] for typed, _ in TABLE}
    for command in COMMANDS.keys() - tried - needs - {"schema", "explain", "help"}:
        # A new command: what it needs is not known here, and its own help names no model.
        assert not [name for name in SHIPPED if name in run_here(*line(command)).out], command


def test_status_lists_the_cache_the_largest_first_and_offers_init(place: CacheBuilder) -> None:
    for name, size in (("org/b", 30_000), ("org/c", 90_000), ("org/a", 60_000)):
        place.repo(name).revision({"config.json": b"{}", "model.safetensors": b"x" * size})
    document = run_here("status", "--json").document
    assert (document["models"], document["configured"]) == ([], False)
    assert [repo["repo"] for repo in document["repos"]] == ["org/c", "org/a", "org/b"]
    assert {repo["progress"] for repo in document["repos"]} == {1.0}
    commands = [step["command"] for step in document["recommendations"]]
    assert commands == ["vlmcache init"]
    shown = run_here("status").out
    assert shown.index("org/c") < shown.index("org/a") < shown.index("org/b")
    assert run_here("status", "-q").out.split() == ["org/c", "org/a", "org/b"]
    assert run_here("status", "-q", "--sort", "name").out.split() == ["org/a", "org/b", "org/c"]
    assert run_here("status", "--check").code == 0


def test_an_empty_cache_is_offered_a_config_and_no_download(place: CacheBuilder) -> None:
    document = run_here("status", "--json").document
    assert [step["command"] for step in document["recommendations"]] == ["vlmcache init"]
    done = run_here("status", "--check")
    assert (done.code, done.err.splitlines()[0]) == (4, "error: no model is cached")
    place.repo("org/data", "dataset").revision({"README.md": b"x"})
    assert run_here("status", "--check").code == 4


def test_check_names_each_cached_model_that_is_not_complete(place: CacheBuilder) -> None:
    place.repo("org/good").revision(model_files())
    files = model_files()
    place.repo("org/part").revision(files, downloaded=set(files) - {"model.safetensors"})
    done = run_here("status", "--check", "--json")
    assert done.code == 4
    (error,) = done.document["errors"]
    assert error["message"] == "not every model is cached: org/part is partial"
    assert error["hint"] == "'vlmcache status org/part' shows what is missing of it"
    # Nobody asked for the rest: some program has only read the config.
    assert [step["command"] for step in done.document["recommendations"]] == ["vlmcache init"]


def test_what_somebody_began_to_download_is_recommended(place: CacheBuilder) -> None:
    files = model_files()
    repo = place.repo("org/part")
    repo.revision(files, downloaded=set(files) - {"model.safetensors"})
    repo.partial(age=60)
    steps = run_here("status", "--json", "--cache-dir", str(place.root)).document["recommendations"]
    commands = [step["command"] or step["text"] for step in steps]
    assert "possible once HF_HUB_OFFLINE is not set" in commands[0]
    assert commands[-1] == f"vlmcache init --cache-dir {place.root}"


def test_the_shipped_keys_stay_names_and_their_models_protected(place: CacheBuilder) -> None:
    document = run_here("status", *SHIPPED, "--json").document
    assert [model["repo"] for model in document["models"]] == [
        model.repo for model in SHIPPED.values()
    ]
    old = time.time() - 90 * 86400
    for name in ("Qwen/Qwen2-VL-2B-Instruct", "org/other"):
        repo = place.repo(name)
        repo.revision(model_files())
        for folder, _, names in os.walk(repo.folder):
            for name in names:
                os.utime(os.path.join(folder, name), (old, old), follow_symlinks=False)
    assert run_here("clean", "--older-than", "30d", "-y").code == 0
    kept = {folder.name for folder in place.root.glob("models--*")}
    assert kept == {"models--Qwen--Qwen2-VL-2B-Instruct"}
    assert run_here("rm", "qwen_vl_2b", "-y").code == 0


def test_the_shipped_keys_are_completed_for_nobody(place: CacheBuilder) -> None:
    def offered() -> set[str]:
        offers = complete(["pull", ""])
        assert isinstance(offers, list)
        return {offer.word for offer in offers}

    assert not offered() & set(NAMES)
    Path("config.yaml").write_text("models: {mine: {repo: org/mine}}\n")
    assert "mine" in offered()
    Path("config.yaml").write_text("vlmcache: {min_free: 0}\n")
    assert not offered() & set(NAMES)


def test_a_file_with_limits_only_configures_no_model_and_is_not_offered_another(
    place: CacheBuilder,
) -> None:
    Path("config.yaml").write_text("vlmcache: {min_free: 0}\n")
    document = run_here("status", "--json").document
    assert (document["configured"], document["recommendations"]) == (False, [])
    assert run_here("status", "qwen_vl_2b").code == 0


FOREIGN = {
    "app: {name: x}\n": True,
    "app: {name: x}\nmodels: {}\n": False,
    "": False,
    "vlmcache: {}\n": False,
}


@pytest.mark.parametrize("text", FOREIGN)
@pytest.mark.parametrize("by", ["--config", "VLMCACHE_CONFIG"])
def test_a_file_of_another_program_that_is_named_is_exit_2(
    place: CacheBuilder, monkeypatch: pytest.MonkeyPatch, text: str, by: str
) -> None:
    Path("app.yaml").write_text(text)
    options = ["--config", "app.yaml"] if by == "--config" else []
    if not options:
        monkeypatch.setenv("VLMCACHE_CONFIG", "app.yaml")
    done = run_here("status", *options)
    assert done.code == (2 if FOREIGN[text] else 0)
    if FOREIGN[text]:
        assert f"none of its models has model_path or repo (named by {by})" in done.err


def test_a_file_of_another_program_in_the_working_folder_is_one_note(place: CacheBuilder) -> None:
    Path("config.yaml").write_text("models: {small: {layers: 3}}\n")
    document = run_here("status", "--json").document
    notes = [note for note in document["findings"] if note["code"] == "configuration"]
    (note,) = notes
    assert note["detail"].startswith(f"{Path.cwd()}/config.yaml: not used: ")
    assert document["recommendations"][-1]["command"] == "vlmcache init"


def times(text: str, done: Done) -> tuple[int, int]:
    """How often stdout and stderr say something, however their lines are folded."""
    out, err = ("".join(stream.split()) for stream in (done.out, done.err))
    return out.count("".join(text.split())), err.count("".join(text.split()))


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - WITHOUT_CONFIG))
def test_every_command_says_once_which_key_of_ours_means_nothing(
    filled: Vlmcache, command: str
) -> None:
    path = filled.config(
        "models: {good: {repo: org/good}}\nvlmcache:\n  min_free: 0\n  max_sise: 1GB\n"
    )
    said = f"{path}:4: vlmcache.max_sise is not known; did you mean max_size?"
    plain, quiet = run_here(*line(command)), run_here(*line(command), "-q")
    assert times(said, plain) == ((1, 0) if command in ("status", "doctor") else (0, 1))
    assert times(said, quiet) == (0, 1)
    failed = run_here(*line(command), "--json", "--cache-dir", str(path))
    for done in (run_here(*line(command), "--json"), failed):
        if COMMANDS[command].lines:
            assert times(said, done) == (0, 1)
            continue
        assert done.err == ""
        assert [finding["detail"] for finding in done.document["findings"]].count(said) == 1


def test_a_mistake_in_the_users_own_limits_is_said_where_they_count(
    tmp_path: Path, place: CacheBuilder
) -> None:
    user = Path(os.environ["HOME"]) / ".config" / "vlmcache" / "config.yaml"
    user.parent.mkdir(parents=True)
    user.write_text("vlmcache:\n  zzz: 1\n")
    known = "min_free, comfortable_free, max_size, trash_days, archive, base, sources"
    said = f"{user}:2: vlmcache.zzz is not known; known: {known}"
    for text in (None, "models: {mine: {repo: org/mine}}\n"):
        if text is not None:
            Path("config.yaml").write_text(text)
        config = load_config(None, read_environment())
        assert (config.unknown, config.warnings) == ((said,), (said,))
    assert load_config("config.yaml", read_environment()).unknown == ()
