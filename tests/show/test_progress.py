"""What progress shows: lines that fit, of names of any kind, and how much is left."""

from __future__ import annotations

import io
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from vlmcache.progress import FileOf, Progress, Rate, Tally, continued_by, files_shown, planned
from vlmcache.show.layout import LONG_FILE, NARROWEST, lines_of, progress_rows, short_name, text_of
from vlmcache.show.progress import Lines, OneLine
from vlmcache.show.text import ASCII, UNICODE, printable

NAMES = st.text(min_size=1, max_size=60) | st.sampled_from(
    [
        "Qwen/Qwen2-VL-2B-Instruct",
        "model-00001-of-00005.safetensors",
        "研究所/視覚言語モデル大規模版-日本語-Instruct",
        "a\x1b[31mb\x07\u202e/\udc80",
        "e\u0301" * 30,
        "👩‍👩‍👧‍👦" * 9,
    ]
)
SIZES = st.integers(0, 1 << 63) | st.sampled_from([1, 999, 1000, 999_500, 4_420_000_000, 10**12])


@st.composite
def tallies(draw: st.DrawFn) -> Tally:
    """Return work on some models at any point of it."""
    tally = Tally()
    models = draw(st.dictionaries(NAMES, st.dictionaries(NAMES, SIZES, max_size=5), max_size=4))
    if draw(st.booleans()):
        tally.planned("on disk", {name: sum(files.values()) for name, files in models.items()}, {})
    for name, files in models.items():
        if draw(st.booleans()):
            tally.started(name, files, draw(st.integers(0, sum(files.values()))))
        for file, size in files.items():
            if draw(st.booleans()):
                tally.moved(name, file, draw(st.integers(0, size)))
            if draw(st.booleans()):
                tally.waiting(name, file, f"process 4711 ({draw(NAMES)})")
        if draw(st.booleans()):
            tally.ended(name)
    return tally


@settings(max_examples=50)
@given(
    tallies(),
    st.integers(NARROWEST, 200),
    st.none() | st.floats(0, 1e12),
    st.integers(1, 20),
    st.booleans(),
)
def test_no_line_is_wider_than_the_terminal_whatever_the_names_and_sizes(
    tally: Tally, width: int, speed: float | None, most: int, unicode: bool
) -> None:
    glyphs = UNICODE if unicode else ASCII
    rows = progress_rows(tally, speed, most)
    assert len(rows) <= most
    lines = [text_of(line) for line in lines_of(rows, width, glyphs)]
    assert len(lines) == len(rows)
    for row, line in zip(rows, lines, strict=True):
        assert cell_len(line) <= width, line
        assert line == line.rstrip()
        assert line.isprintable()
        assert row.kind == "wait" or "%" in line
    done, total = tally.done, tally.total
    assert 0 <= done <= total
    if rows and total:
        assert f" {int(done / total * 100):>3}%" in lines[-1]


@given(NAMES.map(printable), st.integers(1, 60))
def test_a_shortened_name_fits_and_keeps_its_beginning_and_end(name: str, width: int) -> None:
    short = short_name(name, width, UNICODE)
    assert cell_len(short) <= width
    if cell_len(name) <= width:
        assert short == name
    elif "…" in short and len(short) > 4 and "/" not in name and name.isascii():
        head, _, tail = short.partition("…")
        assert name.endswith(tail)
        assert name.lstrip(" 0").startswith(head.lstrip(" 0")[:1])


def test_names_are_shortened_where_they_say_least() -> None:
    assert short_name("Qwen/Qwen2-VL-2B-Instruct", 20, UNICODE) == "Qwen2-VL-2B-Instruct"
    assert short_name("organization/VLM-2B-Instruct", 20, UNICODE) == "…/VLM-2B-Instruct"
    assert (
        short_name("organization/A-Very-Long-Name-Instruct", 20, UNICODE) == "A-Very-Long-Nam…ruct"
    )
    assert short_name("/data/hub", 6, UNICODE) == "/dat…b"
    assert short_name("  onnx/deep/model.onnx", 16, UNICODE) == "  …/model.onnx"
    shard = "  model-00001-of-00005.safetensors"
    assert short_name(shard, 26, UNICODE) == "  model-1-of-5.safetensors"
    assert short_name(shard, 17, UNICODE) == "  model-1-of…sors"


def columns(tally: Tally, width: int, speed: float | None = 98e6) -> list[str]:
    return [text_of(line) for line in lines_of(progress_rows(tally, speed, 9), width, UNICODE)]


def work() -> Tally:
    """Return three models, of which one is complete and one is on its way."""
    tally = Tally()
    sizes = {"org/one": 1_500_000_000, "Qwen/Qwen2-VL-7B-Instruct": 16_600_000_000, "org/b": 10**9}
    tally.planned("on disk", sizes, {"org/b": 400_000_000})
    tally.started("org/one", {"model.safetensors": 1_500_000_000}, 0)
    tally.moved("org/one", "model.safetensors", 1_500_000_000)
    tally.ended("org/one")
    shards = {f"model-0000{n}-of-00004.safetensors": 4_150_000_000 for n in range(1, 5)}
    tally.started("Qwen/Qwen2-VL-7B-Instruct", shards, 0)
    tally.moved("Qwen/Qwen2-VL-7B-Instruct", "model-00001-of-00004.safetensors", 4_150_000_000)
    tally.moved("Qwen/Qwen2-VL-7B-Instruct", "model-00002-of-00004.safetensors", 1_000_000_000)
    return tally


