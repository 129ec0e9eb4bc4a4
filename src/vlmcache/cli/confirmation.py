"""The questions that a command asks before it acts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vlmcache.errors import ExitCode, UnconfirmedError, VlmcacheError, require_consent
from vlmcache.units import counted, size_text

if TYPE_CHECKING:
    from vlmcache.commands.pull.values import PlannedModel
    from vlmcache.commands.remove.values import Removal


class _InterruptedError(VlmcacheError):
    """A person has ended the command, by Ctrl-C or Ctrl-D."""

    code = "interrupted"
    exit_code = ExitCode.INTERRUPTED


def confirmation(word: str | None, *, json: bool, verbose: bool) -> Callable[[Any], bool]:
    """Return the function that shows what would be removed, and asks whether it may be.

    Args:
        word: what has to be typed; `y` or `yes` if not given.
        json: whether the answer is JSON; then nothing is asked.
        verbose: whether to show more of the plan.
    """

    def ask(removal: Removal) -> bool:
        from vlmcache.commands.remove import view

        items = view.item_count(removal.removals)
        size = size_text(removal.plan.frees)
        models = counted(len(removal.archive.repos), "model") if removal.archive else ""
        if removal.archive is None or not removal.archive.repos:
            words, question = f"{items} would be removed", f"Remove {items}"
        elif removal.removals:
            words = f"{items} would be removed and {models} moved"
            question = f"Remove {items} and move {models} to {removal.archive.destination}"
        else:
            words = f"{models} would be moved"
            question = f"Move {models} to {removal.archive.destination}"
        require_terminal(
            json,
            f"{words}, freeing {size}",
            f"--dry-run shows them, --yes {'removes' if removal.removals else 'moves'} them",
        )
        view.show_plan(removal, stream=sys.stderr, verbose=verbose)
        if removal.trash.kept:
            days = counted(removal.trash.days, "day")
            return is_agreed(f"{question}, keeping {size} in the trash for {days}?", word)
        return is_agreed(f"{question}, freeing {size}?", word)

    return ask


def agreement(*, json: bool) -> Callable[[Any], bool]:
    """Return the function that asks whether other repos that models need are to be fetched too.

    Args:
        json: whether the answer is JSON; then nothing is asked.
    """

    def ask(others: Sequence[PlannedModel]) -> bool:
        from vlmcache.commands.pull.values import needs_text

        text = needs_text(others)
        require_terminal(
            json,
            text,
            "--dry-run shows what would be fetched, --yes fetches it",
        )
        return is_agreed(f"{text}. Fetch that too?")

    return ask


def permission(*, json: bool) -> Callable[[Any], bool]:
    """Return the function that shows what would be served, and asks whether it may be.

    Args:
        json: whether the answer is JSON; then nothing is asked.
    """

    def ask(models: Sequence[Any]) -> bool:
        from vlmcache.show.text import printable

        count = counted(len(models), "model")
        require_terminal(
            json,
            f"{count} would be served",
            "--yes serves them; 'vlmcache status --all' lists what is in the cache",
        )
        for model in models:
            print(printable(f"  {model.repo}  {size_text(model.size)}"), file=sys.stderr)
        require_consent(is_agreed, f"Serve {count}?", "is served")
        return True

    return ask


def standing_order(*, json: bool) -> Callable[[Any], bool]:
    """Return the function that shows a schedule, and asks whether it may remove models unasked.

    Args:
        json: whether the answer is JSON; then nothing is asked.
    """

    def ask(report: Any) -> bool:
        from vlmcache.cli.register import view_of

        (schedule,) = report.schedules
        if " --yes" not in schedule.command:
            return True
        require_terminal(
            json,
            f"'{schedule.name}' would change the cache without asking",
            "--dry-run shows the schedule, --yes makes it",
        )
        view_of("schedule")(report, stream=sys.stderr)
        question = f"Run this {schedule.when}, without asking again?"
        require_consent(is_agreed, question, "is scheduled")
        return True

    return ask


def require_terminal(json: bool, what: str, hint: str) -> None:
    """Make sure that there is a terminal on which to ask, and an answer that a person reads.

    Args:
        json: whether the answer is JSON; then nothing is asked.
        what: what would be done after the question, for the message.
        hint: what to type instead.

    Raises:
        UnconfirmedError: nobody can be asked.
    """
    if not can_ask(json=json):
        raise UnconfirmedError(f"{what}: there is no terminal to ask on", hint)


def can_ask(*, json: bool) -> bool:
    """Return whether there is a terminal on which to ask, and an answer that a person reads."""
    streams = (sys.stdin, sys.stderr)
    return not json and all(stream is not None and stream.isatty() for stream in streams)


def is_agreed(question: str, word: str | None = None) -> bool:
    """Ask on stderr and return whether the answer is yes.

    Args:
        question: what is asked.
        word: what has to be typed; `y` or `yes` if not given.
    """
    choice = f"type {word} to continue" if word else "y/N"
    answer = typed(f"{question} [{choice}] ").strip()
    return answer == word if word else answer.lower() in ("y", "yes")


def typed(question: str, *, ended: str = "") -> str:
    """Ask on stderr and return the line that is typed.

    Args:
        question: what is asked.
        ended: what is said if the input ends or Ctrl-C is typed; without it, the end is an empty
            line.

    Raises:
        VlmcacheError: the input ended: exit code 130, and `ended` is what to say of it.
    """
    print(question, end="", file=sys.stderr)
    sys.stderr.flush()
    try:
        line = sys.stdin.readline()
        if not line and ended:
            raise _InterruptedError(f"interrupted: {ended}")
    except BaseException as error:
        # Ctrl-C: what follows begins on a line of its own.
        print(file=sys.stderr)
        if ended and not isinstance(error, Exception):
            # What `cli.main` says then: a hint, and what became of it all.
            error.args = error.args or (None, ended)
        raise
    return line
