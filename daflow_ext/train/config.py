"""What a training run is made of: dataclasses read from YAML, with overrides from the command line."""

import dataclasses
import difflib
import importlib.resources
import pathlib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from .yaml_values import parse

CONFIGS = importlib.resources.files("daflow_ext") / "configs"
FLOW_NETWORKS = ("raft-small", "raft-large", "daflow", "daflow-tiny")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_FREE = {"free": True}  # may change between the stretches of one run: decides nothing about the losses


@dataclasses.dataclass
class AugmentConfig:
    """Geometry and colour, before the degradation; the same for all frames of a clip.

    Attributes:
        scale: exponents: sides are resized by 2**U(low, high), never below the crop. stretch: further U(-s, s) each.
        brightness, contrast, saturation: factors 1 + U(-v, v). hue: turn of U(-v, v) of the circle.
        flip_x, flip_y: probabilities.
    """

    scale: tuple[float, float] = (0.0, 0.0)
    stretch: float = 0.0
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05
    flip_x: float = 0.5
    flip_y: float = 0.1


@dataclasses.dataclass
class DegradeChoice:
    """Which degradation a clip gets: none with probability ``clean``, else one of ``choices``.

    ``choices`` maps the words of ``daflow validate --degrade`` ("levels", "level3", "realbasicvsr", "corruptions:2") to
    weights; a word for several degradations shares its weight among them.
    """

    clean: float = 0.2
    choices: dict = dataclasses.field(default_factory=lambda: {"levels": 0.7, "realbasicvsr": 0.3})


@dataclasses.dataclass
class DataConfig:
    """Where clips come from.

    Attributes:
        source: "scenes" (rendered), or a data set of ``daflow validate --dataset``, read from ``root``.
        options: further arguments of the source. frames: per clip; every pair of neighbours is used.
        crop: height and width, multiples of 16.
    """

    source: str = "scenes"
    root: str | None = None
    options: dict = dataclasses.field(default_factory=dict)
    frames: int = 3
    crop: tuple[int, int] = (128, 128)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    degrade: DegradeChoice = dataclasses.field(default_factory=DegradeChoice)


@dataclasses.dataclass
class TrainConfig:
    """Steps and optimiser.

    Attributes:
        steps: optimiser steps of the whole run. batch: clips per process and forward pass.
        accumulate: forward passes per optimiser step.
        schedule: "onecycle" (linear, peak ``lr`` after ``pct_start``) or "constant".
        ema: decay of the averaged weights, 0 for none. They are what is validated and written.
        mixed_precision: "no" or "bf16". checkpointing: recompute activations in the backward pass.
        max_minutes: stop cleanly after this long; the same command goes on. workers: loading processes.
        threads: of the computation, 0 for torch's choice.
        checkpoint_every, log_every: steps. tensorboard: also write event files.
    """

    steps: int = 20000
    batch: int = 4
    accumulate: int = 1
    lr: float = 1e-4
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: str = "onecycle"
    pct_start: float = 0.05
    clip_norm: float = 1.0
    ema: float = 0.0
    mixed_precision: str = "no"
    checkpointing: bool = False
    seed: int = 0
    max_minutes: float | None = dataclasses.field(default=None, metadata=_FREE)
    checkpoint_every: int = dataclasses.field(default=500, metadata=_FREE)
    log_every: int = dataclasses.field(default=1, metadata=_FREE)
    workers: int = dataclasses.field(default=1, metadata=_FREE)
    threads: int = dataclasses.field(default=0, metadata=_FREE)
    tensorboard: bool = dataclasses.field(default=False, metadata=_FREE)


@dataclasses.dataclass
class ValidationConfig:
    """Held-out clips, scored every ``every`` steps (0: never).

    Attributes:
        clips: how many. levels: degradations, and "clean". iters: refinement steps (flow) or denoising steps (lift).
        options: arguments of the source that make its clips held out; replace those of ``data.options``.
        root: folder of the held-out clips, if another. pictures: clips drawn per level.
    """

    every: int = dataclasses.field(default=1000, metadata=_FREE)
    clips: int = dataclasses.field(default=16, metadata=_FREE)
    levels: tuple[str, ...] = dataclasses.field(default=("clean", "level3", "level5"), metadata=_FREE)
    iters: int = dataclasses.field(default=12, metadata=_FREE)
    options: dict = dataclasses.field(default_factory=dict, metadata=_FREE)
    root: str | None = dataclasses.field(default=None, metadata=_FREE)
    pictures: int = dataclasses.field(default=2, metadata=_FREE)


