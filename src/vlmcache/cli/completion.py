"""Completion: what a Tab offers.

At each Tab the shell starts a process that answers, by a script of `shells`. Nothing is imported
that the answer does not need: Typer only if an option is typed, the configuration only for models.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from vlmcache import late
from vlmcache.cli.register import ALIASES, COMMANDS, FAMILIES, first_words, members

SHELL = "_VLMCACHE_COMPLETE"
"""The variable that makes a process answer a shell, and do nothing else; it names the shell."""
LINE = "_VLMCACHE_LINE"
"""What has been typed up to the cursor."""
BREAKS = "_VLMCACHE_BREAKS"
"""The characters at which bash begins another word, within one of ours."""


class Offer(NamedTuple):
    """A word that can be typed, and what zsh and fish show next to it."""

    word: str
    text: str = ""


Offers = list[Offer]
FILES = None
"""In place of offers: the shell completes a path itself."""

PLACES = {
    "attach": ("FILE",),
    "backup": ("FILE", "MODEL..."),
    "clean": ("MODEL...",),
    "detach": ("FILE",),
    "explain": ("CODE",),
    "fleet-clean": ("MODEL...",),
    "fleet-load-test": ("MODEL...",),
    "fleet-pull": ("MODEL...",),
    "fleet-rm": ("MODEL...",),
    "fleet-status": ("MODEL...",),
    "fleet-verify": ("MODEL...",),
    "help": ("COMMAND...",),
    "load-test": ("MODEL...",),
    "move": ("FILE", "MODEL..."),
    "pull": ("MODEL...",),
    "quantize": ("MODEL",),
    "restore": ("FILE", "MODEL..."),
    "recall": ("MODEL...",),
    "rm": ("MODEL...",),
    "schedule": ("COMMAND...",),
    "schema": ("COMMAND",),
    "serve": ("MODEL...",),
    "status": ("MODEL...",),
    "undo": ("ID",),
    "verify": ("MODEL...",),
    "warm": ("MODEL...",),
}
"""What the arguments of each command are, in order."""

_SCHEDULED = ("status", "clean", "verify")

VALUES = {
    "--precision": ("fp32", "fp16", "bf16", "int8", "int4"),
    "--device": ("auto", "cpu", "cuda:0", "xpu", "mps"),
    "--loader": ("auto", "plain", "readahead", "pinned", "fastsafetensors", "runai"),
    "--attention": ("sdpa", "eager", "flash_attention_2"),
    "--synthetic": ("tiny", "got_ocr", "qwen_vl_2b", "qwen_vl_7b"),
    "--sort": ("name", "size", "state", "type", "used"),
    "--filter": ("size>1GB", "used>30d", "state=partial", "type=dataset"),
}
"""Option -> values that it takes."""
_PAUSE = late.pattern(r"[:;.] |, for ex|, such as")
_QUANTIZED = ("int8", "int4")
_MODELS_ONLY = ("load-test", "quantize", "warm", "fleet-load-test")
"""Commands that work on no datasets and spaces."""
_MOST_SIZES = 100
"""The most cached repos whose sizes are shown; more would take longer than a Tab may."""


def answer() -> None:
    """Answer the shell that started this process: `words` or `files`, then a line for each word."""
    shell, typed = os.environ[SHELL], split(os.environ.get(LINE, ""))
    offers: Offers | None = []
    with contextlib.suppress(Exception):  # A Tab is no place for messages.
        offers = complete(typed[1:] or [""])
    lines = ["files"] if offers is FILES else ["words", *_lines(shell, typed[-1], offers)]
    with contextlib.suppress(OSError):
        print("\n".join(lines), flush=True)


def complete(words: Sequence[str]) -> Offers | None:
    """Return what can be typed in place of the last word, `FILES` for a path.

    Args:
        words: those after `vlmcache`, up to the cursor; the last one may be empty.
    """
    *before, current = words
    at = next((i for i, word in enumerate(before) if not word.startswith("-")), None)
    if at is None:
        if current.startswith("-"):
            options = ("--version", "--install-completion", "--show-completion", "--help")
            return _beginning(current, map(Offer, options))
        return _explained(current, first_words())
    command = ALIASES.get(before[at], before[at])
    if command in FAMILIES:
        family = command
        at = next((i for i, word in enumerate(before) if i > at and word[:1] != "-"), None)
        if at is None:
            known = {"--help": ""} if current.startswith("-") else members(family)
            return _explained(current, known)
        command = f"{family}-{ALIASES.get(before[at], before[at])}"
    if command not in COMMANDS:
        return []
    line = _Line(command)
    if any(word.startswith("-") for word in words):
        line.read_options()
    for word in before[at + 1 :]:
        line.take(word)
    return line.complete(current)


class _Line:
    """A command line, word by word."""

    def __init__(self, command: str) -> None:
        self.command = command
        self._options: dict[str, tuple[str | None, str]] = {}
        """Option -> the metavar of its value or `None`, and its help."""
        self._pending: str | None = None
        """The option whose value is the next word."""
        self._given: dict[str, str] = {}
        self._arguments: list[str] = []
        """The arguments so far."""
        self._ended = False
        """Whether `--` has ended the options."""

    def read_options(self) -> None:
        """Read which options the command has, from its module; this imports Typer."""
        from vlmcache.cli.main import command_called

        for parameter in command_called(self.command).params:
            if parameter.param_type_name == "option":
                flag = parameter.is_flag or parameter.count
                metavar = None if flag else str(parameter.metavar or "VALUE")
                for name in (*parameter.opts, *parameter.secondary_opts):
                    self._options[name] = metavar, parameter.help or ""
        self._options["--help"] = None, "Show this message and exit."

    def take(self, word: str) -> None:
        """Read a word that is complete."""
        name, equals, value = word.partition("=")
        if self._pending is not None:
            self._given[self._pending], self._pending = word, None
        elif self._ended or not word.startswith("-") or word == "-":
            self._arguments.append(word)
        elif word == "--":
            self._ended = True
        elif equals:
            self._given[name] = value
        elif self._options.get(word, (None, ""))[0] is not None:
            self._pending = word

    def complete(self, current: str) -> Offers | None:
        """Return what can be typed in place of a word."""
        name, equals, value = current.partition("=")
        if self._pending is not None:
            return self._value(self._pending, current)
        if not self._ended and current.startswith("-"):
            if equals and self._options.get(name, (None, ""))[0] is not None:
                values = self._value(name, value)
                return values and [Offer(f"{name}={word}", text) for word, text in values]
            # The first sentence of the help, up to its first pause.
            texts = {
                option: _PAUSE.split(text)[0].rstrip(".")
                for option, (_, text) in self._options.items()
                if len(option) > 2
            }
            return _explained(current, texts)
        places = PLACES.get(self.command, ())
        if len(self._arguments) < len(places):
            return self._place(places[len(self._arguments)], current)
        if places and places[-1].endswith("..."):
            return self._place(places[-1], current)
        return []

    def _value(self, option: str, current: str) -> Offers | None:
        metavar = self._options[option][0]
        if metavar == "MODEL":
            return self._place("MODEL", current)
        if option not in VALUES:
            is_path = metavar in ("FILE", "FOLDER", "DIR", "OLD.json")
            return FILES if is_path else []
        values = _QUANTIZED if self.command == "quantize" and option[2] == "p" else VALUES[option]
        if metavar == "LIST":
            done, comma, current = current.rpartition(",")
            return _beginning(done + comma + current, (Offer(done + comma + v) for v in values))
        return _beginning(current, map(Offer, values))

    def _place(self, place: str, current: str) -> Offers | None:
        if place == "FILE" or (self.command == "rm" and current.startswith((".", "/", "~"))):
            return FILES
        if place.startswith("COMMAND"):
            return _explained(current, self._commands())
        if place == "CODE":
            from vlmcache.codes import CODES

            return _explained(current, {code: meaning for code, (meaning, _) in CODES.items()})
        if place == "ID":
            return _explained(current, self._removals())
        return list(self._models(current))

    def _commands(self) -> Mapping[str, str]:
        """Return the commands with which the line can continue -> what each does."""
        if self._arguments:
            return members(self._arguments[0]) if self._arguments[0] in FAMILIES else {}
        if self.command == "schema":
            documented = {n: known for n, known in COMMANDS.items() if known.value or known.lines}
            return {name: known.summary for name, known in documented.items()}
        words = first_words()
        if self.command == "schedule":
            return {name: words[name] for name in _SCHEDULED}
        return {**words, "exit-codes": "What the exit codes mean."}

    def _removals(self) -> Mapping[str, str]:
        """Return the ids of what is in the trash, the latest removal first -> what was removed."""
        from vlmcache import config

        location = config.locate_cache(self._given.get("--cache-dir"), config.read_environment())
        removals = config.removals_in_trash(location)
        return {removal: ", ".join(names) for removal, names in removals.items()}

    def _models(self, current: str) -> Iterator[Offer]:
        from vlmcache import config
        from vlmcache.errors import ConfigError

        environment = config.read_environment()
        location = config.locate_cache(self._given.get("--cache-dir"), environment)
        listed = config.cached_models if self.command in _MODELS_ONLY else config.cached_repos
        cached = _beginning(current, map(Offer, sorted(config.names_of_hub(listed(location)))))
        keys: dict[str, str] = {}
        with contextlib.suppress(ConfigError):
            active = config.load_config(self._given.get("--config"), environment)
            keys = {key: model.repo for key, model in active.listed.items()}
        chosen = [offer.word for offer in _beginning(current, map(Offer, keys))]
        repos = [keys[key] for key in chosen]
        if len(cached) <= _MOST_SIZES and os.environ.get(SHELL) != "bash":
            repos += [offer.word for offer in cached]
        sizes = config.known_sizes(location, repos)
        for key in chosen:
            yield Offer(key, f"{keys[key]}, {_size_text(sizes[keys[key]])}")
        for offer in cached:
            yield (
                offer._replace(text=_size_text(sizes[offer.word])) if offer.word in sizes else offer
            )


def _size_text(size: int | None) -> str:
    from vlmcache.units import size_text

    return "not cached" if size is None else size_text(size)


def _explained(current: str, texts: Mapping[str, str]) -> Offers:
    """Return the words that begin as was typed; each is mapped to what it means."""
    return _beginning(current, (Offer(word, text) for word, text in texts.items()))


def _beginning(current: str, offers: Iterable[Offer]) -> Offers:
    """Return the offers that begin as was typed: in the very same case, or else in any."""
    offers = list(offers)
    exactly = [offer for offer in offers if offer.word.startswith(current)]
    folded = current.casefold()
    return exactly or [offer for offer in offers if offer.word.casefold().startswith(folded)]


def split(line: str) -> list[str]:
    """Return the words of a line from `vlmcache` on; the last one may be unfinished or empty."""
    reader = shlex.shlex(line, posix=True)
    reader.whitespace_split, reader.commenters = True, ""
    words: list[str] = []
    try:
        words += reader
    except ValueError:  # An open quote: the word goes to the end.
        words.append(reader.token)
    else:
        if not line or line[-1].isspace():
            words.append("")
    return words or [""]


def _lines(shell: str, current: str, offers: Offers) -> Iterator[str]:
    """Yield an answer's lines, in the form that the shell's script reads."""
    # bash replaces only what stands after the last of its breaks, such as a colon.
    breaks = "".join(set(os.environ.get(BREAKS, "")) & set(":=@"))
    kept = max((current.rfind(sign) for sign in breaks), default=-1) + 1
    for word, text in offers:
        if not word.isprintable():
            continue
        text = " ".join(text.split()) if text.isprintable() else ""
        if shell == "bash":
            # What a folder in the cache is called must not become a command.
            yield shlex.quote(word[kept:])
        elif shell == "zsh":
            escaped = word.replace("\\", "\\\\").replace(":", "\\:")
            yield f"{escaped}:{text}" if text else escaped
        else:
            yield f"{word}\t{text}" if text else word
