"""Flow-guided denoising: neighbouring frames are pulled together along the flow while they take shape."""

from dataclasses import dataclass

import torch

from ..features.restoration import LiftedRestoration
from ..flow import forward_backward_consistency, warp

_PROBE = 0.1
"""Length of the trial step of the line search, as a share of the latents' own size."""


@dataclass(frozen=True)
class GuidanceSettings:
    """How strongly, and when, the flow guides.

    Attributes:
        scale: share of the best step along the gradient (that of a line search) that is taken; 0 = no guidance, 1 = all
            of it. With a linear decoder the loss falls for every scale between 0 and 2.
        first_step, last_step: denoising steps that are guided, counted from 0, both included; None = to the last.
        iterations: gradient steps in each of them.
    """

    scale: float = 1.0
    first_step: int = 0
    last_step: int | None = None
    iterations: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.scale < float("inf"):
            raise ValueError(f"the guidance scale must be a number >= 0, got {self.scale}")
        if self.first_step < 0 or (self.last_step is not None and self.last_step < self.first_step):
            raise ValueError(f"guided steps must be a range from 0 on, got {self.first_step}..{self.last_step}")
        if self.iterations < 1:
            raise ValueError(f"guidance needs at least 1 iteration, got {self.iterations}")

    def covers(self, step: int) -> bool:
        """Whether this denoising step is guided."""
        return self.scale > 0 and self.first_step <= step and (self.last_step is None or step <= self.last_step)


class FlowGuidance:
    """The ``guide`` of :meth:`LiftedRestoration.steps`: lowers the warping loss of the decoded clean frames.

    With I_k the decoded frames in [0, 1], F and B the flows of a pair and V what is visible in both of its frames, the
    loss is the mean over visible pixels, pairs and directions of

        V (I_k - W(I_{k+1}, F))^2   and   V (I_{k+1} - W(I_k, B))^2.

    Its gradient goes through the VAE's decoder to the clean latents, not through the transformer; a line search makes
    the step's length a matter of the frames, not of the decoder's scale.

    Args:
        forward, backward: flow of each pair of neighbouring frames, from the earlier to the later and back. With fewer
            pairs than frames - 1 the frames behind them stay unguided.
        anchor: an image for the first frame that is final, as the last one of the chunk before: the others are pulled
            towards it.
    Shapes: forward, backward [B, P, 2, H, W]; anchor [B, 3, H, W] in [0, 255].
    Units: pixels of the unpadded frames.
    Raises:
        ValueError: flows that do not fit each other.
    Source: the loss of MGLD-VSR (arXiv 2312.00853) in image space, as DA-Flow (arXiv 2603.23499, C.4) uses it; changing
        the clean estimate as in MPGD (arXiv 2311.16424).
    """

    def __init__(
        self,
        restoration: LiftedRestoration,
        forward: torch.Tensor,
        backward: torch.Tensor,
        settings: GuidanceSettings = GuidanceSettings(),
        *,
        anchor: torch.Tensor | None = None,
        backend: str = "auto",
    ):
        if forward.dim() != 5 or forward.shape[2] != 2 or forward.shape != backward.shape or 0 in forward.shape:
            raise ValueError(
                f"both flows must be [B, P, 2, H, W], got {list(forward.shape)} and {list(backward.shape)}"
            )
        self.restoration, self.settings, self.backend = restoration, settings, backend
        self.padder = restoration.padder(forward)
        self.pairs = forward.shape[:2]
        # an unknown vector hides its pixel below; as NaN it would spoil the gradient of its neighbours
        self.flows = [flow.flatten(0, 1).float() for flow in (forward, backward)]
        self.visible = [
            ~forward_backward_consistency(one, other, backend=backend)[:, None]
            for one, other in (self.flows, self.flows[::-1])
        ]
        self.flows = [flow.nan_to_num(0.0, 0.0, 0.0) for flow in self.flows]
        self.anchor = None if anchor is None else anchor[:, None].float() / 255

    def __call__(self, step: int, latents: torch.Tensor) -> torch.Tensor:
        """Clean latents [B, F, C, h, w] with a lower loss; the very same tensor where there is nothing to do."""
        if not self.settings.covers(step):
            return latents
        guided = latents
        for _ in range(self.settings.iterations):
            guided = self._descend(guided)
        return guided if guided is latents else guided.to(latents.dtype)

    def loss(self, frames: torch.Tensor) -> torch.Tensor:
        """Mean squared warping difference over visible pixels, per clip: frames [B, F, 3, H, W] in [0, 1] -> [B]."""
        squared = self._residuals(frames).square().sum(1)
        counts = 3 * sum(visible.unflatten(0, self.pairs).sum((1, 2, 3, 4)) for visible in self.visible)
        return squared / counts.clamp(min=1)

    def _residuals(self, frames: torch.Tensor) -> torch.Tensor:
        """V (I - W(I')) of all pairs in both directions, [B, N]."""
        if self.anchor is not None:
            frames = torch.cat([self.anchor, frames[:, 1:]], 1)
        count = self.pairs[1]
        earlier, later = frames[:, :count].flatten(0, 1), frames[:, 1 : count + 1].flatten(0, 1)
        parts = [
            visible * (image - warp(other, flow, backend=self.backend))
            for image, other, flow, visible in zip(
                (earlier, later), (later, earlier), self.flows, self.visible, strict=True
            )
        ]
        return torch.cat([part.unflatten(0, self.pairs).flatten(1) for part in parts], 1)

    def _decoded_residuals(self, latents: torch.Tensor) -> torch.Tensor:
        return self._residuals(self.padder.unpad(self.restoration.decode_unclamped(latents)) / 255)

    def _descend(self, latents: torch.Tensor) -> torch.Tensor:
        """One gradient step of the length that a line search finds; each clip of the batch has its own."""
        with torch.enable_grad():
            variable = latents.detach().float().requires_grad_()
            residuals = self._decoded_residuals(variable)
            (gradient,) = torch.autograd.grad(residuals.square().sum(), variable)
        size = gradient.square().flatten(1).mean(1).sqrt()
        if not bool((size > 0).any()):
            return latents
        per_clip = (-1, *[1] * (latents.dim() - 1))
        own_size = variable.detach().square().flatten(1).mean(1).sqrt()
        probe = gradient * (_PROBE * own_size / size.clamp(min=1e-30)).view(per_clip)
        residuals = residuals.detach()
        with torch.no_grad():
            change = residuals - self._decoded_residuals(variable - probe)  # of a linear decoder, per unit of step
        best = (residuals * change).sum(1) / change.square().sum(1).clamp(min=1e-30)
        return variable.detach() - (self.settings.scale * best).view(per_clip) * probe
