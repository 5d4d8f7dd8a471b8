"""scPRINT-2's command line with our DataModule: ``python -m scdataloader.integrations.scprint fit --config …``."""

from __future__ import annotations

from typing import Any

from scdataloader.integrations.scprint.datamodule import DataModule


def main(args: Any = None) -> None:
    """Run the command line of scprint2.

    Args:
        args: Arguments, as a list or a dictionary; None for those of the process.
    """
    from scprint2 import __main__ as scprint2

    scprint2.DataModule = DataModule
    scprint2.main(args)


if __name__ == "__main__":
    main()
