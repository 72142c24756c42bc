"""Label maps as if predicted for the data set of boxes of ``conftest.py``."""

from __future__ import annotations

import nibabel
import numpy as np

from conresnet_training.data.layouts import read_data_set
from conresnet_training.evaluation.runs import measure_predictions


def expert(data_set, number: int) -> np.ndarray:
    return np.asarray(nibabel.load(data_set / "labelsTr" / f"case_{number}.nii.gz").dataobj).astype(np.uint8)


def measure(folder, data_set, tolerance: float = 1.0):
    return measure_predictions(folder, read_data_set(data_set), tolerance).evaluation
