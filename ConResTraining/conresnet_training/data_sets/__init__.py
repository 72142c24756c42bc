"""Data sets that researchers already have, read without conversion."""

from conresnet_training.data_sets.data_set import Case, DataSet
from conresnet_training.data_sets.reading import read_data_set

__all__ = ["Case", "DataSet", "read_data_set"]
