"""Make what is made of the documentation: `python -m docs.generate [NAME…]`.

`commands` is docs/commands.md, the help of every command; any other name is a picture in
docs/pictures. Without a name, all of them. Tests compare them with what the commands say now.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from docs import pictures
from vlmcache.cli.main import COMMANDS

PAGE = Path(__file__).with_name("commands.md")
HEAD = """\
# Commands

Each command with its `--help`. This page is made by `python -m docs.generate commands`.
"""


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


def main(names: list[str]) -> None:
    """Make what is named, or all."""
    if not names or "commands" in names:
        PAGE.write_text(commands_page(), encoding="utf-8")
    wanted = [name for name in pictures.PICTURES if not names or name in names]
    if wanted:
        pictures.FOLDER.mkdir(exist_ok=True)
        with pictures.stage() as stage:
            for name in wanted:
                drawn = pictures.draw(name, stage)
                (pictures.FOLDER / f"{name}.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
