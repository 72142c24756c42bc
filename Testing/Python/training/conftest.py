"""A data set of a few synthetic cases, which a tiny network learns in seconds."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from conresnet_training.training.stopping import PARENT_VARIABLE
from training.data_folders import describe, save
from training.predicted_boxes import expert

# If this process is killed during a test, the training runs that it started end, too.
os.environ[PARENT_VARIABLE] = str(os.getpid())


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """A Decathlon folder of six cases of 20 x 18 x 16 voxels with two boxes each; its path is not ASCII."""
    folder = tmp_path / "Daten für Übung"
    entries = []
    for number in range(6):
        random = np.random.default_rng(number)
        label = np.zeros((20, 18, 16), np.uint8)
        a, b = random.integers(2, 8, 2)
        label[a : a + 5, 4:10, b : b + 5] = 1
        label[a : a + 5, 10:14, b : b + 5] = 2
        image = (100 + 80 * label + random.normal(0, 10, label.shape)).astype(np.int16)
        for kind, array in (("imagesTr", image), ("labelsTr", label)):
            save(array, folder / kind / f"case_{number}.nii.gz")
        entries.append({"image": f"./imagesTr/case_{number}.nii.gz", "label": f"./labelsTr/case_{number}.nii.gz"})
    labels = {"0": "background", "1": "Near box", "2": "Far box"}
    describe(folder, name="Boxes", modality={"0": "MRI"}, labels=labels, licence="none", training=entries)
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    """Another order of summation changes the last bits, which can change labels of a barely trained network."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def predictions(data_set, tmp_path):
    """The experts' label maps of all cases, each shifted by one voxel along the first axis."""
    folder = tmp_path / "predictions"
    for number in range(6):
        save(np.roll(expert(data_set, number), 1, axis=0), folder / f"case_{number}.nii.gz")
    return folder


@pytest.fixture
def empty_pictures(monkeypatch):
    """Pages get empty pictures: rendering takes most of the time for small data sets."""
    for name in ("check.page.to_png", "evaluation.report.to_png", "evaluation.report.to_svg"):
        monkeypatch.setattr(f"conresnet_training.{name}", lambda *_: b"")


@pytest.fixture
def default_signals():
    """As in a terminal: a process in the background or under nohup inherits that some signals are ignored."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
