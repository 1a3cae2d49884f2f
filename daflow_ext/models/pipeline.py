"""DA-Flow as one object: frames in, flow out."""

import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from huggingface_hub import snapshot_download

from ..features.color_fix import COLOR_FIXES, fix_colors
from ..features.prompt import Prompt
from ..features.restoration import LiftedRestoration
from ..flow import forward_backward_confidence, forward_backward_consistency
from ..frames import InputPadder
from .chunks import CHUNK, MULTIPLE, ChunkEstimator, chosen_steps, on_grid
from .daflow import DAFlow
from .pair_flow import PairFlow
from .tile_memory import choose_tiles
from .video import check_frame, estimate_video

PARTS = ("vae", "transformer", "scheduler", "prompt", "flow")


@dataclass
class DAFlowOutput(BaseOutput):
    """What a call of the pipeline gives; None where it was not asked for.

    Shapes:
        flows: float32 [B, F-1, 2, H, W], from each frame to the next. backward_flows: the same from each next frame
        back. occlusion: bool [B, F-1, H, W], pixels of the earlier frame that the later one does not show. confidence:
        float32 [B, F-1, H, W] in [0, 1], below 1/e where occluded. step_flows: [S, B, F-1, 2, H, W], flows of each
        feature step, whose mean ``flows`` is. restored: float [B, F, 3, H, W] in [0, 255].
    Units: pixels of the frames, channel 0 = x to the right, 1 = y down.
    """

    flows: torch.Tensor
    backward_flows: torch.Tensor | None = None
    occlusion: torch.Tensor | None = None
    confidence: torch.Tensor | None = None
    step_flows: torch.Tensor | None = None
    restored: torch.Tensor | None = None


