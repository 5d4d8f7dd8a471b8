"""Lists and suggestions in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

N_SHOWN = 5
"""Items of a list that a message shows."""


def shown(items: Iterable[object]) -> str:
    """The first `N_SHOWN` items, comma-separated, and the number of the others: ``1, 2, 3, 4, 5 and 12 more``."""
    texts = list(map(str, items))
    more = f" and {len(texts) - N_SHOWN:,} more" if len(texts) > N_SHOWN else ""
    return ", ".join(texts[:N_SHOWN]) + more


def nearest(name: str, known: Iterable[object], *, n: int = 3) -> list[str]:
    """Up to ``n`` known names that are spelt like ``name``, the most similar first."""
    return difflib.get_close_matches(name, list(map(str, known)), n=n, cutoff=0.5)


def did_you_mean(name: str, known: Iterable[object]) -> str:
    """``" (did you mean 'x'?)"``; empty if no known name is similar."""
    return "".join(f" (did you mean {one!r}?)" for one in nearest(name, known, n=1))


def suggestion(name: str, known: Iterable[object]) -> str:
    """The known names nearest to ``name``, or else some of them: "the nearest are 'x'", "there are none"."""
    known = list(map(str, known))
    if near := nearest(name, known):
        return f"the nearest are {shown(map(repr, near))}"
    return f"there are {shown(map(repr, known)) or 'none'}"


def counted(n: int, noun: str) -> str:
    """A number with its noun, such as "1 class" or "1,000 cells"."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{n:,} {noun if n == 1 else plural}"


def message_of(error: BaseException) -> str:
    """The message of an error; ``str()`` of a KeyError is the repr of its message."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)
