"""Making, checking and using kept quantized copies.

A copy is made in a folder of its own and renamed into its place, so a copy that exists is complete.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import msgspec

from vlmcache import log
from vlmcache.cache import layout
from vlmcache.cache.hashing import ContentChangedError, hash_file
from vlmcache.cache.mounts import nearest_folder
from vlmcache.cache.weights import Precision
from vlmcache.config import Session, find_model, own_home
from vlmcache.errors import (
    CrashedError,
    MissingPackageError,
    NoDeviceError,
    NotEnoughMemoryError,
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
from vlmcache.load.finder import ModelFinder
from vlmcache.load.report import QUANTIZED
from vlmcache.load.scratch import check_space, new_folder, refuse_anothers
from vlmcache.load.source import ModelFiles, as_copy, check_fits, estimate_memory
from vlmcache.progress import FileOf, Progress, continued_by, files_shown
from vlmcache.report import Report

_LOOK_EVERY = 0.5
"""Seconds between two checks of how much of a copy is written."""
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
    """From the beginning until the copy is in its place and temporary files are removed."""
    phases: dict[str, float] = msgspec.field(default_factory=dict)
    """The parts of these seconds that it took to `quantize`, to `compare` and to `keep`."""
    freed: int | None = None
    """What removing copies freed, or would free."""
    removed: bool = False
    """Whether the copies that `freed` counts were removed; with `--dry-run` they were not."""

    @property
    def ids(self) -> list[str]:
        """The folder of the copy."""
        return [self.path]


def find_copy(home: str, repo: str, commit: str, precision: Precision) -> KeptCopy | None:
    """Return the copy that the installed libraries made, if it is unchanged, or `None`.

    A file whose length and time are those of the manifest counts as unchanged; one with another
    time is hashed.
    """
    folder = copy_folder(home, repo, commit, precision)
    manifest = read_manifest(folder)
    if manifest is None or (manifest.repo, manifest.commit) != (repo, commit):
        return None
    unchanged = failure(folder) is None and all(
        _is_unchanged(folder, name, file) for name, file in manifest.files.items()
    )
    return describe(folder, manifest) if unchanged else None


def _is_unchanged(folder: str, name: str, file: CopiedFile) -> bool:
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
    """Return the kept copy of a source if there is one at its precision, else the source."""
    if source.precision in QUANTIZED and source.repo and source.commit and source.adapter is None:
        kept = find_copy(home, source.repo, source.commit, source.precision)
        if kept is not None:
            with contextlib.suppress(UnloadableError):
                return as_copy(source, kept.path)
    return source


_NOT_THE_COPYS = (
    CrashedError,
    MissingPackageError,
    NoDeviceError,
    NotEnoughMemoryError,
    UnsupportedPrecisionError,
    UntrustedCodeError,
)
"""Failures that say nothing about a copy: they depend on the machine and on what is allowed."""


def is_the_copys(source: ModelFiles, error: UnloadableError) -> bool:
    """Return whether a failed load can be a kept copy's fault, so that the original may load."""
    return source.kind == "copy" and not isinstance(error, _NOT_THE_COPYS)


def set_aside(copy: ModelFiles, error: UnloadableError) -> None:
    """Let no later load use a copy that failed while its original could be loaded."""
    from vlmcache.change.place import write_file

    reason = error.message
    log.info("load", "the %s copy of %s is set aside: %s", copy.precision, copy.model, reason)
    # A home that is full or read-only must not make a load fail.
    with contextlib.suppress(OSError):
        write_file(os.path.join(copy.folder, FAILED), reason.encode())


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

    It is kept only if another process loads it and computes the same with it as the model that was
    just quantized: to the last bit on the CPU, elsewhere to a hundredth of the largest logit.

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
    from vlmcache.load.worker import PhaseClock, run_child

    clock = PhaseClock(time.monotonic())
    if precision not in QUANTIZED:
        raise UsageError(f"{precision} is not quantized", "--precision int8 or int4")
    home, _ = own_home(session.environment)
    finder = ModelFinder(session, [name], trust_remote_code=trust_remote_code)
    _, source = finder.find(name, precision)
    # A copy does not depend on what computes attention.
    source = msgspec.structs.replace(source, attention=None)
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
    again = session.command("quantize", name, "--precision", precision)
    with (
        fitting_hints(precision),
        new_folder(root) as making,
        new_folder(root) as scratch,
        continued_by(progress, f"'{again}' starts again"),
        _shown(progress, source.model, making, need.weights) as phase_ended,
    ):
        if device == "cpu":
            check_fits(source, need.held, available_memory(), device)
        request = {"device": device, "logits": os.path.join(scratch, "logits")}
        clock.lap("prepare")
        run_child(
            {"task": "quantize", "source": msgspec.to_builtins(source), "folder": making} | request,
            source.model,
        )
        phase_ended()
        clock.lap("quantize")
        _compare(source, making, request)
        phase_ended()
        clock.lap("compare")
        made = publish(home, making, source)
    clock.lap("keep")
    phases = {phase: taken for phase, taken in clock.phases.items() if phase != "prepare"}
    return msgspec.structs.replace(
        plan, made=True, size=made.size, seconds=clock.seconds, phases=phases
    )


@contextlib.contextmanager
def _shown(
    progress: Progress, model: str, making: str, expected: int
) -> Iterator[Callable[[], None]]:
    """Show the phase, and how much of a copy is written to the folder in which it is made.

    Yields:
        A function to call once the copy is written, and again once it is compared.
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
    """Load a new copy in another process, and compare what it computes.

    Raises:
        UnloadableError: it cannot be loaded, or computes something else.
    """
    from vlmcache.load.worker import run_child

    try:
        copy = as_copy(source, making)
        compared = {"task": "compare", "source": msgspec.to_builtins(copy)}
        difference = run_child(request | compared, source.model)["difference"]
        reason = f"loaded again, {difference}" if difference is not None else None
    except _NOT_THE_COPYS:
        raise
    except UnloadableError as error:
        reason = f"it can be quantized to {source.precision} but not loaded again: {error.message}"
    if reason is not None:
        raise UnloadableError(
            f"no copy of {source.model} was kept: {reason}",
            f"load it with --precision {source.precision}: it is quantized each time",
        )


@contextlib.contextmanager
def fitting_hints(precision: Precision) -> Iterator[None]:
    """Replace hints with a precision that `quantize` refuses, or that it was given.

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
    """Make sure that a quantized copy can be made of a model.

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

    With `dry_run` nothing is removed, and `freed` says what would be freed.

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
        # It is damaged, or it would have been used.
        old = f"{making}-old"
        os.rename(folder, old)
        shutil.rmtree(old, ignore_errors=True)
    os.rename(making, folder)
    sync_folder(parent)
    return describe(folder, manifest)
