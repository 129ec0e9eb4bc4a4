"""What a name means that somebody types: one reading of it for every command."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.caches import CacheBuilder
from vlmcache.cache.scan import scan
from vlmcache.change.names import find_targets
from vlmcache.commands.backup.contents import wishes
from vlmcache.config import Config, Limits, ModelConfig, Names, find_model, parse_name
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
        lambda: wishes(["models--org--name"], CONFIG, [text]),
    ):
        with pytest.raises(UsageError, match="no variants") as caught:
            read()
        assert caught.value.hint == f"type {text.rpartition(':')[0]}"


def test_a_key_that_holds_a_colon_means_what_is_configured() -> None:
    assert find_model(CONFIG, "a:b@c").repo == "x/y"


def test_a_key_stands_for_its_repo_at_the_configured_revision() -> None:
    found = Names(CONFIG, [("model", "org/name")]).resolve("small")
    assert (found.folder, found.revision, found.held) == ("models--org--name", None, False)
    assert found.model is not None
    assert found.model.revision == "v1"


def test_a_repo_of_another_type_is_named_with_its_prefix() -> None:
    book = Names(CONFIG, [("dataset", "org/data")])
    assert book.resolve("datasets/Org/Data@v2").folder == "datasets--org--data"
    assert book.resolve("spaces/org/app").kind == "space"
    assert str(book.unknown("datasets/org/dat", "backup").hint) == "did you mean datasets/org/data?"


@pytest.mark.parametrize("place", [None, "cache", "backup"])
def test_a_name_that_means_nothing_gets_the_nearest_that_does(place: str | None) -> None:
    book = Names(CONFIG, [("model", "org/other"), ("model", "org/name")])
    error = book.unknown("smal", place)
    assert isinstance(error, UnknownModelError)
    assert error.hint == "did you mean small?"
    assert book.unknown("org/othr", place).hint is not None


def test_nothing_is_suggested_for_what_is_close_to_nothing() -> None:
    assert did_you_mean("zzz", ["status", "pull"]) is None
