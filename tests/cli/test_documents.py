"""The JSON and `-q` output of every command is what it was, unless somebody meant to change it.

`pytest tests/cli/test_documents.py --refresh` writes tests/cli/documents anew; the difference is
read before it is committed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_every_command import WITHOUT_JSON, filled, line
from tests.kit.commands import Vlmcache, run_here
from vlmcache.cli.register import COMMANDS

__all__ = ["filled"]

FOLDER = Path(__file__).with_name("documents")
VARIES = frozenset(
    {
        "access_times", "allocated", "at", "contained", "fill_rate", "filesystem", "free",
        "free_after", "free_before", "freed", "frees", "full_in", "hidden_processes", "inode",
        "last_modified", "last_used", "mtime_ns", "room", "seconds", "size_on_disk",
        "stamp", "time", "total",
    }
)  # fmt: skip
"""Keys whose values depend on the disk, the clock or the machine."""
OF_THE_MACHINE = frozenset({"doctor"})
"""Commands that describe the machine: of their documents only the keys are compared."""


def _stable(value: Any, key: str, places: dict[str, str], *, keys_only: bool) -> Any:
    """Return a document without what differs from run to run."""
    if isinstance(value, dict):
        return {
            name: _stable(below, name, places, keys_only=keys_only) for name, below in value.items()
        }
    if isinstance(value, list):
        below = [_stable(item, key, places, keys_only=keys_only) for item in value]
        return below[:1] if keys_only else below
    if value is not None and (key in VARIES or keys_only):
        return type(value).__name__
    if isinstance(value, str):
        for path, name in places.items():
            value = value.replace(path, name)
    return value


def _compare(path: Path, text: str, refresh: bool) -> None:
    if refresh:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"not as in {path.name}; see the module's text"


@pytest.fixture
def refresh(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--refresh"))


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - WITHOUT_JSON))
def test_the_document_of_each_command_is_as_recorded(
    filled: Vlmcache, tmp_path: Path, command: str, refresh: bool
) -> None:
    done = run_here(*line(command), "--json")
    text = done.out.splitlines()[0] if COMMANDS[command].lines else done.out
    stable = _stable(
        json.loads(text),
        "",
        {str(tmp_path): "/place"},
        keys_only=command in OF_THE_MACHINE,
    )
    _compare(FOLDER / f"{command}.json", json.dumps(stable, indent=1) + "\n", refresh)


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - WITHOUT_JSON))
def test_the_quiet_output_of_each_command_is_as_recorded(
    filled: Vlmcache, tmp_path: Path, command: str, refresh: bool
) -> None:
    done = run_here(*line(command), "-q")
    text = done.out.replace(str(tmp_path), "/place")
    _compare(FOLDER / f"{command}.txt", text, refresh)
