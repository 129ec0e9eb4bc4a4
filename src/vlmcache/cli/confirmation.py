"""The question before anything is removed."""

from __future__ import annotations

import sys

from vlmcache.cli.options import Output
from vlmcache.commands.remove.values import Confirm, Removal, UnconfirmedError
from vlmcache.units import size_text


def confirmation(output: Output, *, yes: bool, word: str | None = None) -> Confirm | None:
    """Return the function that asks, or `None` if `--yes` has answered.

    It shows the plan and asks on stderr, and reads the answer from the terminal that stdin is.

    Args:
        output: how the user wants the answer; with `--json` nothing is asked.
        yes: whether `--yes` was given.
        word: what has to be typed; `y` or `yes` if not given.
    """
    if yes:
        return None

    def ask(removal: Removal) -> bool:
        from vlmcache.commands.remove import view

        count = len(removal.plan.actions)
        size = size_text(removal.plan.frees)
        if not can_ask(output):
            raise UnconfirmedError(
                f"{count} items would be removed, freeing {size}: there is no terminal to ask on",
                "--dry-run shows them, --yes removes them",
            )
        view.show_plan(removal, stream=sys.stderr, verbose=output.verbose)
        noun = "item" if count == 1 else "items"
        return is_agreed(f"Remove {count} {noun}, freeing {size}?", word)

    return ask


def can_ask(output: Output) -> bool:
    """Return whether there is a terminal on which to ask, and an answer that a person reads."""
    return not output.json and sys.stdin.isatty() and sys.stderr.isatty()


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
