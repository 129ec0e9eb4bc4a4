"""A member of a group works against the admin who runs a command, as root, on their shared cache.

The member owns one repo. Just before the Nth call of the command they put a link to somebody else's
files, a pipe or the like in the place of what they may rename. Where the tests are not root, all of
them are one user; the attacks are the same.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.kit.caches import CacheBuilder, Entry, fingerprint
from tests.kit.disks import common_folder
from tests.kit.faulty import failing

ADMIN, MEMBER, OTHER, VICTIM, GROUP = 4001, 4002, 4003, 4004, 4000
SECRET = b"nobody else's business: "
HUNG_AFTER = 60
FILES: dict[str, bytes] = {
    "config.json": b'{"model_type": "x"}',
    "model.safetensors": b"weights " * 500,
    "sub/other.json": b'{"other": 1}',
}
NAME = "models--org--name"
"""The folder of the member's repo."""
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0

Attack = Callable[["SharedCache"], None]


@dataclass
class Attacked:
    """The outcome of a command. code: -1 if it hung. struck: whether the attack was made."""

    code: int
    errors: str
    calls: int
    struck: bool


class SharedCache:
    """A cache that a group shares, in a folder that everybody can enter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = CacheBuilder(folder / "hub")
        self.root = self.cache.root
        self.outside = folder / "outside"
        self.repo = self.cache.repo("org/name")
        self.repo.revision(FILES, refs=["old"])
        self.repo.revision({**FILES, "config.json": b"{}"})
        self.repo.partial("a" * 64, data=b"begun", old_style=True, age=90_000)
        self.orphan = self.repo.orphan_blob(age=9_000_000)
        self.neighbor = self.cache.repo("org/other")
        self.neighbor.revision({"config.json": b'{"model_type": "y"}'})
        for repo in (self.repo, self.neighbor):
            for blob in (repo.folder / "blobs").iterdir():
                repo._lock_file(blob.name.split(".")[0])
        self._hide()
        for path in (self.root, *self.root.rglob("*")):
            owner = MEMBER if NAME in path.parts else ADMIN
            owner = OTHER if self.neighbor.folder.name in path.parts else owner
            if IS_ROOT:
                os.chown(path, owner, GROUP, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(0o2775 if path.is_dir() else 0o664)
        self.before = self.state_outside()

    def _hide(self) -> None:
        """Lay out what only the victim may read: all names of the cache, with other content."""
        shutil.copytree(self.root, self.outside, symlinks=True)
        for path in self.outside.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.write_bytes(SECRET + os.fsencode(path.name))
        for path in (self.outside, *self.outside.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o700 if path.is_dir() else 0o600)
            if IS_ROOT:
                os.chown(path, VICTIM, VICTIM, follow_symlinks=False)

    def state_outside(self) -> dict[str, tuple[Entry, int, int, int]]:
        """Describe what is not the cache's: content, mode, owner and names of each entry."""
        found = {}
        for name, entry in {".": ("folder", 0, 0, ""), **fingerprint(self.outside)}.items():
            status = (self.outside / name).lstat()
            found[name] = entry, status.st_uid, status.st_mode, status.st_nlink
        return found

    def run(
        self,
        command: Callable[[], object],
        attack: Attack | None = None,
        nth: int = 0,
        below: Path | None = None,
    ) -> Attacked:
        """Run a command in a child, and the attack just before its Nth call below the cache.

        below: another folder whose calls count.
        """

        def strike(_call: str) -> bool:
            return attack is not None and self.as_member(lambda: attack(self))

        return self.run_struck(command, strike, nth, below or self.root)

    def run_struck(
        self,
        command: Callable[[], object],
        strike: Callable[[str], bool],
        nth: int | Collection[int],
        below: Path,
        *,
        reads: bool = True,
        hung_after: int = HUNG_AFTER,
    ) -> Attacked:
        """Run a command in a child.

        Args:
            command: the command.
            strike: is called with the call that follows it, and returns whether it succeeded.
            nth: the number of the call before which it strikes, or several numbers.
            below: the folder whose calls count.
            reads: whether opening for reading, listing and stats count too.
            hung_after: seconds.
        """
        with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as counted:
            child = os.fork()
            if child == 0:
                code = 97
                try:
                    sys.stdout = sys.stderr = os.fdopen(errors.fileno(), "w", closefd=False)
                    signal.signal(signal.SIGALRM, signal.SIG_DFL)
                    signal.alarm(hung_after)
                    code, report = _count_calls(command, strike, nth, below, reads)
                    os.write(counted.fileno(), report)
                except BaseException:
                    traceback.print_exc()
                finally:
                    with contextlib.suppress(BaseException):
                        sys.stdout.flush()
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            errors.seek(0)
            counted.seek(0)
            calls, _, struck = counted.read().partition(b" ")
            return Attacked(
                -1 if os.WIFSIGNALED(status) else os.WEXITSTATUS(status),
                errors.read().decode(errors="replace"),
                int(calls or 0),
                struck == b"True",
            )

    def as_member(self, act: Callable[[], None]) -> bool:
        """Do something with the member's rights; return whether the system let them."""
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                if IS_ROOT:
                    os.setgroups([GROUP])
                    os.setresgid(GROUP, GROUP, GROUP)
                    os.setresuid(MEMBER, MEMBER, MEMBER)
                act()
                code = 0
            os._exit(code)
        return os.waitpid(child, 0)[1] == 0

    def check(self, done: Attacked, *others: Path) -> None:
        """Raise AssertionError if anything outside was read or changed, or the command hung."""
        assert done.code != -1, f"hung: {done.errors}"
        assert "Traceback" not in done.errors, done.errors
        assert "internal error" not in done.errors, done.errors
        assert self.state_outside() == self.before, done.errors
        for top in (self.root, *others):
            for path in top.rglob("*") if top.is_dir() else [top]:
                if path.is_symlink() or not path.is_file():
                    continue
                assert SECRET not in path.read_bytes(), f"copied to {path}: {done.errors}"
        assert SECRET.decode() not in done.errors


