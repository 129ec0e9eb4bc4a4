"""What a schedule holds, made of what was typed (pure)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from vlmcache import late
from vlmcache.commands.schedule.values import Schedule, When
from vlmcache.config import CacheLocation, Config, Environment
from vlmcache.environment import NETWORK_VARIABLES, SECRET_WORDS
from vlmcache.errors import UsageError
from vlmcache.log import address_without_login, scrub
from vlmcache.scheduled import EVERY, LOG, NAME, VARIABLES
from vlmcache.units import command, duration_text, shell_words

VERBS = ("clean", "verify", "status")
"""The commands that can be scheduled."""
_ONLY = "only clean, verify and status --check can be scheduled"
_EXAMPLE = "for example: vlmcache schedule 'clean --max-size 200GB' --every 1d"
_NAME = late.pattern(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_PATHS = ("--cache-dir", "--config", "--to")
"""Options whose value is a path: a timer has no working folder."""
_INTERACTIVE = ("-i", "--interactive", "-h", "--help")
_FROM_THE_HOME = frozenset(
    {"XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TRANSFORMERS_OFFLINE", "HUGGINGFACE_HUB_CACHE"}
)
_NAMES_A_PATH = ("_HOME", "_CACHE", "_CONFIG", "_PATH", "_FILE", "_DIR", "_LOG")
_YEAR = 366 * 86400


class Typed(NamedTuple):
    """A command line to schedule, and what it says of what to work on."""

    words: tuple[str, ...]
    """The command and its arguments, without those that the other fields hold."""
    cache_dir: str | None = None
    config: str | None = None

    @property
    def verb(self) -> str:
        """The command."""
        return self.words[0]


def typed(line: str | Sequence[str], absolute: Callable[[str], str]) -> Typed:
    """Return what was typed as the command to schedule.

    Args:
        line: the command as one string, as a shell takes it, or its words.
        absolute: makes a path absolute.

    Raises:
        UsageError: it is not a command that can be scheduled.
    """
    words = _split(line) if isinstance(line, str) else list(line)
    if words[:1] == ["vlmcache"]:
        del words[0]
    if not words:
        raise UsageError("no command to schedule", _EXAMPLE)
    if words[0] not in VERBS:
        raise UsageError(f"'{words[0]}' cannot be scheduled: {_ONLY}", _EXAMPLE)
    named: dict[str, str] = {}
    rest: list[str] = []
    items = iter(words)
    for word in items:
        if word == "--":
            rest += [word, *items]
            break
        option, equals, value = word.partition("=")
        if option in _PATHS:
            value = value if equals else next(items, "")
            if not value:
                raise UsageError(f"{option} needs a path", f"see '{command(words[0], '--help')}'")
            named[option] = absolute(value)
            rest += [option, named[option]] if option == "--to" else []
            continue
        if word in _INTERACTIVE:
            raise UsageError(
                f"'{words[0]} {word}' cannot be scheduled: nobody answers it", _EXAMPLE
            )
        rest.append(word)
    for word in (*rest, *named.values()):
        if not word.isprintable():
            raise UsageError(f"a timer cannot hold such a name: {word!r}")
    return Typed(tuple(rest), named.get("--cache-dir"), named.get("--config"))


def _split(line: str) -> list[str]:
    import shlex  # only needed for a line of a shell

    try:
        return shlex.split(line)
    except ValueError as error:
        reason = str(error).lower()
        raise UsageError(f"the command cannot be read: {reason}: {line!r}", _EXAMPLE) from None


def times(name: str, every: float, machine: str) -> When:
    """Return when a schedule runs.

    Args:
        name: its name.
        every: seconds from one run to the next.
        machine: the name of the machine. Both names decide about the minute, so that machines
            that share a disk do not all begin at once.

    Raises:
        UsageError: no timer can run something so often.
    """
    seconds = int(every)
    if not 60 <= seconds <= _YEAR:
        raise UsageError("--every must be 1m to 1y")
    unit = next(size for size in (86400, 3600, 60) if seconds >= size)
    fits = seconds % unit == 0 and (
        unit == 86400 or (unit * (60 if unit == 60 else 24)) % seconds == 0
    )
    if not fits:
        raise UsageError(
            f"no timer runs something every {seconds / unit:g} {_unit_name(unit)}",
            "write a part of an hour (15m), a part of a day (6h) or days (2d)",
        )
    return When(seconds, zlib.crc32(f"{machine}/{name}".encode()) % 60)


def _unit_name(unit: int) -> str:
    return {86400: "days", 3600: "hours", 60: "minutes"}[unit]


def schedule_name(name: str | None, verb: str) -> str:
    """Return the name of a schedule: that of its command, unless it is given one.

    Raises:
        UsageError: not every system takes that as the name of a file.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise UsageError(
            f"not a name for a schedule: {name!r}", "use up to 40 of a to z, 0 to 9 and hyphens"
        )
    return name or verb


