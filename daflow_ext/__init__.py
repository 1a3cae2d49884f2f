"""daflow_ext: degradation-aware optical flow; compiled correlation and sampling kernels, RAFT on top."""

from . import ops, reference

__version__ = "0.1.0"
__all__ = ["ops", "reference"]
