"""Compiled loops: plain arrays in, plain arrays out, the GIL released, one thread each.

Every kernel has a NumPy reference in ``tests/kernels`` that is its specification. None of them starts threads:
callers run them side by side from a thread pool, on arrays that do not overlap.
"""
