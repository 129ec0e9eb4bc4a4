"""What the hub's answers and silences mean to a user, as errors with an exit code and a hint."""

from __future__ import annotations

from vlmcache.errors import ExitCode, UnknownModelError, VlmcacheError


class HubError(VlmcacheError):
    """The hub could not be used as asked."""

    code = "hub"
    exit_code = ExitCode.HUB


class UnreachableError(HubError):
    """The hub does not answer, or answers that it cannot serve now."""

    code = "hub-unreachable"


class OfflineError(HubError):
    """The network is switched off (`HF_HUB_OFFLINE`)."""

    code = "offline"


class AccessError(HubError):
    """The hub refuses: a gated or private repo, or a token that is not valid."""

    code = "access-denied"


class BadAnswerError(HubError):
    """The answer is not a hub's: a login page of a network, or a broken mirror."""

    code = "bad-answer"


class NoSuchRepoError(UnknownModelError):
    """The hub knows no such repo, or does not show it to this user."""

    code = "no-such-repo"


class NoSuchRevisionError(UnknownModelError):
    """The repo has no such branch, tag or commit."""

    code = "no-such-revision"


class NoSuchFileError(VlmcacheError):
    """A listed file does not exist."""

    code = "no-such-file"


class HostileListingError(VlmcacheError):
    """The listing of a repo names files that must not be written."""

    code = "hostile-listing"


class WrongBytesError(VlmcacheError):
    """What the hub sent is not what it listed, several times in a row."""

    code = "wrong-bytes"
