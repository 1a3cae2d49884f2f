"""The model card that a run writes from what really happened."""

import os
import platform
from typing import TYPE_CHECKING

import torch
import yaml

from .. import __version__
from ..frames._files import atomic_path
from .config import DataConfig, TrainConfig, to_dict

if TYPE_CHECKING:
    from .engine import Trainer


def write_card(trainer: "Trainer", files: list[str]) -> None:
    """``README.md`` in the folder of the run."""
    config, train = trainer.config, trainer.config.train
    done = "" if trainer.step == train.steps else f" of the {train.steps} planned: unfinished"
    clips = trainer.step * train.accumulate * train.batch * trainer.accelerator.num_processes
    crop = "x".join(map(str, config.data.crop))
    text = f"""# {trainer.stage.title}

Trained by `daflow_ext` {__version__}. Weights: {", ".join(f"`{name}`" for name in files)}{_averaged(train)}.

* Command: `{trainer.command or "(from Python)"}`
* Steps: {trainer.step}{done}; {clips} clips of {config.data.frames} frames, crops {crop}
* Data: {_data(config.data)}
* Seed: {train.seed}
* Hardware: {_hardware(trainer)}; {trainer.seconds / 3600:.2f} hours of training, validation included

## Metrics on held-out clips
{_table(trainer.validations)}
## Limits
Measured on clips like those it was trained on; other video can be worse. Crops of this size hold no motion larger than
themselves. Unknown pixels and pixels that leave the picture are predicted, too, and are least reliable.

## Configuration
```yaml
{yaml.safe_dump(to_dict(config), sort_keys=False).strip()}
```
"""
    with atomic_path(trainer.out / "README.md") as path:
        path.write_text(text)


def _averaged(train: TrainConfig) -> str:
    return f" (exponential moving average, decay {train.ema})" if train.ema else ""


def _data(data: DataConfig) -> str:
    source = "rendered scenes" if data.source == "scenes" else f"{data.source} at `{data.root}`"
    if data.degrade.clean >= 1:
        return f"{source}, not degraded"
    share = ", ".join(f"{word} (weight {weight})" for word, weight in data.degrade.choices.items())
    return f"{source}; {100 * data.degrade.clean:g} % of the clips clean, the others degraded by {share}"


def _hardware(trainer: "Trainer") -> str:
    processes = trainer.accelerator.num_processes
    if trainer.accelerator.device.type == "cuda":
        where = f"{processes} x {torch.cuda.get_device_name()}"
    else:
        where = f"{processes} process(es) with {torch.get_num_threads()} thread(s), {os.cpu_count()} CPU cores"
    return f"{where}; {platform.machine()}, torch {torch.__version__}, precision {trainer.config.train.mixed_precision}"


def _table(validations: list[dict[str, float]]) -> str:
    """First, best-known and last rows are enough: the log has all of them."""
    if not validations:
        return "None were taken.\n"
    names = [name for name in validations[0] if name != "step"]
    shown = [validations[0], *validations[1:][-1:]]
    rows = [f"| {one['step']} | " + " | ".join(f"{one[name]:.3f}" for name in names) + " |" for one in shown]
    return "\n".join([f"| step | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|", *rows, ""])
