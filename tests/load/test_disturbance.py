"""A trial that others disturbed is known by the kernel's counters, repeated, not summarized."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.caches import CacheBuilder
from tests.load.test_report import result, trial
from vlmcache.cli import main
from vlmcache.cli.main import Interrupted, Terminated
from vlmcache.config import open_session
from vlmcache.errors import UnloadableError
from vlmcache.home.copies import failure
from vlmcache.load import bench, conditions, disturbance
from vlmcache.load.disturbance import Counters, Disturbance, disturbance_between, why_disturbed
from vlmcache.load.judging import mark_slow, short_of, summarize
from vlmcache.load.options import LoadTestOptions
from vlmcache.load.report import LoadReport, Spread, Temperature, Trial
from vlmcache.load.source import ModelFiles, estimate_memory, read_source
from vlmcache.load.trials import Run

TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def counted(busy: float | None, waited: float | None, throttled: float = 0.0) -> Counters:
    return Counters(busy, waited, throttled)


def found(
    busy: float | None, waited: float | None, *, ours: float = 8.0, quota: bool = False, **more: Any
) -> Disturbance:
    """What a load of 10 s on 2 processors is told of, its own work taking 8 s of them."""
    return disturbance_between(
        counted(100.0, None),
        counted(None if busy is None else 100.0 + busy, waited, **more),
        seconds=10.0,
        ours=ours,
        cores=2,
        quota=quota,
    )


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (found(8.0, 0.1), None),
        (found(9.9, 0.9), None),
        (found(9.5, 1.4), "for 14% of its time it waited for a processor in use by others"),
        (found(11.0, 0.0), "other processes used 15% of the processors"),
        # It waited, and nobody else was there to wait for: its own threads were.
        (found(8.0, 5.0), None),
        # Its group had used up its share.
        (found(None, 5.0, throttled=4.5), None),
        # What others do on the processors beyond a group's share is not known to matter.
        (found(18.0, 0.2, quota=True), None),
        (found(18.0, 3.0, quota=True), "for 30% of its time it waited"),
        (found(None, None), None),
    ],
)
def test_a_trial_is_disturbed_by_what_others_did_and_by_nothing_else(
    what: Disturbance, why: str | None
) -> None:
    said = why_disturbed(what, 10.0)
    assert said == why if why is None else str(said).startswith(why)


@given(
    busy=st.none() | st.floats(0, 1e6),
    waited=st.none() | st.floats(0, 1e6),
    ours=st.floats(0, 1e6),
    seconds=st.floats(0, 1e6),
    quota=st.booleans(),
)
def test_whatever_is_counted_the_shares_make_sense(
    busy: float | None, waited: float | None, ours: float, seconds: float, quota: bool
) -> None:
    what = disturbance_between(
        counted(0.0, None), counted(busy, waited), seconds=seconds, ours=ours, cores=2, quota=quota
    )
    assert what.others is None or 0 <= what.others <= 1
    assert what.waited is None or 0 <= what.waited <= (waited or 0)
    why_disturbed(what, seconds)


def kernel(folder: Path, **files: str) -> str:
    """Make a folder that looks like /proc."""
    (folder / "self").mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("_", "/")).write_text(content)
    return str(folder)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux counts it")
def test_the_kernels_counters_are_read_for_the_processors_that_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {1})
    # user nice system idle iowait irq softirq steal guest
    line = f"1 {TICKS} {TICKS} {TICKS} 9999 9999 0 0 {TICKS} 9999"
    proc = kernel(
        tmp_path / "proc",
        stat=f"cpu  1 2 3\ncpu0 {7 * TICKS} 0 0 0 0 0 0 0\ncpu{line}\nintr 5\n",
        self_schedstat="123 2500000000 7\n",
        self_cgroup="4:memory:/x\n3:cpu,cpuacct:/a\n0::/b\n",
    )
    groups = tmp_path / "groups"
    for name, content in {
        "cpu/a/cpu.stat": "nr_throttled 3\nthrottled_time 1500000000\n",
        "b/cpu.stat": "usage_usec 1\nthrottled_usec 250000\n",
        "b/cpu.max": "max 100000\n",
    }.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(content)
    assert disturbance.read_counters(proc, str(groups)) == Counters(4.0, 2.5, 1.75)
    assert not disturbance.has_quota(proc, str(groups))
    (groups / "b" / "cpu.max").write_text("150000 100000\n")
    assert disturbance.has_quota(proc, str(groups))
    (groups / "b" / "cpu.max").unlink()
    (groups / "cpu" / "a" / "cpu.cfs_quota_us").write_text("50000\n")
    assert disturbance.has_quota(proc, str(groups))


def test_a_kernel_that_counts_nothing_disturbs_nothing(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert disturbance.read_counters(nowhere, nowhere) == Counters(None, None, 0.0)
    assert not disturbance.has_quota(nowhere, nowhere)


def test_a_trial_far_slower_than_the_fastest_of_its_kind_is_not_summarized() -> None:
    trials = [trial("cold", read=9.5), trial("cold", read=222.0), trial("warm", read=30.0)]
    marked = mark_slow(trials)
    assert [one.valid for one in marked] == [True, False, True]
    assert marked[1].disturbed
    assert "1.5 times as long" in str(marked[1].why_not)
    whole = summarize(result(*marked), None, None, 0, wanted=2)
    assert whole.cold == Spread(9.5, 9.5, 9.5, 1)
    assert whole.verdict is not None
    assert whole.verdict.startswith("the machine was too busy: 1 of 2 cold trials were disturbed")
    assert "importing" not in whole.verdict


@given(st.lists(st.floats(0.01, 1000), min_size=1, max_size=12))
def test_what_is_left_never_spreads_further_than_allowed(seconds: list[float]) -> None:
    left = [one for one in mark_slow([trial("warm", read=took) for took in seconds]) if one.valid]
    took = [one.seconds or 0.0 for one in left]
    assert max(took) <= disturbance.SPREAD_AT_MOST * min(took)
    assert min(took) == min(seconds)


def test_only_what_was_disturbed_is_repeated() -> None:
    disturbed = msgspec.structs.replace(trial("cold"), valid=False, disturbed=True)
    broken = msgspec.structs.replace(trial("cold"), valid=False)
    assert short_of([trial("cold"), disturbed, disturbed], "cold", 3) == 2
    assert short_of([trial("cold"), broken, broken], "cold", 3) == 0
    assert short_of([trial("cold")] * 3, "cold", 3) == 0


class Scripted(Run):
    """A run whose trials end as scripted."""

    def __init__(self, source: Any, loader: Any, need: Any, home: str | None = None) -> None:
        super().__init__(source, loader, need, home)
        self.script = list(SCRIPT[loader])

    def make_trial(
        self, _options: Any, temperature: Temperature, *, again: bool
    ) -> tuple[Trial, dict[str, Any]]:
        assert not again or temperature == "warm"
        ORDER.append(self.loader)
        step = self.script.pop(0) if self.script else "fine"
        if step == "copy fails" and self.source.kind == "copy":
            raise UnloadableError("no such layer")
        if step == "disk fails":
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.source.folder)
        if step == "stop":
            raise STOP
        made = trial(temperature, start=0.0, read=1.0)
        if step == "busy":
            made = msgspec.structs.replace(made, valid=False, disturbed=True, why_not="busy")
        return made, {"weights_memory": 1}


STOP: type[BaseException] = KeyboardInterrupt
SCRIPT: dict[str, list[str]] = {}
ORDER: list[str] = []


@pytest.fixture
def measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[bench._Bench]:
    """A load test of three trials whose children are scripted."""
    for name in ("HF_HOME", "VLMCACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(bench, "Run", Scripted)
    ORDER.clear()
    made = bench._Bench(open_session(), LoadTestOptions(trials=3), lambda _step: None)
    made.device = "cpu"
    made.machine = conditions.describe_machine((), str(tmp_path))
    yield made
    SCRIPT.clear()


def source_in(folder: Path, **changes: Any) -> ModelFiles:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}" + bytes(4096))
    source = read_source(str(folder), model="m", precision="bf16")
    return msgspec.structs.replace(source, **changes)


def test_at_most_as_many_trials_again_replace_disturbed_ones(
    measuring: bench._Bench, tmp_path: Path
) -> None:
    measuring.options = LoadTestOptions(trials=3, cold=False)
    SCRIPT["plain"] = ["fine", "busy", "fine", "busy", "fine"]
    SCRIPT["readahead"] = ["busy"] * 99
    source = source_in(tmp_path / "model")
    measuring._take_turns(None, [(source, "plain"), (source, "readahead")])
    plain, busy = measuring.results
    assert [one.valid for one in plain.trials] == [True, False, True, False, True]
    assert plain.warm == Spread(1.0, 1.0, 1.0, 3)
    assert "reading the weights is 100% of it" in str(plain.verdict)
    assert len(busy.trials) == 6
    assert busy.warm is None
    assert busy.verdict == "the machine was too busy: 6 of 6 warm trials were disturbed (busy)"


def test_a_kept_copy_and_its_original_take_turns(
    measuring: bench._Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SCRIPT["plain"] = SCRIPT["readahead"] = []
    source = source_in(tmp_path / "model", kind="at-load", precision="int8")
    copy = source_in(tmp_path / "copy", kind="copy", precision="int8")
    monkeypatch.setattr("vlmcache.load.quantized.preferred", lambda *_: copy)
    measuring.options = LoadTestOptions(trials=2, cold=False, loaders=("plain", "readahead"))
    measuring.measure(None, source)
    assert ORDER == ["plain", "readahead", "plain"] * 2
    assert [one.source for one in measuring.results] == ["copy", "copy", "at-load"]


@pytest.mark.parametrize("fails", [("plain",), ("plain", "readahead")])
def test_a_copy_that_no_loader_loads_is_set_aside_where_its_original_loads(
    measuring: bench._Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: tuple[str, ...],
) -> None:
    SCRIPT.update({loader: ["copy fails"] * (loader in fails) for loader in ("plain", "readahead")})
    source = source_in(tmp_path / "model", kind="at-load", precision="int8")
    copy = source_in(tmp_path / "copy", kind="copy", precision="int8")
    monkeypatch.setattr("vlmcache.load.quantized.preferred", lambda *_: copy)
    measuring.options = LoadTestOptions(trials=1, cold=False, loaders=("plain", "readahead"))
    measuring.measure(None, source)
    assert [one.message for one in measuring.failures] == ["no such layer"] * len(fails)
    assert failure(copy.folder) == ("no such layer" if len(fails) == 2 else None)


def test_no_more_trials_are_counted_of_a_model_whose_files_cannot_be_read(
    measuring: bench._Bench, tmp_path: Path
) -> None:
    SCRIPT["plain"] = ["fine", "disk fails"]
    measuring.options = LoadTestOptions(trials=3, cold=False, loaders=("plain",))
    measuring.measure(None, source_in(tmp_path / "model"))
    (failed,) = measuring.failures
    assert failed.message == f"m: {os.strerror(errno.EIO)}: {tmp_path / 'model'}"
    (kept,) = measuring.results
    assert len(kept.trials) == 1
    assert (measuring.schedule.made, measuring.schedule.count) == (1, 1)


def test_an_interrupted_load_test_keeps_what_was_measured_before(
    measuring: bench._Bench, tmp_path: Path
) -> None:
    SCRIPT["plain"] = ["fine", "fine", "fine", "stop"]
    source = source_in(tmp_path / "model")
    with pytest.raises(KeyboardInterrupt):
        measuring._take_turns(None, [(source, "plain")])
    (kept,) = measuring.results
    assert [one.temperature for one in kept.trials] == ["cold", "warm", "cold"]
    report = msgspec.structs.replace(LoadReport(measuring.machine, (kept,)), interrupted=True)
    assert report.problem is not None
    assert (report.problem.code, report.problem.exit_code) == ("interrupted", 130)
    assert (measuring.schedule.made, measuring.schedule.count) == (3, 6)


@pytest.mark.parametrize(
    ("end", "code", "name"),
    [
        (Interrupted, 130, "interrupted"),
        (Terminated, 143, "terminated"),
    ],
)
def test_a_signal_leaves_a_report_of_what_was_measured_marked_as_not_complete(
    end: type[BaseException],
    code: int,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for variable in ("HF_HOME", "VLMCACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.chdir(tmp_path)
    config = b'{"model_type": "qwen2"}'
    weights = (2).to_bytes(8, "little") + b"{}" + bytes(4096)
    files = {"config.json": config, "model.safetensors": weights}
    CacheBuilder(tmp_path / "HF_HOME" / "hub").repo("org/m").revision(files)

    def facts(measuring: bench._Bench) -> None:
        measuring.device = "cpu"
        measuring.machine = conditions.describe_machine((), str(tmp_path))

    monkeypatch.setattr(bench._Bench, "probe_devices", facts)
    monkeypatch.setattr(bench, "require_packages", lambda: None)
    monkeypatch.setattr(bench, "Run", Scripted)
    monkeypatch.setattr(main, "_ignore_signals", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    SCRIPT["plain"] = ["fine", "fine", "fine", "stop"]
    monkeypatch.setattr("tests.load.test_disturbance.STOP", end)
    words = ["load-test", "org/m", "--loader", "plain", "--save", "cut.json", "--plot", "cut.svg"]
    with pytest.raises(SystemExit) as ended:
        main.main([*words, "--json"])
    assert ended.value.code == code
    printed = json.loads(capsys.readouterr().out)
    saved = json.loads((tmp_path / "cut.json").read_text())
    for document in (printed, saved):
        assert document["interrupted"] is True
        assert document["complete"] is False
        assert document["ended_by"] == name
        assert (document["trials_made"], document["trials_planned"]) == (3, 6)
        (kept,) = document["results"]
        assert [one["temperature"] for one in kept["trials"]] == ["cold", "warm", "cold"]
    assert printed["errors"][0]["code"] == name
    assert set(printed["written"]) == {"history", "report", "plot"}
    assert "Not complete" in (tmp_path / "cut.svg").read_text()
    SCRIPT["plain"] = ["stop"]
    with pytest.raises(SystemExit) as ended:
        main.main(words)
    assert ended.value.code == code
    assert capsys.readouterr().err.endswith(f"error: {name}\n")


def test_a_loader_whose_extra_memory_is_not_there_is_refused_beforehand(
    measuring: bench._Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SCRIPT["plain"] = SCRIPT["pinned"] = []
    source = source_in(tmp_path / "model", precision="fp32")
    # As for `load_model`, only what is held has to fit.
    need = estimate_memory(source).held.total
    monkeypatch.setattr("vlmcache.load.trials.available_memory", lambda: need + 100)
    measuring._take_turns(None, [(source, "plain"), (source, "pinned")])
    assert [one.loader for one in measuring.results] == ["plain"]
    assert [(one.code, one.loader) for one in measuring.failures] == [
        ("not-enough-memory", "pinned")
    ]


def test_the_figures_so_far_say_after_the_kind_that_its_trials_were_disturbed(
    tmp_path: Path,
) -> None:
    source = source_in(tmp_path / "model")
    run = Run(source, "plain", estimate_memory(source))
    run.trials = [trial("cold"), msgspec.structs.replace(trial("warm"), valid=False)]
    assert list(run.figures(("cold", "warm"))) == ["cold", "warm (disturbed)"]
