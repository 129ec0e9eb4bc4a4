"""The JSON that every command prints with `--json`, and its schema."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from vlmcache.cache.locks import lockless
from vlmcache.cache.state import Finding
from vlmcache.errors import ExitCode, VlmcacheError
from vlmcache.show.text import encodable, printable_json


class ErrorEntry(msgspec.Struct, frozen=True):
    """A failure, as the JSON document carries it."""

    code: str
    message: str
    hint: str | None


class Envelope(msgspec.Struct, frozen=True):
    """What every document has, whatever the command."""

    schema: str
    ok: bool
    exit_code: int
    findings: tuple[Finding, ...]
    errors: tuple[ErrorEntry, ...]


def write(text: str) -> None:
    """Print JSON, which is UTF-8 whatever the encoding of the terminal."""
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    print(text)


def document(
    command: str,
    value: msgspec.Struct | None,
    exit_code: ExitCode,
    error: VlmcacheError | None,
    *,
    line: bool = False,
    warnings: Sequence[str] = (),
) -> str:
    """Return the one JSON document of a command's run, without a newline at its end.

    Args:
        command: the command.
        value: its answer, if there is one.
        exit_code: how it ends.
        error: why it failed, if it did.
        line: whether it is the last of a stream of lines, and is one line itself.
        warnings: what in config.yaml has no effect; what the answer also says is said once.
    """
    failures = () if error is None else (error, *error.causes)
    errors = tuple(ErrorEntry(part.code, part.message, part.hint) for part in failures)
    content: dict[str, Any] = {
        "schema": f"vlmcache.{command}/1",
        "ok": exit_code == ExitCode.DONE,
        "exit_code": int(exit_code),
    }
    if value is not None:
        content |= msgspec.to_builtins(value)
    findings = content.get("findings", ())
    if not any(finding["code"] == "no-locks" for finding in findings):
        findings = (*findings, *msgspec.to_builtins(lockless()))
    known = {finding["detail"] for finding in findings}
    new = tuple(_about_a_line(text) for text in warnings if text not in known)
    content["findings"] = (*findings, *msgspec.to_builtins(new))
    content["errors"] = msgspec.to_builtins(errors)
    if line:
        return _encoded({"schema": content["schema"], "kind": "error"} | content)
    return _encoded(content, indent=2)


def _about_a_line(text: str) -> Finding:
    """Return a sentence about a line of config.yaml, `FILE:LINE: …`, as a finding."""
    return Finding("configuration", "warning", None, re.split(r":\d+: ", text)[0], text)


def stream_line(command: str, value: msgspec.Struct, *, at: datetime | None = None) -> str:
    """Return one value of a command's stream as one line of JSON, without a newline at its end.

    Args:
        command: the command.
        value: the value, whose `kind` tells the lines of a stream apart.
        at: the time it is about, unless the value says so itself.
    """
    content: dict[str, Any] = {"schema": f"vlmcache.{command}/1"}
    if at is not None:
        content["at"] = at
    return _encoded(content | msgspec.to_builtins(value))


def _encoded(content: dict[str, Any], indent: int = -1) -> str:
    try:
        text = msgspec.json.encode(content)
    except UnicodeEncodeError:
        text = msgspec.json.encode(encodable(content))
    return printable_json(msgspec.json.format(text, indent=indent).decode())


def schema_of(command: str, value: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a command's document.

    The document of a failure has only the envelope's keys, which are therefore the only ones that
    are required.
    """
    (envelope, fields), components = msgspec.json.schema_components(
        (Envelope, value), ref_template="#/$defs/{name}"
    )
    envelope_schema = components[envelope["$ref"].rpartition("/")[2]]
    value_schema = components[fields["$ref"].rpartition("/")[2]]
    properties = dict(envelope_schema["properties"]) | dict(value_schema["properties"])
    properties["schema"] = {"const": f"vlmcache.{command}/1"}
    used = {name: part for name, part in components.items() if part is not envelope_schema}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"vlmcache {command} --json",
        "type": "object",
        "properties": properties,
        "required": list(Envelope.__struct_fields__),
        "$defs": used,
    }


def schema_of_stream(command: str, values: Sequence[type[msgspec.Struct]]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of one line of a command's stream.

    A line is one of the values, or reports the failure that ended the stream.
    """
    roots, components = msgspec.json.schema_components(
        (Envelope, *values), ref_template="#/$defs/{name}"
    )
    names = [root["$ref"].rpartition("/")[2] for root in roots]
    for name in names:
        properties = components[name]["properties"]
        properties["schema"] = {"const": f"vlmcache.{command}/1"}
        properties.setdefault("kind", {"const": "error"})
        properties.setdefault("at", {"type": "string", "format": "date-time"})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"one line of vlmcache {command} --json",
        "anyOf": [*roots[1:], roots[0]],
        "$defs": components,
    }
