"""Of a repo of GGUF files, one variant is pulled, judged, listed and shown to other programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.pull.test_pull_command import on_a_terminal
from tests.kit.contents import Content
from tests.kit.hub import LoopbackHub
from tests.kit.pulls import config, environment, pull, vlmcache
from vlmcache.commands.pull.values import PullReport
from vlmcache.commands.status.status import status
from vlmcache.commands.status.values import ModelStatus
from vlmcache.config import CacheLocation, Session
from vlmcache.errors import ExitCode

NAME = "org/name"
README, PROJECTOR = "README.md", "mmproj-name-f16.gguf"
Q4, Q8 = "name-Q4_K_M.gguf", "name-Q8_0.gguf"
PARTS = ("BF16/name-BF16-00001-of-00002.gguf", "BF16/name-BF16-00002-of-00002.gguf")
FILES: dict[str, Content] = {
    README: b"# name",
    PROJECTOR: b"p" * 9000,
    "mmproj-name-f32.gguf": b"P" * 18_000,
    Q4: b"4" * 20_000,
    Q8: b"8" * 40_000,
    PARTS[0]: b"a" * 30_000,
    PARTS[1]: b"b" * 30_000,
}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_repo(NAME).commit(FILES)
        yield hub


def here(cache: Path) -> set[str]:
    return {
        str(path.relative_to(snapshot))
        for snapshot in cache.glob("models--org--name/snapshots/*")
        for path in snapshot.rglob("*")
        if not path.is_dir()
    }


def judged(hub: LoopbackHub, cache: Path, name: str) -> ModelStatus:
    session = Session(environment(hub, cache), config(), CacheLocation(str(cache), "--cache-dir"))
    (model,) = status(session, [name]).models
    return model


@pytest.mark.parametrize(
    ("variant", "files"),
    [("Q4_K_M", {Q4}), ("q8_0", {Q8}), ("BF16", set(PARTS))],
)
def test_a_variant_is_fetched_with_its_projector_and_the_small_files_and_is_cached_then(
    hub: LoopbackHub, tmp_path: Path, variant: str, files: set[str]
) -> None:
    cache, name = tmp_path / "cache", f"{NAME}:{variant}"
    planned = pull(hub, cache, name, dry_run=True)
    assert planned.models[0].state == "planned"
    run = pull(hub, cache, name)
    assert run.problem is None
    assert run.ids == [name]
    assert here(cache) == {README, PROJECTOR, *files}
    assert planned.plan.needs == run.plan.needs == hub.bytes_sent()
    model = judged(hub, cache, name)
    assert (model.state, model.missing_files) == ("cached", ())
    assert model.size == model.expected_size == run.plan.needs
    hub.clear_requests()
    assert pull(hub, cache, name).models[0].state == "cached"
    assert pull(hub, cache, NAME).models[0].state == "cached"
    assert hub.bytes_sent() == 0


def test_a_second_variant_is_fetched_next_to_the_first(hub: LoopbackHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert pull(hub, cache, f"{NAME}:Q4_K_M").problem is None
    assert judged(hub, cache, f"{NAME}:Q8_0").state == "missing"
    hub.clear_requests()
    assert pull(hub, cache, f"{NAME}:Q8_0").problem is None
    assert hub.bytes_sent() == 40_000
    assert [(one.name, one.state) for one in judged(hub, cache, NAME).variants] == [
        ("BF16", "missing"),
        ("Q4_K_M", "cached"),
        ("Q8_0", "cached"),
    ]


def test_two_variants_of_one_repo_are_pulled_at_once(hub: LoopbackHub, tmp_path: Path) -> None:
    run = pull(hub, tmp_path / "cache", f"{NAME}:Q4_K_M", f"{NAME}:Q8_0")
    assert run.problem is None
    assert run.ids == [f"{NAME}:Q4_K_M", f"{NAME}:Q8_0"]
    assert here(tmp_path / "cache") == {README, PROJECTOR, Q4, Q8}


def refused(run: PullReport) -> str:
    assert run.problem is not None
    assert run.problem.exit_code == ExitCode.USAGE
    return run.problem.message


@pytest.mark.parametrize("name", [NAME, f"{NAME}:Q2_K"])
def test_without_one_that_exists_the_variants_are_listed_and_nothing_is_fetched(
    hub: LoopbackHub, tmp_path: Path, name: str
) -> None:
    message = refused(pull(hub, tmp_path / "cache", name))
    assert "BF16 (60 kB), Q4_K_M (20 kB), Q8_0 (40 kB)" in message
    assert hub.bytes_sent() == 0
    assert here(tmp_path / "cache") == set()


def test_the_only_variant_needs_no_name(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        hub.add_repo(NAME).commit({README: b"#", PARTS[0]: b"a" * 9000, PARTS[1]: b"b" * 9000})
        assert pull(hub, tmp_path / "cache").problem is None
    assert here(tmp_path / "cache") == {README, *PARTS}


def test_a_repo_without_gguf_files_has_no_variants(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        hub.add_repo(NAME).commit({"config.json": b"{}", "model.safetensors": b"x" * 9000})
        problem = pull(hub, tmp_path / "cache", f"{NAME}:Q4_K_M").problem
    assert problem is not None
    assert problem.exit_code == ExitCode.NO_MODEL


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_on_a_terminal_the_variant_is_picked_by_its_number(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    code, screen = on_a_terminal(hub, cache, "pull", NAME, typed=b"2\n")
    assert code == 0, screen
    assert here(cache) == {README, PROJECTOR, Q4}
    code, screen = on_a_terminal(hub, tmp_path / "other", "pull", NAME, typed=b"\n")
    assert code == 2, screen


def test_the_commands_name_the_variant(hub: LoopbackHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done = vlmcache(hub, cache, "pull", NAME, "--revision", "main", "-q")
    assert (done.returncode, "Q4_K_M (20 kB)" in done.stderr) == (2, True)
    done = vlmcache(hub, cache, "pull", f"{NAME}:Q4_K_M", "--revision", "main", "-q")
    assert (done.returncode, done.stdout) == (0, f"{NAME}:Q4_K_M\n"), done.stderr
    done = vlmcache(hub, cache, "status", f"{NAME}:Q4_K_M", "--check", "-q")
    assert (done.returncode, done.stdout) == (0, f"{NAME}:Q4_K_M\n"), done.stderr
    done = vlmcache(hub, cache, "status", f"{NAME}:Q8_0", "--check", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 4
    (model,) = document["models"]
    assert (model["variant"], model["state"]) == ("Q8_0", "missing")
    (repo,) = document["repos"]
    assert [(one["name"], one["state"]) for one in repo["revisions"][0]["variants"]] == [
        ("BF16", "missing"),
        ("Q4_K_M", "cached"),
        ("Q8_0", "missing"),
    ]
    assert "vlmcache pull one:Q8_0" in document["recommendations"][0]["command"]
    assert "variants: Q4_K_M cached" in vlmcache(hub, cache, "status", NAME).stdout
    done = vlmcache(hub, cache, "load-test", f"{NAME}:Q4_K_M", "--json")
    (failure,) = json.loads(done.stdout)["failures"]
    assert failure["code"] == "gguf"
    assert "llama.cpp, Ollama, LM Studio" in failure["hint"]
    done = vlmcache(hub, cache, "rm", f"{NAME}:Q4_K_M", "--yes", "-q")
    assert (done.returncode, done.stdout) == (0, f"{NAME}\n"), done.stderr
    assert here(cache) == {README, PROJECTOR}


def test_the_address_on_the_hub_means_the_model(hub: LoopbackHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for address in (hub.url, "https://huggingface.co"):
        name = f"{address}/{NAME}:Q4_K_M"
        done = vlmcache(hub, cache, "pull", name, "-q")
        assert (done.returncode, done.stdout) == (0, f"{NAME}:Q4_K_M\n"), done.stderr
        assert vlmcache(hub, cache, "status", name, "--check", "-q").returncode == 0
    assert vlmcache(hub, cache, "rm", f"{hub.url}/{NAME}", "--yes").returncode == 0
    assert not here(cache)


def test_an_update_fetches_the_variant_that_is_here(hub: LoopbackHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert pull(hub, cache, f"{NAME}:Q4_K_M").problem is None
    hub._repos["model", NAME].commit({**FILES, Q4: b"5" * 20_000})
    done = vlmcache(hub, cache, "status", NAME, "--outdated", "--json")
    document = json.loads(done.stdout)
    assert document["models"][0]["outdated"]["fetch"] == 20_000
    assert "vlmcache pull one:Q4_K_M" in [step["command"] for step in document["recommendations"]]


def test_damage_of_one_variant_is_not_damage_of_another(hub: LoopbackHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert pull(hub, cache, f"{NAME}:Q4_K_M", f"{NAME}:Q8_0").problem is None
    (link,) = cache.glob(f"models--org--name/snapshots/*/{Q8}")
    link.resolve().unlink()
    assert judged(hub, cache, f"{NAME}:Q8_0").state == "damaged"
    assert judged(hub, cache, f"{NAME}:Q4_K_M").state == "cached"
    states = {one.name: one.state for one in judged(hub, cache, NAME).variants}
    assert (states["Q4_K_M"], states["Q8_0"]) == ("cached", "damaged")


def advice(hub: LoopbackHub, cache: Path, name: str) -> list[tuple[str | None, str]]:
    """Return command and text of what status recommends for a name."""
    session = Session(environment(hub, cache), config(), CacheLocation(str(cache), "--cache-dir"))
    return [(step.command, step.text) for step in status(session, [name]).recommendations]


def test_once_the_last_variant_is_removed_the_advice_names_one(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert pull(hub, cache, f"{NAME}:Q8_0").problem is None
    assert vlmcache(hub, cache, "rm", f"{NAME}:Q8_0", "--yes").returncode == 0
    ((command, text),) = advice(hub, cache, NAME)
    assert command is not None
    assert command.startswith(f"vlmcache pull {NAME}:BF16 ")
    assert "60 kB" in text


def test_a_split_variant_that_is_begun_is_the_one_to_pull(hub: LoopbackHub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert pull(hub, cache, f"{NAME}:BF16").problem is None
    (link,) = cache.glob(f"models--org--name/snapshots/*/{PARTS[1]}")
    link.resolve().unlink()
    link.unlink()
    ((command, text),) = advice(hub, cache, NAME)
    assert command is not None
    assert command.startswith(f"vlmcache pull {NAME}:BF16 ")
    assert "30 kB" in text


def test_of_a_variant_that_does_not_exist_the_others_are_listed_and_no_pull_is_advised(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert pull(hub, cache, f"{NAME}:Q4_K_M").problem is None
    assert advice(hub, cache, f"{NAME}:nope") == [
        (
            None,
            f"{NAME} has no variant nope: it has BF16 (60 kB), Q4_K_M (20 kB), Q8_0 (40 kB)",
        )
    ]


@pytest.mark.parametrize("name", [NAME, f"{NAME}:BF16"])
def test_a_variant_whose_links_are_lost_is_damaged_and_repaired_without_a_download(
    hub: LoopbackHub, tmp_path: Path, name: str
) -> None:
    cache = tmp_path / "cache"
    assert pull(hub, cache, f"{NAME}:BF16").problem is None
    for link in cache.glob("models--org--name/snapshots/*/BF16/*"):
        link.unlink()
    model = judged(hub, cache, name)
    assert (model.state, model.damaged_files, model.to_fetch) == ("damaged", PARTS, 0)
    ((command, _),) = advice(hub, cache, name)
    assert command is not None
    assert command.startswith(f"vlmcache verify {NAME} --repair ")
    hub.clear_requests()
    assert vlmcache(hub, cache, "verify", NAME, "--repair").returncode == 0
    assert judged(hub, cache, name).state == "cached"
    assert hub.bytes_sent() == 0
