"""The one pool of threads: each item once, the first failure, and no thread left behind."""

from __future__ import annotations

import threading

import pytest

from vlmcache.progress import Stopped, StopToken
from vlmcache.threads import StillError, each, results, unless_still


@pytest.mark.parametrize("workers", [1, 3, 50])
def test_each_item_is_done_once_whatever_the_number_of_threads(workers: int) -> None:
    done = list(results(range(40), lambda item: item * 2, workers, threading.Event()))
    assert sorted(done) == [item * 2 for item in range(40)]
    assert list(results([], str, workers, threading.Event())) == []


def test_the_first_failure_is_raised_once_the_other_threads_have_ended() -> None:
    stop_token = StopToken()
    before = threading.active_count()
    begun = threading.Barrier(3)
    ended: list[int] = []

    def work(item: int) -> None:
        begun.wait()
        if item == 0:
            raise ValueError("the first")
        stop_token.stopped.wait()
        ended.append(item)
        raise Stopped

    with pytest.raises(ValueError, match="the first"):
        each(range(9), work, 3, stop_token)
    assert sorted(ended) == [1, 2]
    assert threading.active_count() == before


def test_closing_early_stops_the_threads() -> None:
    stopped = threading.Event()
    before = threading.active_count()
    done = results(range(9), lambda item: stopped.wait() if item else True, 3, stopped)
    assert next(done)
    done.close()
    assert stopped.is_set()
    assert threading.active_count() == before


def test_work_that_somebody_else_stops_ends_as_stopped() -> None:
    stop_token = StopToken()
    stop_token.stopped.set()
    with pytest.raises(Stopped):
        each([1], lambda _: None, 1, stop_token)


def test_work_that_stands_still_is_given_up_and_other_work_has_its_time() -> None:
    ended = threading.Event()
    with pytest.raises(StillError, match=r"for 0\.2 s"):
        unless_still(lambda: ended.wait(60), 0.2)
    ended.set()
    assert unless_still(lambda: sum(range(100_000)), 60) == 4_999_950_000
    with pytest.raises(ValueError, match="nonsense"):
        unless_still(lambda: int("nonsense"), 60)
