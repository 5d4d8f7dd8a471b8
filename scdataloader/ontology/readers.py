"""Readers of ontologies, which return a `TermTable`: cellxgene-ontology-guide, bionty, OBO and OWL files."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scdataloader.errors import SourceFormatError
from scdataloader.ontology.table import TermTable

_URL = re.compile(r"[a-z][a-z0-9+.-]+://")


def read_guide(name: str, schema_version: str | None) -> TermTable:
    """An ontology of the CELLxGENE schema, from the package cellxgene-ontology-guide."""
    from cellxgene_ontology_guide.supported_versions import clear_ontology_file_cache, load_ontology_file

    schema = _guide_schema(schema_version)
    name = guide_name(name, schema_version)
    # the guide caches parsed files, several times the size of a TermTable, for the life of the process; the cache stays
    # if the user uses the guide too
    was_empty = load_ontology_file.cache_info().currsize == 0
    terms: dict[str, dict[str, Any]] = schema.ontology(name)
    if was_empty:
        clear_ontology_file_cache()
    return TermTable(
        name=name,
        version=schema.supported_ontologies[name]["version"],
        labels={term: data["label"] or "" for term, data in terms.items()},
        synonyms={term: data["synonyms"] for term, data in terms.items() if data.get("synonyms")},
        parents={
            term: [above for above, steps in data["ancestors"].items() if steps == 1]
            for term, data in terms.items()
            if data["ancestors"]
        },
        # a path through terms of another ontology, which the file leaves out, is in the ancestors alone
        ancestry={term: data["ancestors"] for term, data in terms.items() if data["ancestors"]},
        deprecated=[term for term, data in terms.items() if data["deprecated"]],
        replaced_by={term: data["replaced_by"] for term, data in terms.items() if data.get("replaced_by")},
        # as "obo.HsapDv_0000258", or as a URL
        consider={
            term: [re.split(r"[./]", other)[-1].replace("_", ":", 1) for other in data["consider"]]
            for term, data in terms.items()
            if data.get("consider")
        },
    )


def _guide_schema(version: str | None) -> Any:
    from cellxgene_ontology_guide.supported_versions import CXGSchema, load_supported_versions

    try:
        return CXGSchema(version=version)
    except ValueError as error:
        raise ValueError(
            f"the installed cellxgene-ontology-guide has no CELLxGENE schema {version!r}; it has "
            f"{', '.join(load_supported_versions())}; install another release of the package"
        ) from error


def guide_name(name: str, schema_version: str | None = None) -> str:
    """The guide's spelling of the name of an ontology, or of the one that contains its terms; nothing is opened.

    Raises:
        ValueError: the guide has no such ontology or schema, or the ontology is NCBITaxon.
    """
    schema = _guide_schema(schema_version)
    if name.lower() == "ncbitaxon":
        raise ValueError(
            "NCBITaxon of the guide is not supported, because it takes half a minute and 1.5 GB of memory to load; an "
            "organism needs no ontology but its id; for a part of the taxonomy use Ontology.from_obo"
        )
    names = {known.lower(): known for known in schema.supported_ontologies}
    names |= {part.lower(): whole for part, whole in schema.imported_ontologies.items()}
    if name.lower() not in names:
        offered = sorted(set(names.values()) - {"NCBITaxon"})
        raise ValueError(
            f"cellxgene-ontology-guide has no ontology {name!r} in schema {schema.version}; it has "
            f"{', '.join(offered)}; for others use Ontology.from_obo"
        )
    return str(names[name.lower()])


def read_bionty(registry: Any) -> TermTable:
    """The records of a bionty registry that have an ontology id, or its public source if none has one."""
    from lamindb_setup.errors import CurrentInstanceNotConfigured

    registry = _bionty_registry(registry)
    name = str(registry.__name__)
    try:
        records = list(
            registry.filter(ontology_id__isnull=False).order_by("id").values_list("ontology_id", "name", "synonyms")
        )
        child = f"from_{name.lower()}__ontology_id"
        pairs = list(registry.parents.through.objects.values_list(child, child.replace("from", "to", 1)))
    except CurrentInstanceNotConfigured as error:
        raise RuntimeError(
            f"bionty.{name} needs a lamindb instance, and none is connected; run `lamin connect <owner>/<name>` before "
            "starting Python, or use Ontology.from_guide, which needs no instance and no network"
        ) from error
    version = ""
    if not records:
        version, records, pairs = _public_records(registry, name)
    return _from_records(f"bionty.{name}", version, records, pairs)


def _bionty_registry(registry: Any) -> Any:
    if isinstance(registry, str):
        import bionty

        registry = getattr(bionty, registry, registry)
    if not hasattr(registry, "parents") or not hasattr(registry, "public"):
        raise TypeError(
            f"expected a bionty registry whose records have parents, such as bionty.CellType, got {registry!r}"
        )
    return registry


def _public_records(registry: Any, name: str) -> tuple[str, list[tuple[Any, ...]], list[tuple[str, str]]]:
    """Version, records and pairs of child and parent that `registry.import_source()` would save; nothing is saved."""
    import httpx
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        public = registry.public()
        table = public.to_dataframe()
    except (BotoCoreError, ClientError, httpx.HTTPError, OSError) as error:
        raise ConnectionError(
            f"no record of bionty.{name} has an ontology id, and bionty.{name}.public() cannot download the terms "
            f"({error}); offline, use Ontology.from_guide, or give bionty a table of terms with "
            f"bionty.{name}.add_source(source, df=...)"
        ) from error
    # some tables of bionty have no synonyms, or rows without a list of parents
    table = table.reindex(columns=["name", "synonyms", "parents"])
    above = ((child, parents) for child, parents in table["parents"].items() if np.ndim(parents))
    pairs = [(child, parent) for child, parents in above for parent in parents]
    return str(public.version), list(zip(table.index, table["name"], table["synonyms"], strict=True)), pairs


def _from_records(
    name: str, version: str, records: Iterable[tuple[Any, ...]], pairs: Iterable[tuple[str | None, str | None]]
) -> TermTable:
    # of several records with one id, from several releases, the newest is last
    rows = {term: (_text(label), tuple(filter(None, _text(synonyms).split("|")))) for term, label, synonyms in records}
    labels = {term: label for term, (label, _) in rows.items()}
    return TermTable(
        name=name,
        version=version,
        labels=labels,
        synonyms={term: synonyms for term, (_, synonyms) in rows.items()},
        parents=_known_parents(labels, pairs),
        # bionty keeps no other mark; the words are a convention of all OBO ontologies
        deprecated=[term for term, label in labels.items() if label.startswith(("obsolete ", "obsolete_"))],
    )


def _text(value: Any) -> str:
    """The text; an empty one for None and NaN."""
    return value if isinstance(value, str) else ""


def read_obo(path_or_url: str | Path, relations: Sequence[str]) -> TermTable:
    """A file in OBO, OWL (RDF/XML) or OBO graph (JSON) format, compressed or not."""
    ontology = _parsed(str(path_or_url))
    upward = [_relation(ontology, relation, path_or_url) for relation in relations]
    labels: dict[str, str] = {}
    synonyms: dict[str, list[str]] = {}
    pairs: list[tuple[str, str]] = []
    replaced_by: dict[str, str] = {}
    consider: dict[str, list[str]] = {}
    merged: dict[str, str] = {}
    for term in ontology.terms():
        labels[term.id] = term.name or ""
        synonyms[term.id] = sorted(synonym.description for synonym in term.synonyms if synonym.scope == "EXACT")
        # ids, not terms: the parent may belong to another ontology and not be in the file
        above = set(term.superclasses(distance=1, with_self=False).to_set().ids)
        above.update(*(term.relationships[r].ids for r in upward if r in term.relationships))
        pairs += [(term.id, parent) for parent in above]
        if len(term.replaced_by.ids) == 1:  # choosing among several takes an expert
            replaced_by[term.id] = next(iter(term.replaced_by.ids))
        consider[term.id] = sorted({*term.consider.ids, *term.replaced_by.ids})
        merged |= dict.fromkeys(term.alternate_ids, term.id)
    # an id that was merged into another is a deprecated term without a name
    merged = {old: new for old, new in merged.items() if old not in labels}
    return TermTable(
        name=ontology.metadata.ontology or Path(path_or_url).name,
        version=ontology.metadata.data_version or "",
        labels=labels | dict.fromkeys(merged, ""),
        synonyms=synonyms,
        parents=_known_parents(labels, pairs),
        deprecated=[*(term.id for term in ontology.terms() if term.obsolete), *merged],
        replaced_by=replaced_by | merged,
        consider=consider,
    )


def _relation(ontology: Any, relation: str, path_or_url: str | Path) -> Any:
    try:
        return ontology.get_relationship(relation)
    except KeyError:
        declared = ", ".join(sorted(known.id for known in ontology.relationships())) or "none"
        raise ValueError(f"{path_or_url} declares no relation {relation!r}; it has {declared}") from None


def _parsed(path_or_url: str) -> Any:
    import pronto

    is_url = _URL.match(path_or_url) is not None
    if not is_url and not Path(path_or_url).is_file():
        raise FileNotFoundError(
            f"ontology file {path_or_url} does not exist; give the path or URL of an .obo, .owl or .json file"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about parts of OWL that pronto leaves out and that are not used here
            return pronto.ontology.Ontology(path_or_url, timeout=60)
    except OSError as error:
        if not is_url:
            raise
        raise ConnectionError(
            f"cannot download {path_or_url} ({error}); offline, give the path of a local copy, or use "
            "Ontology.from_guide, which needs no network"
        ) from error
    except KeyError as error:
        raise SourceFormatError(
            f"{path_or_url} has the parent {error}, but no such term; add the term, or remove the parent"
        ) from error
    except (ValueError, SyntaxError, TypeError) as error:
        raise SourceFormatError(
            f"{path_or_url} is not a readable ontology ({error}); expected OBO, OWL in RDF/XML, or OBO graph JSON"
        ) from error


def _known_parents(labels: Mapping[str, str], pairs: Iterable[tuple[Any, Any]]) -> dict[str, list[str]]:
    """``{term: parents}`` from pairs of child and parent, as far as both are terms."""
    parents: dict[str, list[str]] = {}
    for child, parent in pairs:
        if child in labels and parent in labels:
            parents.setdefault(child, []).append(parent)
    return parents
