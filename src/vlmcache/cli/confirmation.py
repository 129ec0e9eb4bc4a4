"""The question before anything is removed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from vlmcache.commands.remove import view
from vlmcache.commands.remove.values import Removal, UnconfirmedError
from vlmcache.units import size_text


def confirmation(word: str | None, *, json: bool, verbose: bool) -> Callable[[Any], bool]:
    """Return the function that shows what would be removed, and asks whether it may be.

    Args:
        word: what has to be typed; `y` or `yes` if not given.
        json: whether the answer is JSON; then nothing is asked.
        verbose: whether to show more of the plan.
    """

    def ask(removal: Removal) -> bool:
        count = len(removal.plan.actions)
        size = size_text(removal.plan.frees)
        require_terminal(
            json,
            f"{count} items would be removed, freeing {size}: there is no terminal to ask on",
            "--dry-run shows them, --yes removes them",
        )
        view.show_plan(removal, stream=sys.stderr, verbose=verbose)
        noun = "item" if count == 1 else "items"
        return is_agreed(f"Remove {count} {noun}, freeing {size}?", word)

    return ask


def require_terminal(json: bool, message: str, hint: str) -> None:
    """Make sure that there is a terminal on which to ask, and an answer that a person reads.

    Raises:
        UnconfirmedError: there is not; it says so with the message and the hint.
    """
    if json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UnconfirmedError(message, hint)


def is_agreed(question: str, word: str | None = None) -> bool:
    """Ask on stderr and return whether the answer is yes.

    Args:
        question: what is asked.
        word: what has to be typed; `y` or `yes` if not given.
    """
    choice = f"type {word} to continue" if word else "y/N"
    print(f"{question} [{choice}] ", end="", file=sys.stderr)
    sys.stderr.flush()
    try:
        answer = sys.stdin.readline().strip()
    except BaseException:
        # Ctrl-C: what follows begins on a line of its own.
        print(file=sys.stderr)
        raise
    return answer == word if word else answer.lower() in ("y", "yes")
