"""A file is one file: however it is named, and wherever it is moved; its cells are never in a collection twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import anndata as ad
import pytest
from curated import HUMAN, MOUSE, B, T, curated, failing_database, without_output
from curation import cells, table, written

import scdataloader as scd
from scdataloader.curate import Curator, Outcome, Recipe
from scdataloader.curate.origin import Origin
from scdataloader.curate.register import register
from scdataloader.sources.lamin import resolve_lamin


@pytest.fixture
def key(request) -> str:
    """Of a collection that no other test has."""
    return f"files/{request.node.name}"


@pytest.fixture
def made(tmp_path: Path, monkeypatch) -> Callable[..., Outcome]:
    """Makes a curated file of the working directory; its content is named by a letter, its recipe by a digit."""
    monkeypatch.chdir(tmp_path)

    def make(source: str, content: str, recipe: str = "0", **changed) -> Outcome:
        name = f"{content}{recipe}{changed.get('organism', '')}"
        identity = {"content": content * 32, "recipe": recipe * 32}
        return curated(tmp_path / "out" / name / "x.h5ad", [T, B], source=source, **identity, **changed)

    return make


def contents(key: str, version: str = "") -> list[tuple[str, str]]:
    """Key below the collection's, content and recipe of each member, in order."""
    found = []
    for member in resolve_lamin(f"lamindb:{key}{version}"):
        content, recipe, _ = member_origin(member.name, member.path).identity
        found.append((member.name.removeprefix(f"{key}/"), content[0] + recipe[0]))
    return found


def member_origin(name: str, path: Path) -> Origin:
    import lamindb

    (artifact,) = (one for one in lamindb.Artifact.filter(key=name) if one.path == path)
    return Origin.read(artifact)
