"""No hint proposes to remove what may be the only copy of something.

Each place in the source that names a command or option that removes or replaces something is in the
table below, with the reason why no only copy is lost by it. A new one needs a new reason.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.commands.remove.test_remove import Place
from tests.kit.caches import CacheBuilder
from tests.test_architecture import MODULES
from vlmcache.cache.scan import scan
from vlmcache.change.known import Known
from vlmcache.commands.status.steps import CommandPlans

REMOVING = re.compile(r"vlmcache (rm|clean)\b|--force\b|--overwrite\b")
WORDS = {"command", "recommend"}
"""Functions that make commands of words."""

WASTE = "'clean' without options removes only what is provably not needed"
GOAL = "'clean' keeps what others wrote, shows its plan, and asks"
LINK = "what it leads to is not touched"
REVIEWED = {
    "cache.entries": {"command clean": WASTE},
    "cache.repo_content": {"command clean": WASTE},
    "cache.scan": {"command clean": WASTE, "command rm": LINK},
    "cache.scan_root": {"command clean": WASTE},
    "change.place": {"mount that drive, or remove the link with 'vlmcache rm'": LINK},
    "codes": {
        "'vlmcache clean' removes leftovers.": WASTE,
        "'vlmcache clean --free SIZE' makes room; 'vlmcache.min_free' sets the minimum.": GOAL,
        "'vlmcache clean' frees what is not needed.": WASTE,
        "'vlmcache clean' frees it once no repo links to it.": WASTE,
        "'vlmcache pull --make-room' or 'vlmcache clean --free SIZE' makes room.": GOAL,
        "'vlmcache clean' removes it when it is old enough.": WASTE,
        "'vlmcache clean' removes it under the store's own lock.": WASTE,
        "Nothing needs to be done; 'vlmcache rm' removes by repo and never by a bare hash.": (
            "it says what the command does"
        ),
        "'vlmcache pull MODEL' continues it, 'vlmcache clean --partials' removes it.": (
            "an unfinished download is no copy"
        ),
        "'vlmcache trash' lists what it holds; 'vlmcache rm --trash' keeps what it removes.": (
            "it says what the commands do"
        ),
        "Move the file elsewhere if you need it; 'vlmcache rm PATH --dry-run' shows its size.": (
            "nothing is removed by a dry run"
        ),
    },
    "installing": {"--force": "a package"},
    "load.device": {"--force-reinstall": "a package"},
    "load.explain": {"--force-reinstall": "a package"},
    "commands.backup.restore": {
        "--overwrite": "it was typed, and the command is repeated; no file is removed",
    },
    "commands.backup.values": {
        "--overwrite lets it name the backup's; the files of both stay": "no file is removed",
    },
    "commands.move.move": {
        "; 'vlmcache rm' removes the link": LINK,
    },
    "commands.move.recall": {
        "make room, for example by 'vlmcache clean', or name fewer models": WASTE,
    },
    "commands.move.survey": {"vlmcache clean": "the user has asked for that removal before"},
    "commands.pull.making_room": {"command clean": "--to checks each copy, and asks"},
    "commands.remove.clean": {"command clean": "of what nobody is known to use"},
    "commands.remove.remove": {"command rm": "of the one file whose address was named"},
    "commands.remove.values": {
        "stop that first; --force removes it anyway": "the user has asked for that removal",
        "'vlmcache clean' removes the rest, once that has ended": "the rest of that removal",
    },
    "commands.status.choose": {
        "recommend clean": GOAL,
        "recommend rm": "of what the hub has, see the tests below",
    },
    "commands.status.recommend": {
        "command rm": "of what the hub has, see the tests below",
        "recommend rm": LINK,
    },
    "commands.status.values": {"vlmcache clean": "a beginning that is compared"},
    "commands.trash.undo": {
        "'vlmcache rm' keeps what it removes with --trash": "it says what the command does",
    },
}


def _docstrings(tree: ast.Module) -> set[int]:
    """Return the ids of the strings that only describe: docstrings, of fields too."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def _proposals(path: Path) -> set[str]:
    """Return the texts and the calls of a module that propose to remove or replace something."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    described = _docstrings(tree)
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if REMOVING.search(node.value) and id(node) not in described:
                found.add(node.value)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            words = {word.value for word in node.args if isinstance(word, ast.Constant)}
            found |= {
                f"{name} {word}" for word in ("rm", "clean") if name in WORDS and word in words
            }
    return found


def test_each_hint_that_removes_or_replaces_something_has_a_reason_why_no_only_copy_is_lost() -> (
    None
):
    # In cli/ are the options themselves and examples of what is typed.
    proposed = {
        module: found
        for module, path in MODULES.items()
        if not module.startswith("cli.") and (found := _proposals(path))
    }
    reviewed: dict[str, set[str]] = defaultdict(set)
    for module, reasons in REVIEWED.items():
        assert all(reasons.values())
        reviewed[module] |= reasons.keys()
    assert proposed == dict(reviewed)


@pytest.mark.parametrize("where", ["a file in a snapshot", "a file in the repo"])
def test_a_model_with_files_that_the_hub_does_not_have_is_never_recommended_for_removal(
    tmp_path: Path, where: str
) -> None:
    place = Place(tmp_path)
    cache = CacheBuilder(place.root)
    for name in ("org/ours", "org/plain"):
        cache.repo(name).revision({"config.json": b"{}", "model.safetensors": b"x" * 9000})
    ours = cache.repo("org/ours").folder
    if where == "a file in a snapshot":
        (snapshot,) = (ours / "snapshots").iterdir()
        (snapshot / "tuned.safetensors").write_bytes(b"mine")
    else:
        (ours / "tuned.safetensors").write_bytes(b"mine")
    planner = CommandPlans(Known(place.environment, scan(place.root)), place.session)
    assert [model.repo for model in planner.evictable(())] == ["org/plain"]
