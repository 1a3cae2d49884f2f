"""The loop both stages share: steps, checkpoints, validation, and ways to stop."""

import contextlib
import dataclasses
import math
import pathlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
import yaml
from safetensors.torch import save
from torch import nn
from tqdm import tqdm

from .._extras import require_training
from ..frames import write_image
from ..frames._files import atomic_path
from ..frames.degrade import clip_seed
from . import checkpoint
from .card import write_card
from .config import Config, TrainConfig, to_dict
from .data import Batch, TrainingClips, loader
from .ema import Average

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.tensorboard import SummaryWriter


class Stage(nn.Module):
    """What is trained; :class:`Trainer` does the rest.

    ``forward(batch)`` returns the loss and named figures (tensors of no dimension). Parameters that need gradients are
    trained.
    """

    title = ""
    unused_parameters = False
    """Whether some trained parameters get no gradient in a step; several processes must know."""

    def place(self, device: torch.device) -> None:
        """Move what is used but not trained."""

    def validate(self) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        """Named figures and pictures (uint8 [3, H, W]) of held-out clips, with the weights as they are."""
        raise NotImplementedError

    def write(self, folder: pathlib.Path) -> list[str]:
        """Write the weights as they are; returns the names of files and folders."""
        raise NotImplementedError


@dataclasses.dataclass
class Outcome:
    """How a stretch ended: "finished", "time" (the budget) or "signal"; at which step, after how many seconds."""

    reason: str
    step: int
    seconds: float


