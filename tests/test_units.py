"""Sizes and durations survive the way from words to numbers and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmcache.units import (
    LARGEST,
    duration_text,
    exact_size,
    pace_text,
    parse_duration,
    parse_size,
    size_text,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096B", 4096),
        (" 0.0 ", 0),
        ("0.0000001kB", 0),
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


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "1.5.2GB", "ten", "1e9", "nan", "1 XB", "１GB", "5i", "1ib"]
)
def test_a_string_that_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90s", 90), ("5m", 300), ("12h", 43200), ("30d", 2592000), ("1w", 604800)],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "offered"), [("6M", "6m or 180d"), (" 1.5 M ", "1.5m or 45d"), ("1" * 400 + "M", "d)")]
)
def test_a_capital_m_could_mean_months_and_is_refused(text: str, offered: str) -> None:
    with pytest.raises(ValueError, match=r"minutes or months\?") as refused:
        parse_duration(text)
    assert offered in str(refused.value)
    assert parse_duration("6m") == 360
    assert parse_duration("6D") == parse_duration("6d")
    assert parse_size("6m") == parse_size("6M")


@pytest.mark.parametrize("text", ["", "d", "-3d", "3 months"])
def test_a_string_that_is_not_a_duration_is_refused(text: str) -> None:
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


@given(st.integers(1, 10**30) | st.sampled_from([50, 1000, 1 << 40]))
def test_a_number_without_a_unit_could_mean_anything_and_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="has no unit"):
        parse_size(f"{number}")
    with pytest.raises(ValueError, match="has no unit"):
        parse_duration(f" {number}.5 ")


def test_the_refusal_of_a_bare_number_offers_it_with_units() -> None:
    with pytest.raises(ValueError, match=r"^'50' has no unit \(50GB\? 50MB\?\)$"):
        parse_size("50")
    with pytest.raises(ValueError, match=r"^'30' has no unit \(30d\? 30h\?\)$"):
        parse_duration("30")


SIZES = st.integers(0, LARGEST - 1) | st.builds(
    lambda count, base, power: min(count * base**power, LARGEST - 1),
    st.integers(0, 5000),
    st.sampled_from([1000, 1024]),
    st.integers(0, 5),
)


@given(SIZES)
def test_a_size_to_be_typed_is_read_back_to_the_byte(size: int) -> None:
    assert parse_size(exact_size(size)) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (50_000_000_000, "50GB"),
        (200_000, "200kB"),
        (2 << 30, "2GiB"),
        (3 << 10, "3KiB"),
        (1_234_567, "1234567B"),
        (1_500_000_000, "1500MB"),
    ],
)
def test_a_size_to_be_typed_has_the_largest_unit_that_is_exact(size: int, text: str) -> None:
    assert exact_size(size) == text


@pytest.mark.parametrize("text", ["9" * 5000 + "GB", "0" * 5000 + "1PB", "1." + "3" * 5000 + "kB"])
def test_numbers_of_any_length_are_read_or_refused_in_one_short_line(text: str) -> None:
    if text.startswith("9"):
        with pytest.raises(ValueError, match=r"^no disk has that size: .{1,60}$"):
            parse_size(text)
    else:
        assert parse_size(text) in (10**15, 1333)


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
