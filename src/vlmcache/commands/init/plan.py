"""The content of a config.yaml: a new one, or one with a model added (pure).

An existing file keeps every byte. The rules below are not trusted to do what is meant: the events
of YAML before and after are compared, and our own reader reads the result.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import msgspec
import yaml

from vlmcache.config_file import parse_config, shipped_config
from vlmcache.config_values import ModelConfig
from vlmcache.errors import ConfigError

_HEADER = """\
# The models that vlmcache watches over: 'vlmcache status' shows them, 'vlmcache pull --all'
# downloads what is missing of them, and no clean-up removes them. This file is yours to change;
# 'vlmcache pull --add MODEL' adds a model to it.
#
# What an entry can say; any further key is kept and ignored, and so is any other section:
#   my_model:                     # the name to type
#     model_path: owner/name      # the repo on the hub; of GGUF files owner/name:Q4_K_M
#     revision: main              # a branch, tag or commit
#     precision: int8             # fp32, fp16, bf16, int8 or int4; as stored if not given
#     device_map: auto
#     trust_remote_code: false    # true counts only with a commit as revision
#     expected_size: 4.43GB       # the download, for what is not cached
#     expected_memory: 5.5GB      # the loaded model
"""
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
"""Text that needs no quotes, unless YAML reads it as something else than text."""


class NotAddedError(Exception):
    """A model cannot be added without risk to the rest of the file."""


class Entry(msgspec.Struct, frozen=True):
    """A model as config.yaml names it."""

    key: str
    model: ModelConfig
    comment: str = ""

    @property
    def fields(self) -> dict[str, str]:
        """The keys of the entry with their values as YAML."""
        model = self.model
        fields = {"model_path": model.repo + (f":{model.variant}" if model.variant else "")}
        if model.revision != "main":
            fields["revision"] = model.revision
        fields |= {
            name: value
            for name in ("precision", "attention")
            if (value := getattr(model, name)) is not None
        }
        return {name: _scalar(value) for name, value in fields.items()}

    @property
    def read_back(self) -> ModelConfig:
        """The model as the entry is read, without what a command line or another file adds."""
        model = self.model
        return ModelConfig(
            self.key,
            model.repo,
            model.revision,
            model.precision,
            attention=model.attention,
            variant=model.variant,
        )

    def lines(self, indent: str) -> Iterator[str]:
        """Yield the lines of the entry in block style."""
        yield f"{indent}{_scalar(self.key)}:"
        comment = f"   # {self.comment}" if self.comment else ""
        for name, value in self.fields.items():
            yield f"{indent}  {name}: {value}{comment}"
            comment = ""

    @property
    def in_line(self) -> str:
        """The entry in flow style, which fits into one line."""
        # A colon ends a plain scalar there for some readers.
        fields = (
            f"{name}: {value if ':' not in value or value[0] == chr(39) else _quoted(value)}"
            for name, value in self.fields.items()
        )
        return f"{_scalar(self.key)}: {{{', '.join(fields)}}}"


def key_for(repo: str, taken: Collection[str], variant: str | None = None) -> str:
    """Return a key for a repo as a person would choose it: `Qwen/Qwen2-VL-2B` -> `qwen2_vl_2b`.

    A model that ships with the package keeps the key that it has there.

    Args:
        repo: the id of the repo.
        taken: names that it must not have, in whatever case.
        variant: the quantization, which is part of the key if another one has the name already.
    """
    owner, _, name = repo.rpartition("/")
    short, long = _words(name), _words(f"{owner}_{name}")
    # The key that the model has as long as nothing is configured, here and in the docs.
    shipped = [key for key, model in shipped_config().models.items() if model.repo == repo]
    candidates = [*shipped, short, *([f"{short}_{_words(variant)}"] if variant else []), long]
    used = {name.casefold() for name in taken}
    for candidate in candidates:
        if candidate[:1].isalpha() and candidate not in used and _resolves_to_text(candidate):
            return candidate
    base = long if long[:1].isalpha() and _resolves_to_text(long) else f"model_{long}".strip("_")
    numbered = (base if number == 1 else f"{base}_{number}" for number in range(1, len(used) + 3))
    return next(key for key in numbered if key not in used)


def _words(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def new_text(models: str, limits: str, left_out: Iterable[str] = ()) -> str:
    """Return the text of a new config.yaml.

    Args:
        models: the entries, as lines.
        limits: the section `vlmcache`.
        left_out: repos of the cache that are not complete, for a comment.
    """
    text = f"{_HEADER}models:\n{models.rstrip()}\n"
    names = list(left_out)
    if names:
        text += "  # In the cache too, but not complete:\n"
        text += "".join(f"  #   {name}\n" for name in names)
    return f"{text}\n{limits.strip()}\n"


def entries_text(entries: Iterable[Entry], indent: str = "  ", line_end: str = "\n") -> str:
    """Return entries in block style, as lines."""
    return "".join(f"{line}{line_end}" for entry in entries for line in entry.lines(indent))


def with_entries(content: bytes, path: str, entries: Collection[Entry]) -> bytes:
    """Return the content of a config.yaml with models added, and nothing else changed.

    Args:
        content: the content.
        path: the file, for messages.
        entries: the models, with keys that are not in use.

    Raises:
        ConfigError: it cannot be read as it is.
        NotAddedError: it has a form to which nothing can be added with certainty.
    """
    before = parse_config(content, path, "user")
    assert before is not None
    expected = dict(before.listed) | {entry.key: entry.read_back for entry in entries}
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise NotAddedError("it is not UTF-8") from None
    before_events = _events(text)
    marks = _signatures(before_events)
    for change in _changes(text, before_events, entries):
        try:
            after = _signatures(_events(change.text))
            config = parse_config(change.text.encode(), path, "user")
        except (ConfigError, yaml.YAMLError):
            continue
        rest = marks[change.end :]
        kept = after[: change.start] == marks[: change.start] and after[-len(rest) :] == rest
        grown = len(after) > change.start + len(rest)
        if kept and grown and config is not None and config.listed == expected:
            return change.text.encode()
    raise NotAddedError("its models are written in a form to which nothing can be added safely")


class _Change(NamedTuple):
    """A changed text; of the events before, those from `start` to `end` may be replaced."""

    text: str
    start: int
    end: int


def _events(text: str) -> list[Any]:
    """Return the events of YAML, with marks that count characters (libyaml's count otherwise)."""
    return list(yaml.parse(text, Loader=yaml.SafeLoader))


def _signatures(events: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Return what the events mean, without their places."""
    names = ("anchor", "tag", "implicit", "value", "style", "flow_style", "explicit", "version")
    return [(type(event), *(getattr(event, name, None) for name in names)) for event in events]


def _changes(text: str, events: list[Any], entries: Collection[Entry]) -> Iterator[_Change]:
    """Yield texts in which the entries may be at the end of the models, the best first."""
    line_end = "\r\n" if "\r\n" in text else "\n"
    glue = "" if not text or _BREAK.fullmatch(text[-1]) else line_end
    if len(events) == 2:  # nothing but comments
        body = f"models:{line_end}{entries_text(entries, line_end=line_end)}"
        yield _Change(text + glue + (line_end if text else "") + body, 1, 1)
        return
    root = events[2]
    if not isinstance(root, yaml.MappingStartEvent) or root.flow_style:
        return
    indent = " " * events[2].start_mark.column
    sections = list(_children(events, 2))
    models = [
        (start, end)
        for key, start, end in sections
        if isinstance(events[key], yaml.ScalarEvent) and events[key].value == "models"
    ]
    if not models:
        last = sections[-1][2]
        body = entries_text(entries, f"{indent}  ", line_end)
        # A block scalar at the end may keep the blank line as its own.
        for blank in (line_end, ""):
            added = f"{blank}{indent}models:{line_end}{body}"
            yield _Change(text + glue + added, last, last)
        return
    if len(models) > 1:
        return
    ((start, end),) = models
    value: Any = events[start]
    if value.anchor is not None:
        return  # What refers to it would change too.
    begin = value.start_mark.index
    if isinstance(value, yaml.MappingStartEvent) and end - start > 2:
        place = next(filter(None, map(_exact_end, reversed(events[start + 1 : end - 1]))))
        if value.flow_style:
            new = "".join(f", {entry.in_line}" for entry in entries)
            yield _Change(text[:place] + new + text[place:], end - 1, end - 1)
            return
        first: Any = events[start + 1]
        column = first.start_mark.column
        longer = _inserted(text, place, column, entries, line_end)
        yield _Change(longer, end - 1, end - 1)
        return
    if isinstance(value, yaml.ScalarEvent | yaml.MappingStartEvent):
        # `models:`, `models: null` or `models: {}`
        stop = events[end - 1].end_mark.index
        if not _BREAK.search(text[begin:stop]):
            text = text[:begin].rstrip(" ") + text[stop:] if stop > begin else text
            place = len(text[:begin].rstrip(" ")) if stop > begin else begin
            longer = _inserted(text, place, len(indent) + 2, entries, line_end)
            yield _Change(longer, start, end)


def _exact_end(event: Any) -> int | None:
    """Return where the node of an event ends; `None` if only where the next begins is known."""
    ends = isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent)
    if ends and event.end_mark.index > event.start_mark.index:  # in flow style
        return int(event.end_mark.index)
    is_leaf = isinstance(event, yaml.ScalarEvent | yaml.AliasEvent)
    return int(event.end_mark.index) if is_leaf else None


def _inserted(
    text: str,
    place: int,
    column: int,
    entries: Collection[Entry],
    line_end: str,
) -> str:
    """Return the text with entries after the line of a place and the comments that belong to it."""
    at_start = place > 0 and _BREAK.fullmatch(text[place - 1]) is not None
    line = None if at_start else _BREAK.search(text, place)
    position = place if at_start else len(text) if line is None else line.end()
    position = _after_comments(text, position, column)
    glue = "" if position and _BREAK.fullmatch(text[position - 1]) else line_end
    new = glue + entries_text(entries, " " * column, line_end)
    return text[:position] + new + text[position:]


def _after_comments(text: str, position: int, column: int) -> int:
    """Return where the comments end that are as deep as an entry, which belong to those before."""
    found = position
    while position < len(text):
        line = _BREAK.search(text, position)
        content = text[position : len(text) if line is None else line.start()]
        position = len(text) if line is None else line.end()
        bare = content.lstrip(" ")
        if bare.startswith("#") and len(content) - len(bare) >= column:
            found = position
        elif bare:
            break
    return found


def _children(events: list[Any], start: int) -> Iterator[tuple[int, int, int]]:
    """Yield, for each key of a mapping, the index of its event, and those of its value's span."""
    at = start + 1
    while not isinstance(events[at], yaml.MappingEndEvent):
        key, at = at, _skipped(events, at)
        value, at = at, _skipped(events, at)
        yield key, value, at


def _skipped(events: list[Any], at: int) -> int:
    """Return the index after the node that begins at an index."""
    depth = 0
    while True:
        depth += isinstance(events[at], yaml.CollectionStartEvent)
        depth -= isinstance(events[at], yaml.CollectionEndEvent)
        at += 1
        if depth == 0:
            return at


def _scalar(text: str) -> str:
    """Return a string as YAML, in quotes if it would be read as something else without."""
    if _PLAIN.fullmatch(text.replace(":", "", 1)) and _resolves_to_text(text):
        return text
    return _quoted(text)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _resolves_to_text(text: str) -> bool:
    """Return whether YAML reads a plain scalar as the same string."""
    try:
        return bool(yaml.safe_load(text) == text)
    except (yaml.YAMLError, ValueError):
        return False
