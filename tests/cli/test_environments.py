"""Each command in environments where something that it relies on is missing: it works or says so.

They are run as real processes; the short form takes those that read and change the most.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kit.caches import CacheBuilder, model_files
from tests.kit.commands import Done, Vlmcache, is_failure
from tests.kit.disks import small_filesystem
from tests.kit.rooms import LONG, settle

JUMPS = """
import itertools, time
_time, _jumps = time.time, itertools.cycle((0.0, 4e7, -4e7))
time.time = lambda: _time() + next(_jumps)
time.time_ns = lambda: int(time.time() * 1e9)
"""
"""A clock that is more than a year ahead at one call, and behind at the next."""

WITHOUT_PROC = 'mount -t tmpfs tmpfs /proc && exec "$@"'
WITHOUT_FOLDER = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'


class Surroundings(NamedTuple):
    """How a command is run, and what it says where it cannot work."""

    before: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    says: str = ""
    prepare: Callable[[Path], None] = lambda _: None


def use_all_inodes(root: Path) -> None:
    """Make files until the filesystem has no inode for another one."""
    junk = root / "junk"
    junk.mkdir()
    with contextlib.suppress(OSError):
        for number in itertools.count():
            (junk / str(number)).touch()


ENVIRONMENTS = {
    "no /proc": Surroundings(("unshare", "--mount", "sh", "-c", WITHOUT_PROC, "sh")),
    "no working folder": Surroundings(
        ("sh", "-c", WITHOUT_FOLDER, "sh"), says="the working folder was removed"
    ),
    "64 open files": Surroundings(("sh", "-c", 'ulimit -n 64; exec "$@"', "sh")),
    "24 open files": Surroundings(
        ("sh", "-c", 'ulimit -n 24; exec "$@"', "sh"), says="Too many open files"
    ),
    "no inode": Surroundings(says="the disk is full", prepare=use_all_inodes),
    "a clock that jumps": Surroundings(variables=(("PYTHONPATH", "clock"),)),
}

LINES = {
    "status": ["status"],
    "pull": ["pull", "org/good"],
    "rm": ["rm", "org/many", "--yes"],
    "clean": ["clean", "--yes", "--partials"],
    "watch": ["watch", "--once"],
    "verify": ["verify"],
    "verify --repair": ["verify", "--repair"],
    "rm --trash": ["rm", "org/good", "--trash", "--yes"],
    "undo": ["undo"],
    "trash": ["trash"],
    "move": ["move", "moved"],
    "recall": ["recall", "org/good"],
    "backup": ["backup", "saved/"],
    "backup to a tar": ["backup", "saved.tar"],
    "restore": ["restore", "there.tar"],
    "doctor": ["doctor"],
    "doctor --fix": ["doctor", "--fix"],
    "load-test": ["load-test", "--history"],
    "quantize": ["quantize", "nobody/nothing"],
    "warm": ["warm", "org/good"],
    "explain": ["explain", "no-space"],
    "schema": ["schema", "status"],
    "help": ["help"],
}
CHECKED = {
    ("no /proc", "clean"),
    ("no /proc", "move"),
    ("no /proc", "warm"),
    ("64 open files", "undo"),
    ("no working folder", "status"),
    ("64 open files", "clean"),
    ("64 open files", "move"),
    ("no inode", "rm"),
    ("a clock that jumps", "clean"),
}
"""What the check runs of the table, of which the tier full runs all."""


def filled(root: Path) -> None:
    """Make a cache with more files to remove than a process may have open, and a backup of it."""
    cache = CacheBuilder(root / "hub")
    cache.repo("org/good").revision(model_files())
    cache.repo("org/gone").revision(model_files())
    many = cache.repo("org/many")
    many.revision({f"{n}.json": f"[{n}]".encode() for n in range(150)}, refs=())
    many.revision({f"{n}.json": f"{{{n}}}".encode() for n in range(150)})
    many.revision({"/".join("d" * 90): b"deep"}, refs=())
    many.partial(age=LONG)
    for number in range(80):
        many.orphan_blob(f"orphan {number}".encode())
    settle(root / "hub")
    (root / "config.yaml").write_text("models: {}\nvlmcache: {min_free: 0}\n")
    for name, text in (("trap/torch.py", "raise ImportError"), ("clock/sitecustomize.py", JUMPS)):
        (root / name).parent.mkdir()
        (root / name).write_text(text)


def run(root: Path, vlmcache: Vlmcache, name: str, line: list[str]) -> Done:
    surroundings = ENVIRONMENTS[name]
    paths = [str(root / "trap"), *(str(root / path) for _, path in surroundings.variables)]
    environment = vlmcache.environment | {
        "HF_HUB_CACHE": str(root / "hub"),
        "HF_HUB_OFFLINE": "1",
        "VLMCACHE_HOME": str(root / "own"),
        "VLMCACHE_CONFIG": str(root / "config.yaml"),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    command = (*surroundings.before, sys.executable, "-m", "vlmcache")
    return Vlmcache(environment, root, command)(*line)


def check(root: Path, vlmcache: Vlmcache, name: str, line: str) -> None:
    """Assert that a command ends well, or with one sentence that names what is missing."""
    done = run(root, vlmcache, name, LINES[line])
    assert "internal error" not in done.err, done.err
    assert "Traceback" not in done.err, done.err
    # The hub's own library measures how long it waits for a lock by the clock that jumps.
    lines = [text for text in done.err.splitlines() if not text.startswith("vlmcache: waiting")]
    assert not lines or is_failure("\n".join(lines) + "\n"), done.err
    if done.code != 0 and line != "quantize":
        says = ENVIRONMENTS[name].says
        assert says, done
        assert says in done.err, done


def tried(name: str, line: str, vlmcache: Vlmcache, tmp_path: Path) -> None:
    """Run a command in an environment, on a filesystem of its own if it is to be filled up."""
    if "unshare" in ENVIRONMENTS[name].before:
        words = ENVIRONMENTS[name].before[:4]
        works = shutil.which("unshare") and subprocess.run([*words, WITHOUT_PROC, "sh", "true"])
        if not works or works.returncode:
            pytest.skip("covering /proc needs root")
    if ENVIRONMENTS[name].prepare is not use_all_inodes:
        root = tmp_path / "root"
        root.mkdir()
        prepared(root, vlmcache)
        check(root, vlmcache, name, line)
        return
    with small_filesystem(60_000_000, inodes=3000) as root:
        prepared(root, vlmcache)
        use_all_inodes(root)
        check(root, vlmcache, name, line)


def prepared(root: Path, vlmcache: Vlmcache) -> None:
    filled(root)
    saved = run(root, vlmcache, "64 open files", ["backup", "there.tar", "org/good"])
    assert saved.code == 0, saved
    removed = run(root, vlmcache, "64 open files", ["rm", "org/gone", "--trash", "--yes"])
    assert removed.code == 0, removed


@pytest.mark.parametrize(("name", "line"), sorted(CHECKED))
def test_a_command_works_or_says_what_is_missing(
    name: str, line: str, vlmcache: Vlmcache, tmp_path: Path
) -> None:
    tried(name, line, vlmcache, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_command_works_or_says_what_is_missing(
    name: str, line: str, vlmcache: Vlmcache, tmp_path: Path
) -> None:
    tried(name, line, vlmcache, tmp_path)
