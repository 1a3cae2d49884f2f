"""The benchmark of threads: what it counts, and that results must agree before they are timed."""

import pytest
import torch

from benchmarks import threads, timing


def test_counts_double_and_end_with_every_processor(monkeypatch):
    for most, expected in ((1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6])):
        monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _, most=most: set(range(most)), raising=False)
        assert threads.thread_counts() == expected


def test_every_count_runs_on_as_many_threads_against_one(monkeypatch):
    monkeypatch.setattr(threads, "thread_counts", lambda: [1, 2])
    seen = []

    def call() -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return torch.zeros(1)

    before = torch.get_num_threads()
    records = list(threads._scaling("nothing", call, atol=0.0, repeats=2))
    assert seen == [1, 1, 2, 1, 2, 1, 2]  # the truth, both checked, two rounds
    assert [(record.case, record.details["threads"]) for record in records] == [
        ("nothing, 1 thread", 1),
        ("nothing, 2 threads", 2),
    ]
    assert records[0].value == 1
    assert torch.get_num_threads() == before


def test_a_result_that_depends_on_the_threads_is_not_timed(monkeypatch):
    monkeypatch.setattr(threads, "thread_counts", lambda: [1, 2])
    with pytest.raises(timing.WrongResultError, match="2 threads"):
        list(threads._scaling("nothing", lambda: torch.tensor(float(torch.get_num_threads())), atol=0.0, repeats=1))
