"""Benchmarks: ``python -m benchmarks.run``. A benchmark is a module of this package with a function ``records``.

``records(quick, device)`` checks its results, times them and yields one dictionary per line of the report; see
:mod:`benchmarks.run` for what happens to them and :mod:`benchmarks.timing` for the tools.
"""
