"""An earlier load test compared with a later one; which of two sets of trials is faster (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from vlmcache.load.report import Change, Comparison, LoadReport, Result, Spread, Temperature

FEWEST = 3
"""Trials that each side needs before a difference is reported."""


def compare(then: LoadReport, now: LoadReport) -> Comparison:
    """Return the comparison of an earlier report with this one.

    A difference is reported only if both sides have three valid trials and their ranges do not
    overlap: by chance, the ranges of two equal sets of three do not overlap one time in ten.
    """
    if then.machine is None or now.machine is None:
        return Comparison(False, ("one of the reports names no machine",), ())
    unlike = _differences(then.machine.hardware(), now.machine.hardware())
    if unlike:
        return Comparison(False, unlike, (), then_at=then.at, then_complete=then.complete)
    versions = _differences(then.machine.versions, now.machine.versions)
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


def _differences(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(
        f"{name}: {before.get(name, 'none')}, now {after.get(name, 'none')}"
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    )


def _identity(result: Result) -> tuple[str, ...]:
    # A synthetic model has the name of the one that it stands for.
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
    """Return whether the later of two sets of trials is faster; see `compare`."""
    if min(then.count, now.count) < FEWEST:
        return "too-few"
    if now.max < then.min:
        return "faster"
    if now.min > then.max:
        return "slower"
    return "same"
