"""What `doctor` says about each check in one line: the fact, or what is wrong (pure)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal, NamedTuple

from vlmcache.cache.moved import DRIVE_AWAY
from vlmcache.cache.state import Finding
from vlmcache.commands.doctor.values import Diagnosis, Filesystem
from vlmcache.units import counted, size_text

CheckOutcome = Literal["failed", "warning", "ok"]
_OUTCOMES: dict[str, CheckOutcome] = {"error": "failed", "warning": "warning", "info": "ok"}
_ORDER: tuple[CheckOutcome, ...] = ("failed", "warning", "ok")


class CheckResult(NamedTuple):
    """A check: how it went, the fact that it found, and the findings that say more."""

    name: str
    outcome: CheckOutcome
    fact: str
    findings: tuple[Finding, ...] = ()


_CHECKS: dict[str, tuple[str, ...]] = {
    "cache": (
        "cache-path",
        "cache-not-there",
        "cache-not-writable",
        "cache-not-readable",
        "cache-read-only",
        "conflicting-settings",
        "second-cache",
    ),
    "contents": ("damaged-repos", DRIVE_AWAY, "wrong-lock"),
    "permissions": (
        "world-writable",
        "other-owner",
        "wrong-owner",
        "permissions",
        "no-modes",
        "not-shared",
        "closed-above",
        "not-a-member",
        "no-members",
        "umask",
    ),
    "disk": ("low-disk",),
    "filesystem": ("no-symlinks", "no-locks", "no-access-times"),
    "config": ("configuration",),
    "hub": (),
    "home": ("home-not-writable",),
    "python": (),
    "loading": ("loading-not-installed", "torch-broken"),
    "quantization": ("quantization-not-installed",),
    "gpu": ("gpu-driver", "torch-without-gpu"),
    "offline": (),
}
"""Name of a check -> the codes of what it finds."""


def check_results(diagnosis: Diagnosis) -> list[CheckResult]:
    """Return the checks, those with problems first."""
    of_code = {code: name for name, codes in _CHECKS.items() for code in codes}
    found: dict[str, list[Finding]] = {name: [] for name in _CHECKS}
    for finding in diagnosis.findings:
        name = of_code.get(finding.code, finding.code)
        if finding.code == "configuration" and _is_about_the_hub(finding, diagnosis):
            name = "hub"
        found.setdefault(name, []).append(finding)
    facts = dict(_facts(diagnosis))
    results = []
    for name, findings in found.items():
        outcomes = {_OUTCOMES[finding.severity] for finding in findings}
        outcome: CheckOutcome = next((each for each in _ORDER if each in outcomes), "ok")
        if name == "offline" and diagnosis.offline.forced and not diagnosis.offline.ready:
            outcome = "warning"
        findings.sort(key=lambda finding: _ORDER.index(_OUTCOMES[finding.severity]))
        results.append(CheckResult(name, outcome, facts.get(name, ""), tuple(findings)))
    return sorted(results, key=lambda result: _ORDER.index(result.outcome))


def summary(results: list[CheckResult]) -> str:
    """Return how the checks went: `1 failed, 2 warnings, 10 ok`."""
    outcomes = [result.outcome for result in results]
    failed, warnings, fine = (outcomes.count(each) for each in _ORDER)
    if failed + warnings == 0:
        return f"all {fine} checks ok"
    parts = [f"{failed} failed"] if failed else []
    parts += [counted(warnings, "warning")] if warnings else []
    return ", ".join([*parts, f"{fine} ok"])


def _is_about_the_hub(finding: Finding, diagnosis: Diagnosis) -> bool:
    config = next((fact.path for fact in diagnosis.paths if fact.name == "config"), "")
    return finding.path != config and os.path.basename(finding.path) != ".env"


def _facts(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    """Yield the name of each check and the fact that it found."""
    for fact in diagnosis.paths:
        absent = "" if fact.exists else ", does not exist yet"
        name = {"vlmcache": "home"}.get(fact.name, fact.name)
        yield name, f"{fact.path} ({fact.source}{absent})"
        if fact.name == "cache":
            owner = f"belongs to {fact.owner}" if fact.owner is not None else "nothing is odd"
            yield "permissions", owner if fact.exists else "nothing to check yet"
    filesystem = diagnosis.filesystem
    if filesystem.free is not None and filesystem.total is not None:
        yield "disk", f"{size_text(filesystem.free)} free of {size_text(filesystem.total)}"
    yield "filesystem", _filesystem(filesystem)
    yield "contents", "nothing is known to be damaged"
    yield "hub", "the settings can be used; nothing was asked"
    yield "python", f"{diagnosis.python}, {diagnosis.platform}"
    versions = diagnosis.versions
    # The next check names bitsandbytes.
    installed = (
        f"{name} {version}"
        for name, version in versions.items()
        if version and name != "bitsandbytes"
    )
    yield "loading", ", ".join(installed)
    yield "quantization", diagnosis.quantization or "bitsandbytes is not installed"
    yield "gpu", "; ".join(_devices(diagnosis)) or "none that an NVIDIA driver names"
    offline = diagnosis.offline
    ready = "every configured model loads without a network"
    if not offline.ready:
        missing = ", ".join(offline.lacking)
        ready = f"cached models load; still to be downloaded: {missing}"
        ready = ready if missing else "not known: the cache cannot be read"
    yield "offline", ready + (" (the network is switched off)" if offline.forced else "")


def _devices(diagnosis: Diagnosis) -> Iterator[str]:
    for device in diagnosis.devices:
        memory = f", {size_text(device.memory)}" if device.memory else ""
        driver = f", driver {device.driver}" if device.driver else ""
        torch = f", {device.torch} in torch" if device.torch else ""
        yield f"{device.name}{memory}{driver}{torch}"


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
    where = f" at {filesystem.mount_point}" if filesystem.mount_point else ""
    return f"{filesystem.type or 'unknown'}{where}; {', '.join(abilities)}"
