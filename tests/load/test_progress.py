"""While a load test runs, it says which trial of how many it makes, and when it will be done."""

from __future__ import annotations

import io
import threading

from hypothesis import given
from hypothesis import strategies as st

from vlmcache.load.live import Progressing
from vlmcache.load.steps import Step, TrialSchedule
from vlmcache.show import live

BAR = ("#", "-")


def test_what_is_left_is_estimated_from_trials_of_the_same_kind_first() -> None:
    schedule = TrialSchedule()
    for run in ("a", "b"):
        schedule.plan(run, "cold", 3)
        schedule.plan(run, "warm", 3)
    assert (schedule.made, schedule.count, schedule.left()) == (0, 12, None)
    schedule.took("a", "cold", 10.0)
    schedule.plan("a", "cold", 2)
    # Nothing else is known yet than that one takes ten seconds.
    assert (schedule.made, schedule.count, schedule.left()) == (1, 12, 110.0)
    schedule.took("a", "warm", 2.0)
    schedule.plan("a", "warm", 2)
    assert schedule.left() == 2 * 10 + 2 * 2 + 6 * 6
    schedule.drop("b")
    assert (schedule.made, schedule.count, schedule.left()) == (2, 6, 24.0)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["cold", "warm"]), st.floats(0, 1e6)),
        max_size=30,
    )
)
def test_whatever_was_measured_no_more_is_left_than_trials_are_planned(
    took: list[tuple[str, str, float]],
) -> None:
    schedule = TrialSchedule()
    for run in "abc":
        schedule.plan(run, "cold", 5)
    for run, kind, seconds in took:
        schedule.took(run, kind, seconds)
    assert schedule.count == len(took) + 15
    left = schedule.left()
    assert (left is None) == (not took)
    if left is not None:
        assert -1e-6 <= left <= 15 * max(seconds for _, _, seconds in took) * 1.000001


def progressing(step: Step, elapsed: float, since: float) -> Progressing:
    now = [0.0]
    shown = Progressing(lambda: now[0])
    now[0] = elapsed - since
    shown.on_step(step)
    now[0] = elapsed
    return shown


STEP = Step(
    "cold load of org/model bf16, readahead", 4, 12, left=45.0, figures={"cold": 3.71, "warm": 2.9}
)


def test_lines_show_the_trial_the_elapsed_time_the_time_left_and_the_figures() -> None:
    shown = progressing(STEP, elapsed=20.0, since=5.0)
    assert shown.lines(80, BAR) == [
        "cold load of org/model bf16, readahead",
        f"trial 4 of 12  {'#' * 13}{'-' * 27}  0:20, about 0:40 left",
        "so far: cold 3.71 s, warm 2.90 s",
    ]
    assert shown.line() == (
        "trial 4 of 12: cold load of org/model bf16, readahead; so far cold 3.71 s,"
        " warm 2.90 s; 0:20, about 0:40 left"
    )


def test_every_line_but_the_name_fits_whatever_the_width() -> None:
    for width in (40, 60, 80, 160):
        lines = progressing(STEP._replace(text="x" * 200), 4000.0, 0.0).lines(width, BAR)
        assert all(len(line) <= max(width, 45) for line in lines[1:]), width


def test_a_trial_that_takes_longer_than_estimated_is_never_less_than_a_second_from_its_end() -> (
    None
):
    assert "about 0:01 left" in progressing(STEP, elapsed=500.0, since=480.0).line()


def test_before_the_first_trial_no_time_left_is_made_up() -> None:
    shown = progressing(Step("cold load", 1, 3), 7.0, 7.0)
    assert shown.line() == "trial 1 of 3: cold load; 0:07"
    assert Progressing().line() == ""


class Said:
    """Something that moves, and is asked once."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def lines(self, _width: int, _bar: tuple[str, str]) -> list[str]:
        raise AssertionError("a pipe has no lines that move")

    def line(self) -> str:
        self.asked.set()
        return "trial 1 of 2\x1b[2J"


def test_a_pipe_gets_a_plain_line_for_each_trial() -> None:
    stream, said = io.StringIO(), Said()
    with live.live_lines(stream, said) as changed:
        changed.set()
        assert said.asked.wait(60)
    first, *_ = stream.getvalue().splitlines()
    assert first == "vlmcache: trial 1 of 2\\x1b[2J"


def test_a_terminal_gets_lines_that_are_cut_to_its_width_and_wiped() -> None:
    class Terminal(io.StringIO):
        encoding = "ascii"

        def isatty(self) -> bool:
            return True

    stream = Terminal()
    shown = progressing(STEP._replace(text="x" * 500), 20.0, 5.0)
    with live.live_lines(stream, shown):
        pass
    drawn = stream.getvalue()
    assert "trial 4 of 12" in drawn
    assert "x" * 300 not in drawn
    assert drawn.endswith("\x1b[2K") or "\x1b[2K" in drawn
