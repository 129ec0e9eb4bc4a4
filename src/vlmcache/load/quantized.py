"""Making, checking and using kept quantized copies.

A copy is made in a folder of its own and renamed into its place, so a copy that exists is complete.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import msgspec

from vlmcache import log, units
from vlmcache.cache import layout
from vlmcache.cache.hashing import ContentChangedError, hash_file
from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.owners import is_anothers
from vlmcache.cache.weights import Precision
from vlmcache.config import Session, find_model, own_home
from vlmcache.errors import (
    CrashedError,
    MissingPackageError,
    NoDeviceError,
    NotEnoughMemoryError,
    SpaceError,
    UnloadableError,
    UnsupportedPrecisionError,
    UntrustedCodeError,
    UsageError,
)
from vlmcache.home.copies import (
    FAILED,
    FOLDER,
    MANIFEST,
    CopiedFile,
    KeptCopy,
    Manifest,
    allocated,
    copy_folder,
    copy_folders_of,
    describe,
    failure,
    installed_versions,
    list_copies,
    read_manifest,
)
from vlmcache.load.report import QUANTIZED
from vlmcache.load.source import (
    ModelFiles,
    ModelFinder,
    as_copy,
    check_fits,
    estimate_memory,
)
from vlmcache.progress import FileOf, Progress, continued_by, files_shown
from vlmcache.report import Report
from vlmcache.units import size_text

MAKING = ".making-"
"""Beginning of the names of folders in which a copy is being made, then the process's number."""
_in_use: set[str] = set()
"""The folders in which this process is making something."""

_LOOK_EVERY = 0.5
"""Seconds between looks at how much of a copy is written."""
_A_SHA256 = "0" * 64
"""What `hash_file` takes for the kind of hash."""


class Quantization(Report, frozen=True):
    """The result of `vlmcache quantize`. Sizes are bytes."""

    model: str
    repo: str
    commit: str | None
    precision: Precision
    path: str
    made: bool
    """False for a plan, and if the copy existed already."""
    source_bytes: int
    expected: int
    """The estimated size of the copy."""
    free: int
    size: int | None = None
    """What the copy takes."""
    seconds: float | None = None
    """From the beginning until the copy is in its place and what it took is cleared away."""
    phases: dict[str, float] = msgspec.field(default_factory=dict)
    """What of these seconds it took to `quantize`, to `compare` and to `keep`."""
    freed: int | None = None
    """What removing copies freed, or would free."""
    removed: bool = False
    """Whether what `freed` counts is gone; with `--dry-run` it is still there."""

    @property
    def ids(self) -> list[str]:
        """The folder of the copy."""
        return [self.path]


def find_copy(home: str, repo: str, commit: str, precision: Precision) -> KeptCopy | None:
    """Return the copy that the installed libraries made and that is as it was made, or `None`.

    A file whose length and time are those of the manifest is taken to be unchanged; one that was
    touched since is hashed.
    """
    folder = copy_folder(home, repo, commit, precision)
    manifest = read_manifest(folder)
    if manifest is None or (manifest.repo, manifest.commit) != (repo, commit):
        return None
    if failure(folder) is not None:
        return None
    if all(_is_whole(folder, name, file) for name, file in manifest.files.items()):
        return describe(folder, manifest)
    return None


def _is_whole(folder: str, name: str, file: CopiedFile) -> bool:
    if os.path.basename(name) != name:
        return False
    path = os.path.join(folder, name)
    try:
        status = os.lstat(path)
        if (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns):
            return True
        return status.st_size == file.size and hash_file(path, file.sha256) == file.sha256
    except (OSError, ContentChangedError):
        return False


def preferred(home: str, source: ModelFiles) -> ModelFiles:
    """Return the kept copy of a source where there is one for its precision, else the source."""
    known = source.repo is not None and source.commit is not None and source.adapter is None
    if source.precision not in QUANTIZED or not known:
        return source
    assert source.repo is not None
    assert source.commit is not None
    kept = find_copy(home, source.repo, source.commit, source.precision)
    if kept is None:
        return source
    try:
        return as_copy(source, kept.path)
    except UnloadableError:
        return source


