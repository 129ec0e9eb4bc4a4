"""The environment variables that count, and the folders that they name."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from typing import Literal

import msgspec

from vlmcache import late
from vlmcache.cache.reading import read_bytes
from vlmcache.errors import ConfigError, reason_of
from vlmcache.paths import real_path

platformdirs = late.module("platformdirs")

FILE_LIMIT = 4_000_000
"""Bytes of a configuration file; a longer one is not read."""
_DOTENV = frozenset(
    {
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_HOME",
        "HF_ENDPOINT",
        "HF_TOKEN",
        "HF_HUB_OFFLINE",
        "HF_HUB_ETAG_TIMEOUT",
        "HF_HUB_DOWNLOAD_TIMEOUT",
        "HF_HUB_USER_AGENT_ORIGIN",
        "HF_HUB_VERBOSITY",
        "HF_DEBUG",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "HF_HUB_DISABLE_SHARED_BLOBS",
        "HF_HUB_DISABLE_SYMLINKS",
        "HF_HUB_DISABLE_SYMLINKS_WARNING",
        "HF_HUB_DISABLE_TELEMETRY",
        "HF_HUB_DISABLE_XET",
        "HF_HUB_ENABLE_HF_TRANSFER",
        "HF_XET_HIGH_PERFORMANCE",
        "HF_XET_CHUNK_CACHE_SIZE_BYTES",
    }
)
"""What a `.env` may set: no file or folder but the hub cache, as a checkout may be anybody's."""
NETWORK_VARIABLES = frozenset(
    {
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
    }
)
"""How the network is reached, for every program; proxies in lower case too."""
SECRET_WORDS = ("TOKEN", "KEY", "SECRET", "PASSWORD")
"""What is in the name of a variable whose value is a secret."""


class Environment(msgspec.Struct, frozen=True):
    """The variables that count: the process's, and HF_* ones of a `.env` in the working folder."""

    variables: dict[str, str]
    from_file: frozenset[str]
    """Names that the `.env` supplied."""
    folder: str
    """The working folder."""
    ignored: tuple[str, ...] = ()
    """Sentences about variables that the `.env` may not set."""

    def __repr__(self) -> str:
        """Name only the folder: variables hold tokens, and a repr ends up in logs."""
        return f"Environment(folder={self.folder!r})"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        """Return the same for rich."""
        return [("folder", self.folder)]

    def get(self, name: str) -> str | None:
        """Return a variable's value; an empty one counts as not set."""
        return self.variables.get(name) or None

    def own(self, name: str) -> str | None:
        """Return a variable's value if the process has it, whatever a `.env` says."""
        return None if name in self.from_file else self.get(name)

    @property
    def offline_by(self) -> str | None:
        """The variable that switches the network off, as huggingface_hub reads them."""
        names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        return next((name for name in names if is_on(self.get(name))), None)

    def source(self, name: str) -> str:
        """Return how to name a variable to a person, with the file it came from."""
        return f"{name} (.env)" if name in self.from_file else name

    def absolute(self, path: str) -> str:
        """Return an absolute path with `~` and variables expanded, as huggingface_hub does it."""
        expanded = os.path.expandvars(os.path.expanduser(path))
        return os.path.abspath(os.path.join(self.folder, expanded))


class CacheLocation(msgspec.Struct, frozen=True):
    """The cache folder and the rule that chose it."""

    dir: str
    source: str
    conflicts: tuple[str, ...] = ()
    """Sentences about settings that disagree with the choice."""


def is_on(value: str | None) -> bool:
    """Return whether a variable's value means yes, as huggingface_hub reads it."""
    return (value or "").upper() in ("1", "ON", "YES", "TRUE")


def read_environment(
    variables: Mapping[str, str] | None = None, folder: str | None = None
) -> Environment:
    """Return the variables that count.

    Args:
        variables: the process's variables; those of this process if not given.
        folder: the working folder; that of this process if not given.

    Raises:
        ConfigError: the `.env` exists and cannot be read as text, or there is no working folder.
    """
    merged = dict(os.environ if variables is None else variables)
    try:
        folder = os.getcwd() if folder is None else folder
    except FileNotFoundError:
        raise ConfigError("the working folder was removed", "change to one that exists") from None
    path = os.path.join(folder, ".env")
    supplied: set[str] = set()
    ignored: list[str] = []
    if os.path.isfile(path):
        for name, value in _read_dotenv(path).items():
            if merged.get(name):
                continue
            if name in _DOTENV:
                merged[name] = value
                supplied.add(name)
            else:
                ignored.append(f"{path}: {name} is ignored: it counts only from the environment")
    return Environment(merged, frozenset(supplied), folder, tuple(ignored))


