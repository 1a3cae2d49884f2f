"""Attention of a block: three token streams (HQ, LQ, text) of all frames see each other."""

import math
from typing import Any

import torch
from torch import nn

from ...ops.qk_norm import qk_norm
from ...ops.st_attention import st_attention

_NORMS = ("norm_q", "norm_added_q"), ("norm_k", "norm_added_k")


class StreamAttention(nn.Module):
    """Projections of the HQ, LQ and (in ``attn``) text streams around one :func:`st_attention` call.

    Names of submodules are those of the official checkpoint. The LQ stream passes through the HQ projection and then a
    linear of its own ("control"); :meth:`fuse_lq_projections` folds the two into one matrix.

    The norms of q and k bound every score whatever the tokens are: :attr:`score_bound`, which :func:`st_attention`
    computes faster with. It is found from the weights when they load and by ``eval()``, and not used while training.

    ``lq_key_mode`` tells which of the two published forward passes the weights belong to: ``"hq_renorm"`` (q and f
    checkpoints) uses the normalised HQ key, normalised once more, as the LQ key, and ``to_k_control`` is dead;
    ``"own"`` (r1) uses the projected LQ key.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, *, text: bool, text_out: bool, lq_key_mode: str):
        super().__init__()
        inner = heads * head_dim
        self.heads, self.head_dim, self.lq_key_mode = heads, head_dim, lq_key_mode
        self.backend = "auto"
        self.norm_q = nn.RMSNorm(head_dim, eps=1e-6)
        self.norm_k = nn.RMSNorm(head_dim, eps=1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, inner) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(inner, dim)])
        self.to_q_control, self.to_k_control, self.to_v_control = (nn.Linear(inner, inner) for _ in range(3))
        self.to_out_control = nn.Linear(inner, dim)
        self.lq_fused = False
        if text:
            self.norm_added_q = nn.RMSNorm(head_dim, eps=1e-6)
            self.norm_added_k = nn.RMSNorm(head_dim, eps=1e-6)
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(dim, inner) for _ in range(3))
            if text_out:
                self.to_add_out = nn.Linear(inner, dim)
        self.init_control()
        self.score_bound: float | None = None
        self.update_score_bound()
        self.register_load_state_dict_post_hook(_update_score_bound)

    def train(self, mode: bool = True) -> "StreamAttention":
        super().train(mode)
        if not mode:
            self.update_score_bound()
        return self

    @torch.no_grad()
    def update_score_bound(self) -> None:
        """Largest |q . k| / sqrt(d) that any tokens can give, over every pair of streams; None if weights hold no data.

        q = w_q n with |n| <= sqrt(d), k likewise: |q . k| <= d max_c |w_q w_k|, and rounding to bfloat16 adds 1 %.
        """
        queries, keys = ([getattr(self, name, None) for name in names] for names in _NORMS)
        queries, keys = ([norm.weight for norm in norms if norm is not None] for norms in (queries, keys))
        if any(weight.is_meta for weight in (*queries, *keys)):
            self.score_bound = None
            return
        products = [(query.float() * key.float()).abs().max() for query in queries for key in keys]
        largest = torch.stack(products).max().item()
        self.score_bound = 1.01 * self.head_dim**0.5 * largest if largest < math.inf else None

    @torch.no_grad()
    def init_control(self) -> None:
        """LQ tensors as training starts: zero projections, and the HQ output projection copied."""
        for control in (self.to_q_control, self.to_k_control, self.to_v_control):
            control.weight.zero_()
            control.bias.zero_()
        self.to_out_control.load_state_dict(self.to_out[0].state_dict())

    @torch.no_grad()
    def fuse_lq_projections(self) -> None:
        """Replace "HQ projection, then control projection" of the LQ stream by their product (inference only)."""
        if self.lq_fused:
            return
        for base, control in (
            (self.to_q, self.to_q_control),
            (self.to_k, self.to_k_control),
            (self.to_v, self.to_v_control),
        ):
            wide = torch.float64
            weight = control.weight.to(wide) @ base.weight.to(wide)
            bias = control.weight.to(wide) @ base.bias.to(wide) + control.bias.to(wide)
            control.weight.copy_(weight)
            control.bias.copy_(bias)
        self.lq_fused = True

    def _lq_projection(self, base: nn.Linear, control: nn.Linear, y: torch.Tensor) -> torch.Tensor:
        return self._heads(control(y if self.lq_fused else base(y)))

    def _heads(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(-1, (self.heads, self.head_dim))

    def hq_query_key(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised query and key of the HQ stream, [B, F, N, heads, d]: what the feature taps keep."""
        weights = [self.norm_q.weight, self.norm_k.weight]
        query, key = qk_norm(
            [self._heads(self.to_q(x)), self._heads(self.to_k(x))], weights, backend=self._norm_backend
        )
        return query, key

    @property
    def _norm_backend(self) -> str:
        return "reference" if self.backend == "reference" else "auto"

    def forward(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        text: torch.Tensor | None = None,
        *,
        lifted: bool,
        window: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, torch.Tensor]]:
        """Outputs of the three streams (text: None where its output is dropped), and the HQ query and key.

        Shapes:
            x, y: [B, F, N, D]; text: [B, F, M, D], or [B, 1, M, D] for one copy shared by all frames.
        """
        queries = [self._heads(self.to_q(x)), self._lq_projection(self.to_q, self.to_q_control, y)]
        keys = [self._heads(self.to_k(x))]
        values = [self._heads(self.to_v(x)), self._lq_projection(self.to_v, self.to_v_control, y)]
        q_weights, k_weights = [self.norm_q.weight] * 2, [self.norm_k.weight]
        if self.lq_key_mode == "own":
            keys.append(self._lq_projection(self.to_k, self.to_k_control, y))
            k_weights.append(self.norm_k.weight)
        text_out = hasattr(self, "to_add_out")
        if text is not None:
            if text_out:  # where the text output is dropped, its queries are wasted work
                queries.append(self._heads(self.add_q_proj(text)))
                q_weights.append(self.norm_added_q.weight)
            keys.append(self._heads(self.add_k_proj(text)))
            values.append(self._heads(self.add_v_proj(text)))
            k_weights.append(self.norm_added_k.weight)
        normed = qk_norm(queries + keys, q_weights + k_weights, backend=self._norm_backend)
        queries, keys = normed[: len(queries)], normed[len(queries) :]
        if self.lq_key_mode == "hq_renorm":
            keys.insert(1, qk_norm([keys[0]], [self.norm_k.weight], backend=self._norm_backend)[0])
        taps = queries[0], keys[0]

        outputs = self._attend(queries, keys, values, frames=x.shape[1], lifted=lifted, window=window)
        out_x = self.to_out[0](outputs[0].flatten(-2))
        out_y = self.to_out_control(outputs[1].flatten(-2) + y)
        out_text = self.to_add_out(outputs[2].flatten(-2)) if text is not None and text_out else None
        return out_x, out_y, out_text, taps

    def _attend(
        self,
        queries: list[torch.Tensor],
        keys: list[torch.Tensor],
        values: list[torch.Tensor],
        *,
        frames: int,
        lifted: bool,
        window: int | None,
    ) -> list[torch.Tensor]:
        options: dict[str, Any] = {"score_bound": None if self.training else self.score_bound, "backend": self.backend}
        if not lifted:
            folded = [[stream.flatten(0, 1) for stream in streams] for streams in (queries, keys, values)]
            outputs: Any = st_attention(*folded, **options)
            return [out.unflatten(0, (-1, frames)) for out in outputs]
        # one shared text copy counts as often as there are frames, so that it equals a copy per frame
        weights = [1.0 if stream.shape[1] == frames else float(frames) for stream in keys]
        outputs = st_attention(
            queries,
            keys,
            values,
            window=window,
            stream_weights=None if set(weights) == {1.0} else weights,
            **options,
        )
        return outputs


def _update_score_bound(attention: StreamAttention, _keys: object) -> None:
    attention.update_score_bound()