@dataclasses.dataclass
class FlowModelConfig:
    """The flow network of stage 2.

    Attributes:
        name: "raft-small", "raft-large", "daflow" or "daflow-tiny".
        init: weights to start from: of RAFT, or the folder of a DA-Flow pipeline. None: random.
        freeze_bn: keep batch normalisation in evaluation mode. dropout: of RAFT's encoders (RAFT alone).
        restoration: DA-Flow without ``init``: folder of the lifted restoration model (stage 1); None: random, which
            shows what the features are worth. raft: RAFT weights that its flow network starts from.
        options: DA-Flow without ``init``: arguments of :class:`daflow_ext.models.daflow.DAFlow` that replace those of
            the named configuration.
        feature_step: denoising step whose features are read: 0 .. num_inference_steps - 1, or "random".
        restoration_dtype: of the frozen transformer and VAE, "float32" or "bfloat16".
    """

    name: str = "raft-small"
    init: str | None = None
    freeze_bn: bool = False
    dropout: float = 0.0
    restoration: str | None = None
    raft: str | None = None
    options: dict = dataclasses.field(default_factory=dict)
    feature_step: int | str = 0
    num_inference_steps: int = 10
    restoration_dtype: str = "float32"


@dataclasses.dataclass
class FlowLossConfig:
    """RAFT's sequence loss: ``sum_i gamma**(iters - 1 - i) |f_i - f|_1`` where |f| < max_flow pixels."""

    iters: int = 12
    gamma: float = 0.8
    max_flow: float = 400.0


@dataclasses.dataclass
class LiftModelConfig:
    """The restoration transformer of stage 1.

    Attributes:
        name: "daflow" or "daflow-tiny": the architecture where there is no ``init``.
        init: folder of a restoration model or pipeline to start from; None: random.
        lift: "all", "joint", or "none" (per frame: the stage before lifting).
        trainable: "all"; "attention"; "control" (what the low-quality stream adds, as DiT4SR was trained).
        lora_rank: train adapters of this rank on the attention projections instead; needs peft. 0: no adapters.
        control_conv_scale: of the low-to-high-quality convolution; None: as stored.
    """

    name: str = "daflow-tiny"
    init: str | None = None
    lift: str = "all"
    trainable: str = "all"
    lora_rank: int = 0
    control_conv_scale: float | None = None


@dataclasses.dataclass
class LiftLossConfig:
    """Flow matching: sigma = shift s / (1 + (shift - 1) s), s = 1 - sigmoid(N(logit_mean, logit_std)).

    Attributes:
        shift: 3 for SD3.5.
        target: "velocity", mean |v - (noise - clean)|^2, or "clean" (DiT4SR's), the same weighted by sigma^2.
    """

    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float = 3.0
    target: str = "velocity"


