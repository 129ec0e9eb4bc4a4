"""A hostile member of a group: random acts on a shared cache between the calls of root's commands.

`python -m tests.kit.member --runs 1000` tries them on the commands, one seed per run, and prints
the outcome; `--first SEED --runs 1 --acts` repeats a run and prints each act. With PYTHONPATH
naming the `src` of another checkout, that one is tried. It needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import pickle
import pkgutil
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from tests.kit.attacks import (
    FILES,
    GROUP,
    MEMBER,
    NAME,
    OTHER,
    SECRET,
    Attacked,
    SharedCache,
    as_command,
)
from tests.kit.caches import CacheBuilder
from tests.kit.contents import store_all
from tests.kit.disks import common_folder
from tests.kit.hub import LoopbackHub

HUNG_AFTER = 30
MOST_ACTS = 8
NEW: dict[str, bytes] = {
    **FILES,
    "model.safetensors": b"other weights " * 500,
    "more/n.json": b"{}",
}
"""The newest revision, which the hub and the backups hold and the cache does not."""
_CONFIG = "models:\n  one: {model_path: org/name}\nvlmcache:\n  min_free: 0\n"
_WAITS = {
    "vlmcache.change.tree": ("WAIT_SECONDS",),
    "vlmcache.hub.locks": ("WAIT_SECONDS", "_GROWTH_SECONDS"),
    "vlmcache.change.execute": ("_SHARED_LOCK_SECONDS",),
}
"""How long the commands wait for locks; here it is a moment."""


class Place(SharedCache):
    """A shared cache with more around it: what others own, and where the commands put things.

    Besides `outside`, which only a victim may enter: `group`, whose files the member may write but
    does not own, and `theirs`, a folder of the member's.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for path in (self.neighbor.folder, *self.neighbor.folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else 0o644)
        self.group = folder / "group"
        self.theirs = folder / "theirs"
        self.trash = folder / f".{self.root.name}.vlmcache-trash"
        self.destination = folder / "destination"
        for place, owner in ((self.group, OTHER), (self.theirs, MEMBER), (self.destination, 0)):
            place.mkdir()
            os.chown(place, owner, GROUP)
        for name in ("one", "two"):
            path = self.group / name
            path.write_bytes(b"of the group\n")
            os.chown(path, OTHER, GROUP)
            path.chmod(0o664)
        empty = self.theirs / "empty"
        empty.mkdir()
        os.chown(empty, MEMBER, GROUP)
        self.destination.chmod(0o2775)
        (folder / "config.yaml").write_text(_CONFIG)
        self.digests = {
            hashlib.sha256(path.read_bytes()).hexdigest(): str(path)
            for path in self.outside.rglob("*")
            if path.is_file() and not path.is_symlink()
        }
        with tempfile.TemporaryDirectory() as scratch:
            etags = [file.etag for file in store_all(NEW, Path(scratch)).values()]
        self.expected = [f"{NAME}/blobs/{etag}" for etag in etags]
        self.expected += [f".locks/{NAME}/{etag}.lock" for etag in etags]
        self.neighbor_before = self.state_of_neighbor()

    def mount_destination(self) -> None:
        """Let the destination be on another drive, with room for what the cache holds."""
        options = f"size=16m,mode=2775,uid=0,gid={GROUP}"
        arguments = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.destination)]
        if subprocess.run(arguments, capture_output=True, check=False).returncode:
            pytest.skip("mounting is not permitted here")

    def unmount_destination(self) -> None:
        """Take the other drive away again, if there is one."""
        if os.path.ismount(self.destination):
            subprocess.run(["umount", "-l", str(self.destination)], check=True)

    def state_of_neighbor(self) -> list[tuple[str, str]]:
        """Describe the content of another user's repo in the same cache."""
        found = []
        for top, folders, files in os.walk(self.neighbor.folder):
            for name in (*folders, *files):
                path = Path(top, name)
                content = os.readlink(path) if path.is_symlink() else ""
                if path.is_file() and not path.is_symlink():
                    content = path.read_bytes().hex()
                found.append((str(path), content))
        return sorted(found)

    def escapes(self, done: Attacked, *, neighbor_stays: bool) -> Iterator[str]:
        """Yield what a command did that it must not do."""
        if self.state_outside() != self.before:
            now = self.state_outside()
            names = [n for n in {*now, *self.before} if now.get(n) != self.before.get(n)]
            yield f"changed outside: {sorted(names)[:5]}"
        if neighbor_stays and self.state_of_neighbor() != self.neighbor_before:
            yield "changed another user's repo"
        if SECRET.decode() in done.errors:
            yield "printed a secret"
        for path in self.group.iterdir():
            status = path.lstat()
            if (status.st_uid, status.st_mode & 0o7777) != (OTHER, 0o664):
                yield f"changed owner or mode of {path.name}, which has a name outside"
        if not {"one", "two"} <= set(os.listdir(self.group)):
            yield "removed a file of the group"
        for top, folders, files in os.walk(self.folder):
            if top == str(self.folder):
                folders.remove("outside")
            for name in (*folders, *files):
                path = Path(top, name)
                if path.parts[-2:] == ("theirs", "empty"):
                    continue
                if "empty" in path.parts and path.lstat().st_uid != MEMBER:
                    yield f"created outside: {path}"
                if name in files and path.is_file() and not path.is_symlink():
                    with path.open("rb") as file:
                        if SECRET in file.read(1_000_000):
                            yield f"read a secret into {path}"