class DAFlowPipeline(DiffusionPipeline):
    """Degradation-aware optical flow: VAE, lifted restoration transformer, scheduler, null prompt and flow network.

    Frames are taken in chunks of three that share one frame, so every pair is estimated once; a missing third frame
    (two frames, or the end of a clip with an even number) is the last one repeated. The starting noise is drawn once
    per call for all chunks and batch items.

    Source: DA-Flow (arXiv 2603.23499).
    """

    def __init__(self, vae: Any, transformer: Any, scheduler: Any, prompt: Prompt, flow: DAFlow):
        super().__init__()
        self.register_modules(vae=vae, transformer=transformer, scheduler=scheduler, prompt=prompt, flow=flow)
        self.backend = "auto"
        self.restoration()  # refuses a VAE of other channels
        widths = (prompt.config.embed_dim, prompt.config.pooled_dim)
        expected = (transformer.config.joint_attention_dim, transformer.config.pooled_projection_dim)
        if widths != expected:
            raise ValueError(
                f"the prompt's encodings are {widths[0]} and {widths[1]} wide but the transformer takes {expected[0]} "
                f"and {expected[1]}"
            )
        layers = transformer.config.num_layers
        outside = [layer for layer in flow.config.tap_layers if not 0 <= layer < layers]
        if outside:
            raise ValueError(f"the flow network taps layers {outside}, but the transformer has layers 0..{layers - 1}")
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        if flow.config.token_channels != width:
            raise ValueError(
                f"the flow network reads tokens of {flow.config.token_channels} channels, but the transformer is "
                f"{width} wide"
            )

    # ---- folders ----------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        torch_dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        **download_options: Any,
    ) -> "DAFlowPipeline":
        """From a folder that :meth:`save_pretrained` wrote, or the hub id of one; strict, in evaluation mode.

        Args:
            torch_dtype: of VAE, transformer and prompt. The flow network stays in float32: it is small, and pixel
                coordinates need it.
            backend: see :meth:`set_backend`.
            download_options: of ``huggingface_hub.snapshot_download`` (``revision``, ``cache_dir``, ``token``, ...).
        Raises:
            FileNotFoundError: no such folder, or a part of it is missing; names it.
            ValueError: a part that does not fit: tensors missing, unexpected or of another shape.
        """
        folder = pathlib.Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = cls._downloaded(str(pretrained_model_name_or_path), download_options)
        elif download_options:
            raise ValueError(f"{folder} is a folder; {', '.join(download_options)} are for hub ids")
        for part in ("model_index.json", *(f"{name}/" for name in PARTS)):
            if not (folder / part).exists():
                raise FileNotFoundError(f"{folder} is no DA-Flow pipeline: {part} is missing")
        loop = LiftedRestoration.load(folder, dtype=torch_dtype)
        flow = DAFlow.from_pretrained(folder / "flow").eval()
        pipe = cls(loop.vae, loop.transformer, loop.scheduler, loop.prompt, flow)
        pipe.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        pipe.set_backend(backend)
        return pipe

    @staticmethod
    def _downloaded(name: str, options: dict) -> pathlib.Path:
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise FileNotFoundError(f"the pipeline folder {name} does not exist (a hub id has the form owner/name)")
        try:
            # diffusers' own download refuses parts whose classes live outside diffusers
            patterns = ["model_index.json", *(f"{part}/*" for part in PARTS)]
            return pathlib.Path(snapshot_download(name, allow_patterns=patterns, **options))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise FileNotFoundError(f"{name} is neither a folder nor a pipeline on the hub: {reason}") from error

    def restoration(self) -> LiftedRestoration:
        """The restoration loop over this pipeline's parts."""
        return LiftedRestoration(self.vae, self.transformer, self.scheduler, self.prompt)

    def set_backend(self, backend: str) -> None:
        """``"reference"`` runs everything in plain PyTorch, ``"auto"`` on the fastest kernels of the device; others
        name the implementation of the correlation (see ``daflow info``).

        Raises:
            ValueError: unknown.
        """
        self.flow.set_backend(backend)
        self.transformer.set_attention_backend("reference" if backend == "reference" else "auto")
        self.backend = backend

    # ---- flow -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        frames: torch.Tensor | Sequence[torch.Tensor],
        num_inference_steps: int = 10,
        feature_steps: str | Sequence[int] = "first",
        iters: int = 20,
        generator: torch.Generator | None = None,
        flow_init: torch.Tensor | None = None,
        bidirectional: bool = False,
        *,
        output_steps: bool = False,
        output_restored: bool = False,
        color_fix: str = "adain",
        memory_budget: int | None = None,
        return_dict: bool = True,
    ) -> DAFlowOutput | tuple:
        """Flow between all neighbouring frames of a clip.

        Args:
            frames: [B, F, 3, H, W] or [F, 3, H, W] (a batch of one), or a sequence of frames [3, H, W]; RGB, uint8 or
                float in [0, 255], F >= 2, sides >= 32. Sides that are no multiples of 16 are padded and cropped.
            num_inference_steps: denoising steps of the restoration.
            feature_steps: which of them give features. "first" evaluates the transformer once and stops at the last
                tapped layer; "all", or a list of indices, averages the flows of these steps.
            iters: refinement steps of the flow network.
            generator: of the starting noise.
            flow_init: where refinement starts, [B, F-1, 2, H, W] in pixels; zero by default.
            bidirectional: also backward flows, occlusion and confidence.
            output_steps, output_restored: also the flows of every feature step; the restored frames (all steps).
            color_fix: of restored frames; "adain", "wavelet" or "none".
            memory_budget: bytes to stay under, beyond the weights, by working in tiles.
        Raises:
            ValueError, TypeError: frames or options that do not fit; one sentence.
        """
        clip = _clip(frames)
        if color_fix not in COLOR_FIXES:
            raise ValueError(f"color_fix must be one of {', '.join(COLOR_FIXES)}, got {color_fix!r}")
        batch, count, _, height, width = clip.shape
        starts = _starts(flow_init, (batch, count - 1, 2, height, width))
        padder = InputPadder(clip.shape, multiple=MULTIPLE)
        estimator = self._estimator(
            (height + padder.top + padder.bottom, width + padder.left + padder.right),
            num_inference_steps=num_inference_steps,
            feature_steps=feature_steps,
            iters=iters,
            generator=generator,
            bidirectional=bidirectional,
            memory_budget=memory_budget,
            batch=batch,
            keep_steps=output_steps,
            denoise=output_restored,
        )
        found = self._chunks(estimator, clip, starts, padder, color_fix)
        output = self._output(found)
        return output if return_dict else output.to_tuple()

    def _chunks(
        self,
        estimator: ChunkEstimator,
        clip: torch.Tensor,
        starts: torch.Tensor | None,
        padder: InputPadder,
        color_fix: str,
    ) -> dict[str, list[torch.Tensor]]:
        """Each chunk's part of every output."""
        found: dict[str, list[torch.Tensor]] = {"flows": [], "backward_flows": [], "step_flows": [], "restored": []}
        latents: list[torch.Tensor] = []
        count = clip.shape[1]
        for first in range(0, count - 1, CHUNK - 1):
            indices = [min(index, count - 1) for index in range(first, first + CHUNK)]
            padded = padder.pad(clip[:, indices].to(self.device))[0]
            while len(latents) < CHUNK:
                repeated = indices[len(latents)] == indices[len(latents) - 1] and latents
                latents.append(latents[-1] if repeated else estimator.encode(padded[:, len(latents)]))
            pairs = min(CHUNK - 1, count - 1 - first)
            init: list[torch.Tensor | None] = [None] * pairs
            if starts is not None:
                init = [on_grid(padder.pad(starts[:, first + k].to(self.device))[0]) for k in range(pairs)]
            chunk = estimator(padded, torch.cat(latents, 1), pairs, flow_init=init)
            found["flows"].append(padder.unpad(chunk.forward))
            if chunk.backward is not None:
                found["backward_flows"].append(padder.unpad(chunk.backward))
            if chunk.steps is not None:
                found["step_flows"].append(padder.unpad(chunk.steps))
            if chunk.latents is not None:
                shown = slice(0 if first == 0 else 1, pairs + 1)  # the shared frame belongs to the chunk before
                restored = padder.unpad(estimator.restoration.decode(chunk.latents[:, shown]))
                original = clip[:, first : first + pairs + 1][:, shown].to(restored)
                found["restored"].append(fix_colors(restored, original, color_fix))
            del latents[:-1]
        return found

    def _output(self, found: dict[str, list[torch.Tensor]]) -> DAFlowOutput:
        axis = {"step_flows": 2}
        parts = {name: torch.cat(chunks, axis.get(name, 1)) for name, chunks in found.items() if chunks}
        if "backward_flows" in parts:
            both = [parts[name].flatten(0, 1).contiguous() for name in ("flows", "backward_flows")]
            shape = parts["flows"].shape[:2]
            backend = "reference" if self.backend == "reference" else "auto"
            parts["occlusion"] = forward_backward_consistency(both[0], both[1], backend=backend).unflatten(0, shape)
            parts["confidence"] = forward_backward_confidence(both[0], both[1], backend=backend).unflatten(0, shape)
        return DAFlowOutput(**parts)

    def video(
        self,
        frames: Iterable[torch.Tensor],
        num_inference_steps: int = 10,
        feature_steps: str | Sequence[int] = "first",
        iters: int = 20,
        generator: torch.Generator | None = None,
        bidirectional: bool = False,
        *,
        warm_start: bool = False,
        memory_budget: int | None = None,
        start: int = 0,
        warm: dict[str, torch.Tensor] | None = None,
    ) -> Iterator[PairFlow]:
        """Flow of every pair of a video of any length, as one :class:`~daflow_ext.models.pair_flow.PairFlow` each.

        Holds three frames and the features of one chunk at a time. Pairs and their flow are those of a call on the
        whole clip with the same noise.

        Args (beside those of a call):
            frames: yields [3, H, W], uint8 or float in [0, 255], of one size; ``open_frames(path)`` does.
            warm_start: begin each pair at the flow of the one before, carried along its own vectors.
            start: first pair to estimate, an even number; the frames before it are read and dropped.
            warm: with ``warm_start`` and ``start``, the ``warm`` of pair ``start - 1``.
        Raises:
            ValueError, TypeError: fewer than two frames, frames or options that do not fit.
        """
        chosen_steps(feature_steps, num_inference_steps)  # says what is wrong before the first frame is read

        def open_estimator(size: tuple[int, int]) -> ChunkEstimator:
            return self._estimator(
                size,
                num_inference_steps=num_inference_steps,
                feature_steps=feature_steps,
                iters=iters,
                generator=generator,
                bidirectional=bidirectional,
                memory_budget=memory_budget,
                warm_start=warm_start,
            )

        return estimate_video(
            frames,
            open_estimator,
            warm_start=warm_start,
            backend="reference" if self.backend == "reference" else "auto",
            start=start,
            warm=warm,
        )

    def _estimator(
        self,
        size: tuple[int, int],
        *,
        num_inference_steps: int,
        feature_steps: str | Sequence[int],
        iters: int,
        memory_budget: int | None,
        batch: int = 1,
        **options: Any,
    ) -> ChunkEstimator:
        if not isinstance(iters, int) or iters < 1:
            raise ValueError(f"iters must be an integer >= 1, got {iters!r}")
        steps = chosen_steps(feature_steps, num_inference_steps)
        return ChunkEstimator(
            self.restoration(),
            self.flow,
            size,
            num_inference_steps=num_inference_steps,
            feature_steps=steps,
            iters=iters,
            tiles=choose_tiles(self, size, memory_budget, iters=iters, batch=batch),
            **options,
        )


