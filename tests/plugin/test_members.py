"""No member of a plug-in is used that the protocols do not document."""

import ast
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest

import scdataloader as scd
from scdataloader import protocols, registry

PACKAGE = Path(scd.__file__).parent
BY_NAME = {
    "sched_getaffinity",
    "MADV_DONTNEED",
    "posix_fadvise",
    "__notes__",
    "__name__",
    "best_model_path",
    "shape",
    "keys",
    "store",
    "root",
    "__array__",
    "subcommand_parser",
    "_typehint",
    "iloc",
    "registry",
}
"""Members of the operating system, Python, Lightning, HDF5, zarr, NumPy, pandas, jsonargparse and scvi-tools that are
looked up by name."""


def documented(*names):
    return {member for name in names for member in vars(getattr(protocols, name)) if not member.startswith("_")}


SOURCE = documented(
    "Source",
    "HasNames",
    "HasPath",
    "HasMatrix",
    "NoticesChanges",
    "ReadsStored",
    "ReadsParts",
    "HasSizes",
    "HasMatrices",
    "HasMatrixColumns",
    "HasNeighbours",
    "HasOrganism",
    "HasLabels",
    "SharesGenes",
    "HasFileState",
    "ReadsObsInPieces",
    "HasCountsLocation",
    "HasReadCost",
    "Closes",
    "ReadsTogether",
)
SAMPLER = documented("Sampler", "HasFingerprint", "HasWindow", "DrawsSets")
PLAN = documented("SamplingPlan", "DescribesClasses", "HasColumns", "HasPlans", "HasEvaluation")
CLASSES = documented("DrawnClasses")
COLLATE = documented("Binds", "WantsObs", "WantsMatrices", "CollatesMany", "Densifies", "HasTokens")


def spied(of, seen, wrapped=None):
    """The same object; notes which of its members the package looks up."""

    class Spied(type(of)):
        def __getattribute__(self, name):
            found = super().__getattribute__(name)
            caller = sys._getframe(1).f_globals["__name__"]
            if name.startswith("__") or not caller.startswith("scdataloader."):
                return found
            seen.add(name)
            return wrapped[name](found) if wrapped and name in wrapped else found

    made = object.__new__(Spied)
    made.__dict__ = of.__dict__
    return made


@pytest.fixture
def seen(monkeypatch):
    """The members that were looked up, of a source, a plan, its classes, its sampler and a collate function."""
    from toyplugin.collates import RankTokens
    from toyplugin.sampling import DescribedSets
    from toyplugin.source import ToySource

    seen = {kind: set() for kind in ("source", "plan", "classes", "sampler", "collate")}

    def then(kind, **wrapped):
        return lambda call: lambda *args, **options: spied(call(*args, **options), seen[kind], wrapped)

    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    scd.register("source", "spy://", lambda names, _: [spied(ToySource(name[6:]), seen["source"]) for name in names])
    scd.register(
        "sampler",
        "spy",
        lambda: spied(DescribedSets(), seen["plan"], {"sampler": then("sampler"), "describe": then("classes")}),
    )
    scd.register("collate", "spy", lambda: spied(RankTokens(), seen["collate"], {"bind": then("collate")}))
    return seen


@pytest.mark.filterwarnings("ignore:Total length of `list`")
def test_members_that_are_looked_up_are_documented(seen, tmp_path, capsys):
    from toyplugin.model import Notes

    from scdataloader.commands.main import main

    dm = scd.DataModule(
        "spy://toy://300x50",
        labels=["cell_type"],
        hierarchies={"cell_type": "TOY"},
        sampling="spy",
        collate="spy",
        batch_size=16,
    )
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    pl.Trainer(**quiet, max_epochs=1, enable_checkpointing=False).fit(Notes(), dm)
    scd.convert("spy://toy://60x50", "a.cells", n_processes=1)
    config = "data:\n  data: spy://toy://300x50\n  sampling: spy\n  batch_size: 16\n"
    Path("a.yaml").write_text(config)
    assert main(["inspect", "--config", "a.yaml"]) == 0
    allowed = {"source": SOURCE, "plan": PLAN, "classes": CLASSES, "sampler": SAMPLER, "collate": COLLATE}
    assert {kind: members - allowed[kind] for kind, members in seen.items()} == {kind: set() for kind in allowed}
    assert {"name", "n_obs", "read", "obs", "var"} <= seen["source"]
    assert {"draw", "num_samples"} <= seen["sampler"]
    assert {"sampler", "describe"} <= seen["plan"]


def test_members_are_looked_up_by_name_at_few_places():
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] in {"lamin", "testing"} or path.stem == "readers":
            continue  # registries of a database; what the checks are about
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in {"getattr", "hasattr"}
            ):
                name = node.args[1]
                found |= {name.value} if isinstance(name, ast.Constant) else set()
    assert found <= BY_NAME
