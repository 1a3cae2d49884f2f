"""Scores, tables, uploads and pseudo truth, from data sets and models."""

from .predictors import DAFlowPredictor, Predictor, RaftPredictor, ZeroPredictor
from .records import RecordFile
from .runner import score_clip, validate
from .summary import Row, csv_table, differences, robustness_means, screen_table, summarize

__all__ = [
    "DAFlowPredictor",
    "Predictor",
    "RaftPredictor",
    "RecordFile",
    "Row",
    "ZeroPredictor",
    "csv_table",
    "differences",
    "robustness_means",
    "score_clip",
    "screen_table",
    "summarize",
    "validate",
]
