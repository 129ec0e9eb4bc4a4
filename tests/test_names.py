"""What a name means that somebody types: one reading of it for every command."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.caches import CacheBuilder
from vlmcache.cache.scan import scan
from vlmcache.change.names import find_targets
from vlmcache.commands.backup.contents import select_repos
from vlmcache.config import (
    Config,
    Limits,
    ModelConfig,
    Names,
    expand_patterns,
    find_model,
    name_of,
    parse_name,
    parse_page,
)
from vlmcache.errors import UnknownModelError, UsageError
from vlmcache.names import Name
from vlmcache.units import did_you_mean

CONFIG = Config(
    "c",
    "user",
    {"small": ModelConfig("small", "org/name", "v1"), "a:b@c": ModelConfig("", "x/y")},
    Limits(),
)
names = st.from_regex(r"[A-Za-z0-9_]{1,8}(/[A-Za-z0-9_.-]{1,8})?", fullmatch=True)
revisions = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,8}", fullmatch=True)
variants = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)


@given(name=names, revision=st.none() | revisions, variant=st.none() | variants)
def test_a_name_is_read_back_in_its_parts(
    name: str, revision: str | None, variant: str | None
) -> None:
    text = name + (f"@{revision}" if revision else "") + (f":{variant}" if variant else "")
    assert parse_name(text) == Name(name, revision, variant)


@pytest.mark.parametrize("text", ["", ":", ":q4", "name:", "C:\\models", "name:q 4", "name:/etc"])
def test_what_cannot_be_a_variant_stays_in_the_name(text: str) -> None:
    assert parse_name(text) == Name(text)


@pytest.mark.parametrize("text", ["small:q4", "org/name:Q4_K_M", "org/name@v1:q4", "new/one:q4"])
def test_a_command_without_variants_refuses_one_and_says_what_to_type(
    text: str, cache: CacheBuilder
) -> None:
    cache.repo("org/name").revision({"config.json": b"{}"})
    state = scan(cache.root)
    for read in (
        lambda: find_model(CONFIG, text, ["org/name"]),
        lambda: find_targets(state, CONFIG, [text]),
        lambda: select_repos(["models--org--name"], CONFIG, [text]),
    ):
        with pytest.raises(UsageError, match="no variants") as caught:
            read()
        assert caught.value.hint == f"type {text.rpartition(':')[0]}"


@pytest.mark.parametrize(
    ("text", "repo", "revision", "variant"),
    [
        ("org/name:Q4_K_M", "org/name", "v1", "Q4_K_M"),
        ("org/name@v2:q4", "org/name", "v2", "q4"),
        ("org/name:sub/name-Q4", "org/name", "v1", "sub/name-Q4"),
        ("small:Q8_0", "org/name", "v1", "Q8_0"),
        ("gguf", "org/g", "main", "Q5_K_M"),
        ("gguf@v3", "org/g", "v3", "Q5_K_M"),
        ("gguf:Q2_K", "org/g", "main", "Q2_K"),
        ("new/one:q4", "new/one", "main", "q4"),
    ],
)
def test_a_command_with_variants_reads_the_one_that_is_meant_and_names_it_back(
    text: str, repo: str, revision: str, variant: str
) -> None:
    models = {**CONFIG.models, "gguf": ModelConfig("gguf", "org/g", variant="Q5_K_M")}
    config = Config("c", "user", models, Limits())
    found = find_model(config, text, variants=True)
    assert (found.repo, found.revision, found.variant) == (repo, revision, variant)
    assert find_model(config, name_of(config, found, ()), variants=True) == found


def test_a_variant_before_the_revision_is_refused_and_the_order_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        find_model(CONFIG, "org/name:Q4_K_M@main", variants=True)
    assert caught.value.hint == "type org/name@main:Q4_K_M"


@pytest.mark.parametrize(
    "text",
    [
        "C:\\models\\x",
        "C:/models",
        "hf://org/name",
        "http://127.0.0.1:8080/org/name",
        "https://h/o/n",
    ],
)
def test_the_colon_of_a_drive_a_scheme_or_a_port_begins_no_variant(text: str) -> None:
    assert parse_name(text).variant is None


def test_a_key_that_holds_a_colon_means_what_is_configured() -> None:
    assert find_model(CONFIG, "a:b@c").repo == "x/y"


def test_a_key_stands_for_its_repo_at_the_configured_revision() -> None:
    found = Names(CONFIG, [("model", "org/name")]).resolve("small")
    assert (found.folder, found.revision, found.in_place) == ("models--org--name", None, False)
    assert found.model is not None
    assert found.model.revision == "v1"


def test_a_repo_of_another_type_is_named_with_its_prefix() -> None:
    book = Names(CONFIG, [("dataset", "org/data")])
    assert book.resolve("datasets/Org/Data@v2").folder == "datasets--org--data"
    assert book.resolve("spaces/org/app").kind == "space"
    assert str(book.unknown("datasets/org/dat", "backup").hint) == "did you mean datasets/org/data?"


@pytest.mark.parametrize(
    ("text", "repo"),
    [
        ("datasets/org/data", "datasets/org/data"),
        ("datasets/Org/DATA", "datasets/org/data"),
        ("datasets/new/one", "datasets/new/one"),
        ("spaces/org/app", "spaces/org/app"),
        ("datasets/squad", "datasets/squad"),
        ("https://huggingface.co/datasets/new/one", "datasets/new/one"),
        ("org/other", "org/other"),
    ],
)
def test_a_command_that_works_on_other_types_keeps_their_prefix_and_names_it_back(
    text: str, repo: str
) -> None:
    cached = ["datasets/org/data", "datasets/squad"]
    found = find_model(CONFIG, f"{text}@v2", cached, others=True)
    assert (found.key, found.repo, found.revision) == (repo, repo, "v2")
    assert name_of(CONFIG, found, cached) == f"{repo}@v2"
    main = find_model(CONFIG, text, cached, others=True)
    assert name_of(CONFIG, main, cached) == repo


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("datasets/org/data", False),
        ("spaces/org/app", False),
        ("datasets/unheld", True),
        ("spaces/unheld", True),
        ("datasets/a/b/c", True),
        ("datasets/../b", True),
        ("datasets/", True),
    ],
)
def test_a_name_of_another_type_is_no_model_and_one_without_an_owner_no_repo(
    text: str, others: bool
) -> None:
    with pytest.raises(UnknownModelError):
        find_model(CONFIG, text, ["datasets/org/data"], others=others)


@pytest.mark.parametrize(
    "hub",
    [
        "https://huggingface.co",
        "HTTPS://HuggingFace.co",
        "http://www.huggingface.co",
        "hf.co",
        "https://hf.co",
        "http://[::1]:80/hub",
        "https://[::1]:80/HUB",
        "[::1]:80/hub",
    ],
)
@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("org/other", ("model", "org/other", None, None)),
        ("Org/Name/", ("model", "org/name", None, None)),
        ("org/name@v2:q4", ("model", "org/name", "v2", "q4")),
        ("org/name/tree/main", ("model", "org/name", "main", None)),
        ("org/name/tree/refs%2Fpr%2F1:q4", ("model", "org/name", "refs/pr/1", "q4")),
        ("datasets/org/data", ("dataset", "org/data", None, None)),
        ("org/name/tree/refs/pr/1", ("model", "org/name", "refs/pr/1", None)),
        ("org/name/tree/v2/sub/folder/", ("model", "org/name", "v2", None)),
        ("org/name/blob/v2/sub/model-Q4.gguf", ("model", "org/name", "v2", None)),
        ("ORG/NAME/resolve/v2/x.bin?download=true", ("model", "org/name", "v2", None)),
        ("org/name?not-for-all-audiences=true", ("model", "org/name", None, None)),
        ("org/name#usage", ("model", "org/name", None, None)),
        ("org/name/discussions/5", ("model", "org/name", None, None)),
        ("org/tree", ("model", "org/tree", None, None)),
        ("org/tree/tree/v2", ("model", "org/tree", "v2", None)),
        ("datasets/org/data/blob/main/a/b.csv", ("dataset", "org/data", "main", None)),
    ],
)
def test_the_address_of_a_page_on_the_hub_stands_for_its_repo(
    hub: str, page: str, name: tuple[str, ...]
) -> None:
    config = msgspec.structs.replace(CONFIG, hub="http://[::1]:80/hub/")
    held = [("model", "org/name"), ("dataset", "org/data")]
    named = Names(config, held, variants=True).resolve(f"{hub}/{page}")
    assert (named.kind, named.repo, named.revision, named.variant) == name


@pytest.mark.parametrize("text", ["https://example.com/org/name", "https://hf.co.example.com/a/b"])
def test_an_address_elsewhere_means_nothing(text: str) -> None:
    with pytest.raises(UnknownModelError):
        find_model(CONFIG, text)


@pytest.mark.parametrize("place", [None, "cache", "backup"])
def test_a_name_that_means_nothing_gets_the_nearest_that_does(place: str | None) -> None:
    book = Names(CONFIG, [("model", "org/other"), ("model", "org/name")])
    error = book.unknown("smal", place)
    assert isinstance(error, UnknownModelError)
    assert error.hint == "did you mean small?"
    assert book.unknown("org/othr", place).hint is not None


def test_nothing_is_suggested_for_what_is_close_to_nothing() -> None:
    assert did_you_mean("zzz", ["status", "pull"]) is None
    assert did_you_mean("gated", ["failed", "renamed"]) is None
    assert did_you_mean("--min-free", ["--limit-rate", "--from"]) is None


def test_a_part_of_a_name_suggests_the_name() -> None:
    assert did_you_mean("qwen", ["qwen_vl_2b_instruct"]) == "did you mean qwen_vl_2b_instruct?"
    assert did_you_mean("dry", ["--dry-run", "--json"]) == "did you mean --dry-run?"


@pytest.mark.parametrize(
    ("page", "path"),
    [
        ("org/name", None),
        ("org/name/tree/main", None),
        ("org/name/tree/main/sub", "sub/"),
        ("org/name/blob/main/a%20b/c.bin", "a b/c.bin"),
        ("gpt2/tree/main", None),
        ("gpt2/blob/main/x", "x"),
    ],
)
def test_the_address_of_a_file_says_which_one(page: str, path: str | None) -> None:
    read = parse_page(f"https://huggingface.co/{page}")
    assert read is not None
    assert read.path == path
    assert parse_page(page) is None


@given(
    name=st.from_regex(r"[a-z0-9]{1,8}/[a-zA-Z0-9_.-]{1,8}", fullmatch=True),
    revision=revisions.filter(lambda text: "/" not in text),
    path=st.none() | st.from_regex(r"[a-z]{1,5}(/[a-z.]{1,5}){0,2}", fullmatch=True),
    case=st.sampled_from([str, str.upper, str.title]),
    end=st.sampled_from(["", "/", "?x=y", "#top", "/?a*b[c]"]),
)
def test_any_address_is_read_back_as_the_name_that_it_stands_for(
    name: str, revision: str, path: str | None, case: Any, end: str
) -> None:
    where = f"/blob/{quote(revision, safe='')}/{path}" if path else f"/tree/{quote(revision)}"
    read = parse_page(f"{case('https://huggingface.co')}/{name}{where}{end}")
    assert read is not None
    assert (read.name, read.path) == (f"{name}@{revision}", path)


@pytest.mark.parametrize("text", ["SMALL", "Small", "small"])
def test_a_key_is_read_in_any_case_unless_two_differ_by_it_only(text: str) -> None:
    assert find_model(CONFIG, text).key == "small"
    twice = {**CONFIG.models, "SMALL": ModelConfig("SMALL", "org/other")}
    config = msgspec.structs.replace(CONFIG, models=twice)
    if text == "Small":
        with pytest.raises(UnknownModelError):
            find_model(config, text)
    else:
        assert find_model(config, text).key == text


CACHED = ["org/name", "org/Other", "gpt2", "datasets/org/data"]
PATTERNS = Config(
    "c",
    "user",
    {
        "small": ModelConfig("small", "Org/Name"),
        "absent": ModelConfig("absent", "org/absent"),
        "a*b": ModelConfig("a*b", "x/y"),
    },
    Limits(),
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("org/*", ["org/Other", "org/name"]),
        ("ORG/*", ["org/Other", "org/name"]),
        ("*", ["small", "gpt2", "org/Other"]),
        ("s*", ["small"]),
        ("*/n[aeiou]me", ["org/name"]),
        ("gpt?", ["gpt2"]),
        ("org/o*@v1:Q4_K_M", ["org/Other@v1:Q4_K_M"]),
        ("datasets/*", ["datasets/org/data"]),
        ("https://huggingface.co/org/*", ["org/Other", "org/name"]),
        ("a*b", ["a*b"]),
        ("plain", ["plain"]),
        ("https://hf.co/org/name?x=*", ["https://hf.co/org/name?x=*"]),
    ],
)
def test_a_pattern_stands_for_what_it_matches(text: str, names: list[str]) -> None:
    assert list(expand_patterns(PATTERNS, [text], CACHED)) == names
    assert list(expand_patterns(PATTERNS, [text, text], CACHED)) == names


def test_a_pattern_matches_keys_that_are_not_cached_only_if_these_are_asked_for() -> None:
    assert "absent" not in expand_patterns(PATTERNS, ["*"], CACHED)
    assert "absent" in expand_patterns(PATTERNS, ["*"], CACHED, missing=True)


@pytest.mark.parametrize("text", ["zzz*", "datasets/z*", "[", "a/[b", "spaces/*"])
def test_a_pattern_that_matches_nothing_is_no_model(text: str) -> None:
    with pytest.raises(UnknownModelError, match="nothing matches"):
        expand_patterns(PATTERNS, [text], CACHED)


@given(
    st.text("orgnamehtsd/*?[]-!", max_size=10),
    st.lists(st.sampled_from([*CACHED, "x/org-name"]), unique=True),
)
def test_what_a_pattern_matches_can_be_read_and_is_there(text: str, cached: list[str]) -> None:
    try:
        names = expand_patterns(PATTERNS, [text], cached)
    except (UnknownModelError, UsageError):
        return
    if names == (text,):
        return
    for name in names:
        found = find_model(PATTERNS, name, cached, variants=True, others=True)
        assert found.repo in cached


def test_a_pattern_is_refused_where_one_name_is_expected() -> None:
    for text in ("org/*", "small*", "org/?@v1"):
        with pytest.raises(UsageError, match="is a pattern") as caught:
            find_model(PATTERNS, text, CACHED)
        assert str(caught.value.hint).startswith("type vlmcache status ")


@pytest.mark.parametrize("text", ["other", "OTHER", "Oter", "org/OTER"])
def test_a_name_without_owner_or_in_another_case_is_close_to_the_repo(text: str) -> None:
    assert "org/Other" in str(Names(PATTERNS, [("model", "org/Other")]).unknown(text).hint)
