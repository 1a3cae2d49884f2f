"""The bound of all scores that the norms of q and k give, and when attention uses it."""

import copy
import pickle

import pytest
import torch

from daflow_ext.features.dit4sr import DiT4SRTransformer2DModel, attention
from daflow_ext.features.dit4sr.attention import StreamAttention

WIDTH = 64


@pytest.fixture
def layer():
    """layer(gain) -> an attention of SD3.5's head size whose norm weights are around ``gain``, evaluation mode."""

    def make(gain=1.0, text=True):
        made = StreamAttention(2 * WIDTH, 2, WIDTH, text=text, text_out=text, lq_key_mode="own")
        for name, weight in made.named_parameters():
            if "norm" in name:
                weight.data.copy_(gain * (1 + 0.1 * torch.randn(WIDTH)))
        return made.eval()

    return make


@pytest.fixture
def calls(monkeypatch):
    """Queries, keys and options of every st_attention call."""
    seen = []
    original = attention.st_attention

    def record(queries, keys, values, **options):
        seen.append((queries, keys, options))
        return original(queries, keys, values, **options)

    monkeypatch.setattr(attention, "st_attention", record)
    return seen


def largest_score(queries, keys):
    return max(
        torch.einsum("bfqhd,bgkhd->bhfqgk", q.double(), k.double()).abs().max().item() / WIDTH**0.5
        for q in queries
        for k in keys
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_no_tokens_give_a_larger_score(layer, calls, dtype):
    made = layer().to(dtype).eval()
    for magnitude in (1e-3, 1.0, 1e3):
        x, y, text = (magnitude * torch.randn(1, 2, n, 2 * WIDTH, dtype=dtype) for n in (50, 50, 20))
        made(x, y, text, lifted=True)
        queries, keys, options = calls[-1]
        assert options["score_bound"] == made.score_bound
        assert largest_score(queries, keys) <= made.score_bound


@torch.no_grad()
def test_the_worst_tokens_reach_it_to_one_percent(layer):
    made = layer()
    norms = [(q, k) for q in (made.norm_q, made.norm_added_q) for k in (made.norm_k, made.norm_added_k)]
    token = torch.eye(WIDTH)  # all of a token in one channel
    worst = max((q(token) * k(token)).sum(-1).max().item() / WIDTH**0.5 for q, k in norms)
    assert 1.005 * worst < made.score_bound < 1.015 * worst


@torch.no_grad()
def test_it_follows_the_weights(layer):
    made, other = layer(1.0), layer(3.0)
    before = made.score_bound
    made.load_state_dict(other.state_dict())
    assert made.score_bound == other.score_bound > 4 * before
    made.norm_k.weight.mul_(100)  # as a training step would
    assert made.eval().score_bound > 50 * other.score_bound
    for duplicate in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert duplicate.score_bound == made.score_bound
    made.norm_k.weight[0] = torch.nan
    assert made.eval().score_bound is None


def test_training_does_not_use_it(layer, calls):
    made = layer(text=False).train()
    made(*(torch.randn(1, 1, 4, 2 * WIDTH) for _ in range(2)), lifted=True)
    assert calls[-1][2]["score_bound"] is None


def test_models_on_meta_have_none_until_they_are_loaded(tiny_config, tmp_path):
    with torch.device("meta"):
        assert DiT4SRTransformer2DModel(**tiny_config).transformer_blocks[0].attn.score_bound is None
    saved = DiT4SRTransformer2DModel(**tiny_config)
    saved.transformer_blocks[1].attn.norm_q.weight.data.fill_(5.0)
    saved.save_pretrained(tmp_path)
    loaded = DiT4SRTransformer2DModel.from_pretrained(tmp_path)
    assert loaded.transformer_blocks[1].attn.score_bound == pytest.approx(1.01 * 4 * 5)
    assert loaded.transformer_blocks[1].attn2.score_bound == pytest.approx(1.01 * 4)


@pytest.mark.parametrize(
    ("gain", "dtype", "taken"),
    [
        (0.5, torch.bfloat16, True),
        (1.0, torch.bfloat16, True),
        (1.0, torch.float16, False),  # too few exponents
        (2.6, torch.bfloat16, False),  # 2.6^2 * 8 * 2 / ln 2 = 156 powers of 2
    ],
)
def test_which_weights_of_the_size_of_sd35_take_the_licence(layer, gain, dtype, taken):
    kernels = pytest.importorskip("daflow_ext.kernels.triton.st_attention", exc_type=ImportError)
    streams = [torch.empty(1, 3, n, 24, WIDTH, dtype=dtype, device="meta") for n in (10, 10, 5)]
    plan = kernels.Plan(streams, streams, WIDTH**-0.5, -1, (), (1.0, 1.0, 3.0))
    assert (plan.max_free_offset(dtype, layer(gain).score_bound) is not None) == taken
