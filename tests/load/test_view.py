"""The first line is the verdict, numbers stand below each other, and no line is too wide."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from tests.load.test_report import MACHINE, report, result, trial
from vlmcache.load import view
from vlmcache.load.comparing import compare
from vlmcache.load.judging import summarize
from vlmcache.load.quantized import Quantization
from vlmcache.load.report import Disk, LoadReport, Remembered, Result, Temperature

NOW = datetime.now(timezone.utc).replace(microsecond=0)
LONG = "an-organization/a-model-with-a-rather-long-name-Instruct-GPTQ"


def measured(more: float = 0.0, **changes: Any) -> Result:
    kinds: tuple[tuple[Temperature, float], ...] = (("cold", 3.5), ("warm", 2.5))
    trials = [
        trial(kind, **{"start": 0.05, "import": seconds + more + number / 10, "read": 0.11})
        for kind, seconds in kinds
        for number in range(3)
    ]
    bare = result(*trials, trial("hot", build=0.1), memory_estimate=5_400_000_000, **changes)
    return summarize(bare, Disk(1.1e9, 1.5e9, 1, 4), None, 0, wanted=3, machine=MACHINE)


def measured_all(**changes: Any) -> LoadReport:
    return msgspec.structs.replace(report(1.0), **({"results": (measured(),), "at": NOW} | changes))


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Show a report on so many columns, and return its lines without blanks at their ends."""

    def show(value: LoadReport, columns: int, **options: Any) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        view.show(value, **options)
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return show


def test_the_first_line_is_the_verdict_and_the_second_what_to_do(shown: Any) -> None:
    assert shown(measured_all(), 80)[:12] == [
        "m bf16 loads in 3.8 s cold (2.8 s warm); importing torch is 96% of it",
        "  importing torch and transformers is the limit: keep the process alive between",
        "  uses",
        "",
        "  cold                 3.76 s  3.66 to 3.86 s, 3 trials",
        f"    starting Python    0.05 s    1%  {'█'}",
        f"    importing          3.60 s   96%  {'█' * 38}",
        f"    reading            0.11 s    3%  {'█'}",
        "  warm                 2.76 s  2.66 to 2.86 s, 3 trials",
        f"    starting Python    0.05 s    2%  {'█'}",
        f"    importing          2.60 s   94%  {'█' * 28}",
        f"    reading            0.11 s    4%  {'█'}",
    ]


def test_several_results_have_a_verdict_each_and_are_compared(shown: Any) -> None:
    slow = measured(16.0, precision="int8", source="at-load")
    lines = shown(measured_all(results=(measured(), slow)), 80)
    assert [line for line in lines if " loads in " in line] == [
        "m bf16 loads in 3.8 s cold (2.8 s warm); importing torch is 96% of it",
        "m int8 loads in 19.8 s cold (18.8 s warm); importing torch is 99% of it",
    ]
    at = next(number for number, line in enumerate(lines) if line.startswith("MODEL"))
    assert lines[at : at + 5] == [
        "MODEL  PRECISION     COLD     WARM     HOT  MEMORY",
        "m      bf16        3.76 s   2.76 s  0.10 s    5 GB",
        "m      int8       19.76 s  18.76 s  0.10 s    5 GB",
        "fastest cold: bf16; int8 takes 5.26 x as long",
        "fastest warm: bf16; int8 takes 6.80 x as long",
    ]


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_no_line_but_a_command_or_a_path_is_wider_than_the_terminal(
    shown: Any, columns: int
) -> None:
    results = tuple(
        measured(more, model=LONG, precision=precision, loader=loader, source=source)
        for more, precision, loader, source in (
            (0.0, "bf16", "fastsafetensors", "weights"),
            (120.0, "int8", "readahead", "at-load"),
            (1.0, "int8", "readahead", "copy"),
        )
    )
    now = measured_all(results=results)
    earlier = msgspec.structs.replace(now, at=NOW - timedelta(days=3), complete=False)
    history = [Remembered(NOW - timedelta(hours=9), MACHINE, one) for one in results]
    for value in (
        now,
        measured_all(results=results, comparison=compare(earlier, now)),
        LoadReport(None, (), history=tuple(history)),
    ):
        for line in shown(value, columns, verbose=True):
            # A name is not broken either.
            fits = len(line) <= columns or line.split() == [LONG]
            assert fits or line.startswith("  vlmcache "), line


