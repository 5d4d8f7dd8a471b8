"""The JSON schema of configurations, against the configurations and options that there are."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from scripts.config_schema import config_schema

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SCHEMA = json.loads((ROOT / "configs" / "schema.json").read_text(encoding="utf-8"))


def test_the_schema_is_that_of_the_options():
    # the names of Lightning's own options depend on its release
    for schema in (SCHEMA, expected := json.loads(json.dumps(config_schema()))):
        schema["properties"]["trainer"]["properties"] = {}
    assert expected == SCHEMA, "run scripts/config_schema.py configs/schema.json"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_configuration_of_the_project_is_valid(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    jsonschema.validate(yaml.safe_load(text), SCHEMA)


@pytest.mark.parametrize(
    "data",
    [
        {"labels": ["cell_type"]},
        {"data": "a.h5ad", "batchsize": 8},
        {"data": "a.h5ad", "batch_size": "many"},
        {"data": "a.h5ad", "sampling": {"by": "cell_type", "schema": "uniform"}},
        {"data": "a.h5ad", "split": {"val": [0.1]}},
        {"data": "a.h5ad", "missing_targets": "zero"},
    ],
)
def test_what_fit_refuses_is_not_valid(data):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"data": data}, SCHEMA)


def test_classes_and_names_are_valid_where_they_are_taken():
    data = {
        "data": {"class_path": "my.Source", "init_args": {"path": "x"}},
        "sampling": {"class_path": "my.Plan"},
        "collate": "dense",
        "split": {"by": "part", "values": {"train": "train", "val": ["val", "dev"]}},
        "hierarchies": {"disease_ontology_term_id": ["MONDO", "PATO"]},
    }
    jsonschema.validate({"data": data}, SCHEMA)
