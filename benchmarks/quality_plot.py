"""The picture of quality against size: docs/quality.svg from the numbers in docs/quality.csv.

    python benchmarks/quality_plot.py [folder]

Perplexity as a multiple of the dense model's, on a logarithmic scale, against what is kept. Every line has its name,
points of one seed are hollow, and the colours follow the reader's light or dark scheme.
"""

import csv
import math
import sys
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
WIDTH, HEIGHT = 790, 440
LEFT, RIGHT, TOP, BOTTOM = 48, 545, 56, 384  # of the area that the lines run in
LARGEST, SMALLEST_KEEP, LINE_HEIGHT = 40.0, 0.5, 17
TICKS = (1, 2, 5, 10, 20, 40)
STYLE = """
  svg { --paper: #ffffff; --ink: #24292f; --other: #6e7781; --grid: #d8dee4; --ours: #0969da; --forward: #8250df; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #0d1117; --ink: #e6edf3; --other: #9198a1; --grid: #30363d; --ours: #58a6ff; --forward: #bc8cff; }
  }
  .paper { fill: var(--paper); }
  text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--other); }
  .title { font-size: 15px; font-weight: 600; fill: var(--ink); }
  .grid { stroke: var(--grid); stroke-width: 1; }
  .line { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
  .other { --colour: var(--other); } .forward { --colour: var(--forward); }
  .ours { --colour: var(--ours); }
  .line { stroke: var(--colour); } .name { fill: var(--colour); }
  .line.ours { stroke-width: 3; } .name.ours { font-weight: 700; font-size: 15px; }
  circle { stroke: var(--colour); stroke-width: 1.6; fill: var(--colour); } .few { fill: var(--paper); }
"""
KINDS = {
    "ours": "ours",
    "ours_forward": "forward",
}


@dataclass(frozen=True)
class Point:
    keep: float
    times_dense: float
    seeds: int

    @property
    def x(self) -> float:
        return LEFT + (1 - self.keep) / (1 - SMALLEST_KEEP) * (RIGHT - LEFT)

    @property
    def y(self) -> float:
        return height(self.times_dense)


def height(times_dense: float) -> float:
    return BOTTOM - math.log(times_dense) / math.log(LARGEST) * (BOTTOM - TOP)


def read(path: Path) -> dict[str, list[Point]]:
    """The points of each method, the largest keep rate first; the dense model stands before them."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    methods: dict[str, list[Point]] = {}
    for row in rows:
        point = Point(float(row["keep"]), float(row["perplexity"]) / float(row["dense"]), int(row["seeds"]))
        methods.setdefault(row["method"], [Point(1.0, 1.0, 0)]).append(point)
    return methods


def name_heights(methods: dict[str, list[Point]]) -> dict[str, float]:
    """Where the names stand: beside the last points, moved apart where they would cover each other."""
    ends = sorted((points[-1].y, name) for name, points in methods.items())
    placed = [y for y, _ in ends]
    for _ in range(200):
        for upper in range(len(placed) - 1):
            overlap = LINE_HEIGHT - (placed[upper + 1] - placed[upper])
            if overlap > 0:
                placed[upper] -= overlap / 2
                placed[upper + 1] += overlap / 2
    return {name: y for y, (_, name) in zip(placed, ends, strict=True)}


def axes(keeps: list[float]) -> list[str]:
    parts = []
    for tick in TICKS:
        y = height(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4.5:.1f}" text-anchor="end">{tick}&#215;</text>')
    for keep in keeps:
        label = "dense" if keep == 1 else f"{keep * 100:.0f} %"
        parts.append(f'<text x="{Point(keep, 1, 0).x:.1f}" y="{BOTTOM + 22}" text-anchor="middle">{label}</text>')
    parts.append(
        f'<text class="title" x="{LEFT - 36}" y="24">SmolLM2-135M: perplexity over that of the dense model</text>'
    )
    note = "attention groups and FFN channels kept"
    parts.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 44}" text-anchor="middle">{note}</text>')
    parts.append(f'<text x="{RIGHT + 14}" y="{BOTTOM + 44}">hollow: one seed</text>')
    return parts


def drawn(methods: dict[str, list[Point]]) -> str:
    keeps = sorted({point.keep for points in methods.values() for point in points}, reverse=True)
    heights = name_heights(methods)
    parts = [f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="6"/>', *axes(keeps)]
    for name, points in methods.items():
        kind = KINDS.get(name, "other")
        path = " ".join(f"{point.x:.1f},{point.y:.1f}" for point in points)
        parts.append(f'<polyline class="line {kind}" points="{path}"/>')
        for point in points[1:]:
            few = " few" if point.seeds == 1 else ""
            parts.append(f'<circle class="{kind}{few}" cx="{point.x:.1f}" cy="{point.y:.1f}" r="3.4"/>')
        parts.append(f'<text class="name {kind}" x="{RIGHT + 14}" y="{heights[name] + 4.5:.1f}">{name}</text>')
    body = "\n".join(parts)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    title = "<title>Perplexity of SmolLM2-135M after pruning, ours against the baselines</title>"
    return f"{head}\n{title}\n<style>{STYLE}</style>\n{body}\n</svg>\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS
    (folder / "quality.svg").write_text(drawn(read(DOCS / "quality.csv")), encoding="utf-8")
