"""Sizes and durations survive the way from words to numbers and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmcache.units import duration_text, pace_text, parse_duration, parse_size, size_text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1kB", 1000),
        ("1.5GB", 1_500_000_000),
        ("1.5 gb", 1_500_000_000),
        ("2GiB", 2 * 1024**3),
        ("10g", 10_000_000_000),
        ("3 TB", 3 * 10**12),
        ("7B", 7),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1.5.2GB", "ten", "1e9", "nan", "1 XB", "１GB"])
def test_a_text_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90s", 90), ("5m", 300), ("12h", 43200), ("30d", 2592000), ("1w", 604800)],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-3d", "3 months"])
def test_a_text_that_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_600, "1 MB"),
        (4_430_000_000, "4.4 GB"),
        (10_000_000_000, "10 GB"),
        (252_000_000_000, "252 GB"),
        (5_500_000_000_000, "5.5 TB"),
    ],
)
def test_sizes_are_shown_in_decimal_units(size: int, text: str) -> None:
    assert size_text(size) == text


@given(st.integers(0, 10**16))
def test_a_shown_size_read_back_is_near_what_it_was(size: int) -> None:
    assert abs(parse_size(size_text(size)) - size) <= max(1, size * 0.06)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (90, "1 min"), (3600, "1 hour"), (86400, "1 day"), (200_000, "2 days")],
)
def test_durations_are_shown_in_the_largest_whole_unit(seconds: int, text: str) -> None:
    assert duration_text(seconds) == text


def test_how_long_bytes_took_comes_with_their_speed() -> None:
    assert pace_text(71_500_000, 0.2) == "0.2 s (358 MB/s)"
    assert pace_text(1_000, 0.01) == "0.01 s (100 kB/s)"
    assert pace_text(24_000_000_000, 200.0) == "3 min (120 MB/s)"
    assert pace_text(0, 0.0) == "0.00 s (0 B/s)"
