"""Make what is made of the documentation: `python -m docs.generate [NAME…]`.

`commands` is docs/commands.md, the help of every command; `codes` is docs/codes.md and
docs/exit-codes.md; `config` is src/vlmcache/config.json, what the shipped config.yaml says; any
other name is a picture in docs/pictures. Without a name, all of them.
Tests compare them with what the commands say now.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from docs import pictures
from vlmcache.cli.register import COMMANDS
from vlmcache.codes import CODES
from vlmcache.config_file import SHIPPED, SHIPPED_VALUES, read_config
from vlmcache.errors import ExitCode

PAGE = Path(__file__).with_name("commands.md")
HEAD = """\
# Commands

Each command with its `--help`. This page is made by `python -m docs.generate commands`.
"""

CODES_PAGE = Path(__file__).with_name("codes.md")
CODES_HEAD = """\
# Codes

Each finding and each error has a code, which `--json` carries. `vlmcache explain CODE` prints the
same as this page, which is made by `python -m docs.generate codes`.

| code | what it means | what to do |
|---|---|---|
"""
EXIT_CODES_PAGE = Path(__file__).with_name("exit-codes.md")
EXIT_CODES_HEAD = """\
# Exit codes

What each command returns to the shell; `vlmcache help exit-codes` prints the same. A script can
rely on these numbers. This page is made by `python -m docs.generate codes`.

| exit code | meaning |
|---|---|
"""


def codes_page() -> str:
    """Return docs/codes.md as it should be."""
    rows = (f"| `{code}` | {meaning} | {remedy} |\n" for code, (meaning, remedy) in CODES.items())
    return CODES_HEAD + re.sub(r"(?<!\w)'([^'|]+)'(?!\w)", r"`\1`", "".join(rows))


def exit_codes_page() -> str:
    """Return docs/exit-codes.md as it should be."""
    return EXIT_CODES_HEAD + "".join(f"| {code.value} | {code.meaning} |\n" for code in ExitCode)


def help_of(*command: str) -> str:
    """Return what `--help` prints, 80 columns wide."""
    done = subprocess.run(
        [sys.executable, "-m", "vlmcache", *command, "--help"],
        env={**os.environ, "COLUMNS": "80", "TERM": "dumb"},
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    return "\n".join(line.rstrip() for line in done.stdout.split("\n")).strip()


def commands_page() -> str:
    """Return docs/commands.md as it should be."""
    commands = [(), *((name,) for name in COMMANDS)]
    with ThreadPoolExecutor(4) as pool:
        helps = pool.map(lambda command: help_of(*command), commands)
    parts = [
        f"## {' '.join(('vlmcache', *command))}\n\n```text\n{text}\n```\n"
        for command, text in zip(commands, helps, strict=True)
    ]
    return "\n".join([HEAD, *parts])


def shipped_values() -> bytes:
    """Return src/vlmcache/config.json as it should be."""
    config = read_config(SHIPPED, "shipped")
    assert config is not None
    # Where the package is installed is known only there.
    values = msgspec.json.encode(msgspec.structs.replace(config, path="config.yaml"))
    return msgspec.json.format(values) + b"\n"


def main(names: list[str]) -> None:
    """Make what is named, or all."""
    if not names or "commands" in names:
        PAGE.write_text(commands_page(), encoding="utf-8")
    if not names or "codes" in names:
        CODES_PAGE.write_text(codes_page(), encoding="utf-8")
        EXIT_CODES_PAGE.write_text(exit_codes_page(), encoding="utf-8")
    if not names or "config" in names:
        Path(SHIPPED_VALUES).write_bytes(shipped_values())
    wanted = [name for name in pictures.PICTURES if not names or name in names]
    if wanted:
        pictures.FOLDER.mkdir(exist_ok=True)
        with pictures.stage() as stage:
            for name in wanted:
                drawn = pictures.draw(name, stage)
                (pictures.FOLDER / f"{name}.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
