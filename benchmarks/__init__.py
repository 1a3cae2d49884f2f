"""Benchmarks: ``python -m benchmarks.run``. A benchmark is a module of this package with a function ``records``.

``records(quick, device)`` checks its results, measures and yields :class:`benchmarks.timing.Record`, one per line of
the report; see :mod:`benchmarks.run` for what happens to them and :mod:`benchmarks.timing` for the tools.
"""
