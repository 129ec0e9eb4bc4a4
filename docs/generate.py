"""Make what is made of the documentation: `python -m docs.generate [NAME…]`.

`commands` is docs/commands.md, the help of every command; `codes` is docs/codes.md and
docs/exit-codes.md; `fleet-pull` is the table and the plot of docs/fleet-pull.md; `config` is
src/vlmcache/config.json, what the shipped config.yaml says; `screens` is docs/screens.md; `badges`
are those of the README, `session` is its moving picture; any other name is a picture in
docs/pictures. Without a name, all of them. `measure` loads the smallest model anew, and is made
only if it is named: its report is what the pictures of `load-test` show. Tests compare them with
what the commands say now.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from docs import fleet_pull, pictures
from vlmcache.cli.register import COMMANDS, words_of
from vlmcache.codes import CODES
from vlmcache.config_file import SHIPPED, SHIPPED_VALUES, read_config
from vlmcache.errors import ExitCode

PAGE = Path(__file__).with_name("commands.md")
HEAD = """\
# Commands

The `--help` of every command, for searching. This page is long because it is complete; it is made
by `python -m docs.generate commands`. Jump to {links}.
"""

CODES_PAGE = Path(__file__).with_name("codes.md")
CODES_HEAD = """\
# Codes

Each finding and each error has a code, which `--json` contains. To look one up, type
`vlmcache explain CODE`. This page has all of them, and is made by `python -m docs.generate codes`.

| code | what it means | what to do |
|---|---|---|
"""
EXIT_CODES_PAGE = Path(__file__).with_name("exit-codes.md")
EXIT_CODES_HEAD = """\
# Exit codes

What each command returns to the shell; `vlmcache help exit-codes` prints the same. Scripts can rely
on these numbers. This page is made by `python -m docs.generate codes`.

| exit code | meaning |
|---|---|
"""


SCREENS_PAGE = Path(__file__).with_name("screens.md")
SCREENS_HEAD = """\
# Screens

What commands show in a terminal of 80 columns; each picture links to the same at 120 columns.
The commands are real; the models have their true sizes, and zeros for weights. This page and its
pictures are made by `python -m docs.generate`.
"""
SCREEN_TITLES = {
    "status": "`status`: what is complete, and what to type next",
    "status-v": "`status --all -v`: everything in the cache",
    "pull": "`pull`: interrupted by Ctrl-C, and continued",
    "pull-bars": "`pull`: several models at once",
    "picker": "`pull` without a name: choose a model",
    "rm": "`rm`: a plan and a question",
    "clean": "`clean`: what nobody needs",
    "choose": "`rm` without a name: choose models",
    "clean-choose": "`clean -i`: choose among the rest",
    "undo": "`undo`: restore what was removed",
    "verify": "`verify --repair`: find and repair damage",
    "move": "`move`: to another drive",
    "backup": "`backup`: to a store",
    "restore": "`restore`: from a store",
    "watch": "`watch`: downloads as they happen",
    "serve": "`serve`: what other machines type",
    "load-test": "`load-test`: how long a model takes to load",
    "quantize": "`quantize --dry-run`: what it would do",
    "doctor": "`doctor`: the checks",
    "init": "`init`: a config.yaml for what is cached",
    "help": "`--help`",
    "errors": "Errors and hints",
}
"""Name of each picture -> its heading."""


def screens_page() -> str:
    """Return docs/screens.md as it should be."""
    parts = (
        f"\n## {SCREEN_TITLES[name]}\n\n"
        f"[![{name}](pictures/{name}-80.svg)](pictures/{name}-120.svg)\n"
        for name in pictures.PICTURES
    )
    return SCREENS_HEAD + "".join(parts)


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
    commands = [(), *map(words_of, COMMANDS)]
    with ThreadPoolExecutor(4) as pool:
        helps = pool.map(lambda command: help_of(*command), commands)
    parts = [
        f"## {' '.join(('vlmcache', *command))}\n\n```text\n{text}\n```\n"
        for command, text in zip(commands, helps, strict=True)
    ]
    names = [" ".join(command) for command in commands[1:]]
    links = ", ".join(f"[{name}](#vlmcache-{name.replace(' ', '-')})" for name in names)
    return "\n".join([HEAD.format(links=links), *parts])


def shipped_values() -> bytes:
    """Return src/vlmcache/config.json as it should be."""
    config = read_config(SHIPPED, "shipped")
    assert config is not None
    # Where the package is installed is known only there.
    values = msgspec.json.encode(msgspec.structs.replace(config, path="config.yaml"))
    return msgspec.json.format(values) + b"\n"


def badges() -> dict[str, str]:
    """Return the badges of the README, from what pyproject.toml says."""
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    license_, oldest = (
        re.search(pattern, project, re.MULTILINE)
        for pattern in (r'^license = "(.*)"$', r'^requires-python = ">=(.*)"$')
    )
    assert license_ is not None
    assert oldest is not None
    assert '"Typing :: Typed"' in project
    return {
        "license": pictures.badge("license", license_[1]),
        "python": pictures.badge("python", f"{oldest[1]} or newer"),
        "typed": pictures.badge("typed", "yes"),
    }


def drawn_of(name: str, stage: pictures.Stage) -> Iterator[tuple[str, str]]:
    """Yield the files of a picture and their content."""
    if name == "session":
        stage.empty()
        yield "session.svg", pictures.draw_session(stage, 92, None)
        return
    for columns in pictures.WIDTHS:
        yield f"{name}-{columns}.svg", pictures.draw(name, stage, columns)


def main(names: list[str]) -> None:
    """Make what is named, or all."""
    if not names or "commands" in names:
        PAGE.write_text(commands_page(), encoding="utf-8")
    if not names or "codes" in names:
        CODES_PAGE.write_text(codes_page(), encoding="utf-8")
        EXIT_CODES_PAGE.write_text(exit_codes_page(), encoding="utf-8")
    if not names or "fleet-pull" in names:
        fleet_pull.write()
    if not names or "config" in names:
        Path(SHIPPED_VALUES).write_bytes(shipped_values())
    if not names or "screens" in names:
        SCREENS_PAGE.write_text(screens_page(), encoding="utf-8")
    if not names or "badges" in names:
        for name, drawn in badges().items():
            (pictures.FOLDER / f"badge-{name}.svg").write_text(drawn, encoding="utf-8")
    if "measure" in names:
        pictures.measure_load()
    wanted = [name for name in (*pictures.PICTURES, "session") if not names or name in names]
    if wanted:
        with pictures.stage(true=True) as stage:
            for name in wanted:
                for file, drawn in drawn_of(name, stage):
                    (pictures.FOLDER / file).write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
