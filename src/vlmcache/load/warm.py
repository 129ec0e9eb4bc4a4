"""`warm`: the files of models are read into the page cache before a server loads them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from vlmcache import units
from vlmcache.cache.completeness import judge
from vlmcache.cache.free_memory import available_memory
from vlmcache.cache.moved import away_error
from vlmcache.cache.needed_files import Division
from vlmcache.cache.page_cache import resident_sum
from vlmcache.cache.scan import repo_finder, scan
from vlmcache.cache.state import CacheState, Repo, Revision
from vlmcache.config import ModelConfig, Session, cached_models, find_model, own_home
from vlmcache.errors import NotDownloadedError, PartlyError, VlmcacheError
from vlmcache.load import reader
from vlmcache.load.disk import readers_for
from vlmcache.progress import FileOf, Progress, files_shown
from vlmcache.report import Report
from vlmcache.units import size_text

_LOOK_EVERY = 0.1
"""Seconds between two checks of how far the readers are."""


class Warmed(msgspec.Struct, frozen=True):
    """One model's files, and how much of them was and is in memory. Sizes are bytes."""

    model: str
    repo: str
    commit: str
    files: int
    bytes: int
    resident_before: int | None
    """`None` if the kernel does not say, as for files that belong to another user."""
    resident_after: int | None
    """The same afterwards."""
    seconds: float


class WarmReport(Report, frozen=True):
    """The result of `vlmcache warm`. Sizes are bytes."""

    models: tuple[Warmed, ...]
    room: int
    """The bytes that the page cache could take when the command began."""
    too_large: int = 0
    """Bytes that did not fit, and were not read."""
    dry_run: bool = False
    """Whether nothing was read."""

    @property
    def ids(self) -> list[str]:
        """The repos that were read."""
        return [model.repo for model in self.models]

    @property
    def problem(self) -> VlmcacheError | None:
        """The bytes that did not fit; `None` if all did."""
        if not self.too_large:
            return None
        read = "would not be read" if self.dry_run else "were not read"
        return PartlyError(
            f"{size_text(self.too_large)} {read}: memory has room for {size_text(self.room)}",
            "free memory, or name fewer models",
        )


class _Model(NamedTuple):
    name: str
    repo: Repo
    commit: str
    sizes: dict[str, int]
    """Path -> bytes of the files that loading opens, each content once."""


def warm(
    session: Session,
    names: Sequence[str],
    progress: Progress | None = None,
    *,
    dry_run: bool = False,
) -> WarmReport:
    """Read the files that loading some models opens into the page cache, as far as they fit.

    Nothing is locked there: the kernel may drop it again when memory is needed.

    Args:
        session: the hub cache and the configuration.
        names: keys, or repo ids with an optional `@revision` and GGUF `:VARIANT`.
        progress: shows the progress.
        dry_run: read nothing.

    Raises:
        UnknownModelError: a name is neither a key nor a repo id.
        NotDownloadedError: a model is not cached, or not completely.
        AwayError: it is on a drive that is not mounted.
    """
    cached = cached_models(session.cache)
    wanted = {name: find_model(session.config, name, cached, variants=True) for name in names}
    state = scan(session.cache.dir)
    home, _ = own_home(session.environment)
    models: list[_Model] = []
    for name, configured in wanted.items():
        model = _find(state, name, configured)
        # A key and its repo id are one model, and files that two models share are read once.
        known = {path for other in models for path in other.sizes}
        sizes = {path: size for path, size in model.sizes.items() if path not in known}
        if sizes or not model.sizes:
            models.append(model._replace(sizes=sizes))
    room = left = available_memory()
    warmed, too_large = [], 0
    for model in models:
        if dry_run:
            warmed.append(_seen(model))
        else:
            warmed.append(_read(model, home, left, progress or Progress()))
        too_large += max(0, warmed[-1].bytes - left)
        # A later model must not push an earlier one out of memory.
        left = max(0, left - warmed[-1].bytes)
    return WarmReport(tuple(warmed), room, too_large, dry_run)


def _find(state: CacheState, name: str, model: ModelConfig) -> _Model:
    repo = state.repo(model.repo)
    if repo is not None and repo.away is not None:
        raise away_error(repo, repo.away)
    others = repo_finder(state.dir)
    judgement = judge(repo, model.revision, others, variant=model.variant)
    revision, division = judgement.revision, judgement.division
    if repo is None or revision is None or judgement.state != "cached":
        raise NotDownloadedError(f"{name} is {judgement.state}", units.command("pull", name))
    sizes = _sizes(repo, revision, division)
    for need in division.repos if division is not None else ():
        # An adapter is loaded onto its base.
        base, of_base = others(need.id), judge(others(need.id), need.revision, others)
        if not need.code and base is not None and of_base.revision is not None:
            sizes |= _sizes(base, of_base.revision, of_base.division)
    # The small files are read even if a large one does not fit.
    smallest_first = dict(sorted(sizes.items(), key=lambda item: item[1]))
    return _Model(name, repo, revision.commit, smallest_first)


def _sizes(repo: Repo, revision: Revision, division: Division | None) -> dict[str, int]:
    """Return path -> bytes of the files of a revision that loading opens."""
    return {
        repo.blob_path(file.blob) if file.blob else revision.file_path(file.name): file.size
        for file in revision.files
        if division is None or file.name in division.needed
    }


def _seen(model: _Model) -> Warmed:
    """Return how much of a model is in memory, and read nothing."""
    paths, total = list(model.sizes), sum(model.sizes.values())
    now = resident_sum(paths)
    return Warmed(model.name, model.repo.id, model.commit, len(paths), total, now, now, 0.0)


def _read(model: _Model, home: str, room: int, progress: Progress) -> Warmed:
    """Read a model into memory, at most as many bytes as there is room for."""
    begun = time.monotonic()
    paths, total = list(model.sizes), sum(model.sizes.values())
    before = resident_sum(paths)
    readers = reader.Readers(paths, readers_for(home, paths), room)
    label = model.repo.id
    files = {label: FileOf(label, label, min(total, room))}
    with files_shown(progress, "in memory", files) as moved:
        readers.start()
        try:
            while readers.run_for(_LOOK_EVERY):
                moved(label, readers.bytes)
        finally:
            readers.halt()
    return Warmed(
        model.name,
        model.repo.id,
        model.commit,
        len(paths),
        total,
        before,
        resident_sum(paths),
        time.monotonic() - begun,
    )
