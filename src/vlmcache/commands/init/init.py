"""`init`: a config.yaml for the models in the cache, or with three to start from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import msgspec

from vlmcache.cache import gguf, layout
from vlmcache.cache.completeness import judge, judge_revision
from vlmcache.cache.reading import read_bytes
from vlmcache.cache.scan import scan
from vlmcache.cache.state import CacheState, Repo
from vlmcache.commands.init.plan import Entry, entries_text, key_for, new_text
from vlmcache.commands.init.values import ConfigWriteError, InitModel, InitReport
from vlmcache.commands.init.write import check_absent, create
from vlmcache.config import ModelConfig, Session, load_config, shipped_config, user_config
from vlmcache.config_file import SHIPPED, parse_config
from vlmcache.environment import FILE_LIMIT
from vlmcache.errors import ConfigError
from vlmcache.paths import real_path
from vlmcache.units import size_text

_KEPT = ("cached", "damaged", "away")
"""States of models that somebody has downloaded completely."""


def init(session: Session, config: str | None = None, *, dry_run: bool = False) -> InitReport:
    """Write a config.yaml that names the models in the cache, or three to start from.

    Args:
        session: the environment and the hub cache; its configuration is not looked at.
        config: the file; `$VLMCACHE_CONFIG`, else the one in the user's folder, if not given.
        dry_run: write nothing.

    Raises:
        ConfigExistsError: something has the file's name already.
        ConfigWriteError: it cannot be written.
        SpaceError: the disk is full.
        ConfigError: the cache path is not a folder.
    """
    path = place_of(session, config)
    check_absent(path)
    state = scan(session.cache.dir)
    entries: list[Entry] = []
    left_out: list[str] = []
    # A key would not mean the model if it were the id of another repo in the cache.
    ids = {repo.id.casefold() for repo in state.repos if "/" not in repo.id}
    taken: set[str] = set()
    for repo in sorted(state.repos, key=lambda repo: (repo.id.casefold(), repo.id)):
        if repo.type != "model" or not layout.is_repo_id(repo.id):
            continue
        models = list(_models_of(state, repo))
        if not models:
            left_out.append(repo.id)
        for model, size in models:
            key = key_for(repo.id, taken | ids - {repo.id.casefold()}, model.variant)
            taken.add(key)
            entries.append(Entry(key, model, size_text(size)))
    text = new_file(entries, left_out)
    # Whatever the names in the cache are, what is read has to be what was meant.
    read = parse_config(text.encode(), path, "user")
    named = {entry.key: entry.model.repo for entry in entries} or {
        key: model.repo for key, model in shipped_config().models.items()
    }
    if read is None or {key: model.repo for key, model in read.models.items()} != named:
        raise ConfigWriteError(f"{path}: its content could not be read back: nothing was written")
    is_named = config is not None and path != user_config()
    if not dry_run:
        create(path, text.encode())
    return InitReport(
        path,
        not dry_run,
        tuple(
            InitModel(
                key,
                model.repo,
                None if model.revision == "main" else model.revision,
                model.variant,
            )
            for key, model in read.models.items()
        ),
        bool(entries),
        tuple(left_out),
        text,
        None if is_named else _active(session, path),
        is_named,
    )


def place_of(session: Session, config: str | None) -> str:
    """Return the path of the user's config.yaml, which need not exist.

    Raises:
        ConfigWriteError: the user has no home folder.
    """
    named = config or session.environment.get("VLMCACHE_CONFIG")
    path = session.environment.absolute(named) if named else user_config()
    if not os.path.isabs(path):
        raise ConfigWriteError("you have no home folder here", "name a file with --config")
    # A folder that was typed wrong is not made.
    if named and not os.path.isdir(os.path.dirname(path)):
        raise ConfigWriteError(
            f"{path} cannot be written: its folder does not exist", "make the folder first"
        )
    return path


def new_file(entries: Sequence[Entry], left_out: Sequence[str] = ()) -> str:
    """Return the text of a new config.yaml with models, or with those that ship with the package.

    Args:
        entries: the models.
        left_out: repos of the cache that are not complete, for a comment.
    """
    shipped = read_bytes(SHIPPED, FILE_LIMIT).decode()
    defaults, _, limits = shipped.partition("models:\n")[2].partition("vlmcache:\n")
    return new_text(entries_text(entries) or defaults, f"vlmcache:\n{limits}", left_out)


def _models_of(state: CacheState, repo: Repo) -> Iterator[tuple[ModelConfig, int]]:
    """Yield a model for the complete revision of a repo, or for each GGUF variant, and its size."""
    revision = _revision_of(state, repo)
    if revision is None:
        return
    snapshot = repo.revision(repo.refs.get(revision, revision))
    names = {file.name: file.size for file in snapshot.files} if snapshot is not None else {}
    found = gguf.variants(names)
    sizes = found.sizes(names)
    variants = [
        variant.name
        for variant in found.variants
        if judge(repo, revision, state.repo, variant.name).state in _KEPT
    ]
    model = ModelConfig("", repo.id, revision)
    if not variants:
        yield model, sum(names.values())
    for variant in variants:
        yield msgspec.structs.replace(model, variant=variant), sizes[variant]


def _revision_of(state: CacheState, repo: Repo) -> str | None:
    """Return `main` if it is complete, or else a name of the newest complete revision."""
    if repo.away is not None or judge(repo, "main", state.repo).state in _KEPT:
        return "main"
    for revision in sorted(repo.revisions, key=lambda revision: -revision.mtime_ns):
        if judge_revision(repo, revision, state.repo).state in _KEPT:
            refs = sorted(ref for ref in revision.refs if layout.is_revision(ref))
            return refs[0] if refs else revision.commit
    return None


def _active(session: Session, path: str) -> str | None:
    """Return another config.yaml that counts in the working folder once the file is there."""
    try:
        active = load_config(None, session.environment)
    except ConfigError:
        return os.path.join(session.environment.folder, "config.yaml")
    places = ("VLMCACHE_CONFIG", "./config.yaml")
    same = real_path(active.path) == real_path(path)
    return active.path if active.source in places and not same else None
