"""The command ``scdataloader inspect``; its options are those of `DataConfig`, `Sampling` and `GeneAlignment`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from rich.console import Console

from scdataloader.collection.collection import Collection
from scdataloader.commands.usage import ConfigParser, Parser, UsageError, flattened, load_yaml, pairs, takes
from scdataloader.genes.alignment import GeneAlignment
from scdataloader.lamin.collections import is_lamin, origins
from scdataloader.protocols import DescribesClasses
from scdataloader.report.tables import show_columns, show_sampling, show_sources
from scdataloader.report.tree import show_mapped, show_tree
from scdataloader.runtime.faults import Faults
from scdataloader.runtime.messages import did_you_mean, nearest
from scdataloader.sampling.options import Sampling, plan_columns
from scdataloader.training.config import BATCH_SIZE, DataConfig

UNUSABLE = 1
"""Exit code where a source cannot be used; 2 is for wrong options, or if there is no other source."""
N_CHARACTERS_IN_A_FILE = 160
"""Width of tables if the output is not a terminal."""
_GROUPS = {"sampling": Sampling, "alignment": GeneAlignment}
"""Sections of a configuration whose options are options of the command as well."""
_OWN = ("where", "hierarchies", "counts", "values")
"""Options of `DataConfig` itself that are options of the command."""


def main(args: Sequence[str]) -> None:
    """Show on standard output what data holds, and how a weighting changes class shares.

    Raises:
        SystemExit: some sources cannot be used; they are listed after the others.
        ValueError: no data is named; and all that opening data raises if no source can be used.
    """
    given = _parser().parse_args(args)
    section = {} if given.config is None else _data_section(given.config)
    config, batch_size = _config(given, section), section.get("batch_size", BATCH_SIZE)
    faults = Faults(listed=True)
    collection = config.open(faults=faults)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, N_CHARACTERS_IN_A_FILE)
    show_sources(console, collection, given.top)
    for item in _items(config.data):
        for line in origins(item) if is_lamin(item) else ():
            console.print(line, markup=False, soft_wrap=True)
    if faults.found:
        console.print(faults.message, markup=False, soft_wrap=True)
    show_columns(console, collection)
    columns = plan_columns(config.plan)
    if given.tree and not columns:
        raise ValueError("--tree shows the classes of a column; name it in --by")
    if config.sampling is not None:
        _show_sampling(console, config, collection, given, batch_size)
    if faults.found:
        raise SystemExit(UNUSABLE)


def _items(data: Any) -> list[Any]:
    """What ``data`` lists, of all corpora."""
    if isinstance(data, Mapping):
        return [item for of_corpus in data.values() for item in _items(of_corpus)]
    return data if isinstance(data, list) else [data]


def _show_sampling(
    console: Console, config: DataConfig, collection: Collection, given: argparse.Namespace, batch_size: int
) -> None:
    columns = plan_columns(config.plan)
    hierarchies = config.hierarchies_of(collection)
    plan, cells = config.plan, config.training_cells_of(collection, hierarchies)
    sampler = plan.sampler(cells, seed=0, global_batch_size=batch_size)
    show_sampling(console, plan, cells, sampler, given.top)
    for column in filter(hierarchies.__contains__, columns):
        show_mapped(console, hierarchies[column])
    if given.tree and isinstance(plan, DescribesClasses):
        show_tree(console, cells, columns, plan.describe(cells), sampler)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="scdataloader inspect",
        description="Show what data holds, and how a weighting changes the shares of its classes.",
        epilog="A list is several words, the option repeated, or a YAML list. NAME=VALUE applies to the source or the "
        "key of that name.",
    )
    parser.add_argument("data", nargs="*", metavar="DATA", help="files, folders, globs, lamindb:<key> or a plug-in's")
    parser.add_argument("--config", type=Path, help="YAML file of `scdataloader fit`; its data section gives defaults")
    parser.add_argument("--tree", action="store_true", help="show classes in the tree of their ontology")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="sources and classes to list; default: 20")
    for group in (DataConfig, *_GROUPS.values()):
        docs, types = _documented(group), get_type_hints(group)
        for field in fields(group):
            if group is not DataConfig or field.name in _OWN:
                _add_option(parser, field.name, types[field.name], docs[field.name])
    return parser


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
        ValueError: there is no data, an option is invalid, or ``--hierarchies`` names a column that is not counted.
    """
    from jsonargparse import set_parsing_settings

    names = {field.name for field in fields(DataConfig)}
    _check_keys([name for name in section if name not in names and nearest(name, names)])
    section = {name: value for name, value in section.items() if name in names}
    if given.data:
        section["data"] = given.data[0] if len(given.data) == 1 else given.data
    section |= _values(given, DataConfig, _OWN)
    if (hierarchies := _hierarchies(given)) is not None:
        section["hierarchies"] = hierarchies
    for name, group in _GROUPS.items():
        values = _values(given, group, [field.name for field in fields(group)])
        given_class = (section.get(name) or {}).get("class_path") if isinstance(section.get(name), dict) else None
        if values and given_class:
            raise ValueError(
                f"--{next(iter(values))} is an option of {group.__name__}, but {given.config} has {name} by "
                f"{given_class}; change its init_args, or remove the option"
            )
        if values:
            section[name] = {**(section.get(name) or {}), **values}
    if not section.get("data"):
        raise ValueError("no data: name files before the options, or give --config with a data section")
    set_parsing_settings(instantiate_subclass_spec_in_any=True)  # sources in data by class path, as for fit
    checked = ConfigParser()
    checked.add_class_arguments(DataConfig, "data", fail_untyped=False)
    config: DataConfig = checked.instantiate(checked.parse_object({"data": section})).data
    by = plan_columns(config.plan)
    unused = [column for column in config.hierarchies or () if given.hierarchies and column not in by]
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


def _values(given: argparse.Namespace, group: type, names: Sequence[str]) -> dict[str, Any]:
    """{field: value} of the options of a dataclass that were given."""
    types, values = get_type_hints(group), {}
    for name in names:
        words = getattr(given, name)
        if words is not None and name != "hierarchies":
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


def _data_section(path: Path) -> dict[str, Any]:
    """The data section of a configuration of ``scdataloader fit``."""
    found = load_yaml(path)
    if not (isinstance(found, dict) and isinstance(section := found.get("data"), dict)):
        raise ValueError(f"{path} has no section data, as a configuration of `scdataloader fit` has")  # noqa: TRY004 (a file, not a call)
    return section
