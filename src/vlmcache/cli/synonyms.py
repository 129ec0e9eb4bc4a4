"""What a word may mean that is not the name of a command.

A command that removes something is suggested only for a word that means removing in other tools,
or that differs from its name by a single typo.
"""

from __future__ import annotations

from vlmcache.cli.register import ALIASES, FAMILIES, REMOVING, first_words, members

_WORDS = {
    "status": "scan du df info show inspect stat size sizes space disk usage cached",
    "status --outdated": "outdated updates",
    "status --check": "exists has",
    "watch": "top monitor live follow tail dashboard ps",
    "verify": "check checksum checksums hash fsck validate integrity audit",
    "verify --repair": "repair",
    "doctor": "env environment diagnose diagnostics diag health debug troubleshoot fix",
    "pull": "get fetch install add sync clone snapshot-download upgrade update",
    "rm": "uninstall del erase unlink destroy rmi",
    "clean": "gc purge evict cleanup clean-up tidy vacuum autoremove autoclean wipe",
    "undo": "undelete unremove revert rollback",
    "trash": "bin recycle removed",
    "move": "mv relocate migrate transfer",
    "recall": "unarchive retrieve",
    "backup": "save export archive dump push tar",
    "restore": "import load unpack extract untar",
    "load-test": "bench benchmark test measure profile time speed perf",
    "load-test --history": "history results",
    "quantize": "quant convert compress",
    "warm": "preload prefetch warmup warm-up",
    "init": "config configure configuration setup new create",
    "serve": "server mirror proxy share",
    "fleet": "cluster nodes ray hosts machines",
    "explain": "error errors code codes why",
    "schema": "json-schema jsonschema json",
    "help": "man commands",
    "help exit-codes": "exit-codes exitcodes exit",
    "--version": "version",
    "--install-completion": "completion completions autocomplete",
}
"""What to type -> words that other tools, or people, use for it."""

SYNONYMS = {word: meant for meant, words in _WORDS.items() for word in words.split()}
"""Word -> what to type."""


def suggestion(word: str) -> str | None:
    """Return the hint that names what a word may have meant, `None` if nothing is similar."""
    meant = _meaning(word.casefold())
    return None if meant is None else f"did you mean 'vlmcache {meant}'?"


def _meaning(word: str) -> str | None:
    family, _, rest = word.partition(" ")
    if rest and family in FAMILIES:
        # After its first word, only members of the family can be meant.
        meant = _meaning(rest)
        return f"{family} {meant}" if meant in members(family) else None
    known = {**{name: name for name in first_words()}, **ALIASES, **SYNONYMS}
    known = {name: meant for name, meant in known.items() if _exists(meant)}
    if word in known:
        return known[word]
    near = sorted(
        (edits, name)
        for name in known
        if (edits := _edits(word, name)) <= _most(word, name, removing=known[name] in REMOVING)
    )
    return known[near[0][1]] if near else None


def _exists(meant: str) -> bool:
    first = meant.partition(" ")[0]
    return first.startswith("--") or first in first_words()


def _most(word: str, name: str, *, removing: bool) -> int:
    """Return how many typos a name may differ by from what was typed.

    With three letters any typo makes another word; `lean` is not a typo of `clean`.
    """
    if len(name) <= 3 or (removing and word[:1] != name[0]):
        return 0
    return 1 if removing or len(name) <= 5 else 2


def _edits(word: str, name: str) -> int:
    """Return how many letters were left out, added, replaced or swapped with the next one."""
    rows = [list(range(len(name) + 1))]
    for i, letter in enumerate(word, 1):
        row = [i]
        for j, other in enumerate(name, 1):
            least = min(row[-1] + 1, rows[-1][j] + 1, rows[-1][j - 1] + (letter != other))
            if i > 1 and j > 1 and (letter, word[i - 2]) == (name[j - 2], other):
                least = min(least, rows[-2][j - 2] + 1)
            row.append(least)
        rows.append(row)
    return rows[-1][-1]
