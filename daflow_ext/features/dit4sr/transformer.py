"""DiT4SR: SD3.5's MM-DiT with a low-quality image stream beside the denoised one, lifted to clips.

Per block, on the HQ stream x, the LQ stream y and the text stream:

    x += gate_a attn(x' | x', y', text')     y, text likewise     x' = LN(x) (1 + scale_a) + shift_a
    x += gate_2 attn2(x'' | x'', y'')        y likewise           (blocks with dual attention)
    x += gate_f W2 (GELU(W1 x') + s conv3x3(GELU(W1 y')))         y likewise, without the convolution

Lifting changes attention only: each stream's tokens of all frames are seen at once, (B F) T -> B (F T). There are no
new parameters and no frame positions, so permuting frames permutes outputs.

Source: DiT4SR (arXiv 2503.23580) and DA-Flow (arXiv 2603.23499); written from their description and the published key
list, checked against outputs of the official code.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings, PatchEmbed
from torch import nn

from .block import DiT4SRBlock, Modulation, modulate
from .weights import WeightsMixin

LIFTS = ("none", "joint", "all")


@dataclass
class DiT4SROutput:
    """What a forward pass gives.

    Shapes:
        sample: velocity (noise minus clean) [B, F, C, h, w]; None after an early exit.
        queries, keys: for each tapped layer, the normalised HQ query and key [B, F, T, heads * d].
        tokens: for each tapped layer, the post-AdaNorm HQ tokens [B, F, T, D] (what ``attn`` projects).
    """

    sample: torch.Tensor | None
    queries: dict[int, torch.Tensor]
    keys: dict[int, torch.Tensor]
    tokens: dict[int, torch.Tensor]


class DiT4SRTransformer2DModel(WeightsMixin, ModelMixin, ConfigMixin, PeftAdapterMixin):
    """The restoration transformer; see the module docstring for the equations.

    Args (beside those of diffusers' ``SD3Transformer2DModel``):
        lq_key_mode: ``"hq_renorm"`` for dit4sr_q and dit4sr_f, ``"own"`` for dit4sr_r1: two published forward passes
            for one key layout. Loading checks it against ``to_k_control``, which is all zero exactly in the former.
        control_conv_scale: factor of the LQ-to-HQ convolution; 1.2 in the published inference code, 1.0 for training.
        lift: which attentions see all frames: ``"none"``, ``"joint"`` (the three-stream one), ``"all"``.
        window: lifted attention sees frames at most this far apart; None for all.
        prediction: what the last layer gives: "velocity" (DiT4SR), or "clean" latents, from which the velocity follows;
            for a model narrower than its patches, which cannot pass the noise on.
        keep_unused_attn2_text: also hold the text projections of ``attn2`` that no code path uses (the official
            checkpoint stores them), for a round trip of all keys.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("DiT4SRBlock",)
    _repeated_blocks = ("DiT4SRBlock",)
    _skip_layerwise_casting_patterns = ("pos_embed", "norm")

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        patch_size: int = 2,
        in_channels: int = 16,
        num_layers: int = 24,
        attention_head_dim: int = 64,
        num_attention_heads: int = 24,
        joint_attention_dim: int = 4096,
        caption_projection_dim: int = 1536,
        pooled_projection_dim: int = 2048,
        out_channels: int = 16,
        pos_embed_max_size: int = 384,
        dual_attention_layers: tuple[int, ...] = tuple(range(13)),
        qk_norm: str = "rms_norm",
        lq_key_mode: str = "hq_renorm",
        control_conv_scale: float = 1.2,
        lift: str = "all",
        window: int | None = None,
        keep_unused_attn2_text: bool = False,
        prediction: str = "velocity",
    ):
        super().__init__()
        dim = num_attention_heads * attention_head_dim
        if lq_key_mode not in ("hq_renorm", "own"):
            raise ValueError(f"lq_key_mode must be 'hq_renorm' or 'own', got {lq_key_mode!r}")
        if lift not in LIFTS:
            raise ValueError(f"lift must be one of {', '.join(LIFTS)}, got {lift!r}")
        if prediction not in ("velocity", "clean"):
            raise ValueError(f"prediction must be 'velocity' or 'clean', got {prediction!r}")
        if qk_norm != "rms_norm":
            raise ValueError(f"qk_norm must be 'rms_norm' (SD3.5), got {qk_norm!r}")
        if window is not None and (not isinstance(window, int) or window < 0):
            raise ValueError(f"window must be an integer >= 0 or None, got {window!r}")
        if caption_projection_dim != dim:
            raise ValueError(f"caption_projection_dim is {caption_projection_dim} but the model is {dim} wide")
        self.pos_embed = PatchEmbed(
            height=sample_size,
            width=sample_size,
            patch_size=patch_size,
            in_channels=in_channels,
            embed_dim=dim,
            pos_embed_max_size=pos_embed_max_size,
        )
        self.time_text_embed = CombinedTimestepTextProjEmbeddings(dim, pooled_projection_dim)
        self.context_embedder = nn.Linear(joint_attention_dim, caption_projection_dim)
        self.transformer_blocks: Any = nn.ModuleList(
            DiT4SRBlock(
                dim,
                num_attention_heads,
                attention_head_dim,
                dual=index in dual_attention_layers,
                last=index == num_layers - 1,
                lq_key_mode=lq_key_mode,
                unused_attn2_text=keep_unused_attn2_text,
            )
            for index in range(num_layers)
        )
        self.norm_out = Modulation(dim, 2)
        self.proj_out = nn.Linear(dim, patch_size**2 * out_channels)
        self.gradient_checkpointing = False
        self.tabulated: tuple[float, ...] | None = None

    # ---- options that change no result ----------------------------------------------------------------------------

    def set_attention_backend(self, backend: str) -> None:
        """``"auto"``, ``"reference"``, ``"sdpa"`` or ``"triton"`` for every attention of the model."""
        from ... import backends

        if backend != "auto" and backend not in backends.OPS["st_attention"]:
            expected = ", ".join(("auto", *backends.OPS["st_attention"]))
            raise ValueError(f"unknown attention backend {backend!r}; expected one of {expected}")
        for block in self.transformer_blocks:
            for attention in block.attentions():
                attention.backend = backend

    def fuse_lq_projections(self) -> None:
        """Fold the chained linears of the LQ stream into one each (exact up to rounding; inference only)."""
        for block in self.transformer_blocks:
            for attention in block.attentions():
                attention.fuse_lq_projections()

    @torch.no_grad()
    def tabulate_conditioning(self, timesteps: Sequence[float], pooled_projections: torch.Tensor) -> None:
        """Precompute every AdaLN output for a fixed schedule and prompt; drop the AdaLN linears (28 % of the weights).

        Afterwards ``forward`` accepts only these timesteps, and ``pooled_projections`` is ignored. Inference only.

        Shapes:
            pooled_projections: [1, pooled_projection_dim].
        """
        steps = torch.as_tensor(timesteps, dtype=torch.float32, device=self.device)
        embedding = self.time_text_embed(steps, pooled_projections.expand(len(steps), -1))
        conditioning = F.silu(embedding)
        for module in self.modules():
            if isinstance(module, Modulation):
                module.tabulate(conditioning)
        self.tabulated = tuple(steps.tolist())

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """As ``ModelMixin.save_pretrained``; not after :meth:`fuse_lq_projections` or :meth:`tabulate_conditioning`.

        Raises:
            ValueError: the weights have been folded, and would mean something else to whoever loads them.
        """
        if self.tabulated is not None or any(block.attn.lq_fused for block in self.transformer_blocks):
            raise ValueError(
                f"this model's weights were folded for inference and cannot be saved to {save_directory}; save it "
                "before fuse_lq_projections and tabulate_conditioning"
            )
        super().save_pretrained(save_directory, **kwargs)

    # ---- forward ----------------------------------------------------------------------------------------------------

    def forward(
        self,
        hidden_states: torch.Tensor,
        lq_hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        timestep: torch.Tensor,
        *,
        tap_layers: Sequence[int] = (),
        tap_tokens: bool = False,
        early_exit: bool = False,
        share_text: bool = False,
    ) -> DiT4SROutput:
        """One denoising evaluation of a batch of clips.

        Shapes:
            hidden_states, lq_hidden_states: [B, F, in_channels, h, w], h and w even.
            encoder_hidden_states: [B, M, joint_attention_dim], or [B, F, M, joint_attention_dim] for a text per frame.
            pooled_projections: [B, pooled_projection_dim]. timestep: [], [B] or [B, F], in [0, 1000] (1000 = noise).
        Args:
            tap_layers: layers (0-based) whose HQ query and key are returned; views, no copies.
            tap_tokens: also return their post-AdaNorm HQ tokens.
            early_exit: stop at the last tapped layer's query and key; ``sample`` is None.
            share_text: keep one text copy for all frames, counted F times: equal to a copy per frame, cheaper. Needs
                one text and timestep per clip, ``lift != "none"`` and no window.
        Raises:
            ValueError: shapes or options that do not fit together.
        """
        self._check(
            hidden_states, lq_hidden_states, encoder_hidden_states, pooled_projections, timestep, tap_layers,
            early_exit, share_text,
        )  # fmt: skip
        batch, frames, _, height, width = hidden_states.shape
        patch = self.config.patch_size
        grid = (height // patch, width // patch)
        x = self.pos_embed(hidden_states.flatten(0, 1)).unflatten(0, (batch, frames))
        y = self.pos_embed(lq_hidden_states.flatten(0, 1)).unflatten(0, (batch, frames))
        text = self.context_embedder(encoder_hidden_states)
        if text.dim() == 3:
            text = text[:, None] if share_text else text[:, None].expand(-1, frames, -1, -1)
        conditioning = self._conditioning(timestep, pooled_projections, batch)

        queries, keys, tokens = {}, {}, {}
        last_tap = max(tap_layers) if tap_layers else -1
        for index, block in enumerate(self.transformer_blocks):
            # not "index in tap_layers": torch.compile makes the layers symbolic, and finds no number among those
            tapped = any(index == layer for layer in tap_layers)
            if tapped and (tap_tokens or (early_exit and index == last_tap)):
                projected = block.attention_input(x, conditioning)
                if tap_tokens:
                    tokens[index] = projected
                if early_exit and index == last_tap:
                    query, key = block.attn.hq_query_key(projected)
                    queries[index], keys[index] = query.flatten(-2), key.flatten(-2)
                    return DiT4SROutput(None, queries, keys, tokens)
            arguments = (x, y, text, conditioning, grid, self.config.control_conv_scale, *self._lifting())
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x, y, text, (query, key) = self._gradient_checkpointing_func(block, *arguments)
            else:
                x, y, text, (query, key) = block(*arguments)
            if tapped:
                queries[index], keys[index] = query.flatten(-2), key.flatten(-2)

        scale, shift = self.norm_out(conditioning)
        sample = self.proj_out(modulate(x, shift, scale)).unflatten(2, grid)  # [B, F, h/p, w/p, p*p*C]
        sample = sample.unflatten(-1, (patch, patch, -1)).permute(0, 1, 6, 2, 4, 3, 5)
        sample = sample.reshape(batch, frames, -1, height, width)
        if self.config.prediction == "clean":
            sample = _velocity(sample, hidden_states, torch.as_tensor(timestep, device=sample.device) / 1000)
        return DiT4SROutput(sample, queries, keys, tokens)

    def _lifting(self) -> tuple[str, int | None]:
        return self.config.lift, self.config.window

    def _conditioning(self, timestep: torch.Tensor, pooled: torch.Tensor, batch: int) -> torch.Tensor | int:
        """SiLU of the time-text embedding [B, F or 1, D], or the row of the table made by tabulate_conditioning."""
        timestep = torch.as_tensor(timestep, device=self.device)
        if self.tabulated is not None:
            value = float(timestep.flatten()[0])
            if not bool((timestep == value).all()) or value not in self.tabulated:
                raise ValueError(f"timestep {value} is not one of the tabulated {self.tabulated}")
            return self.tabulated.index(value)
        steps = timestep.expand(batch) if timestep.dim() == 0 else timestep
        steps = steps[:, None] if steps.dim() == 1 else steps  # [B, F or 1]
        pooled = pooled[:, None].expand(-1, steps.shape[1], -1)
        embedding = self.time_text_embed(steps.flatten(), pooled.flatten(0, 1))
        return F.silu(embedding).unflatten(0, steps.shape)

    def _check(
        self,
        hq: torch.Tensor,
        lq: torch.Tensor,
        text: torch.Tensor,
        pooled: torch.Tensor,
        timestep: torch.Tensor,
        tap_layers: Sequence[int],
        early_exit: bool,
        share_text: bool,
    ) -> None:
        if hq.dim() != 5 or hq.shape[2] != self.config.in_channels or 0 in hq.shape:
            raise ValueError(
                f"hidden_states must be [B, F, {self.config.in_channels}, h, w], none of them 0, got {list(hq.shape)}"
            )
        if lq.shape != hq.shape:
            raise ValueError(f"lq_hidden_states is {list(lq.shape)} but hidden_states is {list(hq.shape)}")
        batch, frames, _, height, width = hq.shape
        patch, largest = self.config.patch_size, self.config.pos_embed_max_size
        if height % patch or width % patch or max(height, width) // patch > largest:
            raise ValueError(
                f"latents of {height}x{width} do not fit: sides must be multiples of {patch} (images: of {patch * 8}) "
                f"and at most {patch * largest}"
            )
        channels = self.config.joint_attention_dim
        if (*text.shape[:-2], text.shape[-1]) not in ((batch, channels), (batch, frames, channels)):
            raise ValueError(
                f"encoder_hidden_states must be [{batch}, ({frames},) M, {channels}], got {list(text.shape)}"
            )
        if pooled.shape != (batch, self.config.pooled_projection_dim):
            raise ValueError(
                f"pooled_projections must be [{batch}, {self.config.pooled_projection_dim}], got {list(pooled.shape)}"
            )
        shape = torch.as_tensor(timestep).shape
        if shape not in ((), (batch,), (batch, frames)):
            raise ValueError(f"timestep must be [], [{batch}] or [{batch}, {frames}], got {list(shape)}")
        bad = [layer for layer in tap_layers if not 0 <= layer < self.config.num_layers]
        if bad:
            raise ValueError(f"tap_layers {bad} are outside 0..{self.config.num_layers - 1}")
        if early_exit and not tap_layers:
            raise ValueError("early_exit needs tap_layers: it stops at the last of them")
        lift, window = self._lifting()
        if share_text and (lift == "none" or window is not None or text.dim() == 4 or len(shape) == 2):
            raise ValueError(
                "share_text needs lifted attention without a window and one text and timestep per clip, got "
                f"lift={lift!r}, window={window}, text {list(text.shape)}, timestep {list(shape)}"
            )


def _velocity(clean: torch.Tensor, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """(noisy - clean) / sigma, as noisy = clean + sigma (noise - clean); sigma [], [B] or [B, F]."""
    sigma = sigma.clamp_min(1e-3).view(*sigma.shape, *[1] * (noisy.dim() - sigma.dim()))
    return ((noisy - clean) / sigma).to(clean.dtype)
