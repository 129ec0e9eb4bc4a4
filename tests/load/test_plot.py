"""The plot says what was measured where, in colors that all can tell apart, and is valid XML."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ET
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.load.conftest import World
from tests.load.test_report import report, result, trial
from vlmcache.errors import UsageError
from vlmcache.installing import install_extra
from vlmcache.load import plot
from vlmcache.load.judging import summarize
from vlmcache.load.report import PHASES, Disk, LoadReport

OKABE_ITO = {
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
}  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"
AT = datetime(2026, 11, 27, 20, 15, tzinfo=timezone.utc)


def drawn(**changes: object) -> LoadReport:
    loads = result(
        trial("cold", **{"import": 3.0, "read": 1.0}),
        trial("cold", **{"import": 3.2, "read": 1.0}),
        trial("warm", **{"import": 2.0, "read": 0.5}),
        trial("hot", build=0.2),
    )
    whole = summarize(loads, Disk(1e9, 2e9, 1), None, 0)
    return msgspec.structs.replace(report(1.0), **({"results": (whole,), "at": AT} | changes))


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


def test_totals_limit_machine_and_date_are_in_the_plot() -> None:
    svg = plot.svg(drawn())
    assert texts(svg) == [
        "How long models take to load",
        "importing",
        "building",
        "reading",
        "limit: the longest of imports, disk and copy",
        "m bf16, readahead, cpu",
        "cold",
        "4.10 s  (4.00 to 4.20)",
        "warm",
        "2.50 s",
        "hot",
        "0.20 s",
        *(f"{seconds:g} s" for seconds in range(5)),
        "seconds from the start of the process until every weight is on the device (medians)",
        "cpu, 2 cores, 16 GB, no accelerator",
        "ext4, torch 2.13.0, 2026-11-27 20:15 UTC",
    ]


def test_bars_are_as_long_as_the_phases_and_the_limit_is_where_it_belongs() -> None:
    root = ET.fromstring(plot.svg(drawn()))
    bars = [bar for bar in root.iter(f"{SVG}rect") if bar.find(f"{SVG}title") is not None]
    widths = [float(bar.get("width", "")) for bar in bars]
    unit = widths[0] / 3.1
    assert [round(width / unit, 2) for width in widths] == [3.1, 1.0, 2.0, 0.5, 0.2]
    dashed = [line for line in root.iter(f"{SVG}line") if line.get("stroke-dasharray")]
    # The first is the legend's, the other the cold load's: the imports take longest.
    assert len(dashed) == 2
    place = float(dashed[1].get("x1", "")) - float(bars[0].get("x", ""))
    assert round(place / unit, 2) == 3.1


def test_the_colors_are_those_of_okabe_and_ito_one_for_each_phase() -> None:
    assert set(plot.COLORS) == set(PHASES)
    assert set(plot.COLORS.values()) == OKABE_ITO


def test_what_is_not_complete_or_not_valid_is_said() -> None:
    assert "Not complete: it was ended before all trials were made." in texts(
        plot.svg(drawn(complete=False))
    )
    assert "no valid trial" in texts(plot.svg(drawn(results=())))


@given(st.text(max_size=300))
def test_any_name_gives_valid_xml_that_holds_it_escaped(name: str) -> None:
    one = drawn().results[0]
    svg = plot.svg(drawn(results=(msgspec.structs.replace(one, model=name),)))
    (said,) = (text for text in texts(svg) if text.endswith("bf16, readahead, cpu"))
    assert len(said) <= 100 * 10
    svg.encode()


def test_a_plot_is_written_and_named(tmp_path: Path) -> None:
    path = tmp_path / "x.svg"
    written = plot.write_plot(str(path), drawn())
    assert written.written == {"plot": str(path)}
    assert path.read_text() == plot.svg(drawn())


def test_a_png_is_drawn_by_matplotlib(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'vlmcache[plot]'")
    plot.write_plot(str(tmp_path / "x.png"), drawn())
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_an_svg_needs_no_matplotlib_and_a_png_is_refused_in_one_line(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = world.vlmcache(
        "load-test", "--synthetic", "tiny", "--plot", "x.png", **world.without("matplotlib")
    )
    assert (done.returncode, done.stdout) == (11, "")
    assert done.stderr == (
        "error: a .png plot needs matplotlib; an .svg needs nothing\n"
        f"hint: {install_extra('plot')}\n"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    plot.check_plot(str(tmp_path / "x.svg"))
    with pytest.raises(UsageError, match="cannot be written there"):
        plot.check_plot(str(tmp_path / "none" / "x.svg"))
