"""Flow out: files, colours, warping, occlusion, a page to look at."""

from .align import Aligned, align, compose_flows
from .colors import color_wheel, flow_to_image
from .consistency import forward_backward_confidence, forward_backward_consistency
from .formats import read_flow, write_flow
from .report import write_report
from .warp import forward_interpolate, pixel_grid, warp

__all__ = [
    "Aligned",
    "align",
    "color_wheel",
    "compose_flows",
    "flow_to_image",
    "forward_backward_confidence",
    "forward_backward_consistency",
    "forward_interpolate",
    "pixel_grid",
    "read_flow",
    "warp",
    "write_flow",
    "write_report",
]
