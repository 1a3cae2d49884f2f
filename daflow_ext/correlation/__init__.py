"""Correlation: features in, windows around coordinates out; drop-in classes for RAFT and its descendants."""

from .block import AlternateCorrBlock, CorrBlock

__all__ = ["AlternateCorrBlock", "CorrBlock"]
