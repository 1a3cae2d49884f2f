"""DA-Flow's flow network: RAFT that also matches what a restoration transformer knows of degraded frames."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from .. import backends
from ..features.dense_head import TOKEN_STRIDE
from ..features.encoder import ResidualBlock
from ..features.fuse import HybridFeatures
from ..features.strict_loading import StrictLoadingMixin
from .raft import RAFT, STRIDE, whole_number

CORRELATIONS = ("concat", "sum")
FEATURES = ("query_key", "tokens")

Taps = Mapping[int, torch.Tensor] | Sequence[torch.Tensor]
Features = tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor, torch.Tensor]


class DAFlow(StrictLoadingMixin, ModelMixin, ConfigMixin):
    """Hybrid features, correlation and refinement; takes the transformer's features, computed elsewhere.

    :class:`daflow_ext.DAFlowPipeline` holds this network and the transformer together.

    Args:
        small, corr_levels, corr_radius: of the RAFT inside, see :class:`daflow_ext.RAFT`.
        tap_layers: the transformer's layers that are read, from 0. token_channels: their width.
        upsampling: "dpt", or "bilinear" for the ablation.
        encoders: False leaves RAFT's encoders out (ablation): then the features are the heads' alone and the context
            head also gives the initial hidden state.
        features: "query_key", or "tokens" for post-AdaNorm tokens of both frames (ablation). It tells the pipeline
            what to tap; this network reads either.
        correlation: "concat" (the paper): one correlation of [E_img, DPT], over sqrt(C + c). "sum": that of the
            encoders' maps plus ``gate`` times that of the heads' maps, each over the root of its own channels.
        match_channels, context_channels: of the heads (c and c' of the paper, which does not state them).
        head_channels, tap_channels, scales: of the DPT heads, see :class:`daflow_ext.features.dense_head.DenseHead`.
        coarse_start: in test mode begin at the flow between frames of half the size, found with half as many
            iterations, where no ``flow_init`` is given. It reaches motion larger than the network was trained on.
    Raises:
        ValueError: arguments that do not fit together.
    Source: DA-Flow (arXiv 2603.23499), section 4.4; RAFT (Teed & Deng, ECCV 2020, arXiv 2003.12039).
    """

    @register_to_config
    def __init__(
        self,
        small: bool = False,
        corr_levels: int = 4,
        corr_radius: int | None = None,
        tap_layers: tuple[int, ...] = (3, 13, 16, 17),
        token_channels: int = 1536,
        upsampling: str = "dpt",
        encoders: bool = True,
        features: str = "query_key",
        correlation: str = "concat",
        match_channels: int = 256,
        context_channels: int = 128,
        head_channels: int = 256,
        tap_channels: tuple[int, ...] | None = (256, 512, 1024, 1024),
        scales: tuple[float, ...] = (1, 1, 2, 2),
        coarse_start: bool = False,
    ):
        super().__init__()
        for name, value, known in (("correlation", correlation, CORRELATIONS), ("features", features, FEATURES)):
            if value not in known:
                raise ValueError(f"DAFlow: {name} must be one of {', '.join(known)}, got {value!r}")
        if not encoders and correlation == "sum":
            raise ValueError("DAFlow: correlation='sum' adds to the encoders' correlation, but encoders is False")
        if len(scales) != len(tap_layers) or list(tap_layers) != sorted(set(tap_layers)):
            raise ValueError(f"DAFlow: tap_layers {tap_layers} must increase, and be as many as scales {scales}")
        raft = RAFT(small, corr_levels=corr_levels, corr_radius=corr_radius)
        context_dim = (raft.context_dim if encoders else 0) + context_channels
        corr_planes = raft.corr_levels * (2 * raft.corr_radius + 1) ** 2
        raft.update_block = type(raft.update_block)(corr_planes, raft.hidden_dim, context_dim)
        if not encoders:
            raft.fnet = raft.cnet = None
        self.raft = _named_once(raft)
        self.heads = HybridFeatures(
            token_channels,
            match_channels,
            context_channels + (0 if encoders else raft.hidden_dim),
            channels=head_channels,
            tap_channels=tap_channels,
            scales=scales,
            upsampling=upsampling,
        )
        if correlation == "sum":
            self.gate = nn.Parameter(torch.zeros(()))

    @classmethod
    def from_raft(cls, raft: RAFT, **config: Any) -> "DAFlow":
        """A model whose flow is that of ``raft``, up to rounding, until it is trained; in evaluation mode.

        The columns of the GRU that read the new context are zero: [hidden | context | new | motion]. With
        ``correlation="sum"`` the gate is zero; with "concat" the key head's last convolution is, and the encoder's last
        convolution is scaled by ((C + c) / C)^(1/4), which makes up for the larger root under the correlation.
        Whatever stands behind one of these zeros gets its first gradient once that zero has moved, at the second
        optimiser step (as behind ControlNet's zero convolutions).

        Args:
            config: arguments of the constructor, but those that ``raft`` decides. Without encoders only the update
                operator is taken over, and the flow is not RAFT's.
        """
        model = cls(**raft.config, **config)
        model.raft.load_state_dict(_widened(raft, model.raft))
        model.memory, model.raft.mixed_precision = raft.memory, raft.mixed_precision
        model.set_backend(raft.backend)
        if model.config.encoders and model.config.correlation == "concat":
            with torch.no_grad():
                channels = model.raft.fnet.conv2.out_channels
                growth = (1 + model.config.match_channels / channels) ** 0.25
                for parameter in model.raft.fnet.conv2.parameters():
                    parameter.mul_(growth)
                for parameter in model.heads.key.output.parameters():
                    parameter.zero_()
        return model.eval()

    @property
    def memory(self) -> str:
        """How the correlation is kept, see :class:`daflow_ext.CorrBlock`; may be set."""
        return self.raft.memory

    @memory.setter
    def memory(self, memory: str) -> None:
        self.raft.memory = memory

    @property
    def backend(self) -> str:
        """Implementation of the correlation, "reference" for plain PyTorch; may be set."""
        return self.raft.backend

    @backend.setter
    def backend(self, backend: str) -> None:
        self.set_backend(backend)

    def set_backend(self, backend: str) -> None:
        """Choose the implementation of the correlation; see :mod:`daflow_ext.backends`.

        Raises:
            ValueError: no such backend.
        """
        if backend not in ("auto", *backends.BACKENDS):
            raise ValueError(f"DAFlow: backend must be auto or one of {', '.join(backends.BACKENDS)}, got {backend!r}")
        self.raft.backend = backend

    def forward(
        self,
        image1: torch.Tensor,
        image2: torch.Tensor,
        queries: Taps,
        keys: Taps,
        iters: int = 12,
        flow_init: torch.Tensor | None = None,
        upsample: bool = True,
        test_mode: bool = False,
        *,
        check_range: bool = True,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, torch.Tensor | None]:
        """Flow from image1 to image2; images, options, result and units are those of :meth:`daflow_ext.RAFT.forward`.

        Args:
            check_range: see :meth:`daflow_ext.RAFT.frames`.
        Shapes:
            image1, image2: [B, 3, H, W], H and W multiples of 16.
            queries, keys: of image1 and of image2, {layer: [B, T, token_channels]} (further layers are ignored) or a
            sequence in the order of ``tap_layers``; T = H / 16 * W / 16.
        Raises:
            ValueError, TypeError: what RAFT raises; a missing layer, features that do not fit the images.
        """
        whole_number("iters", iters, 1)
        image1, image2 = self.raft.frames(image1, image2, check_range)
        features = self.features(image1, image2, queries, keys)
        if flow_init is None and test_mode and self.config.coarse_start:
            flow_init = self._coarse_flow(image1, image2, queries, keys, max(1, iters // 2))
        return self._refine(features, iters, flow_init, upsample, test_mode)

    def _refine(
        self, features: Features, iters: int, flow_init: torch.Tensor | None, upsample: bool, test_mode: bool
    ) -> list[torch.Tensor] | tuple[torch.Tensor, torch.Tensor | None]:
        fmaps1, fmaps2, net, inp = features
        corr_block = self.correlation(fmaps1, fmaps2, lookups=iters)
        return self.raft.refine(corr_block, net, inp, iters, flow_init, upsample, test_mode)

    def _coarse_flow(
        self, image1: torch.Tensor, image2: torch.Tensor, queries: Taps, keys: Taps, iters: int
    ) -> torch.Tensor:
        """Flow found at half the size, [B, 2, H / 8, W / 8] in pixels of that grid; images in [-1, 1]."""
        grid = _token_grid(image1)
        coarse = (
            [_halved_tokens(tap, grid) for tap in self._in_order(name, side, image1)]
            for name, side in (("queries", queries), ("keys", keys))
        )
        features = self.features(_halved_image(image1), _halved_image(image2), *coarse)
        flow: Any = self._refine(features, iters, None, upsample=True, test_mode=True)[1]
        rows, columns = (side // STRIDE for side in image1.shape[-2:])
        return F.avg_pool2d(flow, STRIDE // 2)[..., :rows, :columns] * (2 / STRIDE)

    def features(self, image1: torch.Tensor, image2: torch.Tensor, queries: Taps, keys: Taps) -> Features:
        """Hybrid features of both frames, hidden state and hybrid context of the first.

        Shapes:
            images [B, 3, H, W] in [-1, 1]. Returns the maps of F_k and of F_{k+1}, each [E_img, DPT] of
            [B, C, H / 8, W / 8] (without encoders [DPT]); net [B, hidden_dim, H / 8, W / 8]; inp likewise, the channels
            of RAFT's context and then those of the context head.
        """
        grid = _token_grid(image1)
        queries, keys = self._in_order("queries", queries, image1), self._in_order("keys", keys, image1)
        with self.raft.autocast(image1.device):
            query_map, key_map, context_map = self.heads(queries, keys, grid)
        precise = torch.promote_types(query_map.dtype, torch.float32)
        fmaps1, fmaps2 = [query_map.to(precise)], [key_map.to(precise)]
        if not self.config.encoders:
            net, inp = context_map.split([self.raft.hidden_dim, self.config.context_channels], dim=1)
            return fmaps1, fmaps2, net.tanh(), inp.relu()
        fmap1, fmap2, net, inp = self.raft.features(image1, image2)
        return [fmap1, *fmaps1], [fmap2, *fmaps2], net, torch.cat([inp, context_map.relu().to(inp.dtype)], dim=1)

    def correlation(
        self, fmaps1: Sequence[torch.Tensor], fmaps2: Sequence[torch.Tensor], lookups: int = 12
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """What answers ``corr = block(coords)``, as :meth:`daflow_ext.RAFT.correlation` does."""
        if self.config.correlation == "concat":
            return self.raft.correlation(torch.cat(list(fmaps1), dim=1), torch.cat(list(fmaps2), dim=1), lookups)
        encoders, heads = (self.raft.correlation(*maps, lookups) for maps in zip(fmaps1, fmaps2, strict=True))
        return lambda coords: encoders(coords) + self.gate.to(coords.dtype) * heads(coords)

    def _in_order(self, name: str, taps: Taps, image: torch.Tensor) -> list[torch.Tensor]:
        """The tapped layers in the order of the configuration."""
        layers = self.config.tap_layers
        if isinstance(taps, Mapping):
            missing = [layer for layer in layers if layer not in taps]
            if missing:
                raise ValueError(f"DAFlow: {name} lack layer(s) {missing}, got {sorted(taps)}")
            taps = [taps[layer] for layer in layers]
        if len(taps) != len(layers):
            raise ValueError(f"DAFlow: {name} must be of the {len(layers)} layers {list(layers)}, got {len(taps)}")
        wrong = [t for t in taps if t.shape[:1] != image.shape[:1] or t.device != image.device]
        if wrong:
            raise ValueError(
                f"DAFlow: {name} are {list(wrong[0].shape)} on {wrong[0].device}, but the images are a batch of "
                f"{image.shape[0]} on {image.device}"
            )
        return list(taps)


def _token_grid(image: torch.Tensor) -> tuple[int, int]:
    height, width = image.shape[-2:]
    if height % TOKEN_STRIDE or width % TOKEN_STRIDE:
        raise ValueError(
            f"DAFlow: images are {height} x {width}, but height and width must be multiples of {TOKEN_STRIDE}; "
            f"pad them with daflow_ext.InputPadder(multiple={TOKEN_STRIDE})"
        )
    return height // TOKEN_STRIDE, width // TOKEN_STRIDE


def _halved_tokens(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Means over 2 x 2 tokens, fewer at an odd border: [B, T, C] to [B, T', C]."""
    maps = tokens.unflatten(1, grid).movedim(-1, 1)
    return F.avg_pool2d(maps, 2, ceil_mode=True).flatten(2).transpose(1, 2)


def _halved_image(image: torch.Tensor) -> torch.Tensor:
    """Means over 2 x 2 pixels; border pixels are repeated up to whole tokens."""
    half = F.avg_pool2d(image, 2)
    return F.pad(half, (0, -half.shape[-1] % TOKEN_STRIDE, 0, -half.shape[-2] % TOKEN_STRIDE), mode="replicate")


def _named_once(raft: RAFT) -> RAFT:
    """Without the second name that official checkpoints give the norm of a shortcut: safetensors refuses it."""
    for module in raft.modules():
        if isinstance(module, ResidualBlock) and module.downsample is not None:
            del module.norm3
    return raft


def _widened(source: RAFT, target: RAFT) -> dict[str, torch.Tensor]:
    """The weights of ``source`` in the shapes of ``target``: what the GRU newly reads has zero columns.

    Columns are [hidden | context | motion] there, [hidden | context | new | motion] here; without encoders RAFT's
    context is gone, and they are [hidden | new | motion].
    """
    state = source.state_dict()
    before = source.hidden_dim + (source.context_dim if target.cnet is not None else 0)
    widened = {}
    for name, tensor in target.state_dict().items():
        if ".gru." not in name or not name.endswith("weight"):
            widened[name] = state[name]
            continue
        old, new = state[name], torch.zeros_like(tensor)
        motion = old.shape[1] - source.hidden_dim - source.context_dim
        new[:, :before], new[:, -motion:] = old[:, :before], old[:, -motion:]
        widened[name] = new
    return widened
