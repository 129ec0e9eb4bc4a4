"""Verdicts take the spread into account, and only machines that are alike are compared."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmcache.load.comparing import compare
from vlmcache.load.judging import judge_phases, median_phases, spread, summarize
from vlmcache.load.report import (
    Accelerator,
    Disk,
    LoadReport,
    Machine,
    Result,
    Spread,
    Temperature,
    Trial,
)

MACHINE = Machine(
    system="Linux-6.1",
    cpu="cpu",
    cores=2,
    memory=16_000_000_000,
    accelerators=(),
    filesystem="ext4",
    disk="disk",
    versions={"torch": "2.13.0"},
)


def invalid(**phases: float) -> Trial:
    return msgspec.structs.replace(
        trial("cold", **phases), valid=False, why_not="the pages stayed in memory"
    )


def trial(temperature: Temperature, **phases: float) -> Trial:
    return Trial(
        temperature=temperature,
        phases=phases,
        seconds=sum(phases.values()),
        bytes_read=0,
        resident_before=0.0,
        peak_memory=5_000_000_000,
        peak_device_memory=None,
        valid=True,
        why_not=None,
        first_token=0.1 if temperature != "hot" else 9.0,
    )


def result(*trials: Trial, **changes: Any) -> Result:
    bare = Result(
        model="m",
        precision="bf16",
        device="cpu",
        loader="readahead",
        bytes=4_000_000_000,
        trials=trials,
        cold=None,
        warm=None,
        disk_limit_seconds=None,
        efficiency=None,
    )
    return msgspec.structs.replace(bare, **changes)


def report(*seconds: float, machine: Machine | None = MACHINE, **changes: Any) -> LoadReport:
    whole = summarize(
        result(*(trial("cold", start=0.0, read=taken) for taken in seconds), **changes),
        None,
        None,
        0,
    )
    return LoadReport(machine, (whole,))


@given(st.lists(st.floats(0, 1000), min_size=1))
def test_the_median_lies_between_the_least_and_the_most(values: list[float]) -> None:
    summary = spread(values)
    assert summary is not None
    assert summary.min <= summary.median <= summary.max
    assert (summary.min, summary.max, summary.count) == (
        min(values),
        max(values),
        len(values),
    )


def test_nothing_has_no_spread() -> None:
    assert spread([]) is None
    assert spread([None]) is None


def test_a_trial_that_broke_its_conditions_is_kept_and_not_averaged() -> None:
    whole = summarize(result(trial("cold", read=4.0), invalid(read=1.0)), None, None, 0)
    assert len(whole.trials) == 2
    assert whole.cold == Spread(4.0, 4.0, 4.0, 1)


def test_the_limit_is_the_larger_of_imports_and_reading() -> None:
    loads = (trial("cold", start=1.0, **{"import": 3.0}, build=1.0), trial("warm", start=0.5))
    slow = summarize(result(*loads), Disk(5e8, 5e8, 1), None, 0)
    assert (slow.disk_limit_seconds, slow.limit_seconds) == (8.0, 8.0)
    fast = summarize(result(*loads), Disk(1e9, 4e9, 1), None, 0)
    assert (fast.disk_limit_seconds, fast.limit_seconds) == (1.0, 4.0)
    assert fast.efficiency == pytest.approx(0.8)


def test_the_copy_to_a_device_can_be_the_limit() -> None:
    loads = trial("cold", start=1.0, to_device=9.0)
    assert summarize(result(loads), Disk(4e9, 4e9, 1), 1e9, 8_000_000_000).limit_seconds == 8.0


def test_warm_loads_alone_are_not_compared_with_the_disk() -> None:
    whole = summarize(result(trial("warm", start=1.0, build=1.0)), Disk(1e6, 1e6, 1), None, 0)
    assert whole.efficiency == pytest.approx(0.5)


def test_first_tokens_of_hot_loads_are_left_out() -> None:
    whole = summarize(result(trial("warm", start=1.0), trial("hot", build=1.0)), None, None, 0)
    assert whole.first_token == Spread(0.1, 0.1, 0.1, 1)


def test_phases_are_medians_in_the_order_in_which_they_come() -> None:
    whole = result(
        trial("cold", read=1.0, start=0.1), trial("cold", read=3.0, start=0.3), trial("warm")
    )
    assert list(median_phases(whole, "cold").items()) == [("start", 0.2), ("read", 2.0)]


@pytest.mark.parametrize(
    ("phases", "changes", "verdict", "advice"),
    [
        (
            {"import": 9.0, "read": 1.0},
            {},
            "loads in 9.0 s cold; importing torch is 90% of it",
            "keep the process alive",
        ),
        (
            {"read": 9.0},
            {"loader": "plain"},
            "reading the weights is 100% of it",
            "--loader readahead",
        ),
        ({"read": 9.0}, {"disk": Disk(1e8, 2e8, 1)}, "reading", "a faster disk, or a kept int8"),
        (
            {"quantise": 20.0, "import": 5.0},
            {"precision": "int8", "source": "at-load"},
            "quantizing the weights is 80% of it",
            "vlmcache quantize m --precision int8",
        ),
        (
            {"to_device": 5.0},
            {},
            "copying the weights to the device is",
            "a smaller precision moves fewer bytes",
        ),
    ],
)
def test_a_sentence_says_what_takes_longest_and_what_to_do(
    phases: dict[str, float], changes: dict[str, Any], verdict: str, advice: str
) -> None:
    bare = result(trial("cold", **phases), cold=Spread(9.0, 9.0, 9.0, 1), **changes)
    said = judge_phases(bare)
    assert verdict in str(said[0])
    assert advice in str(said[1])


def test_no_valid_trial_is_said_with_its_reason() -> None:
    assert judge_phases(result(invalid(read=1.0)))[0] == (
        "no trial is valid: the pages stayed in memory"
    )


@pytest.mark.parametrize(
    ("then", "now", "verdict"),
    [
        ((5.0, 5.2, 5.4), (3.0, 3.1, 3.2), "faster"),
        ((3.0, 3.1, 3.2), (5.0, 5.2, 5.4), "slower"),
        ((3.0, 4.0, 5.0), (4.9, 6.0, 7.0), "same"),
        ((3.0, 3.1), (5.0, 5.2), "too-few"),
    ],
)
def test_a_difference_counts_only_beyond_the_spread(
    then: tuple[float, ...], now: tuple[float, ...], verdict: str
) -> None:
    (change,) = compare(report(*then), report(*now)).changes
    assert change.verdict == verdict
    assert change.ratio == pytest.approx(change.now.median / change.then.median)


@given(st.lists(st.floats(0.1, 100), min_size=3), st.lists(st.floats(0.1, 100), min_size=3))
def test_a_verdict_turns_round_with_the_reports(then: list[float], now: list[float]) -> None:
    forward = compare(report(*then), report(*now)).changes[0].verdict
    backward = compare(report(*now), report(*then)).changes[0].verdict
    assert {forward, backward} in ({"same"}, {"faster", "slower"})


@pytest.mark.parametrize(
    "changes",
    [
        {"cpu": "another"},
        {"cores": 4},
        {"memory": 64_000_000_000},
        {"filesystem": "nfs"},
        {"accelerators": (Accelerator("cuda:0", "GPU", 1, 1.0),)},
    ],
)
def test_unlike_machines_are_never_compared(changes: dict[str, Any]) -> None:
    other = msgspec.structs.replace(MACHINE, **changes)
    comparison = compare(report(5.0, 5.0, 5.0), report(1.0, 1.0, 1.0, machine=other))
    assert not comparison.alike
    assert comparison.changes == ()
    assert next(iter(changes)) in comparison.differences[0]


def test_versions_may_differ_and_are_named() -> None:
    newer = msgspec.structs.replace(MACHINE, versions={"torch": "2.14.0"})
    comparison = compare(report(5.0), report(5.0, machine=newer))
    assert comparison.alike
    assert comparison.differences == ("torch: 2.13.0, now 2.14.0",)


def test_results_of_one_side_only_are_named() -> None:
    comparison = compare(report(5.0, precision="fp16"), report(5.0, precision="int8"))
    assert comparison.changes == ()
    assert comparison.only_then == ("m (synthetic) fp16 cpu readahead weights",)
    assert comparison.only_now == ("m (synthetic) int8 cpu readahead weights",)


def test_a_report_without_a_machine_is_not_compared() -> None:
    assert not compare(report(5.0, machine=None), report(5.0)).alike


def test_the_weights_speed_is_compared_with_the_disks_and_the_memorys() -> None:
    machine = msgspec.structs.replace(MACHINE, memory_speed=8e9)
    cold, warm = trial("cold", build=5.0, read=4.0), trial("warm", read=1.0)
    whole = summarize(result(cold, warm), Disk(1e9, 2e9, 1), None, 0, machine=machine)
    assert (whole.read_speed, whole.read_of_disk, whole.read_of_memory) == (1e9, 0.5, 0.125)
    whole = summarize(result(warm), Disk(1e9, 2e9, 1), None, 0, machine=machine)
    assert (whole.read_speed, whole.read_of_disk, whole.read_of_memory) == (4e9, None, 0.5)
    ahead = msgspec.structs.replace(trial("cold", read=0.1), read_ahead=4.0)
    assert summarize(result(ahead), None, None, 0).read_speed == 1e9


def test_reading_hidden_in_the_copying_is_answered_as_reading() -> None:
    bare = result(trial("cold", read_to_device=9.0), cold=Spread(9, 9, 9, 1), loader="plain")
    verdict, advice = judge_phases(bare)
    assert str(verdict).endswith("reading and copying the weights is 100% of it")
    assert "--loader readahead" in str(advice)


def test_imports_without_bytecode_are_answered_with_how_to_keep_it() -> None:
    machine = msgspec.structs.replace(MACHINE, bytecode=False)
    loads = result(trial("cold", **{"import": 9.0}))
    whole = summarize(loads, None, None, 0, machine=machine)
    assert "PYTHONDONTWRITEBYTECODE" in str(whole.advice)
