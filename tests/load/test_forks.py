"""Forks of a process that has imported torch never keep a check waiting."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.kit import forks
from tests.kit.models import needs_torch

pytestmark = needs_torch

HANGING = """
import threading
lock = threading.Lock()
lock.acquire()
lock.acquire()
"""


def test_a_fork_that_hangs_says_where_and_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = time.monotonic() + forks._EARLIER + 0.2
    monkeypatch.setenv(forks.DEADLINE, str(soon))
    done = forks.finished(HANGING, environment=dict(os.environ), folder=tmp_path)
    assert done.returncode == -signal.SIGXCPU
    assert "most recent call first" in done.stderr


def test_a_fork_ends_before_the_one_that_waits_for_it(tmp_path: Path) -> None:
    said = f"import os; print(os.environ[{forks.DEADLINE!r}])"
    outer = f"from tests.kit import forks\nimport os\n{said}\nprint(forks.finished({said!r},"
    outer += " environment=dict(os.environ), folder='.').stdout)"
    environment = dict(os.environ) | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = forks.finished(outer, environment=environment, folder=tmp_path)
    mine, its = map(float, done.stdout.split())
    assert its < mine
