"""The log of the package: the loggers `vlmcache.*`, silent unless somebody listens.

`-v` and `-vv` let it speak on stderr, `VLMCACHE_LOG=FILE` in a file, and `logging` of an
application that imports the package. As long as nothing has imported `logging`, nobody listens,
and nothing is imported or formatted here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from vlmcache.errors import ConfigError, reason_of

if TYPE_CHECKING:
    from logging import Handler, Logger, LogRecord

HIDDEN = "***"
_SECRETS: set[str] = set()
_HANDLERS: list[Handler] = []
"""The handlers that the command line has added."""
_SHORTEST_SECRET = 4
_FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"
_FORMAT_ON_TERMINAL = "%(name)s: %(message)s"


def info(area: str, message: str, *values: object) -> None:
    """Log what was decided, waited for or skipped, with `%s` for values."""
    logger = _logger(area)
    if logger is not None:
        logger.info(message, *values)


def debug(area: str, message: str, *values: object) -> None:
    """Log a single step: a request, a rename, a removal."""
    logger = _logger(area)
    if logger is not None:
        logger.debug(message, *values)


def hide(secret: str) -> None:
    """Keep a secret out of every record."""
    if len(secret) >= _SHORTEST_SECRET:
        _SECRETS.update((secret, repr(secret)[1:-1]))


def scrub(text: str) -> str:
    """Return a string without tokens, passwords and the signed parts of addresses."""
    for secret in sorted(_SECRETS, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = re.sub(r"\bhf_[A-Za-z0-9]{8,}", HIDDEN, text)
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)
    return without_login(text)


def without_login(text: str) -> str:
    """Return a string without the user names and passwords in its addresses."""
    return re.sub(r"((?:https?|socks\w*)://)[^\s/@]+@", r"\1", text)


def address_without_login(address: str) -> str:
    """Return an address, with or without a scheme, without its user name and password."""
    scheme, separator, rest = address.rpartition("://")
    return scheme + separator + rest.rpartition("@")[2]


def configure(verbosity: int, escape: Callable[[str], str]) -> None:
    """Show the log: on stderr from a verbosity of 1, and in the file that `VLMCACHE_LOG` names.

    Args:
        verbosity: 0 for silence, 1 for INFO, more for DEBUG.
        escape: escapes characters that a terminal would act on.

    Raises:
        ConfigError: the file cannot be written.
    """
    path = os.environ.get("VLMCACHE_LOG", "")
    if not (verbosity or path or _HANDLERS):
        return
    import logging

    logger = logging.getLogger("vlmcache")
    while _HANDLERS:
        logger.removeHandler(_HANDLERS[0])
        _HANDLERS.pop(0).close()
    logger.setLevel(logging.NOTSET)
    if verbosity:
        _HANDLERS.append(logging.StreamHandler(sys.stderr))
        _HANDLERS[0].setLevel(logging.INFO if verbosity == 1 else logging.DEBUG)
        _HANDLERS[0].setFormatter(logging.Formatter(_FORMAT_ON_TERMINAL))
    if path:
        try:
            _HANDLERS.append(logging.FileHandler(path, encoding="utf-8", errors="backslashreplace"))
        except OSError as error:
            raise ConfigError(
                f"the log cannot be written: {reason_of(error)}: '{path}'",
                "name another file with VLMCACHE_LOG, or unset it",
            ) from None
        _HANDLERS[-1].setFormatter(logging.Formatter(_FORMAT))

    def escaped(record: LogRecord) -> bool:
        record.msg, record.args = escape(record.getMessage()), ()
        return True

    for handler in _HANDLERS:
        handler.addFilter(escaped)
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if path or verbosity > 1 else logging.INFO)
    logger.propagate = not _HANDLERS


def shows_every_step() -> bool:
    """Return whether the command line shows every step, as with `-vv`."""
    logging = sys.modules.get("logging")
    return (
        bool(_HANDLERS)
        and logging is not None
        and any(handler.level in (logging.DEBUG, logging.NOTSET) for handler in _HANDLERS)
    )


def _logger(area: str) -> Logger | None:
    """Return the logger `vlmcache.<area>`, which removes secrets; `None` if nobody listens."""
    logging = sys.modules.get("logging")
    if logging is None:
        return None
    logger: Logger = logging.getLogger(f"vlmcache.{area}")
    if _scrubbed not in logger.filters:
        logger.addFilter(_scrubbed)
    return logger


def _scrubbed(record: LogRecord) -> bool:
    record.msg, record.args = scrub(record.getMessage()), ()
    return True
