"""The CELLxGENE schema: columns of obs, the ontologies of their labels, lamindb's registries, and organisms.

A new release of the schema is entered here and nowhere else.
"""

from __future__ import annotations

from typing import NamedTuple

ASSAY = "assay_ontology_term_id"
ORGANISM = "organism_ontology_term_id"
IS_PRIMARY = "is_primary_data"
UNKNOWN = "unknown"
"""Label of a cell whose term is not known."""
_MISSING = frozenset({"", UNKNOWN, "na", "nan", "<na>"})
_MISSING_AS_WRITTEN = frozenset({"None", "NaT"})

ORGANISM_KEYS = (ORGANISM, "organism")
"""Keys of obs and uns that state an organism, by precedence."""


def is_unknown(label: str) -> bool:
    """Whether a label means "not known".

    Besides ``"unknown"`` and empty text these are the words that pandas and anndata write for missing values: ``NA``,
    ``NaN`` and ``<NA>`` in any case, but ``None`` and ``NaT`` only as they are written, because "none" may be a label,
    such as that of an untreated sample.
    """
    text = label.strip()
    return text.lower() in _MISSING or text in _MISSING_AS_WRITTEN


class LabelColumn(NamedTuple):
    """A column of obs whose labels are ontology terms."""

    ontologies: tuple[str, ...]
    """Ontologies of the labels, by precedence."""
    registry: str
    """Class of bionty that holds the labels."""


LABEL_COLUMNS = {
    "cell_type_ontology_term_id": LabelColumn(("CL", "FBbt", "ZFA", "WBbt"), "CellType"),
    "tissue_ontology_term_id": LabelColumn(("UBERON", "CL", "FBbt", "ZFA", "WBbt"), "Tissue"),
    "disease_ontology_term_id": LabelColumn(("MONDO", "PATO"), "Disease"),
    ASSAY: LabelColumn(("EFO",), "ExperimentalFactor"),
    "development_stage_ontology_term_id": LabelColumn(
        ("HsapDv", "MmusDv", "FBdv", "ZFA", "WBls", "UBERON"), "DevelopmentalStage"
    ),
    "sex_ontology_term_id": LabelColumn(("PATO",), "Phenotype"),
    "self_reported_ethnicity_ontology_term_id": LabelColumn(("HANCESTRO",), "Ethnicity"),
}
"""Column of obs to its ontologies and registry. `ORGANISM` is not among them: it is found by other rules."""


class SchemaOntology(NamedTuple):
    """An ontology of the schema."""

    organism: str | None = None
    """NCBITaxon id of the only organism whose cells its terms describe; None for several."""
    registry: str | None = None
    """Class of bionty that takes all terms of the ontology; None if its terms are saved one by one."""
    source_organism: str = "all"
    """Organism of the ontology in bionty's table of sources."""


ONTOLOGIES = {
    "CL": SchemaOntology(registry="CellType"),
    "UBERON": SchemaOntology(registry="Tissue"),
    "MONDO": SchemaOntology(registry="Disease"),
    "EFO": SchemaOntology(registry="ExperimentalFactor"),
    "HsapDv": SchemaOntology("NCBITaxon:9606", "DevelopmentalStage", "human"),
    "MmusDv": SchemaOntology("NCBITaxon:10090", "DevelopmentalStage", "mouse"),
    "FBdv": SchemaOntology("NCBITaxon:7227", "DevelopmentalStage", "fly"),
    "WBls": SchemaOntology("NCBITaxon:6239", "DevelopmentalStage", "worm"),
    "HANCESTRO": SchemaOntology(registry="Ethnicity", source_organism="human"),
    "PATO": SchemaOntology(registry="Phenotype"),
    "FBbt": SchemaOntology("NCBITaxon:7227"),
    "WBbt": SchemaOntology("NCBITaxon:6239"),
    "ZFA": SchemaOntology("NCBITaxon:7955"),
}
"""Name of each ontology, as cellxgene-ontology-guide spells it, to what is known of it."""


class Organism(NamedTuple):
    """The names of an organism."""

    gene_prefix: str
    """Prefix of its Ensembl gene ids, without digits."""
    scientific_name: str
    """Genus and species, in lower case."""
    names: tuple[str, ...]
    """Other names, in lower case; the first is the common name that bionty uses."""


