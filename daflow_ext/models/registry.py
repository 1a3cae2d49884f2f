"""Models by name: what there is, how large, from where, and under which licence."""

import os
import pathlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._extras import require_diffusers
from .raft import RAFT

if TYPE_CHECKING:
    from .pipeline import DAFlowPipeline

DEFAULT_MODEL = "daflow-tiny"
"""What ``daflow infer`` and ``daflow demo`` use unless told otherwise."""

SHIPPED = pathlib.Path(__file__).resolve().parents[1] / "weights"
"""A folder per model whose weights come with the package."""


@dataclass(frozen=True)
class ModelInfo:
    """One named model.

    Attributes:
        parameters: of all its networks. licence, weights: licence and origin of trained weights.
    """

    name: str
    summary: str
    parameters: int
    licence: str
    weights: str

    @property
    def shipped(self) -> bool:
        """Whether trained weights come with the package."""
        return (SHIPPED / self.name).is_dir()


_MODELS = (
    ModelInfo(
        "raft-large",
        "RAFT",
        5_257_536,
        "BSD-3-Clause",
        "princeton-vl/RAFT (raft-things.pth, raft-sintel.pth, ...) or torchvision's raft_large",
    ),
    ModelInfo(
        "raft-small",
        "RAFT-small",
        990_162,
        "BSD-3-Clause",
        "princeton-vl/RAFT (raft-small.pth) or torchvision's raft_small",
    ),
    ModelInfo(
        "raft-tiny-lq",
        "RAFT-small, fine-tuned on degraded rendered scenes: the baseline without diffusion features, and faster",
        990_162,
        "that of daflow_ext; fine-tuned from raft-small (BSD-3-Clause)",
        "`daflow train flow --config raft-tiny-lq`; its model card has the run",
    ),
    ModelInfo(
        "daflow",
        "DA-Flow as in the paper: SD3.5-medium sized DiT4SR, its VAE, RAFT-large and three DPT heads",
        2_768_295_971,
        "that of its parts: SD3.5 (Stability AI Community), DiT4SR, RAFT (BSD-3-Clause)",
        "none published; `daflow convert` starts one from DiT4SR and RAFT weights, to be trained",
    ),
    ModelInfo(
        "daflow-tiny",
        "the same in small, for bad video: pixel-unshuffle for the VAE, 8 layers of width 128, RAFT-small; the default",
        7_437_362,
        "that of daflow_ext; its RAFT fine-tuned from raft-small (BSD-3-Clause)",
        "`daflow train lift` and `daflow train flow`; its model card has the runs",
    ),
)


def list_models() -> list[ModelInfo]:
    """Every model that :func:`get_model` knows by name."""
    return list(_MODELS)


def get_model(name_or_path: str | os.PathLike, *, pretrained: bool = True, **options: Any) -> "RAFT | DAFlowPipeline":
    """A model by its name or from its files, in evaluation mode on the CPU.

    Args:
        name_or_path: a name of :func:`list_models`, a RAFT weights file, or the folder of a DA-Flow pipeline.
        pretrained: False gives a named model random weights.
        options: of :meth:`daflow_ext.RAFT.from_pretrained` or :meth:`daflow_ext.DAFlowPipeline.from_pretrained`;
            without weights, of RAFT's constructor, or ``torch_dtype`` and arguments of :class:`daflow_ext.DAFlow`.
    Raises:
        ValueError: neither a name nor a file; ``pretrained=False`` with a file.
        FileNotFoundError: a name whose weights are not shipped.
        ImportError: DA-Flow without diffusers.
    """
    name = os.fspath(name_or_path)
    if name not in {model.name for model in _MODELS}:
        path = pathlib.Path(name)
        if not path.exists():
            known = ", ".join(model.name for model in _MODELS)
            raise ValueError(f"{name!r} is neither a model ({known}) nor a weights file or pipeline folder")
        if not pretrained:
            raise ValueError(f"pretrained=False is for named models, but {name} holds weights")
        return _from_files(path, options)
    if pretrained:
        if not (SHIPPED / name).is_dir():
            origin = next(model.weights for model in _MODELS if model.name == name)
            raise FileNotFoundError(
                f"no weights of {name} come with the package, but there are {origin}; give the path of one instead "
                "of the name (in Python, pretrained=False gives random ones)"
            )
        return _from_files(SHIPPED / name, options)
    if name.startswith("raft-"):
        return RAFT(name != "raft-large", **options).eval()
    require_diffusers(name)
    from .config import build_parts
    from .pipeline import DAFlowPipeline

    return DAFlowPipeline(**build_parts(name, **options))


def _from_files(path: pathlib.Path, options: dict) -> "RAFT | DAFlowPipeline":
    """RAFT of a file (or a folder with one ``model.safetensors``), a pipeline of any other folder."""
    if path.is_file():
        return RAFT.from_pretrained(path, **options)
    if (path / "model.safetensors").is_file():
        return RAFT.from_pretrained(path / "model.safetensors", **options)
    require_diffusers(str(path))
    from .pipeline import DAFlowPipeline

    return DAFlowPipeline.from_pretrained(path, **options)
