"""Checks of every case of a data set before training: findings as text, and an HTML page."""

from conresnet_training.check.cases import CaseReport, Finding, SetReport, check_data_set

__all__ = ["CaseReport", "Finding", "SetReport", "check_data_set"]
