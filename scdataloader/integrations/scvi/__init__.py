"""Data module for the models of scvi-tools."""

from scdataloader.integrations.scvi.datamodule import ScviDataModule

__all__ = ["ScviDataModule"]
