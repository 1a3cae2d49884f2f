"""Every reader of files that users are given: seeds, the mutations of its format, the errors that it documents."""

import dataclasses
import functools
import importlib.util
import io
import itertools
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterable

import cv2
import h5py
import numpy as np
import safetensors.torch
import torch

from daflow_ext import read_flow, read_image, write_flow
from daflow_ext.cli._run_folder import RECORDS, SETTINGS, WARM
from daflow_ext.frames.degrade import evaluation_set as sets
from daflow_ext.frames.video import Video
from daflow_ext.models import weights

from . import mutate, records
from .records import SIZE


@dataclasses.dataclass(frozen=True)
class Reader:
    """One way into the package.

    Attributes:
        file: name of the file that is mutated, in a folder of its own.
        seeds: valid files. read: reads the file; raises AssertionError if what it gave is not what it promises.
        inside: mutations beside those of bytes. errors: the documented ones. share: of all inputs, relative.
        ratio: bytes of memory that a byte of the file may stand for (deflate: 1032), times the copies made of them.
    """

    file: str
    seeds: Callable[[], Iterable[bytes]]
    read: Callable[[pathlib.Path], object]
    inside: tuple[mutate.Mutation, ...] = ()
    errors: tuple[type[Exception], ...] = (ValueError,)
    share: float = 1.0
    ratio: int = 64


@functools.cache
def _scratch() -> pathlib.Path:
    return pathlib.Path(tempfile.mkdtemp(prefix="daflow_seeds_"))


def _written(name: str, write: Callable[[pathlib.Path], object]) -> bytes:
    path = _scratch() / name
    write(path)
    return path.read_bytes()


def _flow() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    flow = torch.randn(2, *SIZE, generator=generator) * 5
    flow[:, 0, 0] = float("nan")
    return flow


# ---- flow files -----------------------------------------------------------------------------------------------------


def _flow_seed(suffix: str) -> list[bytes]:
    return [_written(f"a{suffix}", lambda path: write_flow(path, _flow()))]


def _npy_seeds() -> list[bytes]:
    arrays = (_flow().double().numpy(), np.asfortranarray(_flow().permute(1, 2, 0).half().numpy()))
    more = []
    for array, version in zip(arrays, ((1, 0), (2, 0)), strict=True):
        stream = io.BytesIO()
        np.lib.format.write_array(stream, array, version)
        more.append(stream.getvalue())
    return [*_flow_seed(".npy"), *more]


def _npz_seeds() -> list[bytes]:
    stored = _written("b.npz", lambda path: np.savez(path, flow=_flow().numpy(), other=np.arange(3)))
    return [*_flow_seed(".npz"), stored]


def _flo5_seeds() -> list[bytes]:
    values = np.ascontiguousarray(_flow().permute(1, 2, 0).numpy())

    def plain(path):
        with h5py.File(path, "w") as file:
            file["flow"] = values

    def latest(path):
        with h5py.File(path, "w", libver="latest") as file:
            file.create_dataset("flow", data=values, chunks=(3, 3, 2), compression="lzf", shuffle=True, fletcher32=True)

    return [*_flow_seed(".flo5"), _written("b.h5", plain), _written("c.h5", latest)]


def _read_flow(path: pathlib.Path) -> None:
    flow, valid = read_flow(path, return_valid=True)
    assert (flow.dtype, flow.dim(), flow.shape[0]) == (torch.float32, 3, 2)
    assert flow.numel() > 0
    assert (valid.dtype, valid.shape) == (torch.bool, flow.shape[1:])
    assert not flow[:, valid].isinf().any()
    assert flow[:, ~valid].isnan().all()


# ---- pictures and video ---------------------------------------------------------------------------------------------


def _picture(suffix: str, options: tuple[int, ...] = ()) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    return cv2.imencode(suffix, pixels, options)[1].tobytes()


def _read_image(path: pathlib.Path) -> None:
    image = read_image(path)
    assert (image.dtype, image.dim(), image.shape[0]) == (torch.uint8, 3, 3)