def test_a_pull_of_three_models_shows_the_one_on_its_way_and_all() -> None:
    assert columns(work(), 57) == [
        "Qwen2-VL-7…uct  31% ━─────  5.2/16.6 GB   98 MB/s  1m 56s",
        "  model-2-…ors  24% ━─────   1.0/4.2 GB",
        "1 of 3 models   36% ━━────  7.0/19.1 GB   98 MB/s  2m 02s",
    ]
    assert columns(work(), 77) == [
        "Qwen/Qwen2-VL-7B-Instruct       31% ━━━───────  5.2/16.6 GB   98 MB/s  1m 56s",
        "  model-2-of-4.safetensors      24% ━━────────   1.0/4.2 GB",
        "1 of 3 models                   36% ━━━───────  7.0/19.1 GB   98 MB/s  2m 02s",
    ]
    assert columns(work(), NARROWEST) == [
        "Qwen2-VL-7…uct  31%",
        "  model-2-…ors  24%",
        "1 of 3 models   36%",
    ]


def test_a_summary_says_what_is_done_and_what_is_left() -> None:
    tally = work()
    expected = "7 GB of 19.1 GB on disk, 12.1 GB left; 1 of 3 models complete"
    assert tally.summary() == expected
    with pytest.raises(KeyboardInterrupt) as raised, continued_by(tally, "again"):
        raise KeyboardInterrupt
    assert raised.value.args == ("again", expected)
    with pytest.raises(ValueError, match="other") as other, continued_by(tally, "again"):
        raise ValueError("other")
    assert other.value.args == ("other",)
    assert Progress().summary() == Tally().summary() == ""


def test_files_of_several_models_may_be_done_in_any_order() -> None:
    tally = Tally()
    files = {
        "/a": FileOf("org/x", "w", LONG_FILE),
        "/b": FileOf("org/x", "w", LONG_FILE),
        "/c": FileOf("org/y", "w", LONG_FILE),
    }
    with files_shown(tally, "verified", files) as moved:
        assert [row.name for row in progress_rows(tally, None, 9)] == ["0 of 2 models"]
        moved("/c", LONG_FILE)
        moved("/b", 1)
        moved("/elsewhere", 5)
        assert [row.name for row in progress_rows(tally, None, 9)] == [
            "org/x",
            "  /b",
            "1 of 2 models",
        ]
        moved("/a", LONG_FILE)
        moved("/b", LONG_FILE)
    assert tally.models_text == "2 of 2 models"
    assert tally.done == tally.total == 3 * LONG_FILE


def test_several_files_that_one_process_downloads_are_one_line() -> None:
    tally = Tally()
    sizes = {f"file-{number}": LONG_FILE for number in range(3)}
    tally.started("org/x", sizes, 0)
    for name in sizes:
        tally.waiting("org/x", name, "process 4711 (anna: hf download org/x)")
        tally.moved("org/x", name, 100)
    rows = progress_rows(tally, None, 9)
    assert [row.name for row in rows] == [
        "waiting for process 4711 (anna: hf download org/x), for 3 files",
        "org/x",
    ]
    for name in sizes:
        tally.waiting("org/x", name, None)
    assert len(progress_rows(tally, None, 9)) == 4


def test_a_speed_is_that_of_the_last_seconds() -> None:
    rate = Rate(10.0)
    assert rate.add(0.0, 500) == 0.0
    assert rate.add(1.0, 600) == 100.0
    for second in range(2, 40):
        speed = rate.add(float(second), 600 + 10 * second)
    assert speed == 10.0
    assert rate.add(41.0, 0) == 0.0


def test_off_a_terminal_a_plain_line_has_percent_models_speed_and_time_left() -> None:
    stream = io.StringIO()
    lines = Lines(stream, every=None)
    lines.planned("on disk", {"org/a": 1000, "org/b": 3000}, {})
    lines.started("org/a", {"w": 1000}, 0)
    lines.pace.at(0.0)
    lines.moved("org/a", "w", 1000)
    lines.tick(10.0)
    lines.ended("org/a")
    lines.started("org/b", {"w": 3000}, 0)
    holder = "process 4711 (anna: hf download)"
    lines.waiting("org/b", "w", holder)
    lines.waiting("org/b", "v", holder)
    lines.tick(30.0)
    assert stream.getvalue().splitlines() == [
        "vlmcache: org/a, 1 of 2 models: 1 kB of 4 kB, 25%, 100 B/s, 30 s left",
        f"vlmcache: waiting for {holder}, which downloads the same files",
        f"vlmcache: org/b, 1 of 2 models: 1 kB of 4 kB, 25%, waiting for {holder}",
    ]


def test_a_terminal_that_wants_no_colors_gets_one_line_that_is_written_anew() -> None:
    stream = io.StringIO()
    line = OneLine(stream)
    shown = threading.Event()
    line.every = 0.001
    draw = line.tick
    line.tick = lambda now: (draw(now), shown.set())  # type: ignore[method-assign, assignment, func-returns-value]
    with planned(line, "verified", {"org/a": 1000}):
        line.started("org/a", {"w": 1000}, 0)
        assert shown.wait(60)
        line.note("a note")
    written = stream.getvalue()
    assert "\x1b" not in written
    assert "vlmcache: a note\n" in written
    assert written.endswith("\r")
    assert all(cell_len(part) <= 80 for text in written.splitlines() for part in text.split("\r"))