_NOT_THE_COPYS = (
    CrashedError,
    MissingPackageError,
    NoDeviceError,
    NotEnoughMemoryError,
    UnsupportedPrecisionError,
    UntrustedCodeError,
)
"""Failures that say nothing of a copy: they depend on the machine and on what is allowed."""


def is_the_copys(source: ModelFiles, error: UnloadableError) -> bool:
    """Return whether a failed load can be the fault of a kept copy, and the original may load."""
    return source.kind == "copy" and not isinstance(error, _NOT_THE_COPYS)


def set_aside(copy: ModelFiles, error: UnloadableError) -> None:
    """Let no later load use a copy that failed while its original could be loaded."""
    from vlmcache.change.place import write_file

    why = error.message
    log.info("load", "the %s copy of %s is set aside: %s", copy.precision, copy.model, why)
    # A home that is full or read-only is no reason for a load to fail.
    with contextlib.suppress(OSError):
        write_file(os.path.join(copy.folder, FAILED), why.encode())


def quantize(
    session: Session,
    name: str,
    precision: Precision,
    *,
    device: str = "auto",
    dry_run: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Quantization:
    """Keep a quantized copy of a cached model, made in a fresh process.

    It is kept only if another process loads it and computes with it what the model computes that
    was just quantized, equal to the last bit on the CPU, elsewhere to a hundredth of the largest
    logit.

    Args:
        session: what it works on.
        name: a key of the configuration or a repo id, with an optional `@revision`.
        precision: int8 or int4.
        device: what quantizes.
        dry_run: only say what would be done.
        trust_remote_code: whether the user allows Python code of the repo to run.
        progress: shows the progress.

    Raises:
        UsageError: the precision is not one that is quantized.
        UnloadableError: the model cannot be loaded or quantized with these settings.
        SpaceError: the copy would leave less free than the configured minimum.
        OSError: the copy cannot be written.
    """
    from vlmcache.cache.free_memory import available_memory
    from vlmcache.load.explain import require_packages
    from vlmcache.load.worker import run_child

    clock = _Clock()
    if precision not in QUANTIZED:
        raise UsageError(f"{precision} is not quantized", "--precision int8 or int4")
    home, _ = own_home(session.environment)
    finder = ModelFinder(session, [name], trust_remote_code=trust_remote_code)
    _, found = finder.find(name, precision)
    # What a copy is does not depend on what computes attention.
    source = msgspec.structs.replace(found, attention=None)
    assert source.repo is not None
    assert source.commit is not None
    refuse_to_quantize(source)
    need = estimate_memory(source)
    free = shutil.disk_usage(nearest_folder(home)).free
    kept = find_copy(home, source.repo, source.commit, precision)
    plan = Quantization(
        model=source.model,
        repo=source.repo,
        commit=source.commit,
        precision=precision,
        path=copy_folder(home, source.repo, source.commit, precision),
        made=False,
        source_bytes=source.bytes,
        expected=need.weights,
        free=free,
        size=kept.size if kept is not None else None,
    )
    if kept is not None or dry_run:
        return plan
    check_space(
        home,
        f"{precision} copy of {source.model}",
        need.weights,
        session.config.limits.min_free,
    )
    require_packages()
    root = os.path.join(home, FOLDER)
    progress = progress or Progress()
    again = units.command("quantize", name, "--precision", precision)
    with (
        fitting_hints(precision),
        new_folder(root) as making,
        new_folder(root) as scratch,
        continued_by(progress, f"'{again}' starts again"),
        _shown(progress, source.model, making, need.weights) as phase_ended,
    ):
        if device == "cpu":
            check_fits(source, need.held, available_memory(), device)
        logits = os.path.join(scratch, "logits")
        clock.begin("quantize")
        request = {"device": device, "logits": logits}
        whole = {"source": msgspec.to_builtins(source), "folder": making}
        run_child({"task": "quantize"} | request | whole, source.model)
        phase_ended()
        clock.begin("compare")
        _compare(source, making, request)
        phase_ended()
        clock.begin("keep")
        made = publish(home, making, source)
    seconds, phases = clock.end()
    return msgspec.structs.replace(plan, made=True, size=made.size, seconds=seconds, phases=phases)


class _Clock:
    """The seconds of each part of the work."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()
        self._phases: dict[str, float] = {}

    def begin(self, phase: str) -> None:
        """Say that a part begins, and that the one before is over."""
        self._lap()
        self._phases[phase] = 0.0

    def end(self) -> tuple[float, dict[str, float]]:
        """Return the seconds of all, and of each part."""
        self._lap()
        return self._last - self._begun, self._phases

    def _lap(self) -> None:
        now = time.monotonic()
        for phase in list(self._phases)[-1:]:
            self._phases[phase] = now - self._last
        self._last = now


@contextlib.contextmanager
def _shown(
    progress: Progress, model: str, making: str, expected: int
) -> Iterator[Callable[[], None]]:
    """Show meanwhile what happens, and how much of a copy is written, by the folder of it.

    Yields:
        What is called once the copy is written, and again once it was compared with what the
        model computes.
    """
    phases = ["quantizing", "comparing"]
    files = {name: FileOf(model, name, expected) for name in phases}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_EVERY):
            with contextlib.suppress(OSError):
                size = sum(entry.stat().st_size for entry in os.scandir(making))
                moved("quantizing", min(expected, size))

    def phase_ended() -> None:
        over.set()
        watcher.join()
        moved(phases.pop(0), expected)
        for name in phases[:1]:
            moved(name, 0)

    with files_shown(progress, "written and compared", files) as moved:
        moved("quantizing", 0)
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield phase_ended
        finally:
            over.set()
            watcher.join()


def _compare(source: ModelFiles, making: str, request: dict[str, Any]) -> None:
    """Load a copy that was made in a folder in another process, and compare what it computes.

    Raises:
        UnloadableError: it cannot be loaded, or computes something else.
    """
    from vlmcache.load.worker import run_child

    try:
        copy = as_copy(source, making)
        compared = {"task": "compare", "source": msgspec.to_builtins(copy)}
        difference = run_child(request | compared, source.model)["difference"]
    except _NOT_THE_COPYS:
        raise
    except UnloadableError as error:
        raise UnloadableError(
            f"no copy was kept of {source.model}: {source.precision} can be made of it but not"
            f" loaded again: {error.message}",
            f"load it with --precision {source.precision}: it is quantized each time",
        ) from None
    if difference is not None:
        raise UnloadableError(
            f"no copy was kept of {source.model}: loaded again, {difference}",
            f"load it with --precision {source.precision}: it is quantized each time",
        )


@contextlib.contextmanager
def fitting_hints(precision: Precision) -> Iterator[None]:
    """Replace hints that name a precision which `quantize` refuses, or the one that it was given.

    Raises:
        UnloadableError: what was raised inside, with the hint that fits.
    """
    try:
        yield
    except UnloadableError as error:
        if error.hint is None or "--precision" not in error.hint or "each time" in error.hint:
            raise
        smaller = isinstance(error, (CrashedError, NotEnoughMemoryError)) and precision == "int8"
        hint = "--precision int4 takes less" if smaller else "quantize on another machine or device"
        raise type(error)(error.message, hint) from None


def refuse_to_quantize(source: ModelFiles) -> None:
    """Make sure that a model is one of which there can be a quantized copy.

    Raises:
        UnloadableError: it is quantized already, or an adapter, which is saved without its base.
    """
    if source.quantized_by is not None:
        raise UnsupportedPrecisionError(
            f"{source.model} is already quantized ({source.quantized_by}), and loads as it is"
        )
    if source.adapter is not None:
        raise UnloadableError(f"{source.model} is an adapter: only its base model can be quantized")


def remove_quantized(
    session: Session, name: str, precision: Precision, *, dry_run: bool = False
) -> Quantization:
    """Remove the kept copies of a model at a precision, of all its commits and library versions.

    With `dry_run` nothing is removed, and freed is what would be.

    Raises:
        UnknownModelError: the name is neither a key nor a repo id.
        OSError: the system refuses.
    """
    home, _ = own_home(session.environment)
    repo = find_model(session.config, name, {copy.repo for copy in list_copies(home)}).repo
    root = os.path.join(home, FOLDER, layout.repo_folder("model", repo))
    if not dry_run:
        refuse_anothers(root)
    folders = [
        folder
        for folder in copy_folders_of(root)
        if os.path.basename(folder).startswith(f"{precision}-")
    ]
    freed = sum(map(allocated, folders))
    for folder in () if dry_run else folders:
        shutil.rmtree(folder)
        for above in (os.path.dirname(folder), root):
            with contextlib.suppress(OSError):
                os.rmdir(above)
    return Quantization(
        model=name,
        repo=repo,
        commit=None,
        precision=precision,
        path=root,
        made=False,
        removed=not dry_run,
        source_bytes=0,
        expected=0,
        free=shutil.disk_usage(nearest_folder(home)).free,
        freed=freed,
    )


def check_space(folder: str, what: str, size: int, min_free: int) -> None:
    """Make sure that something can be made below a folder, which need not exist.

    Raises:
        SpaceError: it would leave less than `min_free` bytes on the disk.
    """
    free = shutil.disk_usage(nearest_folder(folder)).free
    if free - size < min_free:
        raise SpaceError(
            f"the {what} takes about {size_text(size)}, and {folder} has {size_text(free)} free"
            f" with {size_text(min_free)} kept",
            "make room on that disk, or name another folder with VLMCACHE_HOME",
        )


def refuse_anothers(folder: str) -> None:
    """Make sure that root does not write into the home of another user.

    Raises:
        PermissionError: it would.
    """
    if is_anothers(folder):
        reason = "root writes nothing in another user's folder: name root's own with VLMCACHE_HOME"
        raise PermissionError(errno.EACCES, reason, folder)


@contextlib.contextmanager
def new_folder(root: str) -> Iterator[str]:
    """Yield a new folder for what this process makes; it is removed unless it was renamed by then.

    Folders that processes now gone left behind are removed.

    Raises:
        OSError: it cannot be made.
    """
    import psutil

    refuse_anothers(root)
    os.makedirs(root, exist_ok=True)
    for name in os.listdir(root):
        path = os.path.join(root, name)
        number, _, _ = name.removeprefix(MAKING).partition("-")
        if not name.startswith(MAKING) or not number.isdigit() or path in _in_use:
            continue
        # In containers one process after the other has the same number.
        if int(number) == os.getpid() or not psutil.pid_exists(int(number)):
            shutil.rmtree(path, ignore_errors=True)
    making = os.path.join(root, f"{MAKING}{os.getpid()}-{uuid.uuid4().hex[:8]}")
    _in_use.add(making)
    try:
        os.makedirs(making)
        yield making
    finally:
        shutil.rmtree(making, ignore_errors=True)
        _in_use.discard(making)


def publish(home: str, making: str, source: ModelFiles) -> KeptCopy:
    """Write the manifest of a copy that was made, and rename the copy into its place.

    Raises:
        OSError: that is refused; the folder `making` is then left to the caller.
    """
    from vlmcache.change.place import write_file
    from vlmcache.change.tree import sync_folder

    assert source.repo is not None
    assert source.commit is not None
    files = {}
    for entry in sorted(os.scandir(making), key=lambda entry: entry.name):
        with open(entry.path, "rb") as file:
            os.fsync(file.fileno())
            status = os.fstat(file.fileno())
        files[entry.name] = CopiedFile(
            status.st_size, hash_file(entry.path, _A_SHA256), status.st_mtime_ns
        )
    manifest = Manifest(
        source.repo,
        source.commit,
        source.precision,
        installed_versions(),
        datetime.now(timezone.utc).replace(microsecond=0),
        files,
    )
    write_file(os.path.join(making, MANIFEST), msgspec.json.format(msgspec.json.encode(manifest)))
    folder = copy_folder(home, source.repo, source.commit, source.precision)
    parent = os.path.dirname(folder)
    os.makedirs(parent, exist_ok=True)
    if os.path.isdir(folder):
        # A damaged one, else it would have been used: out of the way, and gone.
        old = f"{making}-old"
        os.rename(folder, old)
        shutil.rmtree(old, ignore_errors=True)
    os.rename(making, folder)
    sync_folder(parent)
    return describe(folder, manifest)