def scheduled_words(
    command_line: Typed, config: Config, location: CacheLocation
) -> tuple[str, ...]:
    """Return the complete arguments, which mean the same wherever and whenever they are used.

    Raises:
        UsageError: the limits would be those of the working folder's config.yaml.
    """
    verb, *rest = command_line.words
    if verb == "clean" and config.source == "./config.yaml":
        raise UsageError(
            f"{config.path} counts only in its folder, and a timer has none",
            "name it with --config, if its limits are to count too, or change to another folder",
        )
    words = [verb, "--cache-dir", location.dir]
    if not config.shipped:
        words += ["--config", config.path]
    asks = verb == "clean" or (verb == "verify" and "--repair" in rest)
    if asks and not {"--yes", "-y"} & set(rest):
        words.append("--yes")
    return (*words, *rest)


def carried(environment: Environment, home: str, words: Sequence[str]) -> dict[str, str]:
    """Return the variables that a scheduled run needs: no token, and nothing from a `.env`.

    Args:
        environment: the variables of this process.
        home: vlmcache's own folder.
        words: the command: few use the network.
    """
    variables = {"VLMCACHE_HOME": home}
    offline = not {"--repair", "--outdated"} & set(words)
    for name in sorted(environment.variables):
        value = environment.own(name)
        if value is None or name in variables or not _is_carried(name, value):
            continue
        if offline and name.upper() in NETWORK_VARIABLES:
            continue
        is_path = name.endswith(_NAMES_A_PATH) and not name.startswith("XDG_")
        variables[name] = environment.absolute(value) if is_path else value
    return variables


def secret_variables(environment: Environment) -> list[str]:
    """Return the names of variables that are left out because they hold a secret."""
    names = (name for name in environment.variables if environment.own(name) and _counts(name))
    return sorted(name for name in names if _is_secret(name, environment.variables[name]))


def _counts(name: str) -> bool:
    if name in VARIABLES or name == "VLMCACHE_DEBUG":
        return False
    ours = name.startswith(("HF_", "HUGGING_FACE_", "VLMCACHE_")) or name in _FROM_THE_HOME
    return ours or name.upper() in NETWORK_VARIABLES


def _is_secret(name: str, value: str) -> bool:
    secret = any(word in name.upper() for word in SECRET_WORDS) and not name.endswith("_PATH")
    return (
        secret or scrub(value) != value or ("@" in value and address_without_login(value) != value)
    )


def _is_carried(name: str, value: str) -> bool:
    return _counts(name) and value.isprintable() and not _is_secret(name, value)


def complete_variables(
    name: str, when: When, log: str | None, carried: Mapping[str, str], own: Mapping[str, str]
) -> dict[str, str]:
    """Return all variables of a schedule.

    Args:
        name: its name.
        when: its times.
        log: the file that its output is added to, if that is a file.
        carried: what the command needs.
        own: what the kind of timer needs.
    """
    variables = {**own, **carried, NAME: name}
    if when.waits:
        variables[EVERY] = str(when.every)
    if log is not None:
        variables[LOG] = log
    return variables


def how_to_run(schedule: Schedule) -> str:
    """Return the command that makes a schedule again."""
    words = [word for word in schedule.words if word != "--yes"]
    every = f"{schedule.when.every}s"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if schedule.when.every % size == 0:
            every = f"{schedule.when.every // size}{unit}"
            break
    name = [] if schedule.name == schedule.words[0] else ["--name", schedule.name]
    return command("schedule", shell_words(*words), "--every", every, *name)


def overdue(schedule: Schedule, age: float) -> str | None:
    """Return for how long a schedule has not run, in words; `None` if that is as planned."""
    limit = 2 * schedule.when.every + 86400
    return duration_text(age) if age > limit else None
