"""Flow out: files, colours, warping, occlusion, a page to look at."""

from .align import Aligned, align, compose_flows
from .colors import color_wheel, flow_scale, flow_to_image, wheel_legend
from .consistency import forward_backward_confidence, forward_backward_consistency
from .draw import arrows, confidence_overlay, error_map, error_to_image, occlusion_overlay, overlay, side_by_side
from .formats import read_flow, write_flow
from .report import Report
from .stabilize import Stabilized, fit_similarity, stabilize
from .trails import Trails
from .warp import forward_interpolate, pixel_grid, warp

__all__ = [
    "Aligned",
    "Report",
    "Stabilized",
    "Trails",
    "align",
    "arrows",
    "color_wheel",
    "compose_flows",
    "confidence_overlay",
    "error_map",
    "error_to_image",
    "fit_similarity",
    "flow_scale",
    "flow_to_image",
    "forward_backward_confidence",
    "forward_backward_consistency",
    "forward_interpolate",
    "occlusion_overlay",
    "overlay",
    "pixel_grid",
    "read_flow",
    "side_by_side",
    "stabilize",
    "warp",
    "wheel_legend",
    "write_flow",
]
