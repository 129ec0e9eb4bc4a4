"""The register of commands: what each does, what it answers with and which view shows that."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from vlmcache.errors import UsageError

if TYPE_CHECKING:
    import msgspec


class Command(NamedTuple):
    """A command. What it names is imported only where it is used."""

    summary: str
    value: str = ""
    """The type of its answer; empty for a command without `--json`, and for one with lines."""
    view: str = ""
    """The function that shows its answer to people."""
    lines: tuple[str, ...] = ()
    """The types of its lines, if it answers as things happen: `--json` is one line for each."""


COMMANDS = {
    "status": Command(
        "Show models, their sizes, free space and what to do next.",
        "vlmcache.commands.status.values.Status",
        "vlmcache.commands.status.view.show",
    ),
    "pull": Command(
        "Download what is missing of models.",
        "vlmcache.commands.pull.values.PullReport",
        "vlmcache.cli.pull.show",
    ),
    "rm": Command(
        "Remove models or single revisions.",
        "vlmcache.commands.remove.values.Removal",
        "vlmcache.commands.remove.view.show",
    ),
    "clean": Command(
        "Remove what nobody needs, and models beyond a size limit.",
        "vlmcache.commands.remove.values.Removal",
        "vlmcache.commands.remove.view.show",
    ),
    "undo": Command(
        "Restore what was removed last.",
        "vlmcache.commands.trash.values.UndoReport",
        "vlmcache.commands.trash.view.show_undo",
    ),
    "trash": Command(
        "List what can be restored, or empty the trash.",
        "vlmcache.commands.trash.values.TrashReport",
        "vlmcache.commands.trash.view.show_trash",
    ),
    "watch": Command(
        "Watch the cache live.",
        lines=(
            "vlmcache.commands.watch.values.Snapshot",
            "vlmcache.commands.watch.values.Event",
        ),
    ),
    "verify": Command(
        "Check every blob against its hash; repair what is damaged.",
        "vlmcache.commands.verify.values.Verification",
        "vlmcache.commands.verify.view.show",
    ),
    "move": Command(
        "Move models to another drive; links stay.",
        "vlmcache.commands.move.values.MoveReport",
        "vlmcache.commands.move.view.show",
    ),
    "recall": Command(
        "Bring models back from the archive drive.",
        "vlmcache.commands.move.values.RecallReport",
        "vlmcache.commands.move.view.show_recall",
    ),
    "attach": Command(
        "Put a read-only cache beneath this one, as links.",
        "vlmcache.commands.attach.values.AttachReport",
        "vlmcache.commands.attach.view.show",
    ),
    "detach": Command(
        "Remove the links into a base.",
        "vlmcache.commands.attach.values.AttachReport",
        "vlmcache.commands.attach.view.show",
    ),
    "backup": Command(
        "Save models to a tar stream or a store, checked.",
        "vlmcache.commands.backup.values.Backup",
        "vlmcache.commands.backup.view.show_backup",
    ),
    "restore": Command(
        "Bring a backup back, checked.",
        "vlmcache.commands.backup.values.Restored",
        "vlmcache.commands.backup.view.show_restore",
    ),
    "load-test": Command(
        "Measure how fast models load, cold and warm.",
        "vlmcache.load.report.LoadReport",
        "vlmcache.load.view.show",
    ),
    "quantize": Command(
        "Keep a quantized copy for fast loads.",
        "vlmcache.load.quantized.Quantization",
        "vlmcache.load.view.show_quantization",
    ),
    "warm": Command(
        "Read weights into memory ahead of a server's start.",
        "vlmcache.load.warm.WarmReport",
        "vlmcache.load.view.show_warm",
    ),
    "serve": Command(
        "Serve the cache to other machines, as a hub.",
        "vlmcache.commands.serve.values.ServeReport",
        "vlmcache.commands.serve.view.show",
    ),
    "schedule": Command(
        "Run clean, verify or status --check on a timer.",
        "vlmcache.commands.schedule.values.ScheduleReport",
        "vlmcache.commands.schedule.view.show",
    ),
    "fleet-status": Command(
        "Show what each node has.",
        "vlmcache.commands.fleet.values.FleetStatus",
        "vlmcache.commands.fleet.view.show_status",
    ),
    "fleet-pull": Command(
        "Download a model once, and spread it over the nodes.",
        "vlmcache.commands.fleet.pull_values.FleetPull",
        "vlmcache.commands.fleet.view.show_pull",
    ),
    "fleet-rm": Command(
        "Remove models from all nodes.",
        "vlmcache.commands.fleet.values.FleetRemoval",
        "vlmcache.commands.fleet.view.show_removal",
    ),
    "fleet-clean": Command(
        "Remove what nobody needs from each node.",
        "vlmcache.commands.fleet.values.FleetRemoval",
        "vlmcache.commands.fleet.view.show_removal",
    ),
    "fleet-verify": Command(
        "Check every blob on each node against its hash.",
        "vlmcache.commands.fleet.values.FleetVerification",
        "vlmcache.commands.fleet.view.show_verification",
    ),
    "fleet-load-test": Command(
        "Measure how fast models load on each node.",
        "vlmcache.commands.fleet.values.FleetLoads",
        "vlmcache.commands.fleet.view.show_loads",
    ),
    "doctor": Command(
        "Check paths, permissions, disk, versions, GPU.",
        "vlmcache.commands.doctor.values.Diagnosis",
        "vlmcache.commands.doctor.view.show",
    ),
    "init": Command(
        "Write a config.yaml that names the models in the cache.",
        "vlmcache.commands.init.values.InitReport",
        "vlmcache.commands.init.view.show",
    ),
    "explain": Command(
        "Explain the code of a finding or an error.",
        "vlmcache.codes.Explanation",
        "vlmcache.cli.explain.show",
    ),
    "schema": Command("Print the JSON Schema of a command's --json."),
    "help": Command("Show the help of a command, or the exit codes."),
}
"""Each command. Its function is named like it, and its module too, without a hyphen.

