"""The tier full does at length what the check does briefly, and writes its counts into docs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.counts import DOCS, write_counts

ROOT = Path(__file__).parents[1]
FACTOR = 20
"""How many times as many examples the fuzzers try."""


def run(*arguments: str, **variables: str) -> str:
    """Run Python on modules of this project, and return what it prints; it must not fail."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.full
def test_no_invariant_is_broken_whichever_call_of_a_command_fails_or_is_its_last() -> None:
    run("tests.kit.faulty")
    sums = re.search(r"^\| all \|(.*)\|$", (DOCS / "faults.md").read_text(), re.MULTILINE)
    assert sums is not None
    calls, errors, kills, _, broken = (int(cell.replace(",", "")) for cell in sums[1].split("|"))
    assert broken == 0
    assert min(calls, errors, kills) > 500, "too few to believe that all commands were tried"


@pytest.mark.full
@pytest.mark.parametrize("part", sorted(path.stem for path in ROOT.glob("tests/fuzz/test_*.py")))
def test_a_fuzzer_that_tries_many_times_as_many_examples_finds_nothing(part: str) -> None:
    printed = run(
        "pytest",
        f"tests/fuzz/{part}.py",
        "--numprocesses=0",
        "--hypothesis-show-statistics",
        FUZZ=str(FACTOR),
    )
    tried = [int(number) for number in re.findall(r"(\d+) passing", printed)]
    assert tried
    counts = f"{len(tried)} fuzzers tried {sum(tried):,} examples and found nothing.\n"
    write_counts("faults.md", part.removeprefix("test_").replace("_", " "), counts)