def test_then_and_now_stand_below_each_other_with_what_changed(shown: Any) -> None:
    then = measured_all(results=(measured(2.0),), at=NOW - timedelta(days=3))
    now = measured_all(comparison=compare(then, measured_all()))
    wide, narrow = shown(now, 80), shown(now, 60)
    at = wide.index("m bf16 on cpu, readahead")
    assert wide[at - 1].startswith("Compared with the earlier report of 20")
    assert wide[at + 1 : at + 5] == [
        "          THEN                   NOW                CHANGE",
        "  cold  5.76 s  5.66 to 5.86  3.76 s  3.66 to 3.86  35% less time",
        "  warm  4.76 s  4.66 to 4.86  2.76 s  2.66 to 2.86  42% less time",
        "  hot   0.10 s  0.10 to 0.10  0.10 s  0.10 to 0.10  too few trials to compare",
    ]
    at = narrow.index("m bf16 on cpu, readahead")
    assert narrow[at + 1 : at + 3] == [
        "          THEN     NOW  CHANGE",
        "  cold  5.76 s  3.76 s  35% less time",
    ]


def test_an_earlier_report_that_is_not_complete_is_called_so(shown: Any) -> None:
    then = measured_all(complete=False)
    lines = shown(measured_all(comparison=compare(then, measured_all())), 80)
    assert "  which is not complete: it was ended before all was measured" in lines


def test_history_is_by_model_the_latest_first_twenty_rows_of_it(shown: Any) -> None:
    history = [
        Remembered(NOW - timedelta(days=number + 1, hours=1), MACHINE, measured(model=model))
        for number in range(15)
        for model in ("a", LONG)
    ]
    value = LoadReport(None, (), history=tuple(history))
    lines = shown(value, 80)
    assert lines[:3] == [
        "a",
        "  WHEN         PRECISION  LOADER       COLD    WARM  MEMORY",
        "  1 day ago    bf16       readahead  3.76 s  2.76 s    5 GB",
    ]
    assert LONG in lines
    assert lines[-1] == "and 10 more; -v shows all"
    assert len([line for line in lines if "readahead" in line]) == 20
    assert len([line for line in shown(value, 80, verbose=True) if "readahead" in line]) == 30


def test_what_was_written_is_named_and_what_is_not_complete_too(shown: Any) -> None:
    written = {"history": "/own/memory.sqlite", "report": "/a b/x.json", "plot": "/x.svg"}
    lines = shown(
        measured_all(written=written, complete=False, trials_made=5, trials_planned=12), 60
    )
    assert "Not complete: 5 of 12 trials were made before it was ended." in lines
    assert lines[-3:] == ["history: /own/memory.sqlite", "report: /a b/x.json", "plot: /x.svg"]


def test_a_disturbed_trial_is_named_with_the_time_it_took(shown: Any) -> None:
    busy = msgspec.structs.replace(
        trial("cold", read=9.0), valid=False, disturbed=True, why_not="others were busy"
    )
    lines = shown(measured_all(results=(summarize(result(busy), None, None, 0),)), 160)
    assert "m bf16: the machine was too busy: 1 of 1 cold trials were disturbed" in lines[0]
    (note,) = (line for line in lines if line.startswith("  note"))
    assert note.endswith("1 cold trial does not count: others were busy; the fastest took 9.0 s")


def test_quantize_says_what_it_kept_how_long_all_took_and_how_it_is_used(
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = Quantization(
        model="org/m",
        repo="org/m",
        commit="0" * 40,
        precision="int8",
        path="/own/quantized/m",
        made=True,
        source_bytes=4_400_000_000,
        expected=2_400_000_000,
        free=9_000_000_000,
        size=2_420_000_000,
        seconds=23.7,
        phases={"quantize": 14.0, "compare": 8.0, "keep": 1.5},
    )
    view.show_quantization(value)
    assert capsys.readouterr().out.splitlines() == [
        "org/m int8: kept 2.4 GB in place of 4.4 GB (55%), in 23.7 s",
        "  quantized in 14.0 s, loaded again and compared in 8.0 s, hashed in 1.5 s",
        "  /own/quantized/m",
        "Loads use it automatically:",
        '  vlmcache.load_model("org/m", precision="int8")   # Python',
        "  vlmcache load-test org/m --precision int8",
        "To remove it:",
        "  vlmcache quantize org/m --precision int8 --remove",
    ]
    view.show_quantization(msgspec.structs.replace(value, made=False, size=None))
    assert capsys.readouterr().out.splitlines() == [
        "org/m int8: would keep about 2.4 GB in place of 4.4 GB (55%); 9 GB are free",
        "  /own/quantized/m",
    ]


def test_a_model_on_another_drive_says_where_it_is_and_what_brings_it_back(shown: Any) -> None:
    archived = measured(elsewhere="/mnt/hdd/hub", repo="org/name")
    lines = shown(measured_all(results=(archived,)), 100)
    assert "  place      it is at /mnt/hdd/hub; vlmcache recall org/name brings it back" in lines
