"""Patterns and addresses in place of a model's name, as they are typed."""

from __future__ import annotations

import pytest

from tests.kit.caches import CacheBuilder, fingerprint, model_files
from tests.kit.commands import Vlmcache, run_here

TAKE = {
    "status": ["status"],
    "verify": ["verify"],
    "rm": ["rm", "--dry-run"],
    "backup": ["backup", "saved.tar", "--dry-run"],
    "recall": ["recall"],
    "load-test": ["load-test", "--history"],
}
REFUSE = {
    "pull": ["pull", "--dry-run"],
    "move": ["move", "elsewhere", "--dry-run"],
    "quantize": ["quantize", "--dry-run"],
    "warm": ["warm"],
    "clean": ["clean", "--dry-run"],
    "keep": ["clean", "--dry-run", "--keep"],
}


@pytest.fixture
def filled(
    cache: CacheBuilder, vlmcache: Vlmcache, monkeypatch: pytest.MonkeyPatch
) -> CacheBuilder:
    vlmcache.config("models: {good: {repo: org/good}, absent: {repo: org/absent}}\n")
    cache.repo("org/good").revision(model_files())
    cache.repo("org/Fine").revision(model_files())
    cache.repo("other/one").revision(model_files())
    for name, value in vlmcache.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(vlmcache.folder)
    return cache


@pytest.mark.parametrize("command", TAKE)
def test_a_pattern_that_matches_nothing_is_exit_7(filled: CacheBuilder, command: str) -> None:
    done = run_here(*TAKE[command], "zz*")
    assert (done.code, done.out) == (7, "")
    assert done.err == (
        "error: nothing matches zz*\nhint: 'vlmcache status --all' lists what is cached\n"
    )


@pytest.mark.parametrize("command", TAKE)
def test_a_pattern_means_all_that_it_matches(filled: CacheBuilder, command: str) -> None:
    done = run_here(*TAKE[command], "ORG/*", "--json")
    assert done.code == 0
    if command == "verify":
        assert done.document["checked"] == 2 * len(model_files())
    elif command != "load-test":
        assert "org/good" in done.out
        assert "org/Fine" in done.out
    assert "other/one" not in str(done.document.get("models", done.document.get("plan")))


@pytest.mark.parametrize("command", REFUSE)
def test_a_command_that_takes_no_pattern_says_so(filled: CacheBuilder, command: str) -> None:
    done = run_here(*REFUSE[command], "org/*")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "error: org/* is a pattern, and this command takes only names\n"
        "hint: type vlmcache status 'org/*' to see what it matches\n"
    )


def test_status_lists_configured_models_that_match_and_are_missing(filled: CacheBuilder) -> None:
    models = run_here("status", "*", "--json").document["models"]
    assert [(model["key"], model["state"]) for model in models] == [
        ("good", "cached"),
        ("absent", "missing"),
        ("org/Fine", "cached"),
        ("other/one", "cached"),
    ]


def test_a_removal_by_a_pattern_lists_all_that_it_matches_and_asks(filled: CacheBuilder) -> None:
    for number in range(30):
        filled.repo(f"many/m{number:02}").revision({"config.json": b"{}"})
    before = fingerprint(filled.root)
    unasked = run_here("rm", "many/*")
    assert unasked.code == 5
    listed = unasked.err.splitlines()
    assert listed[0] == "matched: 30 names"
    assert listed[1:31] == [f"  many/m{number:02}" for number in range(30)]
    assert fingerprint(filled.root) == before
    assert run_here("rm", "MANY/m0*", "--yes").code == 0
    left = sorted(path.name for path in filled.root.glob("models--many--*"))
    assert left == [f"models--many--m{number:02}" for number in range(10, 30)]


def test_what_the_cache_holds_under_a_name_like_a_pattern_is_meant_by_it(
    filled: CacheBuilder,
) -> None:
    (filled.root / "odd[1]*").mkdir()
    done = run_here("rm", "odd[1]*", "--yes")
    assert done.code == 0
    assert not (filled.root / "odd[1]*").exists()
    assert (filled.root / "models--org--good").exists()


@pytest.mark.parametrize(
    ("page", "include"),
    [
        ("blob/main/config.json", "config.json"),
        ("resolve/main/a%20b.bin?download=true", "'a b.bin'"),
        ("tree/main/sub", "sub/"),
    ],
)
def test_the_address_of_a_file_never_removes_the_complete_model(
    filled: CacheBuilder, page: str, include: str
) -> None:
    before = fingerprint(filled.root)
    done = run_here("rm", f"https://huggingface.co/org/good/{page}", "--yes")
    assert done.code == 2
    assert done.err.splitlines()[1] == (f"hint: type vlmcache rm org/good@main --include {include}")
    assert fingerprint(filled.root) == before


def test_an_address_of_the_hub_names_the_model_in_every_command(filled: CacheBuilder) -> None:
    address = "HTTPS://HF.co/ORG/Good/"
    for command, line in {**TAKE, **REFUSE}.items():
        done = run_here(*line, address)
        assert done.code not in (2, 7), (command, done.err)
    twice = run_here("pull", f"{address}tree/main", "--revision", "v1", "--dry-run")
    assert (twice.code, twice.err.splitlines()[0]) == (
        2,
        "error: a revision is given twice: with @ and with --revision",
    )
