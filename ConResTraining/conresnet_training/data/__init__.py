"""Data sets in their makers' layouts, read without conversion, and the training samples made from them."""

from conresnet_training.data.data_set import LAYOUTS, Case, DataSet
from conresnet_training.data.layouts import read_data_set

__all__ = ["LAYOUTS", "Case", "DataSet", "read_data_set"]
