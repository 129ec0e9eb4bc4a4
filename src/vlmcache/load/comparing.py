"""An earlier load test beside a later one, and which of two sets of trials is faster (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from vlmcache.load.report import Change, Comparison, LoadReport, Result, Spread, Temperature

FEWEST = 3
"""Trials on each side without which a difference is not called one."""


def compare(then: LoadReport, now: LoadReport) -> Comparison:
    """Return an earlier report compared with this one.

    A difference is called one only where both sides have three valid trials and their ranges do
    not meet: of two equal sets of three, one time in ten do not meet by chance.
    """
    if then.machine is None or now.machine is None:
        return Comparison(False, ("one of the reports names no machine",), ())
    before, after = then.machine.hardware(), now.machine.hardware()
    unlike = tuple(
        f"{name}: {before[name]}, now {after[name]}"
        for name in before
        if before[name] != after[name]
    )
    if unlike:
        return Comparison(False, unlike, (), then_at=then.at, then_complete=then.complete)
    versions = tuple(
        f"{name}: {then.machine.versions.get(name, 'none')},"
        f" now {now.machine.versions.get(name, 'none')}"
        for name in sorted({*then.machine.versions, *now.machine.versions})
        if then.machine.versions.get(name) != now.machine.versions.get(name)
    )
    old = {_identity(result): result for result in then.results}
    new = {_identity(result): result for result in now.results}
    changes = (change for key in new if key in old for change in _changes(old[key], new[key]))
    return Comparison(
        True,
        versions,
        tuple(changes),
        tuple(" ".join(key) for key in old if key not in new),
        tuple(" ".join(key) for key in new if key not in old),
        then.at,
        then.complete,
    )


def _identity(result: Result) -> tuple[str, ...]:
    # A synthetic model bears the name of the one that it stands for.
    model = result.model if result.repo is not None else f"{result.model} (synthetic)"
    cold = ("with cold libraries",) if result.cold_libraries else ()
    return (model, result.precision, result.device, result.loader, result.source, *cold)


def _changes(then: Result, now: Result) -> Iterable[Change]:
    pairs: Sequence[tuple[Temperature, Spread | None, Spread | None]] = (
        ("cold", then.cold, now.cold),
        ("warm", then.warm, now.warm),
        ("hot", then.hot, now.hot),
    )
    for temperature, before, after in pairs:
        if before is None or after is None:
            continue
        yield Change(
            now.model,
            now.precision,
            now.device,
            now.loader,
            now.source,
            temperature,
            before,
            after,
            after.median / before.median if before.median else 1.0,
            faster_or_slower(before, after),
        )


def faster_or_slower(then: Spread, now: Spread) -> Literal["faster", "slower", "same", "too-few"]:
    """Return what can be said of two sets of trials: see `compare`."""
    if min(then.count, now.count) < FEWEST:
        return "too-few"
    if now.max < then.min:
        return "faster"
    if now.min > then.max:
        return "slower"
    return "same"