Act = Callable[["Member", Path], object]


class Member:
    """A process with the member's rights, which acts once whenever it hears of a call."""

    def __init__(self, place: Place, seed: str, acts: int) -> None:
        self.place = place
        self.rng = random.Random(seed)
        self.log = acts
        self.aside: list[tuple[Path, Path]] = []
        self.held: list[int] = []
        self.turn = threading.Lock()
        self.ask, answer = socket.socketpair()
        self.process = os.fork()
        if self.process == 0:
            with contextlib.suppress(BaseException):
                self.ask.close()
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(3 * HUNG_AFTER)
                os.setgroups([GROUP])
                os.setresgid(GROUP, GROUP, GROUP)
                os.setresuid(MEMBER, MEMBER, MEMBER)
                os.umask(0o002)
                while call := answer.recv(65536):
                    answer.send(b"1" if self._act(os.fsdecode(call)) else b"0")
            os._exit(0)
        answer.close()

    def strike(self, call: str) -> bool:
        """Let the member act before a call; return whether the system let them."""
        with self.turn:
            # The command would take an error of this socket for one of the system's.
            with contextlib.suppress(OSError):
                self.ask.send(os.fsencode(call))
                if answer := self.ask.recv(1):
                    return answer == b"1"
            os.write(2, f"the member has ended by a fault of the kit, before {call}\n".encode())
            os._exit(97)

    def end(self) -> None:
        """End the process, with all the locks that it holds."""
        self.ask.close()
        os.waitpid(self.process, 0)

    def _act(self, call: str) -> bool:
        act = self.rng.choice(ACTS)
        path = None
        done = False
        try:
            path = self._target(call)
            if not self._is_elses(path):
                act(self, path)
                done = True
        except OSError:
            pass  # they may not even look there any longer
        except Exception:
            os.write(self.log, traceback.format_exc().encode())
        line = f"before {call}: {act.__name__.strip('_')} {path}{'' if done else ' (refused)'}\n"
        os.write(self.log, line.encode(errors="surrogateescape"))
        return done

    def _target(self, call: str) -> Path:
        """Return what is acted on: what the call is about or a part of its path, or anything."""
        place = self.place
        path = place.folder / call.partition(" ")[2]
        tops = [
            place.root / NAME,
            place.trash,
            place.theirs,
            place.destination,
            place.root / ".locks" / NAME,
        ]
        if self.rng.random() < 0.6:
            parts = [path, *path.parents]
            roots = (place.root, place.trash, place.destination, place.theirs)
            inside = [part for part in parts if any(root in part.parents for root in roots)]
            if inside:
                return self.rng.choice(inside)
        found = [*tops, *(place.root / name for name in place.expected)]
        for top in tops:
            for folder, folders, files in os.walk(top):
                found += [Path(folder, name) for name in (*folders, *files)]
        # Of folders there are few, and all that is below them depends on them.
        folders_only = [path for path in found if path.is_dir() and not path.is_symlink()]
        return self.rng.choice(sorted(folders_only or found if self.rng.random() < 0.4 else found))

    def _is_elses(self, path: Path) -> bool:
        """Return whether the member would change another's repo themselves."""
        real = Path(os.path.realpath(path.parent), path.name)
        others = (self.place.neighbor.folder, self.place.theirs / "empty")
        return any(other in (real, *real.parents) for other in others)

    def outside_of(self, path: Path) -> Path:
        """Return what outside has the same place as a path in a cache."""
        place = self.place
        for root in (place.root, place.trash, place.destination, place.theirs):
            if path.is_relative_to(root):
                return self.place.outside / path.relative_to(root)
        return self.place.outside

    def move_aside(self, path: Path) -> None:
        if os.path.lexists(path):
            aside = path.with_name(f"{path.name}.aside{len(self.aside)}")
            path.rename(aside)
            self.aside.append((aside, path))


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link_outside(member: Member, path: Path) -> None:
    member.move_aside(path)
    path.symlink_to(member.outside_of(path))


