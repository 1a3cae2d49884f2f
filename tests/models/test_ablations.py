"""What the transformer gives the flow network, in the whole pipeline: of which frame and kind, lifted or not."""

import pytest
import torch

pytest.importorskip("diffusers", reason="DA-Flow is built on diffusers; pip install diffusers")

from daflow_ext import DAFlowPipeline, DiT4SRTransformer2DModel
from daflow_ext.models.config import build_parts

OPTIONS = {"iters": 1, "num_inference_steps": 2}


@pytest.fixture
def pipeline():
    """The tiny configuration with a transformer that does something: its gates start at zero no more."""

    def make(lift: str = "all", **flow) -> DAFlowPipeline:
        torch.manual_seed(2)
        parts = build_parts("daflow-tiny", **flow)
        if lift != "all":
            config = {key: value for key, value in parts["transformer"].config.items() if not key.startswith("_")}
            parts["transformer"] = DiT4SRTransformer2DModel(**{**config, "lift": lift}).eval()
        for parameter in parts["transformer"].parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.5 * parameter[0].numel() ** -0.5)
        return DAFlowPipeline(**parts)

    return make


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def clip() -> torch.Tensor:
    return (torch.rand(1, 3, 3, 64, 80) * 255).byte()


def calls_of(pipe: DAFlowPipeline, frames: torch.Tensor) -> list[tuple]:
    """(image1, image2, queries, keys) of every call of the flow network."""
    calls = []
    handle = pipe.flow.register_forward_pre_hook(lambda module, args: calls.append(args[:4]))
    pipe(frames, generator=noise(), **OPTIONS)
    handle.remove()
    return calls


def transformers_answer(pipe: DAFlowPipeline, frames: torch.Tensor, layers) -> object:
    """What the transformer itself says of these frames, starting from the pipeline's noise."""
    given = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: given.append((args, kwargs)), with_kwargs=True
    )
    pipe(frames, generator=noise(), **OPTIONS)
    handle.remove()
    args, kwargs = given[0]
    with torch.no_grad():
        return pipe.transformer(*args, **{**kwargs, "early_exit": False, "tap_layers": layers, "tap_tokens": True})


@pytest.mark.parametrize("features", ["query_key", "tokens"])
def test_frame_k_gives_queries_and_the_next_one_keys(pipeline, features):
    """And with "tokens" both give what the projections read."""
    pipe, frames = pipeline(features=features), clip()
    layers = tuple(pipe.flow.config.tap_layers)
    answer = transformers_answer(pipe, frames, layers)
    calls = calls_of(pipe, frames)
    assert len(calls) == 2
    for k, (image1, image2, queries, keys) in enumerate(calls):
        assert torch.equal(image1[0].to(frames), frames[0, k])
        assert torch.equal(image2[0].to(frames), frames[0, k + 1])
        for index, layer in enumerate(layers):
            query, key = (taps[layer] if isinstance(taps, dict) else taps[index] for taps in (queries, keys))
            if features == "tokens":
                expected = answer.tokens[layer][:, k], answer.tokens[layer][:, k + 1]
            else:
                expected = answer.queries[layer][:, k], answer.keys[layer][:, k + 1]
            torch.testing.assert_close(query, expected[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(key, expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lift", ["all", "none"])
def test_only_a_lifted_transformer_sees_the_third_frame(pipeline, lift):
    """Frame by frame, the flow of frames 0 and 1 is theirs alone."""
    pipe, frames = pipeline(lift), clip()
    changed = frames.clone()
    changed[:, 2] = 255 - changed[:, 2]
    first, second = calls_of(pipe, frames)[0], calls_of(pipe, changed)[0]
    difference = max((a[6] - b[6]).abs().max() for a, b in zip(first[2:], second[2:], strict=True))
    assert difference < 1e-6 if lift == "none" else difference > 1e-3