def _read_dotenv(path: str) -> dict[str, str]:
    """Return the hub's variables of a `.env`. Lines that set nothing are skipped."""
    from dotenv.parser import parse_stream

    try:
        lines = read_bytes(path, FILE_LIMIT).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {reason_of(error)}") from error
    values: dict[str, str] = {}
    for line in parse_stream(io.StringIO(lines)):
        name = line.key or ""
        if not name.startswith(("HF_", "HUGGINGFACE_", "VLMCACHE_")):
            continue
        if "\0" in (line.value or ""):
            raise ConfigError(f"{path}:{line.original.line}: {name}: holds a null character")
        values[name] = line.value or ""
    return {name: value for name, value in values.items() if value}


def locate_cache(option: str | None, environment: Environment) -> CacheLocation:
    """Return the hub cache's folder: the one that the first source names that is set.

    The order after `--cache-dir` is huggingface_hub's own (its `constants.py`).
    """
    settings: list[tuple[str, str | None, str]] = [("--cache-dir", option, "")]
    settings += (
        (environment.source(name), environment.get(name), below)
        for name, below in (
            ("HF_HUB_CACHE", ""),
            ("HUGGINGFACE_HUB_CACHE", ""),
            ("HF_HOME", "hub"),
            ("XDG_CACHE_HOME", os.path.join("huggingface", "hub")),
        )
    )
    settings.append(("default", "~", os.path.join(".cache", "huggingface", "hub")))
    candidates = [
        (source, os.path.normpath(os.path.join(environment.absolute(value), below)))
        for source, value, below in settings
        if value
    ]
    source, chosen = candidates[0]
    conflicts = [
        f"{other} points to {path}, but {source} decides: {chosen}"
        for other, path in candidates[1:-1]
        if real_path(path) != real_path(chosen)
        # That variable is for all programs: it conflicts only if it leads to a folder of models.
        and (not other.startswith("XDG_CACHE_HOME") or os.path.isdir(path))
    ]
    return CacheLocation(chosen, source, tuple(conflicts))


def hub_home(environment: Environment) -> str:
    """Return huggingface_hub's own folder: tokens, `xet` chunks, remote code `modules`."""
    value = environment.get("HF_HOME")
    if value is not None:
        return environment.absolute(value)
    base = environment.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return os.path.join(environment.absolute(base), "huggingface")


def side_caches(environment: Environment) -> dict[str, str]:
    """Return name -> folder of the caches that hub libraries keep next to the hub cache.

    `xet` holds chunks of transfers (huggingface_hub's `HF_XET_CACHE`), `modules` the code of
    trust_remote_code (transformers' `HF_MODULES_CACHE`). `clean` can empty them, so only the
    process's own variables say where they are.
    """
    own = {name: value for name, value in environment.variables.items() if environment.own(name)}
    environment = msgspec.structs.replace(environment, variables=own)
    home = hub_home(environment)
    return {
        name: environment.absolute(environment.get(variable) or os.path.join(home, name))
        for name, variable in (("xet", "HF_XET_CACHE"), ("modules", "HF_MODULES_CACHE"))
    }


def own_home(environment: Environment) -> tuple[str, str]:
    """Return vlmcache's own folder (journal, reports, kept copies) and the source of the choice."""
    value = environment.get("VLMCACHE_HOME")
    if value is not None:
        return environment.absolute(value), environment.source("VLMCACHE_HOME")
    return user_folder("cache"), "default"


def user_config() -> str:
    """Return the path of the user's own config.yaml, which need not exist.

    A relative `XDG_CONFIG_HOME` does not count, as its specification says: it would make a file in
    the working folder the user's own. The path is relative only if the user has no home.
    """
    folder = user_folder("config")
    if not os.path.isabs(folder):
        folder = os.path.join(os.path.expanduser("~"), ".config", "vlmcache")
    return os.path.join(folder, "config.yaml")


def user_folder(kind: Literal["cache", "config"]) -> str:
    """Return the folder that vlmcache has for the user, as platformdirs names it."""
    # With nothing set, Linux needs no library for this, and platformdirs imports slowly.
    unset = not os.environ.get(f"XDG_{kind.upper()}_HOME") and "ANDROID_DATA" not in os.environ
    if sys.platform == "linux" and unset:
        return os.path.join(os.path.expanduser("~"), f".{kind}", "vlmcache")
    find = platformdirs.user_cache_dir if kind == "cache" else platformdirs.user_config_dir
    return str(find("vlmcache", appauthor=False))
