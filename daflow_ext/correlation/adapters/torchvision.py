"""torchvision's RAFT (torchvision.models.optical_flow): pass ``corr_block=TorchvisionCorrBlock()`` to ``RAFT(...)``, or
set ``model.corr_block = TorchvisionCorrBlock()`` on a model that is already built.
"""

import torch

from ..block import CorrBlock


class TorchvisionCorrBlock(torch.nn.Module):
    """torchvision's correlation block: ``build_pyramid`` once per pair, ``index_pyramid`` once per update.

    The output has the dtype of the feature maps. Small images, which give NaN in the original, work.

    Args:
        num_levels, radius: keyword-only, as in the original.
        memory, backend: as for :class:`daflow_ext.CorrBlock`.
    Attributes:
        out_channels: ``num_levels * (2 radius + 1)^2``.
    Source: torchvision.models.optical_flow.raft.
    """

    def __init__(self, *, num_levels: int = 4, radius: int = 4, memory: str = "auto", backend: str = "auto"):
        super().__init__()
        self.num_levels, self.radius = num_levels, radius
        self.memory, self.backend = memory, backend
        self.out_channels = num_levels * (2 * radius + 1) ** 2
        self._block: CorrBlock | None = None

    def build_pyramid(self, fmap1: torch.Tensor, fmap2: torch.Tensor) -> None:
        """Take the two feature maps [B, C, H, W].

        Raises:
            ValueError: shapes differ.
        """
        if fmap1.shape != fmap2.shape:
            raise ValueError(
                "TorchvisionCorrBlock: feature maps must have the same shape, "
                f"got {list(fmap1.shape)} and {list(fmap2.shape)}"
            )
        self._block = CorrBlock(
            fmap1,
            fmap2,
            self.num_levels,
            self.radius,
            memory=self.memory,
            backend=self.backend,
            out_dtype=fmap1.dtype,
        )

    def index_pyramid(self, centroids_coords: torch.Tensor) -> torch.Tensor:
        """Windows around ``centroids_coords`` [B, 2, H, W] (x, y in pixels): [B, out_channels, H, W].

        Raises:
            RuntimeError: before the first ``build_pyramid``.
        """
        if self._block is None:
            raise RuntimeError("TorchvisionCorrBlock: call build_pyramid(fmap1, fmap2) before index_pyramid")
        return self._block(centroids_coords)
