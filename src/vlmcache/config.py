"""The session that a command works on, out of config.yaml and the environment.

Commands import from here all that belongs to it; `environment`, `config_file`, `config_values` and
`names` are its parts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from vlmcache.cache import layout
from vlmcache.config_file import read_config, shipped_config
from vlmcache.config_values import (
    Config,
    Limits,
    ModelConfig,
    Source,
    parse_attention,
    parse_precision,
)
from vlmcache.environment import (
    CacheLocation,
    Environment,
    hub_home,
    is_on,
    locate_cache,
    own_home,
    read_environment,
    side_caches,
    user_config,
)
from vlmcache.errors import ConfigError
from vlmcache.names import (
    Names,
    at_revision,
    expand_patterns,
    find_model,
    is_pattern,
    name_of,
    names_of_all,
    parse_name,
    parse_page,
    without_addresses,
)
from vlmcache.paths import real_path
from vlmcache.units import command

__all__ = [
    "CacheLocation",
    "Config",
    "Environment",
    "Limits",
    "ModelConfig",
    "Names",
    "Session",
    "at_revision",
    "cached_models",
    "cached_repos",
    "expand_patterns",
    "find_model",
    "hub_home",
    "is_on",
    "known_sizes",
    "load_config",
    "locate_cache",
    "matching_names",
    "name_of",
    "names_of_all",
    "names_of_hub",
    "open_session",
    "options_in_force",
    "own_home",
    "parse_attention",
    "parse_name",
    "parse_page",
    "parse_precision",
    "read_environment",
    "removals_in_trash",
    "shipped_config",
    "side_caches",
    "user_config",
    "without_addresses",
]


class Session(NamedTuple):
    """What a command works on; the first argument of every command's function."""

    environment: Environment
    config: Config
    cache: CacheLocation

    def command(self, name: str, *words: str) -> str:
        """Return a command line that works on the same cache with the same config.yaml."""
        return command(name, *words, *options_in_force(self.config, self.cache))


def open_session(
    config: str | None = None, cache_dir: str | None = None, *, configured: bool = True
) -> Session:
    """Return what commands work on.

    Args:
        config: the config.yaml to use; the first one found if not given.
        cache_dir: the hub cache; the one that the environment names if not given.
        configured: whether a config.yaml is read; if not, the one that ships with the package
            counts.

    Raises:
        ConfigError: the configuration or the `.env` cannot be read.
    """
    environment = read_environment()
    active = load_config(config, environment) if configured else shipped_config()
    return Session(environment, active, locate_cache(cache_dir, environment))


def load_config(option: str | None, environment: Environment) -> Config:
    """Return the active configuration, and what other files on the search path protect.

    Raises:
        ConfigError: the file that should be read cannot be, or holds a wrong value in a section of
            ours; the message names file, line and key.
    """
    active: Config | None = None
    notes: list[str] = []
    also: list[tuple[str, ModelConfig]] = []
    unread: str | None = None
    own: Config | None = None
    for source, path in _search_path(option, environment):
        try:
            config = read_config(path, source, alone=active is not None)
        except ConfigError as error:
            if active is None:
                raise
            unread = unread or error.message
            continue
        if config is None:
            if active is None:
                notes.append(f"{path}: not used: none of its models has model_path or repo")
        elif active is None:
            active = config
        else:
            also += ((path, model) for model in config.models.values())
            own = config
    active = active or shipped_config()
    limits, unknown = None, active.unknown
    if active.source == "./config.yaml":
        # The user's own limits count too, and so do mistakes in them.
        limits = own.limits if own is not None else Limits()
        unknown += own.unknown if own is not None else ()
    return msgspec.structs.replace(
        active,
        # A folder's file stands in for the user's models, and not for where they come from.
        sources=active.sources or (own.sources if own is not None else ()),
        archive=active.archive or (own.archive if own is not None else None),
        base=active.base or (own.base if own is not None else None),
        warnings=(*notes, *active.warnings, *unknown[len(active.unknown) :]),
        also=tuple(also),
        unread=unread,
        unknown=unknown,
        own_limits=limits,
        hub=environment.get("HF_ENDPOINT"),
    )


