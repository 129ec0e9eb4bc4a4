"""A part of the tests runs with the oldest huggingface_hub that is allowed.

All of them run with the installed one, which is the newest.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2]
XET = "hf-xet==1.2.0"
"""The oldest that the oldest huggingface_hub takes."""
PART = (
    "tests/hub/test_library.py",
    "tests/hub/test_xet.py::test_files_come_through_xet_and_are_shared_as_the_client_does",
    "tests/hub/test_xet.py::test_one_failure_is_enough_for_all_models_of_a_run",
    "tests/hub/test_xet.py::test_a_slow_cas_does_not_count_as_hanging",
    "tests/hub/test_transfer.py::test_a_pull_leaves_exactly_what_the_client_leaves",
    "tests/hub/test_transfer.py::test_the_token_goes_to_the_hub_and_to_no_other_host",
    "tests/hub/test_transfer.py::test_without_links_files_are_put_where_the_client_puts_them",
    "tests/commands/pull/test_pull_command.py::test_the_client_agrees_with_what_was_pulled",
    "tests/commands/pull/test_make_room.py::test_a_newer_revision_without_room_is_named_without_a_command",
)


def oldest(requirements: list[str] | None) -> str:
    """Return the requirement for the oldest version that is allowed."""
    found = [re.match(r"(huggingface[-_]hub)>=([0-9.]+)", one) for one in requirements or ()]
    return next(f"{match[1]}=={match[2]}" for match in found if match is not None)


@pytest.mark.full
def test_the_oldest_client_does_all_that_the_newest_does(tmp_path: Path) -> None:
    """Skips where pip cannot get it."""
    wanted = oldest(importlib.metadata.requires("vlmcache"))
    quietly = ["--quiet", "--disable-pip-version-check", "--retries=1", "--timeout=20"]
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "install", *quietly, f"--target={tmp_path}", wanted, XET],
        capture_output=True,
        text=True,
    )
    if pip.returncode != 0 and "No matching distribution found" in pip.stderr:
        pytest.skip(f"pip reaches no index that has {wanted}: {pip.stderr.splitlines()[-1]}")
    assert pip.returncode == 0, pip.stderr
    # Not the parent's plans for this process, as far as it is one of several.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    # It comes before what is installed, which is tested as it is.
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", "-rN", *PART],
        cwd=FOLDER,
        env=kept | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
