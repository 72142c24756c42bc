"""Looking at every case of a data set before it is trained on: findings in words, and a page to look at."""

from conresnet_training.check.cases import check_data_set
from conresnet_training.check.findings import CaseReport, Finding, SetReport

__all__ = ["CaseReport", "Finding", "SetReport", "check_data_set"]
