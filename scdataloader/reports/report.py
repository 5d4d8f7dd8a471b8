"""Report of data and their sampling as one HTML file, which needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from scdataloader.reports.contents import ReportedData, contents

__all__ = ["Report", "report"]

_SCRIPTS = ("formulas.js", "charts.js", "page.js")
_HEIGHT = 800
"""Height of a report in a notebook, in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Contents of a report; a notebook shows its page."""

    title: str
    contents: dict[str, Any]
    """Values of JSON, by section."""

    @property
    def html(self) -> str:
        """The page, with its styles, scripts and contents."""
        script = "\n".join(map(_part, _SCRIPTS))
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        return _part("page.html").format(
            title=escape(self.title),
            script_hash=f"sha256-{digest}",
            style=_part("page.css"),
            version=version("scdataloader"),
            date=datetime.now(UTC).strftime("%Y-%m-%d"),
            contents=_embedded(self.contents),
            script=script,
        )

    def save(self, path: str | Path) -> Path:
        """Write the page to a file, which is replaced if it exists."""
        path = Path(path)
        path.write_text(self.html, encoding="utf-8")
        return path

    def __repr__(self) -> str:
        summary = ", ".join(f"{value} {name}" for name, value in self.contents["summary"][:3])
        return f"Report of {self.title}: {summary}; write it with save('report.html')"

    def _repr_html_(self) -> str:
        """The page in a frame, which keeps its styles apart from those of the notebook."""
        style = f"width:100%;height:{_HEIGHT}px;border:0"
        return f'<iframe srcdoc="{escape(self.html)}" sandbox="allow-scripts" style="{style}"></iframe>'


def report(data: ReportedData, *, run: str | Path | None = None, title: str | None = None) -> Report:
    """Report on data: their cells, labels and genes, class weights and leaks between splits, as one page.

    Args:
        data: A `DataModule`.
        run: Folder of the logs of a training run ("lightning_logs/version_0"), whose draws and waiting times are shown.
        title: Title of the page; by default the names of the sources.

    Raises:
        FileNotFoundError: ``run`` has no statistics of draws.
    """
    names = list(dict.fromkeys(part.source.name for part in data.collection.parts))
    more = f" and {len(names) - 1:,} more sources" if len(names) > 1 else ""
    found = contents(data, None if run is None else Path(run))
    return Report(title=title or f"{names[0]}{more}", contents=found)


def _part(name: str) -> str:
    return files("scdataloader.reports").joinpath("page", name).read_text(encoding="utf-8")


def _embedded(values: dict[str, Any]) -> str:
    """JSON in which nothing can end the element that it is in, or be taken for one."""
    text = json.dumps(values, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
