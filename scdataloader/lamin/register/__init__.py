"""Register curated files in a lamindb collection."""

from scdataloader.lamin.register.collection import Registration, check_registrable, register

__all__ = ["Registration", "check_registrable", "register"]
