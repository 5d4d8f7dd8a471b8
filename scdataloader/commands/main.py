"""The command line: ``scdataloader fit | validate | test | predict`` and ``inspect | curate | convert | …``.

Training is Lightning's own command line with our `DataModule` as data and any `LightningModule` as model. A model whose
arguments are called ``n_genes``, ``classes``, ``decoders`` or ``labels_hierarchy`` gets them from the data.
"""

from __future__ import annotations

import argparse
import dis
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from scdataloader import __version__

TRAINING = {
    "fit": "train a model, validating it along the way",
    "validate": "evaluate a trained model on the validation cells",
    "test": "evaluate a trained model on the test cells",
    "predict": "apply a trained model to every cell; writes predictions.pt",
}
INSPECT = "show what is in some data, and what a weighting does to its classes"
CURATE = "turn files as they were downloaded into validated ones, and into a lamindb collection"
CONVERT = "convert sources into a store, resumably and in bounded memory"
INSTANCE = "make a lamindb instance, connect to it, fill it with terms and genes"
STORE = {
    "verify": "read a store whole and check every checksum in it",
    "export": "write the sources of a store back to AnnData files",
}
TRACEBACK = "SCDATALOADER_TRACEBACK"
"""Set to 1 in the environment, it shows the whole traceback of an error that is otherwise told in one line."""

_PACKAGE = Path(__file__).parents[1]
_BAD_INPUT = (ValueError, LookupError, OSError, RuntimeError, TypeError)

logger = logging.getLogger(__name__)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: The command and its options; None takes those that the process was started with.

    Returns:
        The exit code: 0, 2 after an error of the user's input, or 130 after an interrupt.
    """
    # torch takes seconds to import, so the first word is looked at before anything else
    given = list(sys.argv[1:] if args is None else args)
    options = _parser().parse_args(given[:1])
    with _logging():
        try:
            if options.command == "inspect":
                from scdataloader.report.tables import main as inspect

                inspect(given[1:])
            elif options.command == "curate":
                from scdataloader.commands.curate import main as curate

                curate(given[1:])
            elif options.command == "convert":
                from scdataloader.commands.convert import main as convert

                convert(given[1:])
            elif options.command == "instance":
                from scdataloader.commands.instance import main as instance

                instance(given[1:])
            elif options.command in STORE:
                from scdataloader.commands.store import main as store

                store(options.command, given[1:])
            else:
                from scdataloader.commands.fit import TrainingCLI

                TrainingCLI(given)
        except _BAD_INPUT as error:
            if os.environ.get(TRACEBACK) == "1" or not _is_told(error):
                raise
            sys.stderr.write(f"error: {_message(error)}\n")
            return 2
        except KeyboardInterrupt as interrupt:
            sys.stderr.write("\n".join(["interrupted", *getattr(interrupt, "__notes__", [])]) + "\n")
            return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scdataloader",
        description="Weighted sampling over many single-cell datasets: train any LightningModule on them.",
        epilog=f"`scdataloader COMMAND --help` lists its options. {TRACEBACK}=1 shows errors with their traceback.",
    )
    parser.add_argument("--version", action="version", version=f"scdataloader {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    data = {"inspect": INSPECT, "curate": CURATE, "convert": CONVERT, **STORE, "instance": INSTANCE}
    for name, line in {**TRAINING, **data}.items():
        commands.add_parser(name, help=line, add_help=False)
    return parser


class _logging:  # noqa: N801 (reads as a context)
    """Within, the package's own notes go to standard error, each as one short line."""

    def __enter__(self) -> None:
        self._handler = _StandardError()
        self._handler.setFormatter(_Short())
        package = logging.getLogger("scdataloader")
        self._before = package.level, package.propagate
        package.addHandler(self._handler)
        package.setLevel(logging.INFO)
        package.propagate = False

    def __exit__(self, kind: object, error: object, traceback: TracebackType | None) -> None:
        package = logging.getLogger("scdataloader")
        package.removeHandler(self._handler)
        package.setLevel(self._before[0])
        package.propagate = self._before[1]


class _StandardError(logging.Handler):
    """Writes to what is standard error at the moment: a progress bar takes its place for as long as it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


class _Short(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return prefix + record.getMessage()


def _is_told(error: BaseException) -> bool:
    """Whether an error was raised with a message for the user, by us or by the parser of options.

    Anything else is a defect, whose traceback is wanted: also what happens to fail in a line of ours.
    """
    if isinstance(error, OSError) and error.filename is not None:
        return True  # a file that cannot be opened is the user's to mend, whoever tried
    frames = list(_frames(error.__traceback__))
    if not frames:
        return False
    last = frames[-1]
    code = last.tb_frame.f_code
    if f"{os.sep}jsonargparse{os.sep}" in code.co_filename:
        return True
    ours = _PACKAGE in Path(code.co_filename).parents
    return ours and dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


def _frames(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _message(error: BaseException) -> str:
    # str() of a KeyError is the repr of its message
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    # the parser tells of every type that an option might have had; "none at all" is the one that is never meant
    reasons = [line.strip(" -") for line in text.splitlines() if line.startswith("  - ") and "NoneType" not in line]
    return "; ".join(reasons) or text
