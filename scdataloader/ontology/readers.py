"""Where terms come from: the guide's wheel, a lamindb instance, an OBO or OWL file; all give a `TermTable`."""

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
    """An ontology out of the wheel of cellxgene-ontology-guide, which holds those of the CELLxGENE schema."""
    from cellxgene_ontology_guide.supported_versions import clear_ontology_file_cache, load_ontology_file

    schema = _guide_schema(schema_version)
    name = guide_name(name, schema_version)
    # the guide keeps what it has parsed, several times as large as what is needed here, for as long as the process
    # lives; where others use the guide too, its memory is theirs
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
            term: [above for above, steps in data["ancestors"].items() if steps == 1] for term, data in terms.items()
        },
        # a path through terms of another ontology, which the file leaves out, is in the ancestors alone
        ancestry={term: data["ancestors"] for term, data in terms.items()},
        deprecated=[term for term, data in terms.items() if data["deprecated"]],
        replaced_by={term: data["replaced_by"] for term, data in terms.items() if data.get("replaced_by")},
    )


def _guide_schema(version: str | None) -> Any:
    from cellxgene_ontology_guide.supported_versions import CXGSchema, load_supported_versions

    try:
        return CXGSchema(version=version)
    except ValueError as error:
        raise ValueError(
            f"the installed cellxgene-ontology-guide has no CELLxGENE schema {version!r}, only "
            f"{', '.join(load_supported_versions())}; another release of the package has others"
        ) from error


def guide_name(name: str, schema_version: str | None = None) -> str:
    """The guide's own spelling of an ontology's name, of which some hold the terms of another; opens none.

    Raises:
        ValueError: the guide has no such ontology or schema, or it is NCBITaxon.
    """
    schema = _guide_schema(schema_version)
    if name.lower() == "ncbitaxon":
        raise ValueError(
            "the guide's NCBITaxon takes half a minute and 1.5 GB of memory to load, and is not offered here: an "
            "organism needs no ontology, its NCBITaxon id is enough; read a part of the taxonomy with Ontology.from_obo"
        )
    names = {known.lower(): known for known in schema.supported_ontologies}
    names |= {part.lower(): whole for part, whole in schema.imported_ontologies.items()}
    if name.lower() not in names:
        offered = sorted(set(names.values()) - {"NCBITaxon"})
        raise ValueError(
            f"cellxgene-ontology-guide has no ontology {name!r} in schema {schema.version}, only {', '.join(offered)}; "
            "read another one with Ontology.from_obo"
        )
    return str(names[name.lower()])


def read_bionty(registry: Any) -> TermTable:
    """The records of a bionty registry that have an ontology id, or, where it has none, its public reference."""
    from lamindb_setup.errors import CurrentInstanceNotConfigured

    registry = _bionty_registry(registry)
    name = str(registry.__name__)
    try:
        records = list(registry.filter(ontology_id__isnull=False).order_by("id").values_list(*_BIONTY_COLUMNS))
        child = f"from_{name.lower()}__ontology_id"
        pairs = list(registry.parents.through.objects.values_list(child, child.replace("from", "to", 1)))
    except CurrentInstanceNotConfigured as error:
        raise RuntimeError(
            f"the registry bionty.{name} lies in a lamindb instance, and none is connected: run "
            "`lamin connect <owner>/<name>` before starting Python, or use Ontology.from_guide, which needs neither an "
            "instance nor a network"
        ) from error
    version = ""
    if not records:
        version, records, pairs = _public_records(registry, name)
    return _from_records(f"bionty.{name}", version, records, pairs)


_BIONTY_COLUMNS = ("ontology_id", "name", "synonyms")


def _bionty_registry(registry: Any) -> Any:
    if isinstance(registry, str):
        import bionty

        registry = getattr(bionty, registry, registry)
    if not hasattr(registry, "parents") or not hasattr(registry, "public"):
        raise TypeError(
            f"expected a registry of bionty whose records have parents, such as bionty.CellType, got {registry!r}"
        )
    return registry


def _public_records(registry: Any, name: str) -> tuple[str, list[tuple[Any, ...]], list[tuple[str, str]]]:
    """What `registry.import_source()` would save, read without saving it."""
    import httpx
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        public = registry.public()
        table = public.to_dataframe()
    except (BotoCoreError, ClientError, httpx.HTTPError, OSError) as error:
        raise ConnectionError(
            f"no record of the registry bionty.{name} has an ontology id, and bionty.{name}.public(), which fetches "
            f"the terms, got none over the network ({error}). Offline, use Ontology.from_guide, whose terms come with "
            f"its wheel, or give bionty a table of terms: bionty.{name}.add_source(source, df=...)"
        ) from error
    # what a table lacks is left empty: not all that bionty fetches have synonyms, or a list of parents in each row
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
    """A text; an empty one for None and NaN."""
    return value if isinstance(value, str) else ""


def read_obo(path_or_url: str | Path, relations: Sequence[str]) -> TermTable:
    """A file in OBO, OWL (RDF/XML) or OBO graph (JSON) format, compressed or not."""
    ontology = _parsed(str(path_or_url))
    upward = [_relation(ontology, relation, path_or_url) for relation in relations]
    labels: dict[str, str] = {}
    synonyms: dict[str, list[str]] = {}
    pairs: list[tuple[str, str]] = []
    replaced_by: dict[str, str] = {}
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
    )


def _relation(ontology: Any, relation: str, path_or_url: str | Path) -> Any:
    try:
        return ontology.get_relationship(relation)
    except KeyError:
        declared = ", ".join(sorted(known.id for known in ontology.relationships())) or "none"
        raise ValueError(f"{path_or_url} declares no relation {relation!r}, only {declared}") from None


def _parsed(path_or_url: str) -> Any:
    import pronto

    is_url = _URL.match(path_or_url) is not None
    if not is_url and not Path(path_or_url).is_file():
        raise FileNotFoundError(
            f"no ontology file at {path_or_url}; give the path of an .obo, .owl or .json file, or a URL"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what OWL says and pronto leaves out, none of it used here
            return pronto.ontology.Ontology(path_or_url, timeout=60)
    except OSError as error:
        if not is_url:
            raise
        raise ConnectionError(
            f"cannot download {path_or_url} ({error}); offline, fetch the file by other means and give its path, or "
            "use Ontology.from_guide, which needs no network"
        ) from error
    except KeyError as error:
        raise SourceFormatError(
            f"{path_or_url} names {error} as a parent, and has no such term; add it to the file, or drop the line"
        ) from error
    except (ValueError, SyntaxError, TypeError) as error:
        raise SourceFormatError(
            f"{path_or_url} cannot be read as an ontology ({error}); expected OBO, OWL in RDF/XML, or OBO graph JSON"
        ) from error


def _known_parents(labels: Mapping[str, str], pairs: Iterable[tuple[Any, Any]]) -> dict[str, list[str]]:
    """``{term: parents}`` from pairs of child and parent, as far as both are terms."""
    parents: dict[str, list[str]] = {}
    for child, parent in pairs:
        if child in labels and parent in labels:
            parents.setdefault(child, []).append(parent)
    return parents
