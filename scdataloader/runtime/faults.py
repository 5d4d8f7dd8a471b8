"""Errors of several sources, raised together."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from scdataloader.errors import GeneOverlapError, NotCountsError, ScDataLoaderError, SourceFormatError, SourcesError
from scdataloader.runtime.messages import counted, message_of

FAULTS = (ScDataLoaderError, LookupError, OSError, TypeError, ValueError)
"""Errors of a source that say nothing about the others."""
_N_LISTED = 50


class Faults:
    """What is wrong with each of several sources.

    Args:
        listed: Whether the caller lists them, and `check` raises nothing.
    """

    def __init__(self, *, listed: bool = False) -> None:
        self._listed = listed
        self.found: list[Exception] = []
        self.lines: list[str] = []
        """For each of them, a line that names the source."""

    @contextmanager
    def of(self, source: object) -> Iterator[None]:
        """Note an error of a block that concerns one source."""
        try:
            yield
        except FAULTS as error:
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                raise  # all further sources would have it
            self.add(source, error)

    def add(self, source: object, error: Exception) -> None:
        """Note an error of a source."""
        text = message_of(error)
        self.found.append(error)
        self.lines.append(text if str(source) in text else f"{source}: {text}")

    def check(self, usable: Sequence[object] = ()) -> None:
        """Raise what was noted, unless it is listed and some sources are usable.

        Raises:
            Exception: the only error.
            SourcesError: there are several; `NotCountsError` or another kind of this package if all are of it.
        """
        if self._listed and usable:
            return
        if len(self.found) == 1:
            raise self.found[0]
        kinds = {type(error) for error in self.found}
        if len(kinds) == 1 and kinds <= {NotCountsError, GeneOverlapError, SourceFormatError}:
            raise kinds.pop()(self.message) from self.found[0]
        if self.found:
            raise SourcesError(self.message) from self.found[0]

    @property
    def message(self) -> str:
        """A heading, and a line for each source, up to `_N_LISTED`."""
        n = len(self.lines)
        more = [f"and {n - _N_LISTED:,} more"] if n > _N_LISTED else []
        heading = f"{counted(n, 'source')} cannot be used:"
        return "\n  ".join([heading, *self.lines[:_N_LISTED], *more])