def _video_seeds() -> list[bytes]:
    seeds = []
    kinds = ((".mp4", "libx264", "yuv420p"), (".avi", "mpeg4", "yuv420p"), (".mkv", "mjpeg", "yuvj420p"))
    for suffix, codec, pixels in kinds:

        def write(path, codec=codec, pixels=pixels):
            import av

            with av.open(str(path), "w") as container:
                stream = container.add_stream(codec, rate=10)
                stream.width, stream.height, stream.pix_fmt = 32, 32, pixels
                for index in range(4):
                    frame = np.full((32, 32, 3), 60 * index, np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                container.mux(stream.encode(None))

        seeds.append(_written(f"v{suffix}", write))
    return seeds


def _read_video(path: pathlib.Path) -> None:
    for frame in itertools.islice(Video(path), 50):
        assert (frame.dtype, frame.shape[0]) == (torch.uint8, 3)


# ---- weights --------------------------------------------------------------------------------------------------------


def _state() -> dict[str, torch.Tensor]:
    return {
        "update_block.encoder.convc1.weight": torch.randn(2, 9, 1, 1),
        "update_block.encoder.convc2.weight": torch.randn(2, 2).t(),
        "fnet.count": torch.tensor(3),
    }


def _pth_seeds() -> list[bytes]:
    seeds = []
    for content in (_state(), {"state_dict": {f"module.{name}": one for name, one in _state().items()}, "step": 7}):
        for zipped in (True, False):
            stream = io.BytesIO()
            torch.save(content, stream, _use_new_zipfile_serialization=zipped)
            seeds.append(stream.getvalue())
    return seeds


def _safetensors_seeds() -> list[bytes]:
    tensors = {name: one.contiguous() for name, one in _state().items()}
    config = {"small": False, "corr_levels": 1, "corr_radius": 1}
    return [safetensors.torch.save(tensors, {"daflow_ext.raft": json.dumps(config)}), safetensors.torch.save(tensors)]


def _read_weights(path: pathlib.Path) -> None:
    state, config = weights.read(path)
    assert all(isinstance(one, torch.Tensor) for one in state.values())
    assert set(config) == {"small", "corr_levels", "corr_radius"}
    for one in state.values():
        if one.device.type == "cpu" and one.numel() < 10**6:
            one.clone()  # every byte that it claims is there


_in_pth = mutate.in_zip()


def _in_pth_or_bytes(rng, data):
    return _in_pth(rng, data) if data.startswith(b"PK") else mutate.in_bytes(rng, data)


DEFLATE = 4 * 1032
_TEXT = (mutate.in_text,)
READERS: dict[str, Reader] = {
    "flo": Reader("a.flo", lambda: _flow_seed(".flo"), _read_flow),
    "pfm": Reader("a.pfm", lambda: _flow_seed(".pfm"), _read_flow),
    "png16": Reader("a.png", lambda: _flow_seed(".png"), _read_flow, (mutate.in_png,), ratio=DEFLATE),
    "npy": Reader("a.npy", _npy_seeds, _read_flow, (mutate.in_npy,)),
    "npz": Reader(
        "a.npz", _npz_seeds, _read_flow, (mutate.in_zip(), mutate.in_zip(mutate.in_npy)), share=1.5, ratio=DEFLATE
    ),
    "flo5": Reader("a.flo5", _flo5_seeds, _read_flow, share=1.5, ratio=DEFLATE),
    "image": Reader(
        "a.png",
        lambda: [_picture(".png")],
        _read_image,
        (mutate.in_png,),
        ratio=DEFLATE,
    ),
    "other images": Reader(
        "a.jpg",
        lambda: [_picture(".jpg"), _picture(".bmp"), _picture(".webp"), _picture(".ppm"), _picture(".tiff")],
        _read_image,
        ratio=DEFLATE,
    ),
    "video": Reader("a.mp4", _video_seeds, _read_video, share=0.3, ratio=DEFLATE),
    "pth": Reader("a.pth", _pth_seeds, _read_weights, (_in_pth_or_bytes,), share=1.5, ratio=DEFLATE),
    "safetensors": Reader("a.safetensors", _safetensors_seeds, _read_weights, (mutate.in_safetensors,)),
    "mask.npy": Reader(
        "a.npy",
        lambda: [_written("c.npy", lambda path: np.save(path, records.codes()))],
        records.read_codes,
        (mutate.in_npy,),
        share=0.5,
    ),
    "mask.npz": Reader(
        "a.npz",
        records.mask_seeds,
        records.read_mask,
        (mutate.in_zip(), mutate.in_zip(mutate.in_npy)),
        share=0.5,
        ratio=DEFLATE,
    ),
    "warm_start": Reader(WARM, records.warm_seeds, records.read_warm, (mutate.in_safetensors,), share=0.5),
    "manifest": Reader(
        sets.MANIFEST, records.manifest_seeds, records.read_manifest, _TEXT, (ValueError, FileNotFoundError)
    ),
    "run.json": Reader(SETTINGS, records.run_seeds, records.read_run, _TEXT, share=0.5),
    "pairs.jsonl": Reader(RECORDS, records.pair_seeds, records.read_pairs, _TEXT, share=0.5),
    "records.jsonl": Reader("records.jsonl", records.score_seeds, records.read_scores, _TEXT, share=0.5),
    "submission.json": Reader("a.json", records.claim_seeds, records.read_claim, _TEXT, share=0.3),
    "pairs.csv": Reader("pairs.csv", records.list_seeds, records.read_list, _TEXT, share=0.5),
}
if importlib.util.find_spec("accelerate") and importlib.util.find_spec("yaml"):
    READERS["config"] = Reader(
        "config.yaml", records.config_seeds, records.read_config, _TEXT, (ValueError, FileNotFoundError), share=0.15
    )
    READERS["log.jsonl"] = Reader("log.jsonl", records.log_seeds, records.read_log, _TEXT, share=0.3)
    READERS["checkpoint.pt"] = Reader(
        "checkpoint.pt",
        records.checkpoint_seeds,
        records.read_checkpoint,
        (_in_pth_or_bytes,),
        share=0.5,
        ratio=DEFLATE,
    )
if importlib.util.find_spec("diffusers"):
    READERS["prompt"] = Reader(
        "a.safetensors", records.prompt_seeds, records.read_prompt, (mutate.in_safetensors,), share=0.5
    )