def _count_calls(
    command: Callable[[], object],
    strike: Callable[[str], bool],
    nth: int | Collection[int],
    below: Path,
    reads: bool,
) -> tuple[int, bytes]:
    """Return a command's exit code, and its calls and whether it was struck, in bytes."""
    struck: list[bool] = []
    with failing(nth, lambda: struck.append(strike(str(disk.fired))), below, reads=reads) as disk:
        try:
            command()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return code, b"%d %s" % (disk.count, str(any(struck)).encode())


@contextlib.contextmanager
def shared_cache() -> Iterator[SharedCache]:
    """Make such a cache where every user can enter."""
    with common_folder("attacked-", in_memory=True) as folder:
        yield SharedCache(folder)


def swapped(name: str) -> Attack:
    """Return an attack: a folder or file of the cache becomes a link to what is outside."""

    def attack(shared: SharedCache) -> None:
        path = shared.root / name
        if path.is_symlink() or path.exists():
            path.rename(path.with_name(path.name + ".aside"))
        path.symlink_to(shared.outside / name)

    attack.__name__ = f"{name} becomes a link"
    return attack


def piped(name: str) -> Attack:
    """Return an attack: a file of the cache becomes a pipe that nobody writes to."""

    def attack(shared: SharedCache) -> None:
        path = shared.root / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)

    attack.__name__ = f"{name} becomes a pipe"
    return attack


def attacks(shared: SharedCache) -> Mapping[str, Attack]:
    """Return every attack on a cache, by its name."""
    commit = shared.repo.latest
    blob = shared.repo.blob("model.safetensors").name
    folders = [
        NAME,
        f"{NAME}/blobs",
        f"{NAME}/snapshots",
        f"{NAME}/snapshots/{commit}",
        f"{NAME}/snapshots/{commit}/sub",
        f"{NAME}/refs",
        f"{NAME}/trees",
        ".locks",
        f".locks/{NAME}",
    ]
    files = [
        f"{NAME}/blobs/{blob}",
        f"{NAME}/blobs/{shared.orphan.name}",
        f"{NAME}/refs/main",
        f".locks/{NAME}/{blob}.lock",
        f".locks/{NAME}/{shared.orphan.name}.lock",
    ]
    found = [*map(swapped, folders), *map(swapped, files), *map(piped, files)]
    return {attack.__name__: attack for attack in found}


def as_command(*arguments: str, variables: Mapping[str, str]) -> Callable[[], None]:
    """Return the command line as a function for the child."""

    def run() -> None:
        from vlmcache.cli.main import main

        os.environ.update(variables)
        main(arguments)

    return run


def spread(calls: int, count: int) -> list[int]:
    """Return about `count` numbers of calls, evenly spread from the first to the last."""
    step = max(1, calls // count)
    return list(range(1, calls + 1, step))
