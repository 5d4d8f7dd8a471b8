"""Vectors in intrinsics, at any addresses."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

_I32 = ir.IntType(32)


def load(builder: Any, address: Any, kind: ir.VectorType) -> Any:
    """The vector at an address."""
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def store(builder: Any, value: Any, address: Any) -> None:
    """Write a vector to an address."""
    stored = builder.store(value, builder.inttoptr(address, value.type.as_pointer()))
    stored.align = 1


def splat(builder: Any, value: Any, kind: ir.VectorType) -> Any:
    """A vector of one value."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count))
