"""Every failure a user can meet: one tree of errors, one table of exit codes."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from typing import ClassVar, TypeVar

from vlmcache import late

_T = TypeVar("_T")


class ExitCode(enum.IntEnum):
    """The exit status of the process. Scripts rely on these numbers."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PARTLY = 3
    DAMAGE = 4
    UNCONFIRMED = 5
    BUSY = 6
    NO_MODEL = 7
    HUB = 8
    SPACE = 9
    CHANGED = 10
    UNLOADABLE = 11
    INTERRUPTED = 130
    TERMINATED = 143

    @property
    def meaning(self) -> str:
        """The words that `--help` and the README show for the number."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "failed",
    ExitCode.USAGE: "usage or configuration",
    ExitCode.PARTLY: "partly done",
    ExitCode.DAMAGE: "damaged or missing files found, or --check not met",
    ExitCode.UNCONFIRMED: "needs confirmation (no terminal and no --yes)",
    ExitCode.BUSY: "busy: in use or locked",
    ExitCode.NO_MODEL: "no such model",
    ExitCode.HUB: "hub unreachable, offline, or access denied",
    ExitCode.SPACE: "not enough space",
    ExitCode.CHANGED: "the cache changed since the plan was made",
    ExitCode.UNLOADABLE: "the model cannot be loaded with these settings (memory, precision, "
    "device, missing package)",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.TERMINATED: "terminated",
}


class VlmcacheError(Exception):
    """A failure that is shown to the user in one line, with what to type next.

    Args:
        message: what happened, and where.
        hint: what the user can do about it; `None` if there is nothing sensible to say.
    """

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[ExitCode] = ExitCode.FAILED
    causes: tuple[VlmcacheError, ...] = ()
    """The failures in detail, if this one sums them up."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def saying(self, message: str, hint: str | None) -> VlmcacheError:
        """Return an error of the same kind with another message and hint."""
        other = type(self).__new__(type(self))
        VlmcacheError.__init__(other, message, hint)
        return other

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} ({self.hint})"


class UsageError(VlmcacheError):
    """The command line asks for something that makes no sense."""

    code = "usage"
    exit_code = ExitCode.USAGE


class ConfigError(VlmcacheError):
    """config.yaml or an environment variable holds a wrong value."""

    code = "configuration"
    exit_code = ExitCode.USAGE


class UnknownModelError(VlmcacheError):
    """No such key in config.yaml, and no such repo."""

    code = "no-such-model"
    exit_code = ExitCode.NO_MODEL


class CacheError(VlmcacheError):
    """The cache folder cannot be read or written as asked."""

    code = "cache"


class SpaceError(VlmcacheError):
    """The disk has too little room, before or during the work."""

    code = "no-space"
    exit_code = ExitCode.SPACE


class ChangedError(VlmcacheError):
    """The cache has changed since the plan was made."""

    code = "changed"
    exit_code = ExitCode.CHANGED


class PartlyError(VlmcacheError):
    """Some of what was asked for is done, and some is not."""

    code = "partly"
    exit_code = ExitCode.PARTLY


class UnconfirmedError(VlmcacheError):
    """What needs a confirmation was not confirmed."""

    code = "unconfirmed"
    exit_code = ExitCode.UNCONFIRMED


class InUseError(VlmcacheError):
    """A process is using what was to be removed."""

    code = "in-use"
    exit_code = ExitCode.BUSY


class HubError(VlmcacheError):
    """The hub could not be used as asked."""

    code = "hub"
    exit_code = ExitCode.HUB
    refused_by_other: int | None = None
    """The status of an answer that has no signs of a hub: a proxy's, or a plain server's."""


class UnreachableError(HubError):
    """The hub does not answer, or answers that it cannot serve now."""

    code = "hub-unreachable"


class OfflineError(HubError):
    """The network is switched off (`HF_HUB_OFFLINE`)."""

    code = "offline"


class SettingError(HubError):
    """A variable of the environment keeps a connection to the hub from being set up."""

    code = "configuration"
    exit_code = ExitCode.USAGE


class AccessError(HubError):
    """The hub refuses: a gated or private repo, or a token that is not valid."""

    code = "access-denied"


class BadAnswerError(HubError):
    """The answer did not come from a hub: a network's login page, or a broken mirror."""

    code = "bad-answer"