def _link_anywhere(member: Member, path: Path) -> None:
    place = member.place
    neighbor = place.neighbor.folder
    targets: list[Path | str] = [
        place.outside,
        place.outside / NAME,
        place.outside / "new",
        place.outside / NAME / "new",
        neighbor,
        neighbor / path.name,
        neighbor / "blobs",
        place.theirs / "empty",
        place.theirs / "empty" / "new",
        place.group / "one",
        "/dev/zero",
        "/dev/tty",
        path,
        "..",
        f"../{neighbor.name}",
        f"../../{neighbor.name}/blobs",
        os.path.relpath(member.outside_of(path), path.parent),
    ]
    target = member.rng.choice(targets)
    member.move_aside(path)
    path.symlink_to(target)


def _pipe(member: Member, path: Path) -> None:
    _clear(path)
    os.mkfifo(path)


def _socket(member: Member, path: Path) -> None:
    _clear(path)
    os.chdir(path.parent)  # the complete path may be too long for a socket
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


def _folder(member: Member, path: Path) -> None:
    member.move_aside(path)
    path.mkdir()


def _file(member: Member, path: Path) -> None:
    member.move_aside(path)
    path.write_bytes(member.rng.choice([b"", b"x" * 4000, b"../../../outside\n", b"\0" * 100]))


def _hard_link_of_the_group(member: Member, path: Path) -> None:
    _clear(path)
    os.link(member.place.group / member.rng.choice(["one", "two"]), path)


def _hard_link(member: Member, path: Path) -> None:
    second = path.with_name(path.name + ".second")
    os.link(path, second, follow_symlinks=False)


def _remove(member: Member, path: Path) -> None:
    _clear(path)


def _chmod(member: Member, path: Path) -> None:
    if not path.is_symlink():
        path.chmod(member.rng.choice([0, 0o400, 0o600, 0o666, 0o700, 0o777, 0o2777, 0o4755]))


def _hold(member: Member, path: Path) -> None:
    if path.suffix != ".lock":
        locks = sorted((member.place.root / ".locks" / NAME).glob("*.lock"))
        path = member.rng.choice(locks or [path])
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
    member.held.append(descriptor)
    lock = member.rng.choice([fcntl.flock, fcntl.lockf])
    lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _away(member: Member, path: Path) -> None:
    member.move_aside(path)


def _back(member: Member, path: Path) -> None:
    if not member.aside:
        raise FileNotFoundError
    aside, original = member.aside.pop()
    if original.is_symlink() or original.is_file():
        original.unlink()
    aside.rename(original)


