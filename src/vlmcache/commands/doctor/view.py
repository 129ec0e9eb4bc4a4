"""`doctor` for people: facts in groups, then what is wrong and what to do."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.text import Text

from vlmcache.change.plan import Plan, SetAccess
from vlmcache.commands.doctor.values import Diagnosis, Filesystem
from vlmcache.show.console import console
from vlmcache.show.tables import SEVERITY_COLORS, labelled
from vlmcache.show.text import printable
from vlmcache.units import counted, size_text


def show(diagnosis: Diagnosis, *, verbose: bool = False) -> None:
    """Print the diagnosis; of the permissions alone if these were asked about."""
    out = console()
    if diagnosis.plan is None:
        _show_facts(out, diagnosis, verbose=verbose)
    else:
        _show_access(out, diagnosis, diagnosis.plan, verbose=verbose)
    out.print()
    if not diagnosis.findings:
        out.print("No problems found.")
    for finding in diagnosis.findings:
        line = Text(f"{finding.code}: {printable(finding.detail)}")
        if finding.remedy:
            line.append(f"\n{printable(finding.remedy)}", "bold")
        style = SEVERITY_COLORS[finding.severity]
        out.print(labelled(finding.severity, line, width=12, label_style=style))


def _show_facts(out: Console, diagnosis: Diagnosis, *, verbose: bool) -> None:
    for fact in diagnosis.paths:
        if verbose or fact.name in ("cache", "config", "vlmcache"):
            absent = "" if fact.exists else ", does not exist yet"
            locked = "" if fact.writable else ", not writable"
            text = f"{printable(fact.path)} ({fact.source}{absent}{locked})"
            out.print(labelled(fact.name, text, width=12))
    for name, value in diagnosis.variables.items():
        out.print(labelled("variable", f"{printable(name)}={printable(value)}", width=12))
    out.print(labelled("filesystem", _filesystem(diagnosis.filesystem), width=12))
    out.print(labelled("python", printable(f"{diagnosis.python}, {diagnosis.platform}"), width=12))
    versions = [f"{name} {version}" for name, version in diagnosis.versions.items() if version]
    out.print(labelled("versions", ", ".join(versions), width=12))
    for device in diagnosis.devices:
        memory = f", {size_text(device.memory)}" if device.memory else ""
        driver = f", driver {device.driver}" if device.driver else ""
        torch = f", {device.torch} in torch" if device.torch else ""
        out.print(labelled("gpu", f"{printable(device.name)}{memory}{driver}{torch}", width=12))
    if not diagnosis.devices:
        out.print(labelled("gpu", "none that an NVIDIA driver names", width=12))
    quantization = diagnosis.quantization or "bitsandbytes is not installed"
    out.print(labelled("quantization", quantization, width=12))
    offline = diagnosis.offline
    ready = "every configured model loads without a network"
    if not offline.ready:
        missing = ", ".join(map(printable, offline.lacking))
        ready = f"not ready: {missing or 'the cache cannot be read'}"
    out.print(
        labelled("offline", ready + (" (the network is switched off)" * offline.forced), width=12)
    )


def _show_access(out: Console, diagnosis: Diagnosis, plan: Plan, *, verbose: bool) -> None:
    """Print what has to change, or has changed, in the cache's permissions."""
    cache = diagnosis.paths[0]
    out.print(labelled("cache", f"{printable(cache.path)} ({cache.source})", width=12))
    shared = diagnosis.shared
    if shared is not None:
        members = ", ".join(shared.members) or "nobody"
        out.print(labelled("group", f"{printable(shared.group)}: {printable(members)}", width=12))
    counts = Counter(
        (action.kind, action.reason) for action in plan.actions if isinstance(action, SetAccess)
    )
    label = "change" if diagnosis.receipt is None else "changed"
    for (kind, reason), count in counts.items():
        out.print(labelled(label, f"{counted(count, kind)}: {reason}", width=12))
    if verbose:
        for action in plan.actions:
            if isinstance(action, SetAccess):
                out.print(f"  {printable(action.path)}  {action.reason}")
    for outcome in diagnosis.receipt.undone if diagnosis.receipt else ():
        text = printable(outcome.detail or outcome.path)
        out.print(labelled(outcome.result, text, width=12, label_style="red"))
    for kept in plan.kept:
        out.print(labelled("left alone", f"{printable(kept.path)}: {kept.reason}", width=12))


def _filesystem(filesystem: Filesystem) -> str:
    abilities = [
        f"{'no ' if able is False else ''}{name}"
        for name, able in (
            ("symbolic links", filesystem.symlinks),
            ("hard links", filesystem.hard_links),
            ("locks", filesystem.locks),
        )
        if able is not None
    ]
    if filesystem.case_sensitive is not None:
        abilities.append("case-sensitive" if filesystem.case_sensitive else "case-insensitive")
    abilities.append(f"access times: {filesystem.access_times}")
    free = f", {size_text(filesystem.free)} free" if filesystem.free is not None else ""
    where = f" at {printable(filesystem.mount_point)}" if filesystem.mount_point else ""
    return f"{filesystem.type or 'unknown'}{where}{free}; {', '.join(abilities)}"
