"""Triton kernels: one file per op; empty until the fused attention arrives."""
