"""Measurements of every case, their summary, a page for people, and comparisons of two evaluations.

Cases are measured in ``evaluation.runs``, which takes seconds to import; comparing needs only the results.
"""

from conresnet_training.evaluation.results import Evaluation, read_evaluation, summary_table

__all__ = ["Evaluation", "read_evaluation", "summary_table"]
