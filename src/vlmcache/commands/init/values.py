"""What `init` returns, and what keeps a config.yaml from being written."""

from __future__ import annotations

import msgspec

from vlmcache.errors import ExitCode, VlmcacheError
from vlmcache.report import Report


class ConfigWriteError(VlmcacheError):
    """A config.yaml cannot be written."""

    code = "config-not-written"


class ConfigExistsError(ConfigWriteError):
    """Something is already at the place of a new config.yaml."""

    code = "config-exists"
    exit_code = ExitCode.USAGE


class InitModel(msgspec.Struct, frozen=True):
    """A model that the new file names."""

    key: str
    repo: str
    revision: str | None = None
    """The branch, tag or commit, if it is not main."""
    variant: str | None = None
    """The quantization, of a repo of GGUF files."""


class InitReport(Report, frozen=True):
    """What `vlmcache init` returns."""

    path: str
    written: bool
    """False for a dry run."""
    models: tuple[InitModel, ...]
    from_cache: bool
    """Whether the models are those in the cache; otherwise they are three to start from."""
    left_out: tuple[str, ...]
    """Models of the cache that are not complete; the file names them in a comment."""
    content: str
    """The content of the file."""
    active: str | None = None
    """Another config.yaml that counts in the working folder in place of the new one."""
    named: bool = False
    """Whether later commands read the file only if `--config` names it."""

    @property
    def ids(self) -> list[str]:
        """The keys of the models."""
        return [model.key for model in self.models]
