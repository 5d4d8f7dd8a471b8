"""Write the JSON schema of the YAML files of `scdataloader fit`, by which editors complete and check them.

    python scripts/config_schema.py configs/schema.json

Options, types and descriptions are those of `DataModule` and the dataclasses that it takes. Models and other classes
are accepted by class path, with any arguments.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from inspect import signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse
from lightning.pytorch import Trainer

from scdataloader.training.config import DataConfig
from scdataloader.training.datamodule import DataModule

Schema = dict[str, Any]

_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}
_CLASS: Schema = {
    "type": "object",
    "properties": {
        "class_path": {"type": "string"},
        "init_args": {"type": "object"},
        "dict_kwargs": {"type": "object"},
    },
    "required": ["class_path"],
    "additionalProperties": False,
}
_CLASS_OR_NAME: Schema = {"anyOf": [_CLASS, {"type": "string"}]}


def config_schema() -> Schema:
    """The schema of a file of ``fit``."""
    trainer = {name: {} for name in signature(Trainer).parameters}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of scdataloader fit",
        "type": "object",
        "properties": {
            "seed_everything": {"type": ["integer", "boolean"]},
            "trainer": {"type": "object", "properties": trainer, "description": "Options of Lightning's Trainer."},
            "model": {**_CLASS_OR_NAME, "description": "Any LightningModule, by class path."},
            "data": options(DataModule, parents=(DataConfig,)),
            "ckpt_path": {"type": ["string", "null"], "description": "Checkpoint to continue from, or to evaluate."},
        },
    }


def options(kind: type, parents: Sequence[type] = ()) -> Schema:
    """The schema of the options of a dataclass, described by its docstring and those of its parents."""
    texts = {
        param.arg_name: " ".join((param.description or "").split())
        for described in (*parents, kind)
        for param in parse(described.__doc__ or "").params
    }
    types, known = get_type_hints(kind), fields(kind)
    return {
        "type": "object",
        "properties": {
            field.name: {**schema_of(types[field.name]), "description": texts[field.name]} for field in known
        },
        "required": [field.name for field in known if field.default is MISSING and field.default_factory is MISSING],
        "additionalProperties": False,
    }


def schema_of(kind: Any) -> Schema:
    """The schema of a type."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in {Union, UnionType}:
        return {"anyOf": list(_distinct(map(schema_of, inner)))}
    if origin is not None:
        return _of_generic(origin, inner)
    if kind is Any or kind in _SCALARS:
        return {"type": _SCALARS[kind]} if kind in _SCALARS else {}
    return {"anyOf": [options(kind), _CLASS]} if is_dataclass(kind) else _CLASS_OR_NAME


def _of_generic(origin: Any, inner: Sequence[Any]) -> Schema:
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in {list, Sequence}:
        return {"type": "array", "items": schema_of(inner[0])}
    if origin in {dict, Mapping}:
        return {"type": "object", "additionalProperties": schema_of(inner[1])}
    return _CLASS_OR_NAME


def _distinct(schemas: Iterable[Schema]) -> Iterable[Schema]:
    return {json.dumps(schema, sort_keys=True): schema for schema in schemas}.values()


def main(path: str) -> None:
    """Write the schema to a file."""
    Path(path).write_text(json.dumps(config_schema(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