def _exchange(member: Member, path: Path) -> None:
    others = sorted(other for other in path.parent.iterdir() if other != path)
    other = member.rng.choice(others or [path])
    if member._is_elses(other):
        return
    between = path.with_name(path.name + ".between")
    path.rename(between)
    other.rename(path)
    between.rename(other)


def _grow(member: Member, path: Path) -> None:
    _write(path, os.O_APPEND, b"more" * 5000)


def _shrink(member: Member, path: Path) -> None:
    _write(path, os.O_TRUNC, b"")


def _overwrite(member: Member, path: Path) -> None:
    _write(path, 0, b"{")


def _write(path: Path, how: int, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW
    descriptor = os.open(path, flags | how)
    os.write(descriptor, data)
    os.close(descriptor)


def _forge_a_move(member: Member, path: Path) -> None:
    """Let the repo be a link to a folder of the member's, with all that says that it was moved."""
    place = member.place
    theirs = place.theirs / NAME
    repo = place.root / NAME
    if not theirs.exists():
        shutil.copytree(repo, theirs, symlinks=True)
    moved = {"cache": str(place.root), "finished": member.rng.random() < 0.5}
    note = {"format": "vlmcache.moved/1", "repos": {NAME: moved}}
    (place.theirs / ".vlmcache-moved.json").write_text(json.dumps(note))
    record = {
        "format": "vlmcache.move-record/1",
        "cache": str(place.root),
        "destination": str(place.theirs),
        "drive": None,
    }
    (place.root / ".locks" / f"{NAME}.moved.json").write_text(json.dumps(record))
    member.move_aside(repo)
    repo.symlink_to(theirs)


def _let_moved_lead_outside(member: Member, path: Path) -> None:
    """Let what the forged record names be somebody else's by now."""
    target = member.rng.choice(
        [member.place.theirs / NAME, *sorted((member.place.theirs / NAME).glob("*"))]
    )
    member.move_aside(target)
    target.symlink_to(member.outside_of(target))


def _blob_of_another(member: Member, path: Path) -> None:
    """Let a file of the repo be a link to somebody else's, whose hash is known."""
    place = member.place
    digest, target = member.rng.choice(sorted(place.digests.items()))
    blob = place.root / NAME / "blobs" / digest
    blob.symlink_to(target)
    pointer = place.repo.pointer(member.rng.choice(sorted(FILES)))
    pointer.unlink(missing_ok=True)
    pointer.symlink_to(os.path.relpath(blob, pointer.parent))


def _forge_a_base(member: Member, path: Path) -> None:
    """Let blobs of the repo be links into another cache, with all that says so."""
    place = member.place
    base = member.rng.choice([place.outside, place.theirs, place.folder / "base"])
    record = {
        "format": "vlmcache.base/1",
        "bases": [{"folder": str(base), "drive": None}],
        "refs": {"main": member.rng.choice(["0" * 40, place.repo.latest])},
    }
    (place.root / ".locks" / f"{NAME}.base.json").write_text(json.dumps(record))
    for name in sorted(os.listdir(place.repo.folder / "blobs"))[: member.rng.randrange(1, 4)]:
        blob = place.repo.folder / "blobs" / name
        member.move_aside(blob)
        blob.symlink_to(base / NAME / "blobs" / name)


ACTS: tuple[Act, ...] = (
    _link_outside,
    _link_outside,
    _link_outside,
    _link_anywhere,
    _link_anywhere,
    _pipe,
    _socket,
    _folder,
    _file,
    _hard_link_of_the_group,
    _hard_link,
    _remove,
    _chmod,
    _hold,
    _away,
    _back,
    _back,
    _exchange,
    _grow,
    _shrink,
    _overwrite,
    _forge_a_move,
    _forge_a_base,
    _let_moved_lead_outside,
    _blob_of_another,
)

Prepare = Callable[["Fuzzer", Place], list[str]]


@dataclass
class Outcome:
    """The outcome of a run."""

    seed: int
    command: str
    done: Attacked
    escapes: list[str]
    acts: str

    @property
    def hung(self) -> bool:
        return self.done.code == -1

    @property
    def internal(self) -> bool:
        """Whether it ended by an error of its own, not by a refusal that says something."""
        words = ("Traceback", "internal error", "'vlmcache doctor' may show why")
        refused = self.done.code == 0 or self.done.errors.strip()
        return self.done.code == 97 or not refused or any(w in self.done.errors for w in words)

    @property
    def is_good(self) -> bool:
        return not (self.escapes or self.hung or self.internal)

    def __str__(self) -> str:
        kinds = [*self.escapes, *(["hung"] if self.hung else [])]
        kinds += ["internal error"] if self.internal else []
        return f"seed {self.seed}, {self.command}: {'; '.join(kinds) or 'good'} ({self.done.code})"


@dataclass
class Fuzzer:
    """Runs of commands, one per seed, with a hub that has what they ask for."""

    hub: LoopbackHub

    def run(self, seed: int, command: str | None = None) -> Outcome:
        """Run a command while a member acts; the acts follow from the seed.

        Args:
            seed: of the member, and of the command if none is given.
            command: a name of `COMMANDS`. A recorded seed needs it: another command changes which
                number means which.
        """
        rng = random.Random(f"run {seed}")
        command = command or sorted(COMMANDS)[seed % len(COMMANDS)]
        with _place() as place, tempfile.TemporaryFile() as acts:
            arguments = COMMANDS[command](self, place)
            # Half of them before what changes something alone, so that the acts fall close to it.
            reads = command in _CHANGING_LITTLE or rng.random() < 0.5
            most = 120 if command in _CHANGING_LITTLE else 300 if reads else 30
            turn, turns = rng.randint(1, most), set()
            for _ in range(rng.randint(1, MOST_ACTS)):
                turns.add(turn)
                turn += round(10 ** rng.uniform(0, 2 if reads else 1))
            member = Member(place, f"member {seed}", acts.fileno())
            try:
                done = place.run_struck(
                    self.command(place, *arguments),
                    member.strike,
                    turns,
                    place.folder,
                    reads=reads,
                    hung_after=HUNG_AFTER,
                )
            finally:
                member.end()
            acts.seek(0)
            stays = "--all" not in arguments
            escapes = [*place.escapes(done, neighbor_stays=stays)]
            return Outcome(seed, command, done, escapes, acts.read().decode(errors="replace"))

    def command(self, place: Place, *arguments: str) -> Callable[[], None]:
        """Return a command line for the child, in an environment of its own."""
        known = self.hub.environment(place.root)
        variables = {
            name: value for name, value in known.items() if name.startswith(("HF_", "NO_"))
        }
        variables |= {
            "HOME": str(place.folder / "own"),
            "HF_HUB_CACHE": str(place.root),
            "VLMCACHE_HOME": str(place.folder / "own"),
            "VLMCACHE_CONFIG": str(place.folder / "config.yaml"),
        }
        run = as_command(*_known([*arguments]), variables=variables)

        def command() -> None:
            os.chdir(place.folder)
            for module, names in _WAITS.items():
                for name in names:
                    if hasattr(sys.modules.get(module), name):
                        setattr(sys.modules[module], name, 0.2)
            run()

        return command

    def prepare(self, place: Place, *arguments: str) -> None:
        """Run a command that comes before, undisturbed."""
        done = place.run_struck(
            self.command(place, *arguments), lambda _: True, 0, place.folder, hung_after=HUNG_AFTER
        )
        assert done.code == 0, done.errors

    def backed_up(self, place: Place, name: str) -> str:
        """Return a backup that holds the newest revision of the member's repo."""
        source = CacheBuilder(place.folder / "source")
        source.repo("org/name").revision(NEW)
        saved = f"{place.folder}/{name}"
        self.prepare(place, "backup", saved, "--cache-dir", str(source.root))
        return saved

    def base(self, place: Place) -> str:
        """Return an admin's base that has the newest revision of the member's repo."""
        base = CacheBuilder(place.folder / "base")
        for name in ("org/name", "org/third"):
            base.repo(name).revision(NEW)
        return str(base.root)

    def attached(self, place: Place) -> str:
        """Return such a base, beneath the cache."""
        base = self.base(place)
        self.prepare(place, "attach", base)
        return base

    def move_cut_short(self, place: Place) -> list[str]:
        """Return the command that undoes a move which was killed halfway."""
        destination = str(place.destination)
        command = self.command(place, "move", destination, "org/name", "--yes")

        def kill(_call: str) -> bool:
            os.kill(os.getpid(), signal.SIGKILL)
            return True

        place.run_struck(command, kill, 60, place.folder, reads=False)
        return ["move", destination, "--undo", "--yes"]


def _archiving(_: Fuzzer, place: Place) -> list[str]:
    to = ("--to", f"{place.destination}")
    place.mount_destination()
    return ["clean", "--older-than", "0s", "--keep", "org/other", *to, "--yes"]


def _recalling(fuzzer: Fuzzer, place: Place) -> list[str]:
    place.mount_destination()
    fuzzer.prepare(place, "move", f"{place.destination}", "org/name")
    return ["recall", "org/name", "--yes"]


def _damaged(fuzzer: Fuzzer, place: Place) -> list[str]:
    place.repo.blob("model.safetensors").write_bytes(b"damaged " * 500)
    return ["verify", "--repair", "--yes"]


def _known(arguments: list[str]) -> list[str]:
    """Return a command line without the options that 0.1.0 does not know."""
    import vlmcache

    old = vlmcache.__version__ == "0.1.0"
    without = {"--partials", *(["--yes"] if arguments[0] not in _ASKED_IN_010 else [])}
    return [word for word in arguments if not (old and word in without)]


_ASKED_IN_010 = ("rm", "clean", "pull")


def _in_trash(fuzzer: Fuzzer, place: Place, *command: str) -> list[str]:
    fuzzer.prepare(place, "rm", "org/name", "--trash", "--yes")
    return [*command]


COMMANDS: dict[str, Prepare] = {
    "rm": lambda _, place: ["rm", "org/name", "--yes"],
    "rm revision": lambda _, place: ["rm", "org/name@old", "--yes"],
    "clean": lambda _, place: ["clean", "--partials", "--yes"],
    "clean --all": lambda _, place: ["clean", "--all", "--yes"],
    "clean options": lambda _, place: [
        *("clean", "--duplicates", "--partials", "--older-than", "1000d", "--keep", "org/other"),
        *("--yes",),
    ],
    "repair": _damaged,
    "pull": lambda _, place: ["pull", "org/name", "--yes"],
    "backup": lambda _, place: ["backup", f"{place.folder}/store/", "--yes"],
    "backup file": lambda _, place: ["backup", f"{place.folder}/saved.tar", "--yes"],
    "restore": lambda fuzzer, place: [
        *("restore", fuzzer.backed_up(place, "store/"), "--overwrite", "--yes"),
    ],
    "restore file": lambda fuzzer, place: [
        *("restore", fuzzer.backed_up(place, "saved.tar"), "--overwrite", "--yes"),
    ],
    "move": lambda _, place: ["move", str(place.destination), "org/name", "--yes"],
    "move --no-link": lambda _, place: [
        *("move", str(place.destination), "org/name", "--no-link", "--yes")
    ],
    "move --undo": lambda fuzzer, place: fuzzer.move_cut_short(place),
    "doctor --fix": lambda _, place: ["doctor", "--fix"],
    "rm --trash": lambda _, place: ["rm", "org/name", "--trash", "--yes"],
    "rm --trash revision": lambda _, place: ["rm", "org/name@old", "--trash", "--yes"],
    "undo": lambda fuzzer, place: _in_trash(fuzzer, place, "undo", "--yes"),
    "trash --empty": lambda fuzzer, place: _in_trash(fuzzer, place, "trash", "--empty", "--yes"),
    "pull from the trash": lambda fuzzer, place: _in_trash(
        fuzzer, place, "pull", "org/name", "--yes"
    ),
    "clean --to": _archiving,
    "recall": _recalling,
    "attach": lambda fuzzer, place: ["attach", fuzzer.base(place)],
    "detach": lambda fuzzer, place: ["detach", fuzzer.attached(place), "--yes"],
}


_CHANGING_LITTLE = ("backup file", "clean", "clean options", "doctor --fix")
"""Commands that have few calls which change something."""


@contextlib.contextmanager
def _place() -> Iterator[Place]:
    with common_folder("member-", in_memory=True) as folder:
        place = Place(folder)
        try:
            yield place
        finally:
            place.unmount_destination()


@contextlib.contextmanager
def fuzzing() -> Iterator[Fuzzer]:
    """Yield a fuzzer; all modules are there before it forks."""
    import vlmcache

    for found in pkgutil.walk_packages(vlmcache.__path__, "vlmcache."):
        if ".load." not in found.name and not found.name.endswith("__main__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(found.name)
    with LoopbackHub() as hub:
        repo = hub.add_repo("org/name")
        for files in (FILES, {**FILES, "config.json": b"{}"}, NEW):
            repo.commit(files)
        yield Fuzzer(hub)


def run_all(
    seeds: Sequence[int], jobs: int, each: Callable[[Outcome], object] = str
) -> list[Outcome]:
    """Return the outcomes of runs that several processes share.

    Args:
        seeds: one a run.
        jobs: how many processes.
        each: is called with each outcome, in the process of the run.
    """

    def work(file: IO[bytes], own: Sequence[int]) -> None:
        outcomes = []
        with fuzzing() as fuzzer:
            for seed in own:
                outcomes.append(fuzzer.run(seed))
                each(outcomes[-1])
        pickle.dump(outcomes, file)
        file.flush()

    with contextlib.ExitStack() as stack:
        files: list[IO[bytes]] = []
        children = []
        for index in range(jobs):
            files.append(stack.enter_context(tempfile.TemporaryFile()))
            children.append(os.fork())
            if children[-1] == 0:
                code = 1
                try:
                    work(files[-1], seeds[index::jobs])
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
        ends = [os.waitpid(child, 0)[1] for child in children]
        assert not any(ends)
        found = []
        for file in files:
            file.seek(0)
            found += pickle.load(file)
    return sorted(found, key=lambda outcome: outcome.seed)


def table(outcomes: list[Outcome]) -> str:
    """Return the counts of each command, as Markdown."""
    lines = [
        "| command | runs | the member acted | escapes | hangs | internal errors |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    rows: dict[str, list[int]] = {}
    for outcome in outcomes:
        counted = (1, outcome.acts, outcome.escapes, outcome.hung, outcome.internal)
        for name in (outcome.command, "all"):
            row = rows.setdefault(name, [0] * 5)
            for index, counts in enumerate(counted):
                row[index] += bool(counts)
    lines += [
        f"| {name} | {' | '.join(f'{count:,}' for count in rows[name])} |"
        for name in sorted(rows, key=lambda name: (name == "all", name))
    ]
    return "\n".join([*lines, ""])


def main(arguments: list[str] | None = None) -> int:
    """Run the fuzzer and print what it found."""
    parser = argparse.ArgumentParser(prog="python -m tests.kit.member", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the seed of the first run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--acts", action="store_true", help="print each act and what the command printed"
    )
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        parser.error("only root can act as several users")
    for name in [name for name in os.environ if name.startswith(("HF_", "VLMCACHE_"))]:
        del os.environ[name]

    def show(outcome: Outcome) -> None:
        if options.acts or not outcome.is_good:
            print(outcome, flush=True)
        if options.acts:
            print(outcome.acts, outcome.done.errors, sep="\n", flush=True)

    seeds = range(options.first, options.first + options.runs)
    outcomes = run_all(seeds, min(options.jobs, options.runs), show)
    print(table(outcomes))
    return int(not all(outcome.is_good for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
