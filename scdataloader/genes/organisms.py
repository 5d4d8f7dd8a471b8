"""Organisms: their many names, and what their Ensembl ids look like."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

ORGANISMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "NCBITaxon:9606": ("ENSG", ("homo sapiens", "human")),
    "NCBITaxon:10090": ("ENSMUSG", ("mus musculus", "mouse", "house mouse")),
    "NCBITaxon:10116": ("ENSRNOG", ("rattus norvegicus", "rat", "brown rat", "norway rat")),
    "NCBITaxon:7955": ("ENSDARG", ("danio rerio", "zebrafish")),
    "NCBITaxon:7227": ("FBgn", ("drosophila melanogaster", "fly", "fruit fly", "drosophila")),
    "NCBITaxon:6239": ("WBGene", ("caenorhabditis elegans", "worm", "c. elegans", "c.elegans", "roundworm")),
    "NCBITaxon:9544": ("ENSMMUG", ("macaca mulatta", "macaque", "rhesus macaque", "rhesus monkey", "rhesus")),
    "NCBITaxon:9541": ("ENSMFAG", ("macaca fascicularis", "crab eating macaque", "cynomolgus macaque", "cynomolgus")),
    "NCBITaxon:9483": ("ENSCJAG", ("callithrix jacchus", "marmoset", "common marmoset", "white tufted ear marmoset")),
    "NCBITaxon:9598": ("ENSPTRG", ("pan troglodytes", "chimp", "chimpanzee")),
    "NCBITaxon:9597": ("ENSPPAG", ("pan paniscus", "bonobo")),
    "NCBITaxon:9595": ("ENSGGOG", ("gorilla gorilla gorilla", "gorilla gorilla", "gorilla", "western lowland gorilla")),
    "NCBITaxon:9601": ("ENSPPYG", ("pongo abelii", "orangutan", "sumatran orangutan")),
    "NCBITaxon:30608": ("ENSMICG", ("microcebus murinus", "mouse lemur", "gray mouse lemur")),
    "NCBITaxon:9823": ("ENSSSCG", ("sus scrofa", "pig", "domestic pig")),
    "NCBITaxon:9913": ("ENSBTAG", ("bos taurus", "cow", "cattle")),
    "NCBITaxon:9940": ("ENSOARG", ("ovis aries", "sheep")),
    "NCBITaxon:9796": ("ENSECAG", ("equus caballus", "horse")),
    "NCBITaxon:9615": ("ENSCAFG", ("canis lupus familiaris", "canis familiaris", "dog")),
    "NCBITaxon:9685": ("ENSFCAG", ("felis catus", "cat")),
    "NCBITaxon:9986": ("ENSOCUG", ("oryctolagus cuniculus", "rabbit")),
    "NCBITaxon:10141": ("ENSCPOG", ("cavia porcellus", "guinea pig")),
    "NCBITaxon:13616": ("ENSMODG", ("monodelphis domestica", "opossum", "gray short tailed opossum")),
    "NCBITaxon:9031": ("ENSGALG", ("gallus gallus", "chicken")),
    "NCBITaxon:8364": ("ENSXETG", ("xenopus tropicalis", "western clawed frog", "tropical clawed frog")),
}
"""NCBITaxon id to (prefix of its Ensembl gene ids, names in lower case)."""

ENSEMBL_ID = re.compile(r"((?:ENS[A-Z]*G|WBGene|FBgn)[0-9]{7,11})(?:\.[0-9]+)?")
"""A gene's stable id, of any organism; group 1 is the id without version."""
TRAILING_ID = re.compile(r"(?:^|_)" + ENSEMBL_ID.pattern + r"$")
"""A name that ends in an id, as portals write symbols that several genes share: ``7SK_ENSG00000260682``."""

_NAMES = {name: organism for organism, (_, names) in ORGANISMS.items() for name in names}
_PREFIXES = {prefix: organism for organism, (prefix, _) in ORGANISMS.items()}
_TAXON = re.compile(r"(?:ncbitaxon[:_ ])?([0-9]+)", re.IGNORECASE)


def normalise_organism(name: str) -> str:
    """The NCBITaxon id of an organism: ``human``, ``Homo sapiens``, ``homo_sapiens``, ``9606`` → ``NCBITaxon:9606``.

    Any NCBITaxon id is taken as it is, also of an organism that has no name here.

    Raises:
        ValueError: the name is unknown; names the nearest and all known.
    """
    taxon = _TAXON.fullmatch(name.strip())
    if taxon:
        return f"NCBITaxon:{taxon[1]}"
    plain = " ".join(re.split(r"[\s_-]+", name.strip().lower()))
    if plain in _NAMES:
        return _NAMES[plain]
    near = difflib.get_close_matches(plain, _NAMES, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    known = ", ".join(names[0] for _, names in ORGANISMS.values())
    raise ValueError(
        f"unknown organism {name!r}{hint}; give its NCBITaxon id, such as NCBITaxon:9606, or one of: {known}"
    )


def infer_organism(ids: Iterable[str]) -> str | None:
    """The organism that gene ids belong to, by their Ensembl prefix; None where they do not say.

    More than half of all ids must carry the organism's prefix, and nine in ten of those that carry any: a mixture of
    species has no organism of its own.
    """
    counts: Counter[str | None] = Counter()
    for name in ids:
        match = ENSEMBL_ID.fullmatch(name)
        counts[match[1].rstrip("0123456789") if match else None] += 1
    n_ids = counts.total()
    n_other = counts.pop(None, 0)
    if not counts:
        return None
    prefix, n_agree = counts.most_common(1)[0]
    if n_agree * 2 <= n_ids or n_agree < 0.9 * (n_ids - n_other) or prefix is None:
        return None
    return _PREFIXES.get(prefix)


def without_version(ids: Iterable[str]) -> list[str]:
    """Cut ``.12`` off Ensembl-style ids; names of clones such as ``AC012345.1`` stay whole."""
    matches = ((name, ENSEMBL_ID.fullmatch(name) if "." in name else None) for name in ids)
    return [name if match is None else match[1] for name, match in matches]
