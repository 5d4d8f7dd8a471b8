"""Tables of facts about an object, for a terminal and for a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

Facts = Mapping[str, object]
"""{name: value}; numbers are shown with separators, and long texts cut."""
_WIDTH = 200


def as_text(name: str, facts: Facts) -> str:
    """The name of an object, and one line for each fact."""
    width = max(map(len, facts), default=0)
    return "\n".join([name, *(f"  {fact:<{width}}  {_shown(value)}" for fact, value in facts.items())])


def as_html(name: str, facts: Facts) -> str:
    """The same as a table in HTML, in which all text is escaped."""
    style = "text-align:left"
    rows = "".join(
        f'<tr><th scope="row" style="{style}">{escape(fact)}</th><td style="{style}">{escape(_shown(value))}</td></tr>'
        for fact, value in facts.items()
    )
    return f'<table><caption style="{style}"><b>{escape(name)}</b></caption><tbody>{rows}</tbody></table>'


def _shown(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"
