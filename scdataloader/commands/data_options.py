"""The options of `DataConfig`, `Sampling`, `Split` and `GeneAlignment` as options of a command that looks at data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from scdataloader.commands.usage import ConfigParser, Parser, UsageError, flattened, load_yaml, pairs, takes
from scdataloader.genes.alignment import GeneAlignment
from scdataloader.runtime.messages import did_you_mean, nearest
from scdataloader.sampling.options import Sampling, plan_columns
from scdataloader.training.config import BATCH_SIZE, DataConfig

NO_DATA = "no data: name files before the options, or give --config with a data section"
"""Message of the error if a command has no data."""
_GROUPS = {"sampling": Sampling, "alignment": GeneAlignment}
"""Sections of a configuration whose options are options of the command as well."""
_OWN = ("where", "hierarchies", "counts", "values")
"""Options of `DataConfig` itself that are options of every such command."""


def data_parser(prog: str, description: str, example: str, further: Sequence[str] = ()) -> Parser:
    """A parser of data and its options; a command adds its own.

    Args:
        prog: Name of the command.
        description: Purpose of the command, for its help.
        example: A line of the shell that shows how the command is used.
        further: Further options of `DataConfig` that the command has.
    """
    parser = Parser(
        prog=prog,
        description=description,
        epilog="A list is several words, the option repeated, or a YAML list. NAME=VALUE applies to the source or the "
        f"key of that name. Example: {example}",
    )
    parser.add_argument("data", nargs="*", metavar="DATA", help="files, folders, globs, lamindb:<key> or a plug-in's")
    parser.add_argument("--config", type=Path, help="YAML file of `scdataloader fit`; its data section gives defaults")
    splits = "how cells are divided, such as `--split val=0.1 by=donor_id`; by default all train"
    parser.add_argument("--split", nargs="+", action="extend", metavar="NAME=VALUE", help=splits)
    for group in (DataConfig, *_GROUPS.values()):
        docs, types = _documented(group), get_type_hints(group)
        for field in fields(group):
            if group is not DataConfig or field.name in (*_OWN, *further):
                _add_option(parser, field.name, types[field.name], docs[field.name])
    return parser


def data_config(given: argparse.Namespace) -> tuple[DataConfig, int]:
    """The options as an object, and the batch size of the configuration.

    Raises:
        ValueError: no data are named, an option is invalid, or ``--hierarchies`` names a column that is not used.
    """
    section = {} if given.config is None else data_section(given.config)
    return _config(given, section), section.get("batch_size", BATCH_SIZE)


def _add_option(parser: argparse.ArgumentParser, name: str, kind: Any, text: str) -> None:
    """Add the option for a field of a dataclass."""
    options: dict[str, Any] = {"help": text.replace("%", "%%")}
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif takes(kind, list) or takes(kind, dict):
        pair = "NAME=VALUE" if takes(kind, dict) else "NAME"
        options |= {"nargs": "+", "action": "extend", "metavar": pair}
    elif get_args(kind) and all(isinstance(choice, str) for choice in get_args(kind)):
        options["choices"] = get_args(kind)
    else:
        options["metavar"] = "VALUE"
    parser.add_argument(f"--{name}", **options)


def _documented(group: type) -> dict[str, str]:
    """{field: description} from the docstring of a dataclass."""
    from docstring_parser import parse

    return {param.arg_name: " ".join((param.description or "").split()) for param in parse(group.__doc__ or "").params}


def _config(given: argparse.Namespace, section: dict[str, Any]) -> DataConfig:
    """The data section of the YAML file, updated by the options.

    Raises:
        ValueError: no data are named, an option is invalid, or ``--hierarchies`` names a column that is not counted.
    """
    from jsonargparse import set_parsing_settings

    names = {field.name for field in fields(DataConfig)}
    _check_keys([name for name in section if name not in names and nearest(name, names)])
    section = {name: value for name, value in section.items() if name in names}
    if given.data:
        section["data"] = given.data[0] if len(given.data) == 1 else given.data
    section |= _values(given, DataConfig)
    if given.split:
        section["split"] = {**(section.get("split") or {}), **pairs("--split", given.split)}
    if (hierarchies := _hierarchies(given)) is not None:
        section["hierarchies"] = hierarchies
    for name, group in _GROUPS.items():
        values = _values(given, group)
        given_class = (section.get(name) or {}).get("class_path") if isinstance(section.get(name), dict) else None
        if values and given_class:
            raise ValueError(
                f"--{next(iter(values))} is an option of {group.__name__}, but {given.config} has {name} by "
                f"{given_class}; change its init_args, or remove the option"
            )
        if values:
            section[name] = {**(section.get(name) or {}), **values}
    if not section.get("data"):
        raise ValueError(NO_DATA)
    set_parsing_settings(instantiate_subclass_spec_in_any=True)  # sources in data by class path, as for fit
    checked = ConfigParser()
    checked.add_class_arguments(DataConfig, "data", fail_untyped=False)
    config: DataConfig = checked.instantiate(checked.parse_object({"data": section})).data
    by = plan_columns(config.plan)
    used = [*by, *(config.label_columns if "labels" in vars(given) else ())]
    unused = [column for column in config.hierarchies or () if given.hierarchies and column not in used]
    if unused:
        raise ValueError(
            f"--hierarchies names {', '.join(unused)}, but classes are counted by {by or 'nothing'}: see --by"
        )
    return config


def _check_keys(suspects: Sequence[str]) -> None:
    """Refuse keys that are not options of training either, which is slow to import."""
    if not suspects:
        return
    from scdataloader.training.datamodule import DataModule

    known = [field.name for field in fields(DataModule)]
    for name in suspects:
        if name not in known:
            reason = f"is not an option{did_you_mean(name, known)}"
            raise UsageError(f"data.{name} {reason}", key=f"data.{name}", reason=reason)


def _values(given: argparse.Namespace, group: type) -> dict[str, Any]:
    """{field: value} of the options of a dataclass that were given, without those that need rules of their own."""
    types, values = get_type_hints(group), {}
    for name in types:
        words = getattr(given, name, None)
        if words is not None and name not in {"data", "hierarchies", "split"}:
            values[name] = _value(name, flattened(words), types[name]) if isinstance(words, list) else words
    return values


def _value(name: str, words: list[str], kind: Any) -> Any:
    """Words of the command line as a dictionary, a list or, if there is only one, a string."""
    if takes(kind, dict) and (any("=" in word for word in words) or not takes(kind, str)):
        return pairs(f"--{name}", words)
    return words[0] if len(words) == 1 else words


def _hierarchies(given: argparse.Namespace) -> dict[str, list[str] | None] | None:
    """{column: ontologies, if they are named}; for ``--tree`` or ``--scheme tree`` by one column, that column."""
    words = given.hierarchies
    if words is None and (given.tree or given.scheme == "tree") and given.config is None and len(given.by or ()) == 1:
        words = given.by
    if words is None:
        return None
    parts = (word.partition("=") for word in flattened(words))
    return {column: named.split(",") if named else None for column, _, named in parts}


def data_section(path: Path) -> dict[str, Any]:
    """The data section of a configuration of ``scdataloader fit``.

    Raises:
        ValueError: the file has none, or is not YAML.
    """
    found = load_yaml(path)
    if not (isinstance(found, dict) and isinstance(section := found.get("data"), dict)):
        raise ValueError(f"{path} has no section data, as a configuration of `scdataloader fit` has")  # noqa: TRY004 (a file, not a call)
    return section