ORGANISMS = {
    "NCBITaxon:9606": Organism("ENSG", "homo sapiens", ("human",)),
    "NCBITaxon:10090": Organism("ENSMUSG", "mus musculus", ("mouse", "house mouse")),
    "NCBITaxon:10116": Organism("ENSRNOG", "rattus norvegicus", ("rat", "brown rat", "norway rat")),
    "NCBITaxon:7955": Organism("ENSDARG", "danio rerio", ("zebrafish",)),
    "NCBITaxon:7227": Organism("FBgn", "drosophila melanogaster", ("fly", "fruit fly", "drosophila")),
    "NCBITaxon:6239": Organism("WBGene", "caenorhabditis elegans", ("worm", "c.elegans", "roundworm")),
    "NCBITaxon:9544": Organism("ENSMMUG", "macaca mulatta", ("macaque", "rhesus macaque", "rhesus monkey", "rhesus")),
    "NCBITaxon:9541": Organism(
        "ENSMFAG", "macaca fascicularis", ("crab eating macaque", "cynomolgus macaque", "cynomolgus")
    ),
    "NCBITaxon:9483": Organism(
        "ENSCJAG", "callithrix jacchus", ("marmoset", "common marmoset", "white tufted ear marmoset")
    ),
    "NCBITaxon:9598": Organism("ENSPTRG", "pan troglodytes", ("chimp", "chimpanzee")),
    "NCBITaxon:9597": Organism("ENSPPAG", "pan paniscus", ("bonobo",)),
    "NCBITaxon:9595": Organism(
        "ENSGGOG", "gorilla gorilla gorilla", ("gorilla gorilla", "gorilla", "western lowland gorilla")
    ),
    "NCBITaxon:9601": Organism("ENSPPYG", "pongo abelii", ("orangutan", "sumatran orangutan")),
    "NCBITaxon:30608": Organism("ENSMICG", "microcebus murinus", ("mouse lemur", "gray mouse lemur")),
    "NCBITaxon:9823": Organism("ENSSSCG", "sus scrofa", ("pig", "domestic pig")),
    "NCBITaxon:9913": Organism("ENSBTAG", "bos taurus", ("cow", "cattle")),
    "NCBITaxon:9940": Organism("ENSOARG", "ovis aries", ("sheep",)),
    "NCBITaxon:9796": Organism("ENSECAG", "equus caballus", ("horse",)),
    "NCBITaxon:9615": Organism("ENSCAFG", "canis lupus familiaris", ("canis familiaris", "dog", "canis lupus")),
    "NCBITaxon:9685": Organism("ENSFCAG", "felis catus", ("cat",)),
    "NCBITaxon:9986": Organism("ENSOCUG", "oryctolagus cuniculus", ("rabbit",)),
    "NCBITaxon:10141": Organism("ENSCPOG", "cavia porcellus", ("guinea pig",)),
    "NCBITaxon:13616": Organism("ENSMODG", "monodelphis domestica", ("opossum", "gray short tailed opossum")),
    "NCBITaxon:9031": Organism("ENSGALG", "gallus gallus", ("chicken",)),
    "NCBITaxon:8364": Organism("ENSXETG", "xenopus tropicalis", ("western clawed frog", "tropical clawed frog")),
}
"""NCBITaxon id of each known organism to its names."""

SUBSPECIES = {
    "NCBITaxon:9606": "63221 741158",
    "NCBITaxon:10090": "10091 10092 35531 39442 46456 57486 80274 116058 179238 477815 477816 947985 1266728 1385377 "
    "1643390 1879032 3109569",
    "NCBITaxon:10116": "947987",
    "NCBITaxon:9544": "1449913 1654737 2008792",
    "NCBITaxon:9541": "90386 1215360 1747270",
    "NCBITaxon:9598": "37010 37011 37012 756884 1294088",
    "NCBITaxon:9595": "9593 183511 406788",
    "NCBITaxon:9823": "9825 291050 309913 309914 310260 310261 375578 375579 415978 490583 1170810 1611878 1611879 "
    "1611880 2485929",
    "NCBITaxon:9940": "9938 30528",
    "NCBITaxon:9615": "9612 286419 443256",
    "NCBITaxon:9986": "230741 568996",
    "NCBITaxon:9031": "208524 208525 208526 400035 405000",
}
"""NCBITaxon id of an organism to the numbers of taxa that have its genes: subspecies, strains and their crosses, and
for gorilla and dog the species (NCBITaxon, release of May 2026)."""
