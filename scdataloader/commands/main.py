"""Entry point of the command line: dispatch, logging, and errors of the user's input in one line.

Training is Lightning's own command line with our `DataModule` as data and any `LightningModule` as model. A model whose
arguments are called ``n_genes``, ``classes``, ``decoders`` or ``labels_hierarchy`` gets them from the data.
"""

from __future__ import annotations

import dis
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType

from scdataloader import __version__
from scdataloader.commands.usage import Parser, UsageError, config_files, load_yaml, reasons
from scdataloader.registry import packages
from scdataloader.runtime.messages import message_of

COMMANDS = {
    "fit": ("fit:fit", "train a model, and validate it along the way"),
    "validate": ("fit:validate", "evaluate a trained model on the validation cells"),
    "test": ("fit:test", "evaluate a trained model on the test cells"),
    "predict": ("fit:predict", "apply a trained model to every cell; writes predictions.parquet"),
    "inspect": ("inspect:main", "show what is in data, and how a weighting changes class shares"),
    "report": ("report:main", "write the same as a page with charts, and a run's statistics"),
    "bench": ("bench:main", "measure how fast data are read on this machine, and what would be faster"),
    "curate": ("curate:main", "standardise downloaded files, and register them in lamindb"),
    "convert": ("convert:main", "convert sources into a store, resumably and in bounded memory"),
    "verify": ("store:verify_store", "read a whole store and check every checksum"),
    "export": ("store:export_store", "write the sources of a store back to AnnData files"),
    "instance": ("instance:main", "create, connect or fill a lamindb instance"),
    "completion": ("completion:main", "print a script by which a shell completes commands and options"),
}
"""{command: (module and function in this folder, summary)}; modules are imported when their command runs."""
TRACEBACK = "SCDATALOADER_TRACEBACK"
"""Environment variable: 1 shows the traceback of errors that are otherwise reported in one line."""

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
"""Environment variables in which launchers number the processes of a run."""

N_NOTES, N_WARNINGS = 5, 20
"""Messages of one kind, about sources, that are shown without ``-v``."""
_OF_SOURCES = tuple(f"scdataloader.{room}" for room in ("sources", "genes", "collection", "store", "curation", "lamin"))
_BAD_INPUT = (ImportError, ValueError, LookupError, OSError, RuntimeError, TypeError)

logger = logging.getLogger(__name__)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: The command and its options; None takes those that the process was started with.

    Returns:
        The exit code: 0, 2 after an error of the user's input, or 130 after an interrupt.
    """
    given = list(sys.argv[1:] if args is None else args)
    given, quiet, verbose = _without_verbosity(given)
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a user's own models, by class path; last, so that they hide no package
    with _logging(logging.WARNING if quiet else logging.INFO, fold=not verbose):
        try:
            command = _parser().parse_args(given[:1]).command
            module, _, function = COMMANDS[command][0].partition(":")
            for path in config_files(given):
                load_yaml(path)
            getattr(import_module(f"scdataloader.commands.{module}"), function)(given[1:])
        except UsageError as error:
            sys.stderr.write(f"error: {error.located(given)}\n")
            return 2
        except _BAD_INPUT as error:
            if os.environ.get(TRACEBACK) == "1" or not _is_explained(error):
                raise
            sys.stderr.write(f"error: {_message(error)}\n")
            return 2
        except KeyboardInterrupt as interrupt:
            sys.stderr.write("\n".join(["interrupted", *getattr(interrupt, "__notes__", [])]) + "\n")
            return 130
    return 0


def _without_verbosity(args: list[str]) -> tuple[list[str], bool, bool]:
    """The arguments without those for all commands; whether only warnings are shown; whether all notes are."""
    quiet, verbose = ("-q", "--quiet"), ("-v", "--verbose")
    rest = [arg for arg in args if arg not in quiet + verbose]
    return rest, any(arg in quiet for arg in args), any(arg in verbose for arg in args)


def _parser() -> Parser:
    parser = Parser(
        prog="scdataloader",
        description="Weighted sampling over many single-cell datasets: train any LightningModule on them.",
        epilog="`scdataloader COMMAND --help` lists its options. With every command, -q (--quiet) shows only warnings "
        f"and -v (--verbose) all notes, also on hundreds of sources. {TRACEBACK}=1 shows errors with their traceback.",
    )
    parser.add_argument("--version", action="version", version=f"scdataloader {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    return parser


class _logging:  # noqa: N801 (reads as a context)
    """While active, the log messages of the package go to standard error, each as one short line."""

    def __init__(self, level: int = logging.INFO, *, fold: bool = False) -> None:
        self._level = level
        self._handler = _StandardError()
        self._handler.setFormatter(_Short())
        if fold:
            self._handler.addFilter(_Fold())

    def __enter__(self) -> None:
        package = logging.getLogger("scdataloader")
        self._before = package.level, package.propagate
        package.addHandler(self._handler)
        package.setLevel(self._level)
        package.propagate = False

    def __exit__(self, kind: object, error: object, traceback: TracebackType | None) -> None:
        package = logging.getLogger("scdataloader")
        package.removeHandler(self._handler)
        package.setLevel(self._before[0])
        package.propagate = self._before[1]


class _StandardError(logging.Handler):
    """Writes to the current standard error, which a progress bar replaces while it is shown.

    Of several processes that run the same command, only the first writes what is not an error.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR and any(os.environ.get(rank, "0") != "0" for rank in RANKS):
            return
        sys.stderr.write(self.format(record) + "\n")


class _Fold(logging.Filter):
    """Lets the first messages of each kind pass, which differ in the source that they are about."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[tuple[str, int]] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(_OF_SOURCES):
            return True
        kind = record.pathname, record.lineno
        self._counts[kind] += 1
        limit = N_NOTES if record.levelno <= logging.INFO else N_WARNINGS
        if self._counts[kind] == limit + 1:
            sys.stderr.write("… further lines of this kind are left out; -v shows them\n")
        return self._counts[kind] <= limit


class _Short(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return prefix + record.getMessage()


def _is_explained(error: BaseException) -> bool:
    """Whether an error was raised with a message for the user, by this package, a plug-in or the parser of options.

    Anything else is a defect and needs its traceback, also if an expression of one of these packages fails.
    """
    if isinstance(error, OSError) and error.filename is not None:
        return True  # a file that cannot be opened, in any library
    frames = list(_frames(error.__traceback__))
    if not frames:
        return False
    last = frames[-1]
    code = last.tb_frame.f_code
    if f"{os.sep}jsonargparse{os.sep}" in code.co_filename:
        return True
    package = str(last.tb_frame.f_globals.get("__name__")).partition(".")[0]
    return package in packages() and dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


def _frames(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _message(error: BaseException) -> str:
    text = message_of(error)
    return "; ".join(reasons(text)) or text
