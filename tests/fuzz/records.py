"""Seeds and readers of the files beside pictures, flow and weights: masks, settings, records, training's own."""

import importlib
import io
import json
import pathlib
import types
from collections.abc import Callable

import numpy as np
import safetensors.torch
import torch

from daflow_ext.cli._run_folder import SETTINGS, RunFolder
from daflow_ext.datasets import open_dataset, pairs, tartanair
from daflow_ext.evaluate import RecordFile, pseudo, submit
from daflow_ext.frames.degrade import evaluation_set as sets
from daflow_ext.frames.degrade import get_config

SIZE = (6, 5)  # of the seeds, height and width

# ---- what lies beside flow and weights ------------------------------------------------------------------------------


def _saved(save: Callable[[io.BytesIO], object]) -> bytes:
    stream = io.BytesIO()
    save(stream)
    return stream.getvalue()


def codes() -> np.ndarray:
    return np.arange(SIZE[0] * SIZE[1], dtype=np.uint8).reshape(SIZE)


def codes_seeds() -> list[bytes]:
    return [_saved(lambda file: np.save(file, codes()))]


def read_codes(path: pathlib.Path) -> None:
    assert tartanair._codes(path, SIZE).shape == SIZE


def mask_seeds() -> list[bytes]:
    kinds = (np.savez, np.savez_compressed)
    return [_saved(lambda file, save=save: save(file, seen=codes() > 9, other=codes())) for save in kinds]


def read_mask(path: pathlib.Path) -> None:
    assert pairs._mask(path.with_name(f"{path.name}:seen"), SIZE).dtype == bool


def run_folder(root: pathlib.Path, settings: dict, **options) -> RunFolder:
    """Of frames without files."""
    frames = types.SimpleNamespace(paths=[])
    return RunFolder(root, settings, frames=frames, used=lambda records: records, **options)


def warm_seeds() -> list[bytes]:
    return [safetensors.torch.save({"forward": torch.zeros(1, 2, 3, 2)}, {"next": "2"})]


def read_warm(path: pathlib.Path) -> None:
    (path.parent / SETTINGS).write_text(json.dumps(RUN))
    at, _ = run_folder(path.parent, RUN).resume(1, warm_start=True)
    assert at == 0  # there is no record


def read_prompt(path: pathlib.Path) -> None:
    from daflow_ext.features.prompt import Prompt

    Prompt.load(path)


def prompt_seeds() -> list[bytes]:
    importlib.import_module("daflow_ext.features.prompt")  # it loads diffusers: here, not in every worker

    return [safetensors.torch.save({"prompt_embeds": torch.ones(3, 4), "pooled_prompt_embeds": torch.ones(5)})]


# ---- settings and records -------------------------------------------------------------------------------------------


def recipe() -> dict:
    return sets.Settings(config=get_config("level3"), seed=3).to_dict()


def manifest_seeds() -> list[bytes]:
    clips = [{"name": "walk", "inputs": {"0.png": "00"}, "outputs": {"walk/0.png": "00", "walk/1.png": "11"}}]
    head = {"format": sets.FORMAT, "format_version": sets.FORMAT_VERSION, "versions": {}}
    fog = {"corruption": "fog", "severity": 2, "seed": 0}
    return [json.dumps({**head, "settings": one, "clips": clips}).encode() for one in (fog, recipe())]


def read_manifest(path: pathlib.Path) -> None:
    manifest = sets.read_manifest(path)
    sets.Settings.from_dict(manifest["settings"])
    list(sets.check_set(manifest, path.parent))
    sets.differences(manifest, manifest)


RUN = {"frames": ["a", "b"], "model": "RAFT-small", "iters": 2, "frame_bytes": []}
SCORES = {"dataset": "sintel-clean", "seed": 0}


def run_seeds() -> list[bytes]:
    return [json.dumps(RUN, indent=1).encode()]


def pair_seeds() -> list[bytes]:
    line = json.dumps({"files": {"flow": "flow/0.flo"}, "mean_px": 1.5, "seconds": 0.1})
    return [f"{line}\n{line}\n".encode()]


def read_run(path: pathlib.Path) -> None:
    run_folder(path.parent, RUN).resume(2, warm_start=False)


def read_pairs(path: pathlib.Path) -> None:
    (path.parent / SETTINGS).write_text(json.dumps(RUN))
    read_run(path)


def score_seeds() -> list[bytes]:
    record = {"model": "zero", "identity": "0", "level": "clean", "item": "a", "scores": {"epe": 1.0}}
    return ["\n".join([json.dumps({"settings": SCORES}), json.dumps(record), ""]).encode()]


def read_scores(path: pathlib.Path) -> None:
    RecordFile(path, SCORES).done("zero", "0", "clean")


CLAIM = {"benchmark": "sintel", "identity": "0", "model": "zero"}


def claim_seeds() -> list[bytes]:
    return [json.dumps(CLAIM).encode()]


def read_claim(path: pathlib.Path) -> None:
    text = path.read_bytes()
    submit._claim(path, CLAIM)
    path.write_bytes(text)
    pseudo._check_settings(path, CLAIM)


def list_seeds() -> list[bytes]:
    return [b"name,sequence,image1,image2,flow,pad\na,s,0.png,1.png,,\nb,s,1.png,2.png,1.flo,kitti\n"]


def read_list(path: pathlib.Path) -> None:
    len(open_dataset("pairs", path.parent))


def config_seeds() -> list[bytes]:
    return [
        b"model: {name: raft-small, init: null}\ntrain:\n  steps: 20\n  lr: 1.0e-4\n  betas: [0.9, 0.99]\n",
        b"data:\n  options: {split: training, textures: [procedural]}\n  crop: [128, 160]\n"
        b"  degrade: {clean: 0.2, choices: {levels: 0.7}}\nvalidation:\n  levels: [clean, level1]\n",
        b"data:\n  options: {a: &a [1, 2], b: &b [*a, *a], c: [*b, *b]}\n",
    ]


def read_config(path: pathlib.Path) -> None:
    from daflow_ext.train import FlowConfig, read_config
    from daflow_ext.train.config import to_dict

    to_dict(read_config(FlowConfig, str(path)))


def checkpoint_seeds() -> list[bytes]:
    from daflow_ext.train import FlowConfig
    from daflow_ext.train.config import to_dict

    content = {"config": json.dumps(to_dict(FlowConfig())), "step": 3, "model": {"w": torch.zeros(3)}}
    return [
        _saved(lambda file, zipped=zipped: torch.save(content, file, _use_new_zipfile_serialization=zipped))
        for zipped in (True, False)
    ]


def read_checkpoint(path: pathlib.Path) -> None:
    from daflow_ext.train import FlowConfig, checkpoint

    checkpoint.load(path.parent, FlowConfig())


def log_seeds() -> list[bytes]:
    lines = [{"step": 0, "validation": {"epe": 1.5}}, {"step": 1, "loss": 0.5}, {"step": 9, "loss": 0.25}]
    return ["".join(f"{json.dumps(line)}\n" for line in lines).encode()]


def read_log(path: pathlib.Path) -> None:
    from daflow_ext.train import checkpoint

    checkpoint.Log(path.parent, 3).close()
