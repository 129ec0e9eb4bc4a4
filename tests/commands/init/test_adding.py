"""A model is added to a config.yaml, and nothing else in the file changes by a byte."""

from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmcache.commands.init.plan import Entry, NotAddedError, key_for, with_entries
from vlmcache.config import ModelConfig
from vlmcache.config_file import parse_config

NEW = Entry("new", ModelConfig("x", "org/new-GGUF", "1.0", variant="Q4_K_M", configured=False))
FIELDS = {"model_path": "org/new-GGUF:Q4_K_M", "revision": "1.0"}


def added(text: str) -> str:
    return with_entries(text.encode(), "config.yaml", [NEW]).decode()


def shared(one: str, other: str) -> int:
    """The length of the beginning that two strings have in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def is_only_longer(before: str, after: str) -> bool:
    """Whether the one is the other with something put in at one place."""
    same = shared(before, after) + shared(before[::-1], after[::-1])
    return same >= len(before) and len(after) > len(before)


WORD = st.sampled_from(["alpha", "b-c", "café", "日本", "null", "'#1'", "'a: b'", "12", "yes", "~"])
COMMENT = st.sampled_from(["# plain", "# - key: [", "#", "# 'quote", "# models:", "# ünïcode"])
VALUE = st.one_of(
    WORD,
    st.lists(WORD, max_size=3).map(lambda words: f"[{', '.join(words)}]"),
    st.lists(WORD, min_size=1, max_size=3).map(
        lambda words: "{" + ", ".join(f"k{n}: {word}" for n, word in enumerate(words)) + "}"
    ),
)


@st.composite
def trailing(draw: st.DrawFn) -> str:
    return draw(st.sampled_from(["", "", "  ", " # note", "   # models: {}"]))


@st.composite
def between(draw: st.DrawFn, depth: int) -> list[str]:
    """Blank lines and comments between two lines, of any depth."""
    blank = st.just("")
    comment = st.tuples(st.integers(0, depth), COMMENT).map(lambda it: " " * it[0] + it[1])
    return draw(st.lists(blank | comment, max_size=2))


@st.composite
def fields(draw: st.DrawFn, indent: str) -> list[str]:
    """Further keys of an entry, or of another section, in several styles."""
    lines: list[str] = []
    for number in range(draw(st.integers(0, 3))):
        lines += draw(between(len(indent)))
        key = f"{indent}key{number}:"
        style = draw(st.sampled_from(["scalar", "list", "block", "kept", "nothing", "lines"]))
        if style == "scalar":
            lines.append(f"{key} {draw(VALUE)}{draw(trailing())}")
        elif style == "nothing":
            lines.append(key + draw(trailing()))
        elif style == "list":
            lines += [key, *(f"{indent}- {word}" for word in draw(st.lists(WORD, min_size=1)))]
        elif style == "lines":
            lines += [f'{key} "one', "", '  two # no comment"']
        else:
            sign = draw(st.sampled_from(["|", ">", "|-"])) if style == "block" else "|+"
            lines += [f"{key} {sign}", f"{indent}  text # no comment", f"{indent}   - models:"]
            lines += [""] * draw(st.integers(0, 2))
    return lines


@st.composite
def models(draw: st.DrawFn) -> tuple[list[str], str]:
    """The section `models`, and what is taken out of it when a model is added."""
    style = draw(st.sampled_from(["block", "block", "block", "flow", "empty", "{}", "null"]))
    if style == "empty":
        return [f"models:{draw(trailing())}"], ""
    if style in ("{}", "null"):
        return [f"models: {style}{draw(trailing())}"], f" {style}"
    count = draw(st.integers(1, 3))
    if style == "flow":
        entries = ", ".join(f"m{number}: {{repo: org/m{number}}}" for number in range(count))
        return [f"models: {{{entries}}}{draw(trailing())}"], ""
    lines = [f"models:{draw(trailing())}"]
    indent = " " * draw(st.integers(1, 4))
    for number in range(count):
        lines += draw(between(6))
        if draw(st.integers(0, 3)) == 0:
            lines.append(f"{indent}m{number}: {{repo: org/m{number}, x: {draw(VALUE)}}}")
        else:
            deeper = indent + " " * draw(st.integers(1, 4))
            lines.append(f"{indent}m{number}:{draw(trailing())}")
            lines.append(f"{deeper}repo: org/m{number}{draw(trailing())}")
            lines += draw(fields(deeper))
    return lines, ""


@st.composite
def configs(draw: st.DrawFn) -> tuple[str, str]:
    """A file that our reader reads, and what of it is taken out when a model is added."""
    names = draw(st.permutations(["app", "models", "vlmcache", "last"]))
    lines: list[str] = draw(st.sampled_from([[], ["---"], ["# top", ""]]))
    out = ""
    for name in names[: draw(st.integers(1, 4))]:
        if name == "models":
            section, out = draw(models())
            lines = [*lines, *section]
        elif name == "vlmcache":
            lines = [*lines, "vlmcache:", "  min_free: 1GB  # ours"]
        else:
            # Not nothing: a document of one null is no mapping.
            lines = [*lines, f"{name}:", "  first: 1", *draw(fields("  "))]
        lines += draw(between(4))
    end = draw(st.sampled_from(["\n", "\n", "\r\n"]))
    return draw(st.sampled_from(["", "", "\ufeff"])) + end.join(lines) + end, out


@settings(max_examples=80, deadline=None)
@given(configs())
def test_every_other_byte_of_a_file_stays_and_the_reader_reads_the_model(
    made: tuple[str, str],
) -> None:
    text, out = made
    before = parse_config(text.encode(), "config.yaml", "user")
    assert before is not None
    after = added(text)
    rest = re.sub(rf"(?m)^(\ufeff?models:){re.escape(out)}", r"\1", text)
    assert is_only_longer(rest, after)
    config = parse_config(after.encode(), "config.yaml", "user")
    assert config is not None
    assert list(config.models) == [*before.listed, "new"]
    read, old = yaml.safe_load(after), yaml.safe_load(text)
    assert {key: str(value) for key, value in read["models"].pop("new").items()} == FIELDS
    assert read == old | {"models": (old.get("models") or {})}


@pytest.mark.parametrize(
    "text",
    [
        "base: &m {a: {repo: x/y}}\nmodels: *m\n",
        "models: &m\n  a: {repo: x/y}\nother: *m\n",
        "{models: {}}\n",
        "models: {\n}\n",
        "app: 1\n...\n",
        "models: {}\nmodels: {}\n",
        "app: |\n  no line end",
    ],
)
def test_a_form_that_could_change_its_meaning_is_refused(text: str) -> None:
    with pytest.raises(NotAddedError):
        added(text)


def test_comments_of_an_entry_stay_with_it() -> None:
    text = "models:\n  a:\n    repo: x/y\n    # its own\n\n  # b:\n\n# of the limits\nvlmcache:\n"
    assert added(text).split("\n")[5:9] == [
        "  # b:",
        "  new:",
        "    model_path: org/new-GGUF:Q4_K_M",
        "    revision: '1.0'",
    ]


@pytest.mark.parametrize(
    ("repo", "taken", "key"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", (), "qwen_vl_2b"),
        ("stepfun-ai/GOT-OCR2_0", (), "got_ocr"),
        ("stepfun-ai/GOT-OCR2_0", ("got_ocr",), "got_ocr2_0"),
        ("meta-llama/Llama-3.2-11B", (), "llama_3_2_11b"),
        ("org/Name", ("NAME",), "org_name"),
        ("org/name", ("name", "org_name"), "org_name_2"),
        ("org/1984", (), "org_1984"),
        ("1/1984", (), "model_1_1984"),
        ("org/null", (), "org_null"),
        ("null", (), "model_null"),
        ("org/yes", (), "org_yes"),
        ("_/_", (), "model"),
        ("gpt2", (), "gpt2"),
    ],
)
def test_a_key_is_what_a_person_would_choose(repo: str, taken: tuple[str, ...], key: str) -> None:
    assert key_for(repo, taken) == key


@settings(max_examples=60, deadline=None)
@given(st.lists(st.from_regex(r"[A-Za-z0-9._-]{1,4}/[A-Za-z0-9._-]{1,4}", fullmatch=True)))
def test_keys_are_unique_and_mean_themselves_in_yaml(repos: list[str]) -> None:
    taken: set[str] = set()
    for repo in repos:
        key = key_for(repo, taken)
        assert key not in taken
        assert yaml.safe_load(f"{key}: 1") == {key: 1}
        taken.add(key)
