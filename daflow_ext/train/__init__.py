"""Training: stage 1 lifts the restoration transformer to clips, stage 2 trains the flow network.

``read_config``, then ``flow.build`` or ``lift.build``, then ``Trainer(...).run()``; or ``daflow train``.
"""

from .config import FlowConfig, LiftConfig, config_names, read_config
from .engine import Outcome, Stage, Trainer
from .losses import flow_matching_target, sample_sigmas, sequence_loss

__all__ = [
    "FlowConfig",
    "LiftConfig",
    "Outcome",
    "Stage",
    "Trainer",
    "config_names",
    "flow_matching_target",
    "read_config",
    "sample_sigmas",
    "sequence_loss",
]
