"""Triton kernels: one file per op, beside what they share (streams.py) and how they are launched (tuning.py)."""
