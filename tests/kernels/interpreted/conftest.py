"""Tests of the Triton kernels under Triton's interpreter. It must be chosen before Triton is imported, so they run in
processes of their own, started by tests/kernels/test_triton_interpreter.py."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