class Trainer:
    """Trains a stage, in one stretch or several.

    Everything random in a step follows from the seed, the step and the process; so a run that goes on from a checkpoint
    repeats the very losses of one that was never interrupted.

    Args:
        stage, clips: what is trained, and on what. config: with sections ``train`` and ``validation``.
        out: folder of the run; a checkpoint in it is continued unless ``restart``.
        command: for the model card. report: gets a line of text now and then.
    Raises:
        ImportError: accelerate is missing. ValueError: ``out`` holds another run.
    """

    def __init__(
        self,
        stage: Stage,
        clips: TrainingClips,
        config: Config,
        out: pathlib.Path,
        *,
        restart: bool = False,
        command: str = "",
        report: Callable[[str], None] = tqdm.write,
    ):
        self.config, self.out, self.clips, self.command, self.report = config, pathlib.Path(out), clips, command, report
        train = config.train
        self.accelerator = _accelerator(train, stage.unused_parameters)
        if train.threads:
            torch.set_num_threads(train.threads)
        self.main = self.accelerator.is_main_process
        optimizer = torch.optim.AdamW(
            [p for p in stage.parameters() if p.requires_grad],
            lr=train.lr,
            betas=train.betas,
            eps=1e-8,
            weight_decay=train.weight_decay,
        )
        self.scheduler = _scheduler(optimizer, train)
        self.module, self.optimizer = self.accelerator.prepare(stage, optimizer)
        self.stage: Stage = self.accelerator.unwrap_model(self.module)
        self.stage.place(self.accelerator.device)
        self.average = Average(self.stage, train.ema) if train.ema else None
        self.step, self.seconds = 0, 0.0
        self.validations: list[dict[str, float]] = []
        self._stop = False
        if self.main:
            self.out.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        self._resume(restart)

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Train until the last step, the time budget or SIGTERM; the checkpoint is up to date afterwards.

        Raises:
            FloatingPointError: a loss or gradient that is not finite; the batch is saved.
        """
        train, began, before = self.config.train, time.monotonic(), self.seconds
        batches = self._batches()
        saved = self.step
        log = checkpoint.Log(self.out, self.step) if self.main else None
        board = _board(self.out, self.step) if self.main and train.tensorboard else None
        with (
            _on_sigterm(self._request_stop),
            tqdm(total=train.steps, initial=self.step, unit="step", disable=None if self.main else True) as bar,
        ):
            if self.step == 0:
                self._validate(log, board)
            reason = "finished"
            while self.step < train.steps:
                figures = self._train_step(batches)
                self.seconds = before + time.monotonic() - began
                if log and self.step % train.log_every == 0:
                    log.write(step=self.step, **figures)
                    if board:
                        _add_scalars(board, "train", figures, self.step)
                bar.set_postfix(loss=f"{figures['loss']:.3f}", refresh=False)
                bar.update()
                last = self.step == train.steps
                if last or (self.config.validation.every and self.step % self.config.validation.every == 0):
                    self._validate(log, board)
                if last or self.step % train.checkpoint_every == 0:
                    self._save()
                    saved = self.step
                stop = self._should_stop(began)
                if stop and not last:
                    reason = stop
                    break
            if saved != self.step:
                self._save()
        if log:
            log.close()
        if board:
            board.close()
        self.accelerator.wait_for_everyone()
        return Outcome(reason, self.step, self.seconds)

    def _train_step(self, batches: Iterator[Batch]) -> dict[str, float]:
        """One optimiser step; the figures are means over processes and forward passes."""
        accelerator, train = self.accelerator, self.config.train
        self.module.train()
        sums: dict[str, torch.Tensor] = {}
        seen: list[tuple[Batch, torch.Tensor]] = []
        for micro in range(train.accumulate):
            batch = {name: x.to(accelerator.device, non_blocking=True) for name, x in self._next(batches).items()}
            number = self.step * train.accumulate + micro
            torch.manual_seed(clip_seed(train.seed, f"{accelerator.process_index}/{number}"))
            with accelerator.accumulate(self.module):
                loss, figures = self.module(batch)
                accelerator.backward(loss)
                seen.append((batch, loss.detach()))
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.module.parameters(), train.clip_norm)
                    self._guard(norm, seen)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in {"loss": loss, **figures}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float() / train.accumulate
        means = accelerator.reduce(torch.stack(list(sums.values())), "mean").tolist()
        rate = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        if self.average:
            self.average.update()
        self.step += 1
        return {**dict(zip(sums, means, strict=True)), "grad_norm": float(norm), "lr": rate}

    def _next(self, batches: Iterator[Batch]) -> Batch:
        try:
            return next(batches)
        except (ValueError, OSError) as error:  # of a worker: a traceback, whose last line is the sentence
            raise ValueError(f"step {self.step + 1}: {str(error).strip().splitlines()[-1]}") from error

    def _guard(self, norm: torch.Tensor, seen: list[tuple[Batch, torch.Tensor]]) -> None:
        """Stop before a step that would ruin the weights; the processes agree on it."""
        # a loss may be NaN without a trace in the gradient: that of |x| is 0 there
        health = self.accelerator.reduce(torch.stack([norm.detach(), *(loss for _, loss in seen)]).sum(), "sum")
        if math.isfinite(float(health)):
            return
        bad = [batch for batch, loss in seen if not torch.isfinite(loss)] or [seen[-1][0]]
        path = self.out / f"nan-step{self.step + 1}-process{self.accelerator.process_index}.safetensors"
        tensors = {f"{place}.{name}": x.cpu().contiguous() for place, one in enumerate(bad) for name, x in one.items()}
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(tensors))
        losses = ", ".join(f"{float(loss):g}" for _, loss in seen)
        raise FloatingPointError(
            f"step {self.step + 1}: loss or gradient is not finite (loss {losses}, gradient norm {float(norm):g}); its "
            f"batch is in {path}, the weights before it in the checkpoint"
        )

    def _batches(self) -> Iterator[Batch]:
        train, accelerator = self.config.train, self.accelerator
        return iter(
            loader(
                self.clips,
                done=self.step * train.accumulate,
                total=train.steps * train.accumulate,
                batch=train.batch,
                rank=accelerator.process_index,
                world=accelerator.num_processes,
                workers=train.workers,
            )
        )

    # ---- stopping ---------------------------------------------------------------------------------------------------

    def _request_stop(self) -> None:
        self._stop = True

    def _should_stop(self, began: float) -> str:
        """ "signal", "time" or ""; the processes agree on it."""
        limit = self.config.train.max_minutes
        late = limit is not None and time.monotonic() - began >= 60 * limit
        votes = torch.tensor([float(self._stop), float(late)], device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            votes = self.accelerator.reduce(votes, "sum")
        signalled, late = (votes > 0).tolist()
        return "signal" if signalled else "time" if late else ""

    # ---- what is written --------------------------------------------------------------------------------------------

    def _resume(self, restart: bool) -> None:
        content = None if restart else checkpoint.load(self.out, self.config)
        if content is None:
            self._begin()
            return
        frozen = _frozen(self.stage)
        missing, unexpected = self.stage.load_state_dict(content["model"], strict=False)
        if unexpected or set(missing) - frozen:
            raise ValueError(f"{self.out / checkpoint.NAME} belongs to another model: {(unexpected + missing)[:3]}")
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        if self.average:
            self.average.load_state_dict(content["average"])
        self.step, self.seconds, self.validations = content["step"], content["seconds"], content["validations"]

    def _begin(self) -> None:
        if not self.main:
            return
        for name in (checkpoint.NAME, checkpoint.LOG):
            (self.out / name).unlink(missing_ok=True)
        for name in ("pictures", "tensorboard"):
            shutil.rmtree(self.out / name, ignore_errors=True)
        with atomic_path(self.out / "config.yaml") as path:
            path.write_text(yaml.safe_dump(to_dict(self.config), sort_keys=False))

    def _save(self) -> None:
        """Checkpoint, weights and model card; by the first process, the others wait."""
        if self.main:
            frozen = _frozen(self.stage)
            content = {
                "model": {name: x for name, x in self.stage.state_dict().items() if name not in frozen},
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "average": self.average.state_dict() if self.average else None,
                "step": self.step,
                "seconds": self.seconds,
                "validations": self.validations,
            }
            checkpoint.save(self.out, self.config, content)
            with self._averaged():
                files = self.stage.write(self.out)
            write_card(self, files)
        self.accelerator.wait_for_everyone()

    def _validate(self, log: checkpoint.Log | None, board: "SummaryWriter | None") -> None:
        if not self.config.validation.every:
            return
        if log:  # the main process
            self.stage.eval()
            with self._averaged(), torch.no_grad(), self.accelerator.autocast():
                figures, pictures = self.stage.validate()
            figures = {name: round(value, 4) for name, value in figures.items()}
            self.validations.append({"step": self.step, **figures})
            log.write(step=self.step, validation=figures, seconds=round(self.seconds, 1))
            self.report(f"step {self.step}: " + ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
            folder = self.out / "pictures"
            folder.mkdir(exist_ok=True)
            for name, picture in pictures.items():
                write_image(folder / f"step{self.step:07d}-{name}.png", picture)
                if board:
                    board.add_image(name, picture, self.step)
            if board:
                _add_scalars(board, "validation", figures, self.step)
        self.accelerator.wait_for_everyone()

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        return self.average.applied() if self.average else contextlib.nullcontext()


def _frozen(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}


def _accelerator(train: TrainConfig, unused_parameters: bool) -> "Accelerator":
    require_training()
    from accelerate import Accelerator, DistributedDataParallelKwargs

    return Accelerator(
        cpu=not torch.cuda.is_available(),  # without it, accelerate leaves processes on CPUs unconnected
        mixed_precision=train.mixed_precision,
        gradient_accumulation_steps=train.accumulate,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)],
    )


def _scheduler(optimizer: torch.optim.Optimizer, train: TrainConfig) -> torch.optim.lr_scheduler.LRScheduler:
    if train.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=train.lr,
        total_steps=train.steps + 100,  # as RAFT, whose last steps are not at a rate of zero
        pct_start=train.pct_start,
        cycle_momentum=False,
        anneal_strategy="linear",
    )


def _board(out: pathlib.Path, step: int) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("train.tensorboard needs tensorboard: pip install tensorboard, or set it to false") from error
    return SummaryWriter(str(out / "tensorboard"), purge_step=step + 1 if step else None)


def _add_scalars(board: "SummaryWriter", group: str, figures: dict[str, float], step: int) -> None:
    for name, value in figures.items():
        board.add_scalar(f"{group}/{name}", value, step)


@contextlib.contextmanager
def _on_sigterm(stop: Callable[[], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals can be handled in the main thread only
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