def _clip(frames: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """[B, F, 3, H, W] with every frame checked."""
    if isinstance(frames, torch.Tensor):
        clip = frames[None] if frames.dim() == 4 else frames
        if clip.dim() != 5:
            raise ValueError(f"frames must be [B, F, 3, H, W] or [F, 3, H, W], got {list(frames.shape)}")
        if 0 in clip.shape:
            raise ValueError(f"frames are empty: {list(frames.shape)}")
        for batch_item in clip:
            for index, frame in enumerate(batch_item):
                check_frame(frame, index)
    else:
        listed = list(frames)
        for index, frame in enumerate(listed):
            check_frame(frame, index, like=listed[0])
        clip = torch.stack(listed)[None] if listed else torch.empty(1, 0, 3, 0, 0)
    if clip.shape[1] < 2:
        raise ValueError(f"optical flow needs at least two frames, got {clip.shape[1]}")
    return clip


def _starts(flow_init: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor | None:
    if flow_init is None:
        return None
    flow_init = flow_init[None] if flow_init.dim() == 4 else flow_init
    if tuple(flow_init.shape) != shape or not flow_init.is_floating_point():
        raise ValueError(
            f"flow_init must be floating {list(shape)} (pixels of the frames), got {flow_init.dtype} "
            f"{list(flow_init.shape)}"
        )
    return flow_init.float()
