"""The ops from many threads, and in forked loading processes, at once."""

import concurrent.futures
import multiprocessing

import pytest
import torch

from daflow_ext import ops
from daflow_ext.datasets import Scenes


def work(seed: int) -> list[torch.Tensor]:
    """Every op forward and backward on values of ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    fmap1, fmap2 = (torch.randn(1, 32, 9, 12, generator=generator).requires_grad_() for _ in range(2))
    coords = (torch.rand(1, 2, 9, 12, generator=generator) * 12).requires_grad_()
    volume = torch.randn(1, 9, 12, 9, 12, generator=generator).requires_grad_()
    tokens = [fmap.flatten(2).mT for fmap in (fmap1, fmap2)]
    heads = [token.unflatten(-1, (4, 8)) for token in tokens]
    outputs = [
        ops.corr_lookup(fmap1, ops.corr_pyramid(fmap2, 3), coords, 3),
        ops.volume_lookup([volume], coords, 2),
        ops.bilinear_sample(fmap2, coords),
        ops.softargmax_flow(*tokens, (9, 12)),
        *ops.st_attention(*[[head] for head in (*heads, heads[0])]),
        *ops.qk_norm([heads[0]], [torch.ones(8)]),
    ]
    leaves = (fmap1, fmap2, coords, volume)
    grads = torch.autograd.grad(sum(out.square().sum() for out in outputs), leaves)
    return [one.detach() for one in (*outputs, *grads)]


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_eight_python_threads_give_the_bits_of_one(two_threads):
    expected = [work(seed) for seed in range(6)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, [seed for seed in range(6) for _ in range(4)]))
    for index, result in enumerate(found):
        assert same(result, expected[index // 4]), index


class Worked(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return work(index)


def test_forked_loading_processes_beside_threads(two_threads):
    """The parent has used its threads before the fork and goes on using them meanwhile."""
    expected = [work(seed) for seed in range(8)]
    loader = torch.utils.data.DataLoader(
        Worked(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=120
    )
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        beside = [pool.submit(work, seed) for seed in range(8)]
        found = list(loader)
        assert all(same(future.result(), one) for future, one in zip(beside, expected, strict=True))
    assert all(same(result, one) for result, one in zip(found, expected, strict=True))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_rendered_scenes_from_forked_processes():
    """The renderer starts threads of its own."""
    dataset = Scenes(4, size=(48, 64), max_displacement=10.0)
    expected = [dataset[index].frames for index in range(4)]
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=120,
        collate_fn=lambda clip: torch.as_tensor(clip.frames),
    )  # fmt: skip
    for found, frames in zip(loader, expected, strict=True):
        assert torch.equal(found, torch.as_tensor(frames))
