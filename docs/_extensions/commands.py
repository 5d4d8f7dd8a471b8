"""The page of commands: each with its example and its options, from the parsers that the command line uses."""

import argparse
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from sphinx.application import Sphinx

_TRAINING = ("fit", "validate", "test", "predict")
_GROUPS = {
    "Cells of many datasets": "Data",
    "<class 'lightning": "Model",
    "Customize every aspect": "Trainer",
    "Base class for all optimizers": "Optimizer",
    "(<class 'torch.optim": "Learning rate",
}
"""{beginning of a title that a parser has: what it is about}; options of other groups come first, without a title."""
_HIDDEN = ("_HelpAction", "_SubParsersAction", "ActionLink", "_ActionHelpClassPath", "_ActionConfigLoad")
"""Actions of parsers that are no options of their own."""
_TYPE = re.compile(r"\s*\((?:required, )?type: .*?(?:, default: (.*?))?(?:, known subclasses: .*)?\)$")
"""What jsonargparse adds to a help."""
_LONGEST = 240
"""Characters of the help of an option of Lightning, which are whole paragraphs; it is cut after a sentence."""
_HEAD = """# Commands

`scdataloader COMMAND --help` shows the same on a terminal. With every command, `-q` (`--quiet`) shows only warnings and
`-v` (`--verbose`) all notes. A command ends with 0, with 2 after an error of the input, which it reports in a line
(`SCDATALOADER_TRACEBACK=1` shows the traceback), or with 130 after an interrupt.

"""


def write_page(app: Sphinx) -> None:
    """Write ``docs/reference/commands.md``, if its text has changed."""
    from scdataloader.commands.main import COMMANDS

    rows = "".join(f"| [`{name}`](#{name}) | {summary} |\n" for name, (_, summary) in COMMANDS.items())
    sections = "".join(_section(name, parser_of(name, place)) for name, (place, _) in COMMANDS.items())
    text = f"{_HEAD}| command | what it does |\n|---|---|\n{rows}\n{sections}"
    page = Path(app.srcdir) / "reference" / "commands.md"
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def parser_of(name: str, place: str) -> Any:
    """The parser that prints the help of a command."""
    module, _, function = place.partition(":")
    run = getattr(import_module(f"scdataloader.commands.{module}"), function)
    with mock.patch.object(argparse.ArgumentParser, "print_help", autospec=True) as shown, suppress(SystemExit):
        run(["--help"])
    if not shown.called:
        raise RuntimeError(f"scdataloader {name} --help prints no help")
    return shown.call_args[0][0]


def _section(name: str, parser: Any) -> str:
    description = " ".join((parser.description or "").split())
    notes, _, example = (parser.epilog or "").partition("Example: ")
    if not example:
        raise RuntimeError(f"scdataloader {name} --help has no example")
    text = f"## {name}\n\n{_plain(description)}\n\n```bash\n{' '.join(example.split())}\n```\n\n"
    text += f"{_plain(notes.strip())}\n\n" if notes else ""
    if name in _TRAINING[1:]:
        text += "Options of the data, the model and the trainer are those of [fit](#fit). Of its own, it has:\n\n"
    titled = {"": ""}
    for group in parser._action_groups:  # noqa: SLF001 (as above)
        title = next((title for start, title in _GROUPS.items() if (group.title or "").startswith(start)), "")
        longest = _LONGEST if name in _TRAINING and title != "Data" else None
        titled[title] = titled.get(title, "") + "".join(_rows(parser, group._group_actions, longest))  # noqa: SLF001
    for title, rows in titled.items():
        if rows and not (title and name in _TRAINING[1:]):
            heading = f"### {title}\n\n" if title else ""
            text += f"{heading}| option | meaning |\n|---|---|\n{rows}\n"
    return text + "".join(_section_of_action(name, parser))


def _section_of_action(name: str, parser: Any) -> Iterator[str]:
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for choice in action._choices_actions:  # noqa: SLF001
                below = action.choices[choice.dest]
                rows = "".join(_rows(below, below._actions))  # noqa: SLF001
                yield f"### {name} {choice.dest}\n\n{_plain(choice.help or '')}\n\n"
                yield f"| option | meaning |\n|---|---|\n{rows}\n" if rows else ""


def _rows(parser: Any, actions: Any, longest: int | None = None) -> Iterator[str]:
    for action in actions:
        if action.help != argparse.SUPPRESS and type(action).__name__ not in _HIDDEN:
            named = (option for option in action.option_strings if not option.endswith("+"))
            name = ", ".join(f"`{option}`" for option in named) or f"`{action.metavar or action.dest}`"
            yield f"| {name} | {_meaning(parser, action, longest)} |\n"


def _meaning(parser: Any, action: Any, longest: int | None) -> str:
    text = " ".join(parser._get_formatter()._expand_help(action).split()) if action.help else ""  # noqa: SLF001
    text, default = _TYPE.sub("", text), _TYPE.search(text)
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)  # roles of reStructuredText
    if longest and len(text) > longest:
        text = text[: text.rfind(". ", 0, longest) + 1] or f"{text[:longest]} …"
    added = ""
    if isinstance(action.choices, list | tuple):
        added += f" One of {', '.join(f'`{choice}`' for choice in action.choices)}."
    if default and default[1] not in (None, "null", "None", "{}", "[]") and "efault:" not in text:
        added += f" Default: `{default[1]}`."
    end = "." if added and not text.endswith(".") else ""
    return f"{_plain(text)}{end}{added}"


def _plain(text: str) -> str:
    """Text of a help, which is not Markdown: its signs, outside of code, are shown as they are."""
    parts = re.split(r"(`[^`]+`)", text.replace("``", "`"))
    parts[::2] = (re.sub(r"([\\*_<>\[\]{}$])", r"\\\1", part) for part in parts[::2])
    return "".join(parts).replace("|", r"\|")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("builder-inited", write_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
