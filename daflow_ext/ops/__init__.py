"""The ops: same names and arguments as :mod:`daflow_ext.reference`, plus ``backend=``."""

from .bilinear_sample import bilinear_sample
from .corr_lookup import corr_lookup
from .corr_pyramid import corr_pyramid
from .qk_norm import qk_norm
from .softargmax_flow import SoftargmaxFlow, softargmax_flow
from .st_attention import st_attention
from .volume_lookup import volume_lookup

__all__ = [
    "SoftargmaxFlow",
    "bilinear_sample",
    "corr_lookup",
    "corr_pyramid",
    "qk_norm",
    "softargmax_flow",
    "st_attention",
    "volume_lookup",
]
