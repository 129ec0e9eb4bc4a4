"""Disks that fill up, and users who may not write."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

import vlmcache

NOBODY = 65534
CANNOT_PREPARE = 117
# The interpreter's folder is held open while the one above it is covered, and then put back from
# the open descriptor, whose own path leads nowhere by then.
OPEN_UP = f"""
exec 3<"$1" &&
mount -t tmpfs -o mode=755 tmpfs "$0" && mkdir -p "$1" &&
mount --no-canonicalize --bind /proc/self/fd/3 "$1" && exec 3<&- || exit {CANNOT_PREPARE}
shift
exec "$@"
"""


@contextlib.contextmanager
def small_filesystem(size_bytes: int, *, inodes: int | None = None) -> Iterator[Path]:
    """Mount a filesystem of a given size; skip the test if that is not permitted."""
    options = f"size={size_bytes},mode=0777"
    if inodes is not None:
        options += f",nr_inodes={inodes}"
    with common_folder() as folder:
        place = folder / "mounted"
        place.mkdir()
        _mount(["-t", "tmpfs", "-o", options, "tmpfs", str(place)])
        try:
            yield place
        finally:
            # Lazily, since a killed child may still be on its way out.
            subprocess.run(["umount", "-l", str(place)], check=True)


def fill_disk(path: Path) -> None:
    """Let a new file take all that is left of its disk, whatever else is written meanwhile."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 20))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


class RemovableDrive:
    """A real filesystem on a device of its own, which can be unplugged and mounted elsewhere."""

    def __init__(self, folder: Path, device: str, uuid: str) -> None:
        self.folder = folder
        self.device = device
        self.uuid = uuid
        self.place = folder / "usual"
        self.mounted: Path | None = None

    def mount(self, name: str = "usual") -> Path:
        """Mount it at a folder of this name and return that."""
        place = self.folder / name
        place.mkdir(exist_ok=True)
        _mount([self.device, str(place)])
        self.mounted = place
        return place

    def unmount(self) -> None:
        if self.mounted is not None:
            subprocess.run(["umount", str(self.mounted)], check=True)
            self.mounted = None


@contextlib.contextmanager
def removable_drive() -> Iterator[RemovableDrive]:
    """Make a small drive and mount it; skip the test if that is not permitted."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("losetup", "mkfs.ext4"))):
        pytest.skip("a drive of its own needs root, losetup and mkfs.ext4")
    with common_folder() as folder:
        image, unique = folder / "image", str(uuid.uuid4())
        with image.open("wb") as file:
            file.truncate(8_000_000)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-U", unique, str(image)], check=True)
        with _attached(image) as device:
            drive = RemovableDrive(folder, device, unique)
            try:
                drive.mount()
                yield drive
            finally:
                drive.unmount()


@contextlib.contextmanager
def _attached(image: Path) -> Iterator[str]:
    """Make a device of an image; skip the test if there are no loop devices."""
    attach = ["losetup", "--show", "--find", str(image)]
    done = subprocess.run(attach, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no loop device here: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


FILESYSTEMS = {
    # name -> how it is made, and what mounts it: the kernel, or a program
    "btrfs": (["mkfs.btrfs", "-q"], ["mount"]),
    "xfs": (["mkfs.xfs", "-q"], ["mount"]),
    "exfat": (["mkfs.exfat"], ["mount.exfat-fuse"]),
    "ntfs": (["mkfs.ntfs", "-q", "-F", "-Q"], ["mount.ntfs-3g"]),
    "vfat": (["mkfs.vfat"], ["mount"]),
}


@contextlib.contextmanager
def filesystem(kind: str) -> Iterator[Path]:
    """Make a filesystem of a kind and mount it; skip the test if that is not possible."""
    make, mount = FILESYSTEMS[kind]
    if os.geteuid() != 0 or not all(map(shutil.which, ("losetup", make[0], mount[0]))):
        pytest.skip(f"{kind} needs root, losetup, {make[0]} and {mount[0]}")
    with common_folder() as folder:
        image, place = folder / "image", folder / "mounted"
        with image.open("wb") as file:
            file.truncate(400_000_000)
        place.mkdir()
        with _attached(image) as device:
            subprocess.run([*make, device], check=True, capture_output=True)
            done = subprocess.run([*mount, device, str(place)], capture_output=True, text=True)
            if done.returncode != 0:
                pytest.skip(f"cannot mount {kind} here: {done.stderr.strip()}")
            try:
                yield place
            finally:
                subprocess.run(["umount", str(place)], check=True)


@contextlib.contextmanager
def overlay(lower: Path) -> Iterator[Path]:
    """Show a folder through an overlay, in which it is the lower layer."""
    with small_filesystem(64_000_000) as layers:
        for name in ("upper", "work", "merged"):
            (layers / name).mkdir()
        options = f"lowerdir={lower},upperdir={layers}/upper,workdir={layers}/work"
        _mount(["-t", "overlay", "-o", options, "overlay", str(layers / "merged")])
        try:
            yield layers / "merged"
        finally:
            subprocess.run(["umount", "-l", str(layers / "merged")], check=True)


@contextlib.contextmanager
def read_only_view(folder: Path) -> Iterator[Path]:
    """Show a folder at a second place where nobody, root included, can write."""
    with common_folder() as holder:
        place = holder / "read-only"
        place.mkdir()
        _mount(["--bind", str(folder), str(place)])
        try:
            _mount(["-o", "remount,bind,ro", str(place)])
            yield place
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)


@contextlib.contextmanager
def common_folder(prefix: str = "common-", *, in_memory: bool = False) -> Iterator[Path]:
    """Make a temporary folder that every user can enter and read, unlike pytest's own.

    Args:
        prefix: how its name begins.
        in_memory: whether it is in memory if possible: thousands of fsyncs take long on a disk.
    """
    memory = "/dev/shm"
    above = memory if in_memory and os.access(memory, os.W_OK | os.X_OK) else None
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=above))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def as_other_user(
    command: Sequence[str | Path],
    uid: int = NOBODY,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    timeout: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run a command as an unprivileged user: another one where we are root, else ourselves.

    All permissions count for it, those to read included. This interpreter can be run even where
    it is installed below a folder that is closed to others.
    """
    variables = dict(os.environ if environment is None else environment)
    # With coverage, it could not write its figures to our folder.
    variables.pop("COVERAGE_PROCESS_CONFIG", None)
    result = subprocess.run(
        [*becoming(uid), *command],
        env=variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if result.returncode == CANNOT_PREPARE:
        pytest.skip(f"cannot become another user here: {result.stderr.strip()}")
    return result


def becoming(uid: int) -> list[str]:
    """Return the start of a command line that gives up being root, empty if we are not root."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("becoming another user needs setpriv")
    for needed in (Path(sys.prefix, "bin"), Path(vlmcache.__file__)):
        shut = _closed_above(needed)
        if shut is not None and not Path(sys.base_prefix).is_relative_to(sys.prefix):
            pytest.skip(f"another user cannot read what the tests run from: {shut} is closed")
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    closed = _closed_above(Path(sys.base_prefix))
    if closed is None:
        return become
    # In a view of the filesystem that only the child has, the closed folder is replaced by an
    # open one that holds nothing but the interpreter.
    return ["unshare", "--mount", "sh", "-c", OPEN_UP, str(closed), sys.base_prefix, *become]


def _closed_above(path: Path) -> Path | None:
    """Return the outermost folder above a path that other users may not enter."""
    for folder in reversed(path.resolve().parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def _mount(arguments: list[str]) -> None:
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting needs root")
    result = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.skip(f"cannot mount here: {result.stderr.strip()}")
