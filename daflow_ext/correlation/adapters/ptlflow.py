"""ptlflow (hmorimitsu/ptlflow): in ``ptlflow/models/<model>/corr.py`` replace ``get_corr_block`` with this one."""

import torch

from ..block import AlternateCorrBlock, CorrBlock


def get_corr_block(
    fmap1: torch.Tensor,
    fmap2: torch.Tensor,
    num_levels: int = 4,
    radius: int = 4,
    alternate_corr: bool = False,
    *,
    backend: str = "auto",
) -> CorrBlock:
    """The correlation block ptlflow's RAFT family asks for; its output has the dtype of the feature maps.

    ``alternate_corr=True`` never stores a volume. With False, ptlflow always stores it; here ``memory="auto"`` decides,
    the values are the same. Coordinates stay float32 also in a half precision model.

    Shapes, units, gradients, errors: as for :class:`daflow_ext.CorrBlock`.
    Source: ptlflow's ``get_corr_block(fmap1=, fmap2=, num_levels=, radius=, alternate_corr=)``.
    """
    block = AlternateCorrBlock if alternate_corr else CorrBlock
    return block(fmap1, fmap2, num_levels, radius, backend=backend, out_dtype=fmap1.dtype)
