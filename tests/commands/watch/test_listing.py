"""The rows of the live view, what is said of all downloads together, and what the keys change."""

from __future__ import annotations

import pytest

from vlmcache.commands.watch.controls import Controls
from vlmcache.commands.watch.keyboard import keys_of
from vlmcache.commands.watch.listing import Total, full_in, items_of, model_rows, total_of
from vlmcache.commands.watch.values import Download, DownloadState, Program, WatchedModel


def model(name: str, state: str = "cached", size: int = 100, left: int = 0) -> WatchedModel:
    return WatchedModel(
        key=None,
        repo=name,
        type="model",
        revision=None,
        state=state,  # type: ignore[arg-type]
        size_on_disk=size - left,
        expected_size=size,
        used_by=(),
        to_fetch=left,
        progress=1 - left / size,
        to_receive=left,
    )


def download(
    repo: str,
    size: int = 40,
    expected: int | None = 100,
    speed: float | None = 10.0,
    state: DownloadState = "running",
    file: str = "model.safetensors",
) -> Download:
    left = None if speed is None or expected is None else (expected - size) / speed
    process = Program(7, "hf", "ada")
    return Download(
        repo, "model", file, "e" * 64, "/p", state, size, expected, speed, left, process
    )


def names(controls: Controls, models: list[WatchedModel], page: int = 100) -> list[str]:
    items, _, _ = controls.choose(model_rows(models, ()), page)
    return [item.row.name for item in items]


def test_a_model_and_all_together_say_what_is_left_and_how_long_that_takes() -> None:
    models = [model("a", "partial", 200, 120), model("b"), model("c", "partial", 100, 60)]
    rows = model_rows(models, [download("a", speed=20.0), download("a", speed=4.0), download("c")])
    assert [row.left for row in rows] == [120, None, 60]
    assert [row.seconds_left for row in rows] == [5.0, None, 6.0]
    assert total_of(rows) == Total(2, 180, 300, 34.0)
    assert total_of(model_rows(models, [download("a", state="left-behind", speed=None)])) is None


def test_a_new_revision_of_a_complete_model_has_a_bar_of_its_own() -> None:
    (row,) = model_rows([model("a")], [download("a", 25), download("a", 50)])
    assert (row.progress, row.left) == (75 / 200, 125)


def test_of_a_repo_that_is_listed_twice_the_incomplete_revision_arrives() -> None:
    rows = model_rows([model("a"), model("a", "partial", 100, 60)], [download("A")])
    assert [len(row.downloads) for row in rows] == [0, 1]


@pytest.mark.parametrize(
    ("free", "rate", "total", "seconds"),
    [
        (None, 5.0, None, None),
        (1000, None, None, None),
        (1000, 10.0, None, 100.0),
        # What runs ends before the disk is full, although that shrinks now.
        (1000, 10.0, Total(1, 900, 1000, 10.0), None),
        (1000, 12.0, Total(1, 900, 1000, 10.0), None),
        # It does not fit.
        (1000, 10.0, Total(1, 1100, 2000, 10.0), 100.0),
        (1000, None, Total(1, 1100, 2000, 20.0), 50.0),
        # Somebody else writes too, and goes on after that.
        (1000, 20.0, Total(1, 300, 1000, 10.0), 70.0),
        (1000, 110.0, Total(1, 300, 1000, 10.0), 1000 / 110),
        # Nothing says how much is to come.
        (1000, 10.0, Total(1, None, None, 10.0), 100.0),
        (1000, None, Total(1, 900, 1000, 0.0), None),
    ],
)
def test_when_the_disk_is_full_depends_on_what_the_downloads_still_need(
    free: int | None, rate: float | None, total: Total | None, seconds: float | None
) -> None:
    assert full_in(free, rate, total) == (None if seconds is None else pytest.approx(seconds))


def test_what_runs_comes_first_with_its_files_then_what_is_not_in_order() -> None:
    models = [model("b"), model("a"), model("bad", "damaged"), model("z", "partial", 100, 60)]
    files = [download("z", file="2"), download("z", file="1")]
    items = items_of(model_rows(models, files))
    shown = [(item.row.name, item.file.file if item.file else None) for item in items]
    assert shown == [("z", None), ("z", "1"), ("z", "2"), ("bad", None), ("a", None), ("b", None)]


def test_keys_sort_filter_and_scroll_and_letters_of_a_filter_are_no_keys() -> None:
    models = [model(f"org/m-{number:03}", size=1000 - number) for number in range(200)]
    controls = Controls()
    assert names(controls, models, 10) == [f"org/m-{number:03}" for number in range(10)]
    for key, first in (("down", 1), ("page down", 11), ("up", 10), ("end", 190), ("home", 0)):
        assert controls.press(key)
        assert names(controls, models, 10)[0] == f"org/m-{first:03}"
    seen: set[str] = set()
    for _ in range(20):
        seen.update(names(controls, models, 10))
        controls.press("page down")
    assert len(seen) == 200
    for key in ("/", *"M-19q", "backspace", "enter"):
        assert controls.press(key)
    assert names(controls, models) == [f"org/m-{number}" for number in range(190, 200)]
    assert "/ filter (M-19)" in controls.keys
    assert controls.press("escape")
    assert len(names(controls, models)) == 100
    for order in ("name", "size", "state", "activity"):
        controls.press("s")
        assert controls.order == order
    controls.press("p")
    assert controls.paused
    assert not controls.press("q")


def test_the_keys_of_a_terminal_have_names() -> None:
    sent = "a\x1b[A\x1bOB\x1b[5~\x1b[6~\x1b[H\x1b[4~\n\x7fé\x1b[1;5C\x1bx\x00\x1b"
    names = ["a", "up", "down", "page up", "page down", "home", "end", "enter", "backspace", "é"]
    assert keys_of(sent) == [*names, "escape"]
