"""What every test starts from: a home, a cache and an environment that are nobody's."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.kit import damages
from tests.kit.caches import CacheBuilder
from tests.kit.commands import Vlmcache
from tests.kit.hub import LEAKY_VARIABLES, LoopbackHub
from tests.kit.pulls import REPO
from vlmcache.cache import hashing, locks

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A check started in the background ignores Ctrl-C, and so would every process it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

NO_CLUSTER = "127.0.0.1:1"
"""An address at which no Ray cluster answers."""

# The same examples every time; `--hypothesis-profile=default` looks for new ones.
settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--refresh", action="store_true", help="Write tests/cli/documents anew.")


def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes test: one more than cores, as a third of the time is waiting."""
    return hashing.cores() + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of the tier full the time that they need."""
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker(pytest.mark.timeout(7200))


@pytest.fixture
def _same_environment() -> Iterator[None]:
    """Fail a test that leaves the environment other than it was.

    HF_* variables of a `.env` are an exception: huggingface_hub reads them from the process.
    """
    before = dict(os.environ)
    yield
    names = before.keys() | os.environ.keys()
    changed = {name for name in names if before.get(name) != os.environ.get(name)}
    changed = {name for name in changed if not name.startswith(("HF_", "PYTEST_"))}
    for name in changed:
        os.environ.pop(name, None)
        if name in before:
            os.environ[name] = before[name]
    assert not changed


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Refuse connections beyond this machine."""
    patch = pytest.MonkeyPatch()
    for name in ("connect", "connect_ex"):
        plain = getattr(socket.socket, name)

        def guarded(self: socket.socket, address: Any, plain: Any = plain) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                host = str(address[0])
                if not host.startswith("127.") and host not in ("localhost", "::1"):
                    raise AssertionError(f"a test connects to {host}")
            return plain(self, address)

        patch.setattr(socket.socket, name, guarded)
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def _client_read_without_variables(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import the hub's client, which reads its variables once, before a test sets any."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if LEAKY_VARIABLES.match(name):
                patch.delenv(name)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("nobody")))
        importlib.import_module("huggingface_hub.constants")


@pytest.fixture(autouse=True)
def _own_environment(
    _same_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep the user's cache, configuration and variables out of every test."""
    for name in list(os.environ):
        if LEAKY_VARIABLES.match(name):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("VLMCACHE_HOME", str(tmp_path / "own"))
    # Nobody's cluster: another program's may run on this machine.
    monkeypatch.setenv("RAY_ADDRESS", NO_CLUSTER)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    # What a process has met, each test is to meet anew.
    monkeypatch.setattr(locks, "_LOCKLESS", {})


@pytest.fixture
def cache(tmp_path: Path) -> CacheBuilder:
    """An empty cache that can be filled."""
    return CacheBuilder(tmp_path / "hub")


@pytest.fixture
def repair_hub() -> Iterator[LoopbackHub]:
    """A hub that has what tests/kit/damages.py damages in a cache."""
    with LoopbackHub() as hub:
        hub.add_repo(REPO).commit(damages.FILES)
        yield hub


@pytest.fixture
def vlmcache(tmp_path: Path) -> Vlmcache:
    """The command line, as a real process, on the cache in `tmp_path / "hub"`."""
    environment = {
        "PATH": os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"])),
        "HOME": os.environ["HOME"],
        "VLMCACHE_HOME": os.environ["VLMCACHE_HOME"],
        "RAY_ADDRESS": NO_CLUSTER,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "LANG": "C.UTF-8",
        "PYTHONWARNINGS": "error",
    }
    # With coverage, what the command reaches counts.
    environment |= {name: os.environ[name] for name in os.environ if name.startswith("COVERAGE_")}
    return Vlmcache(environment, tmp_path / "work")
