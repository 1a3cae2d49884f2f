"""Stands in for ptlflow: get_model, and a model that maps a dictionary to a dictionary. Not ptlflow's code."""

from .models.raft.raft import RAFTSmall


def get_model(model_name: str, ckpt_path: str | None = None) -> RAFTSmall:
    if model_name != "raft_small" or ckpt_path is not None:
        raise ValueError(f"the stand-in knows raft_small with random weights only, got {model_name!r}, {ckpt_path!r}")
    return RAFTSmall()
