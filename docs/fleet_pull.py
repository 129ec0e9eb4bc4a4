"""The table and the plot of docs/fleet-pull.md: the planner, simulated for 2 to 1,000 nodes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from tests.kit.fleet_simulation import Outcome, Simulation, Speeds, most_rounds

PAGE = Path(__file__).with_name("fleet-pull.md")
PLOT = Path(__file__).with_name("fleet-pull.svg")
BEGIN, END = "<!-- simulated -->\n", "<!-- /simulated -->\n"
COUNTS = (2, 3, 4, 8, 16, 32, 64, 100, 250, 500, 1000)
MODELS = {
    "one file of 16 GB": {"weights": 16_000_000_000},
    "4 shards of 4 GB": {f"shard-{number}": 4_000_000_000 for number in range(4)},
    "16 shards of 1 GB": {f"shard-{number:02}": 1_000_000_000 for number in range(16)},
}
SPEEDS = Speeds(1e9, 1e9)
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 380, 56, 16, 40, 44
_COLORS = ("#0b6bcb", "#b3501b", "#2f7d32")


class Runs(NamedTuple):
    """The runs of one model."""

    name: str
    outcomes: tuple[Outcome, ...]


def simulated() -> list[Runs]:
    """Return what became of each model on so many nodes."""
    return [
        Runs(name, tuple(Simulation(count, sizes, SPEEDS).run() for count in COUNTS))
        for name, sizes in MODELS.items()
    ]


def table(runs: list[Runs]) -> str:
    """Return the table."""
    heads = ("nodes", *(run.name for run in runs), "limit", "copies from the hub")
    lines = [
        "| " + " | ".join((*heads, "sent by a node", "over one link", "received by each")) + " |",
        "|" + "---:|" * (len(heads) + 3),
    ]
    for number, count in enumerate(COUNTS):
        here = [run.outcomes[number] for run in runs]
        times = (f"{one.copies(SPEEDS):.2f} ({one.rounds})" for one in here)
        copies = max(one.from_hub / one.size for one in here)
        up = max(max(one.up.values(), default=0) / one.size for one in here)
        link = max(max(one.links.values()) / one.size for one in here)
        down = {round(received / one.size, 2) for one in here for received in one.down.values()}
        assert down == {1.0}
        cells = (f"{count:,}", *times, f"{most_rounds(count)}", f"{copies:.2f}")
        counted = (f"{up:.2f}", f"{link:.2f}", f"{max(down):.2f}")
        lines.append("| " + " | ".join((*cells, *counted)) + " |")
    return "\n".join(lines)


def page(text: str, runs: list[Runs]) -> str:
    """Return the page with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(runs)}\n\n{END}{rest.partition(END)[2]}"


def plot(runs: list[Runs]) -> str:
    """Return the plot: how the time grows with the number of nodes."""
    top = most_rounds(COUNTS[-1])
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(count: int, value: float) -> str:
        x = _LEFT + wide * math.log2(count / COUNTS[0]) / math.log2(COUNTS[-1] / COUNTS[0])
        return f"{x:.1f},{_HEIGHT - _BOTTOM - high * value / top:.1f}"

    size, font = f"0 0 {_WIDTH} {_HEIGHT}", 'font-family="sans-serif" font-size="12"'
    about = "time, in those that one copy of the model takes over one link"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" {font}>',
        "<title>Time of fleet pull, in copies over one link, for 2 to 1,000 nodes</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="20" fill="#333333">{about}</text>',
    ]
    for value in range(0, top + 1, 2):
        x, y = place(COUNTS[0], value).split(",")
        parts.append(
            f'<line x1="{x}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}" stroke="#dddddd"/>'
            f'<text x="{_LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end" fill="#333333">'
            f"{value}</text>"
        )
    for count in (2, 4, 8, 16, 32, 64, 100, 250, 500, 1000):
        x, y = place(count, 0).split(",")
        parts.append(
            f'<text x="{x}" y="{float(y) + 18:.1f}" text-anchor="middle" fill="#333333">'
            f"{count:,}</text>"
        )
    parts.append(
        f'<text x="{_LEFT + wide / 2:.1f}" y="{_HEIGHT - 8}" text-anchor="middle" '
        'fill="#333333">nodes</text>'
    )
    limit = " ".join(place(count, most_rounds(count)) for count in COUNTS)
    parts.append(
        f'<polyline points="{limit}" fill="none" stroke="#888888" stroke-dasharray="5 4"/>'
    )
    names = ["limit: ceil(log2 nodes) + 2"]
    for run, color in zip(runs, _COLORS, strict=True):
        points = " ".join(place(one.nodes, one.copies(SPEEDS)) for one in run.outcomes)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        names.append(run.name)
    for number, (name, color) in enumerate(zip(names, ("#888888", *_COLORS), strict=True)):
        down = _TOP + 12 + 18 * number
        parts.append(
            f'<rect x="{_LEFT + 14}" y="{down - 6}" width="18" height="3" fill="{color}"/>'
            f'<text x="{_LEFT + 40}" y="{down}" fill="#333333">{name}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def write() -> None:
    """Make both anew."""
    runs = simulated()
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), runs), encoding="utf-8")
    PLOT.write_text(plot(runs), encoding="utf-8")
