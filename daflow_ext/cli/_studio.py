"""What ``daflow app`` can do with a clip, without its pages: every answer is a film and a line of text."""

import itertools
import pathlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..flow import align, flow_scale, flow_to_image, occlusion_overlay, overlay, side_by_side, stabilize
from ..frames import Video, write_video
from ..models.pair_flow import PairFlow
from ._estimate import Estimator
from ._views import with_legend

if TYPE_CHECKING:
    from ._restoration import Restorer

Answer = tuple[str, str]
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Limits:
    """The largest clip that is taken; everything is held in memory."""

    frames: int = 64
    megapixels: float = 0.6
    megabytes: float = 100.0

    def __post_init__(self) -> None:
        if self.frames < 2 or not self.megapixels > 0 or not self.megabytes > 0:
            raise ValueError(f"limits must allow at least 2 frames and some pixels and bytes, got {self}")

    def read(self, path: str | pathlib.Path | None) -> tuple[torch.Tensor, float]:
        """A video as uint8 [F, 3, H, W], and its frames per second.

        Raises:
            ValueError: no video, or one beyond the limits; says which, and how to raise it.
        """
        if not path:
            raise ValueError("drop a clip first")
        size = pathlib.Path(path).stat().st_size / 1e6
        if size > self.megabytes:
            raise ValueError(f"the file has {size:.1f} MB, at most {self.megabytes:g} MB are taken (--max-megabytes)")
        video, frames = Video(path), []
        for frame in itertools.islice(video, self.frames + 1):
            height, width = frame.shape[1:]
            if height * width > 1e6 * self.megapixels:
                raise ValueError(
                    f"the clip is {width}x{height}, that is {height * width / 1e6:.2f} megapixels, at most "
                    f"{self.megapixels:g} are taken (--max-megapixels)"
                )
            frames.append(frame)
        if len(frames) > self.frames:
            raise ValueError(f"the clip has more than {self.frames} frames (--max-frames); cut it")
        if len(frames) < 2:
            raise ValueError("the clip holds one frame, optical flow needs at least two")
        return torch.stack(frames), video.fps or 12.0


@dataclass
class _Clip:
    """A clip with its flow in both directions."""

    frames: torch.Tensor
    fps: float
    pairs: list[PairFlow]

    def stacked(self, name: str) -> torch.Tensor:
        return torch.stack([getattr(pair, name) for pair in self.pairs])


class _Frames(list[torch.Tensor]):
    """:class:`~daflow_ext.frames.Frames` in memory."""

    source = "the clip"

    def __init__(self, frames: Iterable[torch.Tensor] = ()):
        super().__init__(frames)
        self.paths: list[pathlib.Path] = []

    @property
    def length(self) -> int:
        return len(self)

    def name(self, index: int) -> str:
        return str(index)


