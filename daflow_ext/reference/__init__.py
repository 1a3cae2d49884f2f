"""The truth: every op as plain PyTorch, readable as its equation.

Each function here has the signature of the op of the same name in :mod:`daflow_ext.ops` (without ``backend``);
the compiled kernels are compared with it, and the whole model runs on it with ``backend="reference"``.
Imports torch only.
"""

from .bilinear_sample import bilinear_sample, inside_mask
from .corr_lookup import corr_lookup
from .corr_pyramid import corr_pyramid
from .qk_norm import qk_norm
from .softargmax_flow import softargmax_flow
from .st_attention import st_attention
from .volume_lookup import volume_lookup

__all__ = [
    "bilinear_sample",
    "corr_lookup",
    "corr_pyramid",
    "inside_mask",
    "qk_norm",
    "softargmax_flow",
    "st_attention",
    "volume_lookup",
]
