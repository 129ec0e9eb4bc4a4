"""A blob that a process has open stays, also where that process cannot be seen."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.commands.remove.test_remove import Place
from tests.kit.caches import CacheBuilder, CachedRepo, fingerprint
from tests.kit.commands import Vlmcache
from tests.kit.rooms import base
from vlmcache.cache import usage
from vlmcache.cache.usage import in_container, open_elsewhere
from vlmcache.commands.remove.values import CleanOptions
from vlmcache.errors import ExitCode

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="leases are Linux's own"
)

OPEN = """
import mmap, os, sys
descriptor = os.open(sys.argv[2], os.O_RDONLY)
if sys.argv[1] == "mapped":
    mapping = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    os.close(descriptor)
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def opened(path: Path, how: str = "open") -> Iterator[None]:
    """Let another process have a file open or mapped meanwhile."""
    command = [sys.executable, "-c", OPEN, how, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        try:
            yield
        finally:
            child.communicate()


@pytest.fixture
def repo(tmp_path: Path) -> CachedRepo:
    return base(tmp_path / "hub")


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no other process be seen."""
    monkeypatch.setattr(usage, "_find_by_proc", lambda *_: iter(()))


def is_open(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return open_elsewhere(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_a_file_that_another_process_has_open_or_mapped_is_open_elsewhere(
    tmp_path: Path, how: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    assert not is_open(path)
    with opened(path, how):
        assert is_open(path)
    assert not is_open(path)


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_what_this_process_has_open_itself_does_not_count(tmp_path: Path, how: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        if how == "open":
            mapping.close()
            assert not is_open(path)
    assert not is_open(path)
    mapping.close()


def test_the_lease_is_given_back_at_once_and_no_handler_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    before = {number: signal.getsignal(number) for number in (signal.SIGIO, signal.SIGURG)}
    asked: list[tuple[int, int]] = []
    call = fcntl.fcntl

    def record(descriptor: int, command: int, value: int = 0) -> int:
        asked.append((command, value))
        return call(descriptor, command, value)

    monkeypatch.setattr(fcntl, "fcntl", record)
    assert not is_open(path)
    assert asked == [
        (fcntl.F_SETSIG, signal.SIGURG),
        (fcntl.F_SETLEASE, fcntl.F_WRLCK),
        (fcntl.F_SETLEASE, fcntl.F_UNLCK),
    ]
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("number", [22, 13, 38])
def test_where_no_lease_can_be_had_nothing_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")

    def refuse(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    with opened(path):
        monkeypatch.setattr(fcntl, "fcntl", refuse)
        assert not is_open(path)


@pytest.mark.parametrize("command", ["rm", "rm a revision", "clean --all"])
@pytest.mark.parametrize("how", ["open", "mapped"])
def test_a_model_that_a_hidden_process_uses_stays_as_it_was(
    tmp_path: Path, repo: CachedRepo, hidden: None, command: str, how: str
) -> None:
    before = fingerprint(repo.folder)
    arguments = {
        "rm": ("rm", "org/name"),
        "rm a revision": ("rm", f"org/name@{repo.latest}"),
        "clean --all": ("clean", "--all"),
    }[command]
    place = Place(tmp_path)
    with opened(repo.blob("config.json"), how):
        if arguments[0] == "rm":
            removal = place.rm(*arguments[1:])
        else:
            removal = place.clean(CleanOptions(everything=True))
    assert removal.problem is not None
    assert removal.problem.exit_code == ExitCode.BUSY
    assert "a process that cannot be seen from here has it open" in removal.problem.message
    assert fingerprint(repo.folder) == before


def test_force_removes_what_a_hidden_process_has_open(
    tmp_path: Path, repo: CachedRepo, hidden: None
) -> None:
    with opened(repo.blob("config.json")):
        assert Place(tmp_path).rm("org/name", force=True).problem is None
    assert not repo.folder.exists()


def test_a_partial_and_a_shared_blob_that_a_hidden_process_has_open_stay(
    tmp_path: Path, hidden: None
) -> None:
    cache = CacheBuilder(tmp_path / "hub")
    repo = cache.repo("org/name")
    shared = {"model.safetensors": "a" * 64}
    repo.revision(
        {"config.json": b"{}", "model.safetensors": b"x"}, shared=list(shared), xet=shared
    )
    blob = cache.shared_blob("a" * 64)
    with opened(blob):
        Place(tmp_path).rm("org/name")
    assert blob.exists()


def test_processes_of_another_pid_namespace_are_respected_and_named_as_unseen(
    tmp_path: Path, vlmcache: Vlmcache
) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a PID namespace needs root and unshare")
    apart = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no PID namespace can be made here")
    repo = base(tmp_path / "hub")
    inside = Vlmcache(vlmcache.environment, vlmcache.folder, (*apart, *vlmcache.command))
    planned = inside("rm", "org/name", "--dry-run")
    assert usage.UNSEEN_OUTSIDE in " ".join(planned.out.split())

    with opened(repo.blob("config.json")):
        done = inside("rm", "org/name", "--yes", "--json")
    assert done.code == ExitCode.BUSY
    assert done.document["contained"] is True
    assert repo.pointer("config.json").read_bytes() == b"[1]"

    done = inside("rm", "org/name", "--yes")
    assert done.code == 0
    assert usage.UNSEEN_OUTSIDE in " ".join(done.out.split())
    assert not repo.folder.exists()


def test_in_the_first_namespace_of_the_machine_this_is_not_a_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[4026531836]")
    assert not in_container()
    monkeypatch.setattr(os, "readlink", lambda path: "pid:[4026532287]")
    assert in_container()
