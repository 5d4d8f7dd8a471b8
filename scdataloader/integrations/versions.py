"""Versions of the libraries that integrations are tested with."""

from __future__ import annotations

import logging
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version

logger = logging.getLogger(__name__)


@cache
def warn_untested(package: str, oldest: str, newest: str) -> None:
    """Log a warning, once per process, if the installed ``package`` is outside the range that is tested.

    As many numbers are compared as a bound has: 1.5.3 is not newer than "1.5". A package that is not installed is left
    to the import that needs it.

    Args:
        package: Name of the distribution, such as "scvi-tools".
        oldest: Oldest tested version.
        newest: Newest tested version.
    """
    try:
        found = version(package)
    except PackageNotFoundError:
        return
    is_older = _numbers(found, like=oldest) < _numbers(oldest, like=oldest)
    is_newer = _numbers(found, like=newest) > _numbers(newest, like=newest)
    if is_older or is_newer:
        logger.warning(
            "%s %s is not tested with scdataloader, which is tested with %s to %s; if it fails, install one of these",
            package,
            found,
            oldest,
            newest,
        )


def _numbers(text: str, *, like: str) -> list[int]:
    """The first numbers of a version, as many as ``like`` has; missing ones are 0."""
    n = len(re.findall(r"\d+", like))
    numbers = [int(number) for number in re.findall(r"\d+", text)[:n]]
    return numbers + [0] * (n - len(numbers))
