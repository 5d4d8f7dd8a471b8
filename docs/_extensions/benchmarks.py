"""The page of benchmarks: ``benchmarks/RESULTS.md``, with bars above its tables that have a column of cells/s."""

import re
from html import escape
from pathlib import Path

from sphinx.application import Sphinx

_TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
_SPEED = "cells/s"
_ROW, _LEFT, _WIDTH = 22, 250, 720


def write_page(app: Sphinx) -> None:
    """Write ``docs/benchmarks.md``, if its text has changed."""
    results = (Path(app.srcdir).parent / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    text = _TABLE.sub(lambda table: _bars(table[0]) + table[0], results.replace("# Results", "# Benchmarks", 1))
    page = Path(app.srcdir) / "benchmarks.md"
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


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
    return f"```{{raw}} html\n{svg}{''.join(lines)}</svg>\n```\n\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("builder-inited", write_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
