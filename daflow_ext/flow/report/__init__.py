"""A page to look at: frames, flow and numbers in one HTML file that needs nothing else."""

from .page import Report

__all__ = ["Report"]