class Studio:
    """One clip at a time: its flow is kept until another clip comes. Films are written to ``folder``.

    Args:
        open_restorer: gives a :class:`~daflow_ext.cli._restoration.Restorer`, when first needed.
    """

    def __init__(
        self, estimator: Estimator, open_restorer: Callable[[], "Restorer"], limits: Limits, folder: pathlib.Path
    ):
        self.estimator, self.open_restorer = estimator, open_restorer
        self.limits, self.folder = limits, folder
        self._kept: tuple[tuple, _Clip] | None = None
        self._restorer: Restorer | None = None
        self._lock, self._numbers = threading.RLock(), itertools.count()
        self._ended = threading.Event()

    def end(self) -> None:
        """Stop what is being worked on, at the next pair or chunk, and wait for that.

        A thread that is still in C++ code when Python ends would abort the process.
        """
        self._ended.set()
        with self._lock:
            pass

    def _report(self, progress: Progress, share: float, what: str) -> None:
        if self._ended.is_set():
            raise RuntimeError("the app is ending")
        progress(share, what)

    def flow(self, path: str, progress: Progress) -> Answer:
        """The clip beside its flow in colours, with what the next frame hides."""
        with self._lock:
            clip = self._clip(path, progress)
            scale = flow_scale(pair.forward for pair in clip.pairs)
            captions = ("clip", "flow", "hidden in the next frame")
            film = (
                side_by_side(
                    [
                        pair.image1,
                        with_legend(flow_to_image(pair.forward, scale)),
                        occlusion_overlay(pair.image1, hidden),
                    ],
                    captions,
                )
                for pair, hidden in zip(clip.pairs, clip.stacked("occluded"), strict=True)
            )
            mean = clip.stacked("forward").norm(dim=1).mean()
            share = 100 * clip.stacked("occluded").float().mean()
            text = (
                f"{len(clip.pairs)} pairs by {self.estimator.name}: mean motion {mean:.2f} px, {share:.1f} % hidden; "
            )
            return self._film("flow", film, clip.fps), text + f"full colour = {scale:.2f} px"

    def aligned(self, path: str, reference: int, progress: Progress) -> Answer:
        """Every frame laid onto one of them; what it does not show of that one is red."""
        with self._lock:
            clip = self._clip(path, progress)
            last = len(clip.frames) - 1
            if not 0 <= reference <= last:
                raise ValueError(f"the clip has frames 0 to {last}, got {reference}")
            found = align(clip.frames, clip.stacked("forward"), clip.stacked("backward"), int(reference))
            film = (
                side_by_side(
                    [frame, overlay(_bytes(warped), 0.8 * (~visible).float(), (200, 0, 0))],
                    ("clip", f"laid onto frame {reference}"),
                )
                for frame, warped, visible in zip(clip.frames, found.frames, found.visible, strict=True)
            )
            shown = 100 * found.visible.float().mean()
            return self._film("aligned", film, clip.fps), f"the frames show {shown:.1f} % of frame {reference}"

    def stabilized(self, path: str, sigma: float, progress: Progress) -> Answer:
        """The clip beside itself without shake."""
        with self._lock:
            clip = self._clip(path, progress)
            visible = ~clip.stacked("occluded")
            # where nearly all is hidden, as at a cut, the mask says nothing
            weight = torch.where(visible.float().mean((1, 2), keepdim=True) > 0.1, visible.float(), 1.0)
            found = stabilize(clip.frames, clip.stacked("forward"), weight, sigma=sigma)
            film = (
                side_by_side([frame, _bytes(steady)], ("clip", "stabilised"))
                for frame, steady in zip(clip.frames, found.frames, strict=True)
            )
            moved = (found.smooth - found.path)[:, :2].norm(dim=1)
            text = (
                f"one shift, turn and size per frame, smoothed over {sigma:g} frames: the centre moved by "
                f"{moved.mean():.2f} px in the mean, {moved.max():.2f} px at most"
            )
            return self._film("stabilized", film, clip.fps), text

    def restored(self, path: str, guided: bool, steps: int, progress: Progress) -> Answer:
        """The clip beside its restoration."""
        from ..models.restore import restore_video

        with self._lock:
            if guided:
                clip = self._clip(path, progress)
                frames, fps = clip.frames, clip.fps
            else:
                frames, fps = self.limits.read(path)
            if self._restorer is None:
                self._restorer = self.open_restorer()
            chunks = restore_video(
                frames,
                self._restorer.loop,
                pairs=clip.pairs if guided else None,
                num_inference_steps=int(steps),
                generator=torch.Generator().manual_seed(0),
            )
            results = []
            for chunk in chunks:
                results += list(chunk.frames)
                self._report(progress, len(results) / len(frames), "restoring")
            film = (
                side_by_side([frame, _bytes(result)], ("clip", "restored"))
                for frame, result in zip(frames, results, strict=True)
            )
            how = f"guided by the flow of {self.estimator.name}" if guided else "without guidance"
            return self._film("restored", film, fps), f"{len(frames)} frames by {self._restorer.origin}, {how}"

    def _clip(self, path: str, progress: Progress) -> _Clip:
        """The clip with its flow, computed once."""
        if not path:
            raise ValueError("drop a clip first")
        stat = pathlib.Path(path).stat()
        key = (str(path), stat.st_mtime_ns, stat.st_size)
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # one clip in memory, not two
            frames, fps = self.limits.read(path)
            pairs = []
            for pair in self.estimator.pairs(_Frames(frames), bidirectional=True):
                pairs.append(pair)
                self._report(progress, len(pairs) / (len(frames) - 1), "flow")
            self._kept = key, _Clip(frames, fps, pairs)
        return self._kept[1]

    def _film(self, kind: str, frames: Iterable[torch.Tensor], fps: float) -> str:
        """Write a film and drop the one before of its kind."""
        for old in self.folder.glob(f"{kind}-*.mp4"):
            old.unlink()
        path = self.folder / f"{kind}-{next(self._numbers)}.mp4"
        write_video(path, frames, fps)
        return str(path)


def _bytes(frame: torch.Tensor) -> torch.Tensor:
    return frame.round().clamp(0, 255).byte()
