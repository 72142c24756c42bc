"""Measurements of every case, their summary, a page for people, and comparisons of two evaluations."""

from conresnet_training.evaluation.results import Evaluation, read_evaluation, summary_table
from conresnet_training.evaluation.runs import evaluate_predictions, evaluate_runs

__all__ = ["Evaluation", "evaluate_predictions", "evaluate_runs", "read_evaluation", "summary_table"]