A command such as `fleet-status` is typed in two words.
"""

FAMILIES = {"fleet": "The same on the nodes of a Ray cluster: status, rm, clean and more."}
"""The first word of commands that are typed in two -> what these do."""

REMOVING = frozenset({"rm", "clean", "trash", "fleet-rm", "fleet-clean"})
"""Commands that remove what may be needed: no other word is taken for one of them."""

_GROUPS = {
    "Look": ("status", "watch", "verify", "doctor"),
    "Get": ("pull", "attach", "detach"),
    "Free space": ("rm", "clean", "undo", "trash"),
    "Move and save": ("move", "recall", "backup", "restore", "serve"),
    "Measure": ("load-test", "quantize", "warm"),
    "Many machines": ("fleet",),
}


def words_of(command: str) -> tuple[str, ...]:
    """Return the words in which a command is typed."""
    first, hyphen, second = command.partition("-")
    return (first, second) if hyphen and first in FAMILIES else (command,)


def members(family: str) -> dict[str, str]:
    """Return the second words of a family's commands -> what each does."""
    return {
        words_of(name)[1]: command.summary
        for name, command in COMMANDS.items()
        if name.startswith(f"{family}-")
    }


def first_words() -> dict[str, str]:
    """Return the words that can follow `vlmcache` -> what each does."""
    words: dict[str, str] = {}
    for name, command in COMMANDS.items():
        first = words_of(name)[0]
        words.setdefault(first, FAMILIES.get(first, command.summary))
    return words


def command_in(words: Iterable[str]) -> str | None:
    """Return the first command that some words name, options among them or not."""
    family = ""
    for word in words:
        word = ALIASES.get(word, word)
        if family and f"{family}-{word}" in COMMANDS:
            return f"{family}-{word}"
        if not family and word in COMMANDS:
            return word
        family = word if word in FAMILIES else family
    return None


def grouped() -> dict[str, tuple[str, ...]]:
    """Return the commands by what people want to do; those that are in no other group come last."""
    placed = {name for names in _GROUPS.values() for name in names}
    return {**_GROUPS, "Other": tuple(name for name in first_words() if name not in placed)}


ALIASES = {
    "ls": "status",
    "list": "status",
    "download": "pull",
    "remove": "rm",
    "delete": "rm",
    "prune": "clean",
}
"""Names of other tools that mean a command here; no help lists them."""


def stream_types(command: str) -> tuple[type[msgspec.Struct], ...]:
    """Return the types of the lines of a command's answer; none where it is one document."""
    entry = COMMANDS.get(command)
    return tuple(load(line) for line in entry.lines) if entry else ()


def document_type(command: str) -> type[msgspec.Struct]:
    """Return the type of a command's answer.

    Raises:
        UsageError: the command is not known, or has no `--json`.
    """
    entry = COMMANDS.get(command)
    if entry is None or not entry.value:
        known = ", ".join(name for name, entry in COMMANDS.items() if entry.value or entry.lines)
        raise UsageError(f"no schema for {command!r}", f"known: {known}")
    kind: type[msgspec.Struct] = load(entry.value)
    return kind


def view_of(command: str) -> Any:
    """Return the function that shows a command's answer, its module imported now."""
    return load(COMMANDS[command].view)


def load(name: str) -> Any:
    """Return what a dotted name means, its module imported now."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)