def _search_path(option: str | None, environment: Environment) -> list[tuple[Source, str]]:
    """Return the files to read, the one that counts first; no file twice."""
    own = user_config()
    named: tuple[tuple[Source, str | None], ...] = (
        ("--config", option),
        ("VLMCACHE_CONFIG", environment.get("VLMCACHE_CONFIG")),
    )
    files = [(source, environment.absolute(path)) for source, path in named if path]
    local = os.path.join(environment.folder, "config.yaml")
    # In the user's own config folder, the file is the user's.
    if os.path.lexists(local) and real_path(local) != real_path(own):
        files.append(("./config.yaml", local))
    if os.path.isabs(own) and os.path.lexists(own):
        files.append(("user", own))
    by_path: dict[str, tuple[Source, str]] = {}
    for source, path in files:
        by_path.setdefault(real_path(path), (source, path))
    return list(by_path.values())


def options_in_force(config: Config, location: CacheLocation) -> list[str]:
    """Return the options that let another command work on the same cache and config.yaml."""
    options: list[str] = []
    if location.source == "--cache-dir":
        options += ["--cache-dir", location.dir]
    if config.source == "--config":
        options += ["--config", config.path]
    return options


def cached_repos(location: CacheLocation) -> list[str]:
    """Return the names of the repos that have a folder in the cache, without a scan."""
    try:
        entries = os.listdir(location.dir)
    except OSError:
        return []
    return [layout.typed_name(*repo) for repo in map(layout.parse_repo_folder, entries) if repo]


def cached_models(location: CacheLocation) -> list[str]:
    """Return the ids of the models that have a folder in the cache, without a scan."""
    return [name for name in cached_repos(location) if layout.split_name(name) == ("model", name)]


def matching_names(
    session: Session, names: Iterable[str], *, missing: bool = False
) -> tuple[str, ...]:
    """Return names of models, each pattern among them replaced by what it matches in the cache.

    Args:
        session: what to work on.
        names: names and patterns.
        missing: whether patterns also match keys of config.yaml that are not in the cache.

    Raises:
        UnknownModelError: a pattern matches nothing.
    """
    names = tuple(names)
    if not any(map(is_pattern, names)):
        # Without a pattern the cache need not be listed.
        return tuple(dict.fromkeys(names))
    environment, config, location = session
    missing = missing and not config.shipped
    folders = (environment.folder, location.dir)
    return expand_patterns(config, names, cached_repos(location), missing=missing, folders=folders)


def known_sizes(location: CacheLocation, names: Iterable[str]) -> dict[str, int | None]:
    """Return name -> bytes on disk of the blobs of a repo, `None` if it is not in the cache.

    There is no scan: what repos share is counted for each of them.
    """
    sizes: dict[str, int | None] = {}
    for name in names:
        blobs = os.path.join(location.dir, layout.folder_of(name), layout.BLOBS)
        try:
            with os.scandir(blobs) as entries:
                sizes[name] = sum(entry.stat().st_blocks * 512 for entry in entries)
        except OSError:
            sizes[name] = None
    return sizes


def removals_in_trash(location: CacheLocation) -> dict[str, tuple[str, ...]]:
    """Return the id of each removal in the trash -> what it removed, the latest removal first."""
    from vlmcache.cache.trash import read_trash  # only for completion

    removals = reversed(read_trash(location.dir))
    return {removal.id: removal.record.names if removal.record else () for removal in removals}


def names_of_hub(names: Iterable[str]) -> list[str]:
    """Return the names that are ids the Hub could have; a folder can be called anything."""
    return [name for name in names if layout.is_repo_id(layout.split_name(name)[1])]