@dataclasses.dataclass
class LiftConfig:
    """``daflow train lift``."""

    model: LiftModelConfig = dataclasses.field(default_factory=LiftModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    loss: LiftLossConfig = dataclasses.field(default_factory=LiftLossConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        check_shared(self)
        check_choice("model.trainable", self.model.trainable, ("all", "attention", "control"))
        check_choice("model.lift", self.model.lift, ("all", "joint", "none"))
        check_choice("loss.target", self.loss.target, ("velocity", "clean"))


@dataclasses.dataclass
class FlowConfig:
    """``daflow train flow``."""

    model: FlowModelConfig = dataclasses.field(default_factory=FlowModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    loss: FlowLossConfig = dataclasses.field(default_factory=FlowLossConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    validation: ValidationConfig = dataclasses.field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        check_shared(self)
        check_choice("model.name", self.model.name, FLOW_NETWORKS)
        check_choice("model.restoration_dtype", self.model.restoration_dtype, ("float32", "bfloat16"))
        step, steps = self.model.feature_step, self.model.num_inference_steps
        if step != "random" and not (isinstance(step, int) and 0 <= step < steps):
            raise ValueError(f"model.feature_step must be 'random' or from 0 to {steps - 1}, got {step!r}")


Config = LiftConfig | FlowConfig
_C = TypeVar("_C", bound=Config)
_Section = TypeVar("_Section")


def _text(path: Any, name: str) -> str:
    try:
        text: str = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no text: {error}") from error
    return text


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``known``."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def check_shared(config: Config) -> None:
    """What both stages demand of ``data``, ``train`` and ``validation``.

    Raises:
        ValueError: the first value out of range.
    """
    data, train = config.data, config.train
    for name, value, low in (
        ("train.steps", train.steps, 1),
        ("train.batch", train.batch, 1),
        ("train.accumulate", train.accumulate, 1),
        ("train.workers", train.workers, 0),
        ("train.checkpoint_every", train.checkpoint_every, 1),
        ("train.log_every", train.log_every, 1),
        ("train.seed", train.seed, 0),
        ("train.threads", train.threads, 0),
        ("validation.clips", config.validation.clips, 1),
        ("data.frames", data.frames, 2),
    ):
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    check_choice("train.schedule", train.schedule, ("onecycle", "constant"))
    check_choice("train.mixed_precision", train.mixed_precision, ("no", "bf16"))
    if min(data.crop) < 32 or any(side % 16 for side in data.crop):
        raise ValueError(f"data.crop must be (height, width), multiples of 16 from 32 up, got {data.crop}")
    if not 0 <= train.ema < 1:
        raise ValueError(f"train.ema must be a decay in [0, 1), got {train.ema}")
    if not 0 <= data.degrade.clean <= 1 or (data.degrade.clean < 1 and not data.degrade.choices):
        raise ValueError(
            f"data.degrade needs choices, and clean in [0, 1]; got clean {data.degrade.clean}, {data.degrade.choices}"
        )
    if not all(isinstance(weight, (int, float)) and weight > 0 for weight in data.degrade.choices.values()):
        raise ValueError(f"data.degrade.choices must be words with weights above 0, got {data.degrade.choices}")


def config_names() -> list[str]:
    """The configurations that come with the package."""
    return sorted(file.name.removesuffix(".yaml") for file in CONFIGS.iterdir() if file.name.endswith(".yaml"))


def read_config(cls: type[_C], name: str, overrides: Sequence[str] = ()) -> _C:
    """A configuration of ``cls`` from a packaged name or a YAML file, changed by ``section.key=value`` texts.

    Raises:
        FileNotFoundError: neither a name nor a file.
        ValueError: an unknown key (the message has the nearest known one), a value of another type or out of range.
    """
    path = CONFIGS / f"{name}.yaml" if name in config_names() else pathlib.Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"no configuration {name!r}; expected a YAML file or one of {', '.join(config_names())}"
        )
    values = parse(_text(path, name), name) or {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"an override is section.key=value, got {text!r}")
        _set(values, key.strip().split("."), parse(value, f"override {text!r}"), text)
    return from_dict(cls, values)


def _set(values: Any, path: Sequence[str], value: Any, text: str) -> None:
    for place, part in enumerate(path):
        if not isinstance(values, dict):
            raise ValueError(f"override {text!r}: {'.'.join(path[:place]) or 'the file'} is a value, not a section")
        if place == len(path) - 1:
            values[part] = value
        else:
            values = values.setdefault(part, {})


def from_dict(cls: type[_Section], values: Any, prefix: str = "") -> _Section:
    """A dataclass from nested dictionaries, checked key by key; see :func:`read_config`."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or 'the configuration'} must be a section of keys, got {values!r}")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), list(hints), 1, cutoff=0)
            raise ValueError(f"unknown key {prefix}{key}; did you mean {prefix}{near[0]}?")
    return cls(**{key: _coerce(hints[key], value, prefix + key) for key, value in values.items()})


def _coerce(hint: Any, value: Any, name: str) -> Any:
    """``value`` as ``hint``; YAML reads 1e-4 as text and a plain no as False, and knows no tuples."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value, name + ".")
    if isinstance(hint, types.UnionType):
        options = [one for one in typing.get_args(hint) if one is not type(None)]
        if value is None and len(options) < len(typing.get_args(hint)):
            return None
        fitting = [one for one in options if isinstance(value, one)]
        return _coerce((fitting or options)[0], value, name)
    if typing.get_origin(hint) is tuple:
        return _tuple(typing.get_args(hint), value, name)
    if hint is float and _NUMBER.fullmatch(str(value)):
        return float(value)
    if hint is str and value is False:
        return "no"
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{name} must be {hint.__name__}, got {value!r}")
    return dict(value) if hint is dict else value


def _tuple(parts: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name} must be a list, got {value!r}")
    if parts[-1] is Ellipsis:
        parts = parts[:1] * len(value)
    if len(parts) != len(value):
        raise ValueError(f"{name} must have {len(parts)} values, got {value!r}")
    return tuple(_coerce(part, one, name) for part, one in zip(parts, value, strict=True))


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values for YAML and JSON; :func:`from_dict` reads them."""
    values: dict[str, Any] = _plain(dataclasses.asdict(config))
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def changed_keys(config: Any, stored: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The keys that decide the losses and differ from those of a stored :func:`to_dict`.

    A key that an older version did not store had its default.
    """
    changed, defaults = [], to_dict(type(config)())
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            changed += changed_keys(value, stored.get(field.name, {}), name + ".")
        elif not field.metadata.get("free") and _plain(value) != stored.get(field.name, defaults[field.name]):
            changed.append(name)
    return changed
