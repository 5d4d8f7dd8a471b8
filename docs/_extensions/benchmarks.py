"""The page of benchmarks: ``benchmarks/RESULTS.md``, with bars above its tables that have a column of cells/s.

The first such table is also drawn on the first page of the site.
"""

import re
from html import escape
from pathlib import Path

from sphinx.application import Sphinx

_TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
_SPEED = "cells/s"
_ROW, _LEFT, _WIDTH = 22, 250, 720
_CASES = {
    "sparse": "all genes, sparse",
    "selected": "2,048 expressed genes",
    "dense": "all genes, dense",
    "mapped": "MappedCollection of lamindb",
}
"""{case of the first table: its name on the first page}."""


def write_page(app: Sphinx) -> None:
    """Write ``docs/benchmarks.md`` and ``docs/speed.txt``, which the first page includes, if their text has changed."""
    results = (Path(app.srcdir).parent / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    text = _TABLE.sub(lambda table: _bars(table[0]) + table[0], results.replace("# Results", "# Benchmarks", 1))
    for name, content in {"benchmarks.md": text, "speed.txt": _speed(results)}.items():
        page = Path(app.srcdir) / name
        if not page.exists() or page.read_text(encoding="utf-8") != content:
            page.write_text(content, encoding="utf-8")


def _speed(results: str) -> str:
    """The bars of the first table, batches of 64, with its machine, data and command."""
    _, machine, data = results.split("\n\n", 4)[1:4]
    found = next(found for found in _TABLE.finditer(results) if _SPEED in found[0].partition("\n")[0])
    rows = (line.strip("|\n ").split(" | ") for line in found[0].splitlines()[2:])
    table = f"| case | {_SPEED} |\n|---|---|\n"
    for case, size, speed, *_ in rows:
        if case in _CASES and size == "64":
            table += f"| {_CASES[case]} | {speed} |\n"
    command = results[: found.start()].rstrip().rpartition("\n\n")[2].removesuffix(":")
    return f"{_bars(table)}{machine}\n\n{data} Measured by {command}.\n"


def _bars(table: str) -> str:
    """The bars of a table as SVG in the colours of the page; nothing for a table without speeds."""
    header, _, *rows = ([cell.strip() for cell in line.strip("|\n ").split("|")] for line in table.splitlines())
    speeds = [row[header.index(_SPEED)].replace(",", "") for row in rows] if _SPEED in header else []
    if not speeds or not all(re.fullmatch(r"[\d.]+", speed) for speed in speeds):
        return ""
    most, at, lines = max(map(float, speeds)), header.index(_SPEED), []
    for number, (row, speed) in enumerate(zip(rows, speeds, strict=True)):
        y, width = _ROW * number, (_WIDTH - _LEFT - 90) * float(speed) / most
        label = escape(", ".join(row[:at]).replace("`", ""))
        lines.append(
            f'<text x="{_LEFT - 8}" y="{y + 15}" text-anchor="end">{label}</text>'
            f'<rect x="{_LEFT}" y="{y + 3}" width="{width:.1f}" height="16"/>'
            f'<text x="{_LEFT + width + 6:.1f}" y="{y + 15}">{float(speed):,.0f}</text>'
        )
    svg = f'<svg class="bars" viewBox="0 0 {_WIDTH} {_ROW * len(rows)}" role="img" aria-label="cells per second">'
    return f'```{{raw}} html\n<div class="bars">{svg}{"".join(lines)}</svg></div>\n```\n\n'


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("builder-inited", write_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
