"""One transformer block: modulated attention and feed-forward of the HQ, LQ and text streams."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from torch import nn

from .attention import StreamAttention


class Modulation(nn.Module):
    """AdaLN parameters of one norm: ``linear(conditioning)`` in ``chunks`` pieces, each [B, F or 1, 1, D].

    ``conditioning`` is SiLU of the time-text embedding, [B, F or 1, D]; or, after :meth:`tabulate`, the index of a
    tabulated step.
    """

    def __init__(self, dim: int, chunks: int):
        super().__init__()
        self.linear: Any = nn.Linear(dim, chunks * dim)  # None after tabulate
        self.chunks = chunks
        self.register_buffer("table", None, persistent=False)

    @torch.no_grad()
    def tabulate(self, conditioning: torch.Tensor) -> None:
        """Keep the outputs for ``conditioning`` [steps, D] and drop the linear, which is no longer needed."""
        self.table = self.linear(conditioning)
        self.linear = None

    def forward(self, conditioning: torch.Tensor | int) -> tuple[torch.Tensor, ...]:
        out = self.table[conditioning][None, None] if isinstance(conditioning, int) else self.linear(conditioning)
        return out.unsqueeze(-2).chunk(self.chunks, dim=-1)


def modulate(tokens: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """LayerNorm without affine (eps 1e-6), then * (1 + scale) + shift."""
    return torch.addcmul(shift, F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6), 1 + scale)


class ControlledFeedForward(FeedForward):
    """Feed-forward shared by HQ and LQ; the LQ hidden layer enters HQ's through a depthwise 3x3 convolution."""

    def __init__(self, dim: int):
        super().__init__(dim, dim, activation_fn="gelu-approximate")
        hidden = self.net[2].in_features
        self.control_conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.init_control()

    @torch.no_grad()
    def init_control(self) -> None:
        for parameter in self.control_conv.parameters():
            parameter.zero_()

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, grid: tuple[int, int], control_scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x, y: [B, F, h*w, D] -> the same two."""
        hidden_x, hidden_y = self.net[0](x), self.net[0](y)
        image = hidden_y.flatten(0, 1).unflatten(1, grid).permute(0, 3, 1, 2)  # channels_last, no copy
        control = self.control_conv(image).permute(0, 2, 3, 1).flatten(1, 2)
        hidden_x = hidden_x + control_scale * control.view_as(hidden_x)
        return self.net[2](hidden_x), self.net[2](hidden_y)


class DiT4SRBlock(nn.Module):
    """x (HQ), y (LQ), text -> the same three after attention and feed-forward; equations in transformer.py."""

    def __init__(
        self, dim: int, heads: int, head_dim: int, *, dual: bool, last: bool, lq_key_mode: str, unused_attn2_text: bool
    ):
        super().__init__()
        self.last = last
        self.norm1 = Modulation(dim, 9 if dual else 6)
        self.norm1_context = Modulation(dim, 2 if last else 6)
        options = {"lq_key_mode": lq_key_mode}
        self.attn = StreamAttention(dim, heads, head_dim, text=True, text_out=not last, **options)
        self.attn2 = None
        if dual:
            # the official class also built text projections here, which no code path uses
            self.attn2 = StreamAttention(
                dim, heads, head_dim, text=unused_attn2_text, text_out=unused_attn2_text, **options
            )
        self.ff = ControlledFeedForward(dim)
        self.ff_context = None if last else FeedForward(dim, dim, activation_fn="gelu-approximate")

    def attentions(self) -> list[StreamAttention]:
        return [self.attn] if self.attn2 is None else [self.attn, self.attn2]

    def attention_input(self, x: torch.Tensor, conditioning: torch.Tensor | int) -> torch.Tensor:
        """The HQ tokens as ``attn`` projects them."""
        shift, scale = self.norm1(conditioning)[:2]
        return modulate(x, shift, scale)

    def forward(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        text: torch.Tensor,
        conditioning: torch.Tensor | int,
        grid: tuple[int, int],
        control_scale: float,
        lift: str,
        window: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, dict[str, torch.Tensor]]:
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f, *dual = self.norm1(conditioning)
        if self.last:
            text_scale, text_shift = self.norm1_context(conditioning)
        else:
            text_shift, text_scale, text_gate, text_shift_f, text_scale_f, text_gate_f = self.norm1_context(
                conditioning
            )
        out_x, out_y, out_text, taps = self.attn(
            modulate(x, shift_a, scale_a),
            modulate(y, shift_a, scale_a),
            modulate(text, text_shift, text_scale),
            lifted=lift != "none",
            window=window,
        )
        if self.attn2 is not None:  # reads the block's input, not the stream updated above
            shift, scale, gate = dual
            dual_x, dual_y, _, _ = self.attn2(
                modulate(x, shift, scale), modulate(y, shift, scale), lifted=lift == "all", window=window
            )
            x, y = x + gate * dual_x, y + gate * dual_y
        x, y = x + gate_a * out_x, y + gate_a * out_y
        ff_x, ff_y = self.ff(modulate(x, shift_f, scale_f), modulate(y, shift_f, scale_f), grid, control_scale)
        x, y = x + gate_f * ff_x, y + gate_f * ff_y
        if self.last:
            return x, y, None, taps
        text = text + text_gate * out_text
        assert self.ff_context is not None
        text = text + text_gate_f * self.ff_context(modulate(text, text_shift_f, text_scale_f))
        return x, y, text, taps