class NoSuchRepoError(UnknownModelError):
    """The hub does not have the repo, or does not show it to this user."""

    code = "no-such-repo"


class NoSuchRevisionError(UnknownModelError):
    """The repo has no such branch, tag or commit."""

    code = "no-such-revision"


class NoSuchFileError(VlmcacheError):
    """The hub does not have a file that it lists."""

    code = "no-such-file"


class HostileListingError(VlmcacheError):
    """The listing of a repo names files that must not be written."""

    code = "hostile-listing"


class WrongBytesError(VlmcacheError):
    """The hub repeatedly sent bytes that differ from its listing."""

    code = "wrong-bytes"


class UnloadableError(VlmcacheError):
    """A model cannot be loaded with these settings."""

    code = "unloadable"
    exit_code = ExitCode.UNLOADABLE


class NotEnoughMemoryError(UnloadableError):
    """The model does not fit into the memory of the machine or the device."""

    code = "not-enough-memory"


class MissingPackageError(UnloadableError):
    """A Python package that loading needs is not installed."""

    code = "missing-package"


class NotDownloadedError(UnloadableError):
    """The model is not in the cache, or not completely."""

    code = "not-downloaded"
    exit_code = ExitCode.NO_MODEL


class GgufError(UnloadableError):
    """The weights are GGUF, which other programs run."""

    code = "gguf"


class OtherFormatError(UnloadableError):
    """The files are for another program or library than transformers."""

    code = "other-format"


class DamagedWeightsError(UnloadableError):
    """The weight files exist but cannot be read as weights."""

    code = "damaged-weights"


class AwayError(UnloadableError):
    """The model is on a drive that is not mounted."""

    code = "drive-away"
    exit_code = ExitCode.DAMAGE


class UnknownArchitectureError(UnloadableError):
    """The installed transformers does not know the model's architecture."""

    code = "unknown-architecture"


class UntrustedCodeError(UnloadableError):
    """The model needs Python code of its repo to run, and nobody allowed that."""

    code = "untrusted-code"


class UnsupportedPrecisionError(UnloadableError):
    """The device or the model cannot work at the requested precision."""

    code = "unsupported-precision"


class NoDeviceError(UnloadableError):
    """The requested device does not exist."""

    code = "no-device"


class CrashedError(UnloadableError):
    """The process that loaded the model ended without an answer."""

    code = "crashed"


_NUMBER = late.pattern(r"\[(?:Errno|WinError) -?[0-9]+\] ?")


def reason_of(error: BaseException) -> str:
    """Return why something failed in one line: the system's words without its error number."""
    words = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return _NUMBER.sub("", " ".join(words.split())) or type(error).__name__


def in_words(error: OSError, path: str) -> str:
    """Return why the system refused something, and at which path.

    Args:
        error: the refusal. The message of one that this package raised, which has no number, is
            complete.
        path: the place, if the error does not name one, or names one relative to an open folder,
            which means nothing to the user.
    """
    if error.errno is None:
        return reason_of(error)
    named = error.filename
    complete = isinstance(named, str) and os.path.isabs(named)
    return f"{reason_of(error)}: {named if complete else path}"


def require_consent(ask: Callable[[_T], bool] | None, subject: _T, undone: str) -> None:
    """Ask whether to continue, if anybody is to be asked.

    Args:
        ask: is given the subject, and returns whether to continue; `None` if nobody is asked.
        subject: what is asked about: a plan, or the question itself.
        undone: what the message says of "nothing" after a no: `was removed`.

    Raises:
        UnconfirmedError: the answer is no.
    """
    if ask is not None and not ask(subject):
        raise UnconfirmedError(f"not confirmed: nothing {undone}")


def less_memory(precision: str | None) -> str:
    """Return the hint for a model that does not fit into memory at a precision."""
    if precision == "int4":
        return "use a machine with more memory"
    return f"--precision {'int4' if precision == 'int8' else 'int8 or int4'} takes less"


def unloadable(code: str, message: str, hint: str | None) -> UnloadableError:
    """Return the error that a child process reported, rebuilt from its parts."""
    kinds = {kind.code: kind for kind in UnloadableError.__subclasses__()}
    return kinds.get(code, UnloadableError)(message, hint)
