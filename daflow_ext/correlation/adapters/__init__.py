"""The correlation surfaces of other repositories, on our ops: one file per repository, which says what to replace.

RAFT's own classes, and everything that calls them the same way, need no adapter: :class:`daflow_ext.CorrBlock` and
:class:`daflow_ext.AlternateCorrBlock`.
"""

from .gma import CorrBlockSingleScale
from .ptlflow import get_corr_block
from .raft_stereo import CorrBlock1D
from .sea_raft import SeaRaftCorrBlock
from .spatial_correlation import SpatialCorrelationSampler, spatial_correlation_sample
from .torchvision import TorchvisionCorrBlock
from .unimatch import local_correlation_with_flow

__all__ = [
    "CorrBlock1D",
    "CorrBlockSingleScale",
    "SeaRaftCorrBlock",
    "SpatialCorrelationSampler",
    "TorchvisionCorrBlock",
    "get_corr_block",
    "local_correlation_with_flow",
    "spatial_correlation_sample",
]
