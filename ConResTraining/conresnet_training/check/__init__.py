"""Checks of every case of a data set before training: findings as text, and an HTML page."""

from conresnet_training.check.cases import check_data_set
from conresnet_training.check.findings import CaseReport, Finding, SetReport

__all__ = ["CaseReport", "Finding", "SetReport", "check_data_set"]
