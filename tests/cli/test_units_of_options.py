"""A size, an age or a rate without its unit is a mistake, whichever command is given it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer.main

from tests.kit.caches import CacheBuilder, fingerprint
from tests.kit.commands import run_here
from vlmcache.cli import main as cli
from vlmcache.cli.register import COMMANDS
from vlmcache.errors import ExitCode

NAMES = re.compile(r"size|free|older|age\b|rate|interval|wait|older-than")
UNITS = {
    "SIZE": ("GB", "MB"),
    "AGE": ("d", "h"),
    "PERIOD": ("d", "h"),
    "TIME": ("s", "m"),
}
"""Metavar of what has a unit -> the units that are offered."""


def measured_options() -> dict[tuple[str, str], str]:
    """Return (command, option) -> metavar of every option that takes a size, an age or a rate."""
    group: Any = typer.main.get_command(cli.app)
    found = {}
    for command in COMMANDS:
        for option in group.get_command(None, command).params:
            if option.param_type_name != "option" or option.is_flag:
                continue
            name = option.opts[0]
            if option.metavar in UNITS or NAMES.search(name.strip("-")):
                found[command, name] = option.metavar
    return found


MEASURED = measured_options()


def test_the_options_that_take_a_size_an_age_or_a_rate_are_found_and_marked() -> None:
    assert set(MEASURED) >= {
        ("clean", "--max-size"),
        ("clean", "--free"),
        ("clean", "--older-than"),
        ("pull", "--limit-rate"),
        ("verify", "--max-age"),
        ("watch", "--interval"),
        ("watch", "--min-free"),
    }
    assert set(MEASURED.values()) <= UNITS.keys()


@pytest.mark.parametrize(("command", "option"), MEASURED)
@pytest.mark.parametrize("number", ["50", "0.5", "1e9"])
def test_a_bare_number_is_exit_2_and_offers_units(
    cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch, command: str, option: str, number: str
) -> None:
    cache.repo("org/name").revision({"config.json": b"{}"})
    monkeypatch.setenv("HF_HUB_CACHE", str(cache.root))
    before = fingerprint(cache.root)
    download = ["org/name", "--dry-run"]
    forced = {"watch": ["--once"], "pull": download, "fleet-pull": download, "clean": ["--yes"]}
    done = run_here(command, *forced.get(command, []), option, number)

    assert done.code == ExitCode.USAGE
    assert f"{option}: " in done.err
    if number != "1e9":
        first, second = UNITS[MEASURED[command, option]]
        words = f"{number!r} has no unit ({number}{first}? {number}{second}?)"
        assert words in done.err
    assert fingerprint(cache.root) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("clean", "--yes", "--older-than", "6M"),
        ("verify", "--max-age", "6M"),
        ("watch", "--once", "--interval", "6M"),
        ("status", "--all", "--filter", "used>6M"),
    ],
)
def test_months_that_would_be_minutes_are_exit_2(
    cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    cache.repo("org/name").revision({"config.json": b"{}"})
    monkeypatch.setenv("HF_HUB_CACHE", str(cache.root))
    done = run_here(*arguments)
    assert done.code == ExitCode.USAGE
    assert "'6M': minutes or months? (write 6m or 180d)" in done.err
    assert (cache.root / "models--org--name").exists()


@pytest.mark.parametrize(
    "expression", ["size>1", "size>=1000", "used>30", "used<=0.5", "size!=50", "used=7"]
)
def test_a_filter_compares_with_units_only(
    cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch, expression: str
) -> None:
    cache.repo("org/name").revision({"config.json": b"{}"})
    monkeypatch.setenv("HF_HUB_CACHE", str(cache.root))
    done = run_here("status", "--all", "--filter", expression)
    assert done.code == ExitCode.USAGE
    assert "has no unit" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("clean", "--older-than", "0", "--dry-run"),
        ("clean", "--free", "0", "--dry-run"),
        ("verify", "--max-age", "0"),
        ("watch", "--once", "--min-free", "0"),
        ("status", "--all", "--filter", "size>0", "--filter", "used>0"),
    ],
)
def test_zero_needs_no_unit(
    cache: CacheBuilder, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    cache.repo("org/name").revision({"config.json": b"{}"})
    monkeypatch.setenv("HF_HUB_CACHE", str(cache.root))
    assert run_here(*arguments).code == ExitCode.DONE
