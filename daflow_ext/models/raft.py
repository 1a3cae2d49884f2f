"""RAFT, large and small, as five visible steps: frames -> features -> correlation -> update -> flow."""

import contextlib
import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..correlation import CorrBlock
from ..features import BasicEncoder, SmallEncoder
from ..flow import pixel_grid
from ..update import BasicUpdateBlock, ContextPass, SmallUpdateBlock, bilinear_upsample, convex_upsample
from . import weights

STRIDE = 8
"""Image pixels per pixel of the grid on which the flow is refined."""

SMALLEST_SIDE = 16
"""What smaller frames are padded to. Below 64 the coarsest correlation levels are empty, which padding cannot mend."""


class RAFT(nn.Module):
    """Optical flow by recurrent refinement over all-pairs correlation.

    Parameter names are those of the official checkpoints: these load strictly, :meth:`from_pretrained` reads them.

    Args:
        small: RAFT-small (990,162 parameters) in place of the large model (5,257,536).
        corr_levels: levels of the correlation pyramid.
        corr_radius: radius of the correlation window, 4 by default (3 for the small model).
        dropout: probability of dropping a feature channel in training.
        mixed_precision: run encoders, update and upsampling weights under autocast in its default dtype (bfloat16 on
            the CPU, float16 on CUDA); coordinates and correlation stay in float32. Without it an autocast region
            around the call decides.
        alternate_corr: RAFT's word for ``memory``: True is "on_the_fly", False "volume".
        memory, backend: how the correlation is computed; see :class:`daflow_ext.CorrBlock`.
    Raises:
        ValueError: ``alternate_corr`` beside ``memory``, levels or a radius that are no whole numbers.
    Source: RAFT (Teed & Deng, ECCV 2020, arXiv 2003.12039).
    """

    def __init__(
        self,
        small: bool = False,
        *,
        corr_levels: int = 4,
        corr_radius: int | None = None,
        dropout: float = 0.0,
        mixed_precision: bool = False,
        alternate_corr: bool | None = None,
        memory: str = "auto",
        backend: str = "auto",
    ):
        super().__init__()
        if alternate_corr is not None:
            if memory != "auto":
                raise ValueError(f"RAFT: give alternate_corr or memory, not both; got {alternate_corr} and {memory!r}")
            memory = "on_the_fly" if alternate_corr else "volume"
        self.small = small
        self.corr_levels = whole_number("corr_levels", corr_levels, 1)
        self.corr_radius = (3 if small else 4) if corr_radius is None else whole_number("corr_radius", corr_radius, 0)
        self.mixed_precision = mixed_precision
        self.memory, self.backend = memory, backend
        self.hidden_dim, self.context_dim = (96, 64) if small else (128, 128)

        encoder, update_block = (SmallEncoder, SmallUpdateBlock) if small else (BasicEncoder, BasicUpdateBlock)
        feature_dim, context_norm = (128, "none") if small else (256, "batch")
        self.fnet: Any = encoder(feature_dim, "instance", dropout)
        self.cnet: Any = encoder(self.hidden_dim + self.context_dim, context_norm, dropout)
        corr_planes = self.corr_levels * (2 * self.corr_radius + 1) ** 2
        self.update_block: Any = update_block(corr_planes, self.hidden_dim, self.context_dim)

    @property
    def config(self) -> dict[str, bool | int]:
        """The arguments that decide the shapes of the weights; stored with them by ``daflow convert``."""
        return {"small": self.small, "corr_levels": self.corr_levels, "corr_radius": self.corr_radius}

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, **options: Any) -> "RAFT":
        """The model of a weights file, in evaluation mode on the CPU.

        Reads official ``.pth`` files (with or without ``module.``), torchvision's ``raft_large`` / ``raft_small`` and
        our safetensors; size, levels and radius come from the file, ``options`` are further constructor arguments.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is unreadable or holds other weights; the message names it and the first differences.
        """
        state, config = weights.read(path)
        model = cls(**{**config, **options})
        weights.load_strictly(model, state, path)
        return model.eval()

    def freeze_bn(self) -> None:
        """Put batch normalisation in evaluation mode (fine-tuning on small batches); call it after ``train()``."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    def forward(
        self,
        image1: torch.Tensor,
        image2: torch.Tensor,
        iters: int = 12,
        flow_init: torch.Tensor | None = None,
        upsample: bool = True,
        test_mode: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, torch.Tensor | None]:
        """Flow from image1 to image2, channel 0 = x to the right, channel 1 = y down.

        Args:
            iters: refinement steps.
            flow_init: where to start, in the form of ``flow_low``; zero by default.
            upsample: False leaves the flow on the 1/8 grid.
            test_mode: return only the last step, for inference; else the list of all steps, for the training loss.
        Shapes:
            image1, image2: [B, 3, H, W], RGB, uint8 or float in [0, 255], H and W multiples of 8.
            Returns a list of ``iters`` flows [B, 2, H, W] ([B, 2, H / 8, W / 8] with ``upsample=False``), or in test
            mode ``(flow_low, flow_up)``: [B, 2, H / 8, W / 8] and [B, 2, H, W] (None with ``upsample=False``).
            float32, float64 from a model in float64.
        Units:
            flow_low in pixels of the 1/8 grid, flow_up in image pixels.
        Raises:
            ValueError, TypeError: images of a wrong shape, dtype or range, of different sizes, an empty batch.
        """
        whole_number("iters", iters, 1)
        image1, image2 = self.frames(image1, image2)
        fmap1, fmap2, net, inp = self.features(image1, image2)
        corr_block = self.correlation(fmap1, fmap2, lookups=iters)
        return self.refine(corr_block, net, inp, iters, flow_init, upsample, test_mode)

    def refine(
        self,
        corr_block: Callable[[torch.Tensor], torch.Tensor],
        net: torch.Tensor,
        inp: torch.Tensor,
        iters: int = 12,
        flow_init: torch.Tensor | None = None,
        upsample: bool = True,
        test_mode: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, torch.Tensor | None]:
        """Steps 4 and 5, ``iters`` times: look up around the current match, update, upsample.

        Args:
            corr_block: gives the correlation windows around coordinates [B, 2, H / 8, W / 8]; see :meth:`correlation`.
            net, inp: hidden state and context, see :meth:`features`. The rest, and the result, as in :meth:`forward`.
        """
        layout = _memory_format(net.device)
        net, inp = (x.contiguous(memory_format=layout) for x in (net, inp))
        dtype = torch.promote_types(net.dtype, torch.float32)
        height, width = net.shape[-2:]
        coords0 = pixel_grid(height, width, net.device).to(dtype).expand(net.shape[0], -1, -1, -1)
        coords1 = coords0 if flow_init is None else coords0 + _check_flow_init(flow_init, coords0)

        with self.autocast(net.device):
            context = self.update_block.begin(inp)
        predictions = []
        for step in range(1, iters + 1):
            coords1 = coords1.detach()
            net, delta_flow = self.update(net, context, corr_block(coords1), coords1 - coords0)
            coords1 = coords1 + delta_flow
            if upsample and (not test_mode or step == iters):
                predictions.append(self.flow(coords1 - coords0, net))
            elif not test_mode:
                predictions.append(coords1 - coords0)
        if test_mode:
            return coords1 - coords0, (predictions[-1] if upsample else None)
        return predictions

    def frames(
        self, image1: torch.Tensor, image2: torch.Tensor, check_range: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Step 1: images in [0, 255] to what the encoders read, [-1, 1] in the dtype of the weights.

        Args:
            check_range: refuse values that are not finite or look like [0, 1]; False for parts of images that were
                checked, which may be dark.
        """
        check_images(image1, image2, check_range)
        weight = next(self.parameters())
        if image1.device != weight.device:
            raise ValueError(
                f"RAFT: images are on {image1.device} but the weights on {weight.device}; move one of them"
            )
        precise = torch.promote_types(weight.dtype, torch.float32)
        one, two = ((2 * (image.to(precise) / 255) - 1).to(weight.dtype) for image in (image1, image2))
        return one, two

    def features(
        self, image1: torch.Tensor, image2: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Step 2: matching features of both frames, hidden state and context of the first.

        Shapes:
            [B, 3, H, W] in [-1, 1] to fmap1, fmap2 [B, C, H / 8, W / 8] (float32 or float64), net
            [B, hidden_dim, H / 8, W / 8] in (-1, 1), inp [B, context_dim, H / 8, W / 8].
        """
        with self.autocast(image1.device):
            image1, image2 = (x.contiguous(memory_format=_memory_format(x.device)) for x in (image1, image2))
            if image1.device.type == "cpu":  # frame by frame: smaller buffers, which the allocator reuses
                fmap1, fmap2 = self.fnet(image1), self.fnet(image2)
            else:
                fmap1, fmap2 = self.fnet(torch.cat([image1, image2])).chunk(2)
            net, inp = self.cnet(image1).split([self.hidden_dim, self.context_dim], dim=1)
            net, inp = net.tanh(), inp.relu()
        precise = torch.promote_types(fmap1.dtype, torch.float32)
        return fmap1.to(precise), fmap2.to(precise), net, inp

    def correlation(self, fmap1: torch.Tensor, fmap2: torch.Tensor, lookups: int = 12) -> CorrBlock:
        """Step 3: what answers ``corr = block(coords)``, [B, levels * (2 radius + 1)^2, H / 8, W / 8]."""
        return CorrBlock(
            fmap1,
            fmap2,
            self.corr_levels,
            self.corr_radius,
            memory=self.memory,
            backend=self.backend,
            lookups=lookups,
            out_dtype=fmap1.dtype,
        )

    def update(
        self, net: torch.Tensor, inp: torch.Tensor | list[ContextPass], corr: torch.Tensor, flow_low: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Step 4: the next hidden state and the change of the flow, in pixels of the 1/8 grid.

        ``inp`` is the context, or what ``update_block.begin`` made of it once for all steps.
        """
        flow = flow_low.to(net.dtype).contiguous(memory_format=_memory_format(net.device))
        corr = corr.to(net.dtype)  # the encoder reads the layout of the lookup as it is
        with self.autocast(net.device):
            net, delta_flow = self.update_block(net, inp, corr, flow)
        return net, delta_flow.to(flow_low.dtype)

    def flow(self, flow_low: torch.Tensor, net: torch.Tensor) -> torch.Tensor:
        """Step 5: [B, 2, H / 8, W / 8] in pixels of the 1/8 grid to [B, 2, H, W] in image pixels."""
        if self.small:
            return bilinear_upsample(flow_low, STRIDE)
        with self.autocast(net.device):
            mask = self.update_block.mask(net)
        return convex_upsample(flow_low, mask.to(flow_low.dtype), STRIDE)

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager:
        """The precision that ``mixed_precision`` asks for."""
        return torch.autocast(device.type) if self.mixed_precision else contextlib.nullcontext()


def whole_number(name: str, value: int, least: int) -> int:
    """``value`` itself, if it is an integer >= ``least``."""
    if not isinstance(value, int) or value < least:
        raise ValueError(f"RAFT: {name} must be an integer >= {least}, got {value!r}")
    return value


def _memory_format(device: torch.device) -> torch.memory_format:
    """The faster one for the encoders and the update: channels_last on the CPU (measured at 440 x 1024)."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def check_images(image1: torch.Tensor, image2: torch.Tensor, check_range: bool = True) -> None:
    """Raise one sentence unless both are [B, 3, H, W] images of one size, sides multiples of 8, and in [0, 255].

    Raises:
        ValueError: shape, size, device or range.
        TypeError: no tensor, or a dtype that is neither uint8 nor floating.
    """
    for name, image in (("image1", image1), ("image2", image2)):
        if not isinstance(image, torch.Tensor):
            raise TypeError(f"RAFT: {name} must be a tensor [B, 3, H, W], got {type(image).__name__}")
        if image.dim() != 4 or image.shape[1] != 3:
            raise ValueError(f"RAFT: {name} must be RGB [B, 3, H, W], got {list(image.shape)}")
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise TypeError(f"RAFT: {name} must be uint8 or floating in [0, 255], got {image.dtype}")
    if image1.shape != image2.shape:
        raise ValueError(
            f"RAFT: image1 is {list(image1.shape)} but image2 is {list(image2.shape)}; both must have one size"
        )
    if image1.device != image2.device:
        raise ValueError(f"RAFT: image1 is on {image1.device} but image2 on {image2.device}; move one of them")
    batch, _, height, width = image1.shape
    if batch == 0:
        raise ValueError(f"RAFT: the batch is empty, image1 is {list(image1.shape)}")
    if height % STRIDE or width % STRIDE or height * width < 2 * STRIDE**2:
        raise ValueError(
            f"RAFT: images are {height} x {width}, but height and width must be multiples of {STRIDE} and at least "
            f"{STRIDE} x {2 * STRIDE}; pad them with daflow_ext.InputPadder"
        )
    if check_range:
        _check_range({"image1": image1, "image2": image2})


def _check_range(images: dict[str, torch.Tensor]) -> None:
    """A float image must hold no NaN, and one that never exceeds 1 is taken for [0, 1]; one read-back for both."""
    floating = [name for name, image in images.items() if image.is_floating_point()]
    if not floating or torch.compiler.is_compiling():
        return
    if images[floating[0]].is_cuda and torch.cuda.is_current_stream_capturing():
        return
    largest = torch.stack([images[name].detach().amax().float() for name in floating]).tolist()
    for name, value in zip(floating, largest, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"RAFT: {name} holds values that are not finite ({value}), but images are in [0, 255]")
        if value <= 1:
            raise ValueError(
                f"RAFT: {name} is a float image whose maximum is {value:g}, but images are in [0, 255]; multiply by "
                "255 (or pass uint8 if the frame really is black)"
            )


def _check_flow_init(flow_init: torch.Tensor, coords0: torch.Tensor) -> torch.Tensor:
    if flow_init.shape != coords0.shape:
        raise ValueError(
            f"RAFT: flow_init must be {list(coords0.shape)} (pixels of the 1/{STRIDE} grid), "
            f"got {list(flow_init.shape)}"
        )
    return flow_init.to(device=coords0.device, dtype=coords0.dtype)
