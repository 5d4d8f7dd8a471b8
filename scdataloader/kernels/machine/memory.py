"""Memory by address, so that one compiled loop can read many mapped files: pointers, prefetch, streaming stores."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic as typed_intrinsic
from numpy.typing import NDArray

# numba types an intrinsic as if its callers passed the typing context.
intrinsic: Any = typed_intrinsic

CACHE_LINE = 64


@intrinsic
def pointer(typing_context: Any, address: Any) -> Any:
    """An address as the pointer that `numba.carray` takes. The caller ensures that it is valid."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return nb.types.voidptr(nb.uintp), generate


TABLE_OF_MAPS = "scdataloader_maps"
"""Symbol of the table that `runtime.bus_errors` defines: code from numba's cache finds it by this name."""


@intrinsic
def table_of_maps(typing_context: Any) -> Any:
    """Address of the table of mapped files."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        known = builder.module.globals.get(TABLE_OF_MAPS)
        symbol = known or ir.GlobalVariable(builder.module, ir.IntType(8), TABLE_OF_MAPS)
        return builder.ptrtoint(symbol, ir.IntType(64))

    return nb.uintp(), generate


@intrinsic
def prefetch(typing_context: Any, address: Any) -> Any:
    """Prefetch the cache line at an address; has no effect if the address is not mapped."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32, bytes_at = ir.IntType(32), ir.IntType(8).as_pointer()
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", (bytes_at,), ir.FunctionType(ir.VoidType(), [bytes_at, i32, i32, i32])
        )
        read, keep, data_cache = ir.Constant(i32, 0), ir.Constant(i32, 2), ir.Constant(i32, 1)
        builder.call(function, [builder.inttoptr(args[0], bytes_at), read, keep, data_cache])
        return context.get_dummy_value()

    return nb.void(nb.uintp), generate


@nb.njit(nogil=True, cache=True)
def prefetch_bytes(address: int, n_bytes: int) -> None:
    """Prefetch the cache lines of ``n_bytes`` at an address."""
    for byte in range(0, n_bytes, CACHE_LINE):
        prefetch(np.uintp(address + byte))


@nb.njit(nogil=True, cache=True)
def prefetch_range(values: NDArray[Any], begin: int, end: int) -> None:
    """Prefetch the cache lines of ``values[begin:end]``."""
    prefetch_bytes(values.ctypes.data + begin * values.itemsize, (end - begin) * values.itemsize)


LINE = 16
"""32-bit values in a cache line."""
_LINE = ir.VectorType(ir.FloatType(), LINE)


@nb.njit(inline="always", cache=True)
def values_to_line(out: NDArray[Any]) -> int:
    """Number of 32-bit values before the next cache line begins."""
    return int((-out.ctypes.data & (CACHE_LINE - 1)) >> 2)


def store_lanes(builder: Any, values: Any, address: Any, *, streams: bool) -> None:
    """Store a vector of 32-bit values at an address.

    If it ``streams``, the address is a multiple of its size, and the store bypasses the caches, which avoids loading
    the replaced line: up to three times as fast for output that is not read again soon. Two such stores that make up a
    line follow one another. Call `settle` before another thread reads it.
    """
    stored = builder.store(values, builder.inttoptr(address, values.type.as_pointer()))
    stored.align = 4 * values.type.count if streams else 4
    if streams:
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))


@intrinsic
def move_line(typing_context: Any, source: Any, to: Any) -> Any:
    """Stream 16 float32 from the address ``source`` to the address ``to``, a multiple of 64, and zero the source."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = builder.inttoptr(args[0], _LINE.as_pointer())
        values = builder.load(line)
        values.align = 4
        cleared = builder.store(ir.Constant(_LINE, [0.0] * LINE), line)
        cleared.align = 4
        store_lanes(builder, values, args[1], streams=True)
        return context.get_dummy_value()

    return nb.void(nb.uintp, nb.uintp), generate


@intrinsic
def settle(typing_context: Any) -> Any:
    """Complete all writes so far before any later one."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return nb.void(), generate
