"""What is wrong with the options of a command, in one line: the file, the key, the nearest name.

The parsers of the commands report each error through `error`, as a text. The texts of argparse and jsonargparse, which
list every type that an option can have, are reduced to the one reason that helps.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import jsonargparse
import yaml  # type: ignore[import-untyped]

from scdataloader.runtime.messages import did_you_mean

_CONFIG_OPTIONS = ("--config", "-c")
_PAIR = re.compile(r"[^={\[]+=")
"""Start of a word such as "name=value", not of a list or dictionary in YAML."""
_TYPES = {"str": "text", "int": "an integer", "float": "a number", "bool": "true or false"}


class UsageError(ValueError):
    """The options of a command are wrong."""

    def __init__(self, message: str, *, key: str = "", reason: str = "", known: Sequence[str] = ()) -> None:
        """Keep what is known of the error.

        Args:
            message: The whole error.
            key: Dotted name of the option that is wrong.
            reason: What is wrong with it.
            known: The options that there are, if one is missing.
        """
        super().__init__(message)
        self.key, self.reason, self.known = key, reason, known

    def located(self, args: Sequence[str]) -> str:
        """The message with the file or the option of ``args`` that the key is from."""
        given = [arg.partition("=")[0] for arg in args if self.known and arg.startswith("--")]
        misspelt = [option for option in given if not any(name.startswith(option) for name in self.known)]
        if misspelt:
            return f"{misspelt[0]} is not an option{did_you_mean(misspelt[0], self.known)}; {self}"
        if not self.key or any(arg.startswith(f"--{self.key}") for arg in args):
            return str(self)
        file = next((path for path in config_files(args) if _has(load_yaml(path), self.key.split("."))), None)
        return str(self) if file is None else f"{file}: {self.key} {self.reason}"


class OneLineErrors:
    """A mixin for parsers, of argparse and of jsonargparse."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong.

        Raises:
            UsageError: always, unless the parser is one of several that are tried.
        """
        if not self.exit_on_error:  # type: ignore[attr-defined]
            super().error(message, ex)  # type: ignore[misc]
        parser: Any = getattr(ex, "subcommand_parser", None) or self
        found = _Explanation(parser)
        for line in message.splitlines():
            found.read(line.strip().removeprefix("- "))
        raise found.error(message) from ex


class Parser(OneLineErrors, argparse.ArgumentParser):
    """A parser of options."""


class ConfigParser(OneLineErrors, jsonargparse.ArgumentParser):
    """A parser of options and of files of options."""


def reasons(message: str) -> list[str]:
    """What a class refused of the options that jsonargparse gave it; the other lines are types that it tried."""
    tried = ("Expected a <class", "Expected an instantiatable class", "Subclasses are disabled")
    found = (line.removeprefix("  - ") for line in message.splitlines() if line.startswith("  - "))
    return [line for line in found if not line.startswith(tried)]


def gathered(args: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """``args`` with the words of each option that takes a list or a dictionary as one word of YAML, for jsonargparse.

    In all commands a list is words after the option, or the option repeated, or a YAML list; and a dictionary is such
    words with a "=", or in YAML.
    """
    options = _options(parser)
    lists = {option.removesuffix("+") for option in options if option.endswith("+")}
    kinds = {arg: _kind(arg, options) for arg in args if arg.startswith("--")}
    lists |= {option for option, kind in kinds.items() if takes(kind, dict)}
    words: dict[str, list[str]] = {}
    places: dict[str, int] = {}
    made: list[str | None] = []
    option = ""
    for arg in args:
        if arg in lists:
            option = arg
            if option not in places:
                made += [option, None]
                places[option], words[option] = len(made) - 1, []
        elif option and not arg.startswith("--"):
            words[option].append(arg)
            option = "" if arg.startswith(("[", "{")) else option
        else:
            option = ""
            made.append(arg)
    for name, place in places.items():
        several = words[name]
        if takes(kinds[name], dict) and any(_PAIR.match(word) for word in several):
            made[place] = json.dumps(pairs(name, several))
        elif several:  # without a word, the parser reports that a value is missing
            made[place] = several[0] if len(several) == 1 else json.dumps(list(map(_number, flattened(several))))
    return [arg for arg in made if arg is not None]


def _kind(option: str, options: Mapping[str, Any]) -> Any:
    """The type of an option, or of a field of one that takes a dataclass ("--data.split.values"); None if unknown."""
    parent, _, name = option.rpartition(".")
    for kind in get_args(options.get(parent)):
        if is_dataclass(kind):
            return get_type_hints(kind).get(name)
    return options.get(option)


def takes(kind: Any, container: type) -> bool:
    """Whether a type is ``container``, or a union with it."""
    return any((get_origin(part) or part) is container for part in (kind, *get_args(kind)))


def pairs(option: str, words: Iterable[str]) -> dict[str, str | list[str]]:
    """Words such as "name=value" as a dictionary; the values of a name that is repeated are a list.

    Raises:
        ValueError: a word has no "=".
    """
    values: dict[str, list[str]] = {}
    for word in words:
        key, found, value = word.partition("=")
        if not found:
            raise ValueError(f"{option} takes NAME=VALUE pairs, got {word!r}")
        values.setdefault(key, []).append(value)
    return {key: several[0] if len(several) == 1 else several for key, several in values.items()}


def flattened(words: Iterable[str]) -> list[str]:
    """Words of the command line, with those of YAML lists among them as words of their own."""
    lists = (yaml.safe_load(word) if word.startswith("[") else [word] for word in words)
    return [str(word) for several in lists for word in several]


def _number(word: str) -> int | str:
    return int(word) if re.fullmatch(r"-?[0-9]+", word) else word


@dataclass
class _Explanation:
    """What the lines of a message say."""

    parser: Any
    path: list[str] = field(default_factory=list)
    """Keys from the outside to the option that is wrong."""
    class_path: str = ""
    """Class whose argument is wrong."""
    types: list[str] = field(default_factory=list)
    """Types that the value could have."""
    value: str = ""
    reason: str = ""
    known: list[str] = field(default_factory=list)
    """The options that there are, if one is missing."""

    def read(self, line: str) -> None:
        """Take from a line what it says, until a reason is found."""
        for pattern, take in _PATTERNS:
            match = None if self.reason else pattern.match(line)
            if match is not None:
                take(self, match)
                return

    def error(self, message: str) -> UsageError:
        """The error, with all that the lines said."""
        if not self.reason and self.types:
            self.reason = f"must be {' or '.join(dict.fromkeys(self.types))}, not {self.value!r}"
        if not self.reason:
            return UsageError("; ".join(line.strip() for line in message.splitlines() if line.strip()))
        key = ".".join(self.path)
        subject = f"--{key} " if key else ""
        return UsageError(f"{subject}{self.reason}", key=key, reason=self.reason, known=self.known)

    @property
    def _program(self) -> str:
        return str(self.parser.prog).replace(" [options]", "")

    def key(self, match: re.Match[str]) -> None:
        """``Parser key "data.sampling": …``."""
        self.path.append(match[1])
        self.read(match[2])

    def of_class(self, match: re.Match[str]) -> None:
        """``Problem with given class_path '…'``."""
        self.class_path = match[1]

    def expected_type(self, match: re.Match[str]) -> None:
        """``Expected a <class 'int'>. Got value: many``."""
        kind = _TYPES.get(match[1], match[1])
        if match[2]:
            self.reason = f"must be {kind}, not {match[2]!r}"
        elif kind != "NoneType":
            self.types.append(kind)

    def given(self, match: re.Match[str]) -> None:
        """``Given value: many``."""
        self.value = match[1]

    def choice(self, match: re.Match[str]) -> None:
        """``Expected a typing.Literal['a', 'b']. Got value: c``."""
        self._choice(ast.literal_eval(f"[{match[1]}]"), match[2])

    def argument(self, match: re.Match[str]) -> None:
        """``argument --values: …``, of argparse."""
        self.path = [match[1].rpartition("/")[2].removeprefix("--")]
        if wrong := re.fullmatch(r"invalid choice: (.*) \(choose from (.*)\)", match[2]):
            self._choice(ast.literal_eval(f"[{wrong[2]}]"), str(ast.literal_eval(wrong[1])))
        elif wrong := re.fullmatch(r"invalid (\w+) value: (.*)", match[2]):
            self.reason = f"must be {_TYPES.get(wrong[1], wrong[1])}, not {wrong[2]}"
        else:
            self.reason = f"needs a value: {match[2]}"
        if not match[1].startswith("-"):
            self.path, self.reason = [], f"{match[1]} {self.reason}"

    def _choice(self, choices: Sequence[object], value: str) -> None:
        known = list(map(str, choices))
        self.reason = f"must be {_alternatives(known)}, not {value!r}{did_you_mean(value, known)}"

    def unknown_option(self, match: re.Match[str]) -> None:
        """``Option 'schema' is not accepted`` by a class, or by the parser."""
        known = _parameters(self.class_path) if self.class_path else _keys(self.parser)
        *parents, name = match[1].split(".")
        while parents and not any(key.startswith(f"{'.'.join(parents)}.") for key in known):
            *parents, name = parents
        prefix = ".".join([*parents, ""])
        near = {key.removeprefix(prefix).partition(".")[0] for key in known if key.startswith(prefix)}
        self.path += [*parents, name]
        self.reason = f"is not an option{did_you_mean(name, sorted(near))}"

    def unknown_argument(self, match: re.Match[str]) -> None:
        """``unrecognized arguments: --otu x``."""
        option = next((word for word in match[1].split() if word.startswith("-")), match[1])
        known = _options(self.parser)
        hint = did_you_mean(option.partition("=")[0], known) if option.startswith("-") else ""
        if not option.startswith("-") and "--data.data" in known:
            hint = "; name data by --data.data"
        self.reason = f"{option} is not an option of {self._program}{hint}"

    def required(self, match: re.Match[str]) -> None:
        """``the following arguments are required: …``."""
        self.known = list(_options(self.parser))
        names = []
        for name in match[1].split(", "):
            # the parser of all subcommands puts the name of one before its options
            options = [f"--{name}", f"--{name.partition('.')[2]}"]
            names.append(next(filter(self.known.__contains__, options), name))
        self.reason = f"{' and '.join(names)} must be given; see {self._program} --help"

    def no_class(self, match: re.Match[str]) -> None:
        """``Expected a dot import path string: LabelClassifer``."""
        package = "scdataloader.models" if self.path[-1:] == ["model"] else "scdataloader"
        known = import_module(package).__all__
        self.reason = f"names the class {match[1]!r}, which does not exist{did_you_mean(match[1], known)}"
        if match[1] in known:
            self.reason = f"names the class {match[1]!r} without its module; write {package}.{match[1]}"

    def no_attribute(self, match: re.Match[str]) -> None:
        """``module 'scdataloader' has no attribute 'Log2p'``."""
        near = did_you_mean(match[2], dir(import_module(match[1])))
        self.reason = f"names {match[1]}.{match[2]}, which does not exist{near}"

    def no_module(self, match: re.Match[str]) -> None:
        """``No module named 'my_model'``."""
        self.reason = f"names {self.class_path}, but there is no module {match[1]} (working directory: {Path.cwd()})"

    def no_file(self, match: re.Match[str]) -> None:
        """``File does not exist: '…'``."""
        self.reason = f"names a file that does not exist: {match[1]}"


_PATTERNS: tuple[tuple[re.Pattern[str], Callable[[_Explanation, re.Match[str]], None]], ...] = tuple(
    (re.compile(pattern), take)
    for pattern, take in (
        (r'Parser key "(.+?)":?\s*(.*)', _Explanation.key),
        (r"Problem with given class_path '(.+?)'", _Explanation.of_class),
        (r"(?:Option|.* does not accept option) '(.+?)'", _Explanation.unknown_option),
        (r"Expected a typing\.Literal\[(.*)\]\. Got value: (.*)", _Explanation.choice),
        (r"Expected a <class '(\w+)'>(?:\. Got value: (.*))?", _Explanation.expected_type),
        (r"Given value: (.*)", _Explanation.given),
        (r"Expected a dot import path string: (.*)", _Explanation.no_class),
        (r"module '(.+?)' has no attribute '(.+?)'", _Explanation.no_attribute),
        (r"No module named '(.+?)'", _Explanation.no_module),
        (r"File does not exist: (.*)", _Explanation.no_file),
        (r"argument (.+?): (.*)", _Explanation.argument),
        (r"unrecognized arguments: (.*)", _Explanation.unknown_argument),
        (r"the following arguments are required: (.*)", _Explanation.required),
    )
)


def _alternatives(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    return list(inspect.signature(getattr(import_module(module), name)).parameters)


def _options(parser: Any) -> dict[str, Any]:
    """Options of a parser, and of the parsers of its subcommands, with their types as far as they are known."""
    actions = parser._actions  # noqa: SLF001 (of a parser)
    own = {option: getattr(action, "_typehint", None) for action in actions for option in action.option_strings}
    below: Iterable[Any] = (
        nested
        for action in actions
        if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001 (as above)
        for nested in action.choices.values()
    )
    return own | {option: kind for nested in below for option, kind in _options(nested).items()}


def _keys(parser: Any) -> list[str]:
    return [option.removeprefix("--") for option in _options(parser) if option.startswith("--")]


def config_files(args: Sequence[str]) -> list[str]:
    """The files of options that ``args`` name, the last first."""
    files = [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]
    files += [file for option, file in pairwise(args) if option in _CONFIG_OPTIONS]
    return files[::-1]


def load_yaml(path: str | Path) -> Any:
    """The content of a file of options.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not YAML; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"configuration {path} does not exist (working directory: {Path.cwd()})")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ValueError(f"{path} is not YAML: {reason}") from error


def _has(tree: Any, path: Sequence[str]) -> bool:
    """Whether a file of options has a key; arguments of a class are below its ``init_args``."""
    if not path:
        return True
    if not isinstance(tree, dict):
        return False
    inner = tree.get("init_args")
    return (path[0] in tree and _has(tree[path[0]], path[1:])) or (isinstance(inner, dict) and _has(inner, path))
