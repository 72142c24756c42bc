"""Every system overfits one real case, from the plan to the engine's labels.

An error in a network, its losses, its training stages, its package or its windows would prevent this.
"""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from conresnet.images import Volume
from conresnet.images.files import read_volume
from conresnet.images.preparation import prepare
from conresnet.inference.segmentation import load_model, segment
from conresnet.package.store import write_package
from conresnet_training.data.layouts import read_data_set
from conresnet_training.data.preparation import prepare_case
from conresnet_training.planning.plan import Plan, with_settings
from conresnet_training.planning.planner import Choices, make_plan
from conresnet_training.planning.systems import SYSTEMS
from conresnet_training.runs.packing import pack_runs
from conresnet_training.runs.run import Run, start_run
from conresnet_training.training.trainer import fit

CASE = "hippocampus_123.nii.gz"
# Where the two segments meet; learning the whole case would take seven times as long. The voxels of the pyramid are
# twice as large, so it gets a larger part of the case.
PART, PART_OF_PYRAMID = np.s_[2:26, 18:34, 3:27], np.s_[:32, 12:44, 3:35]
LEARNED = 0.98
# The same samples in every step.
SETTINGS = (
    "training.batch=1",
    "training.folds=2",
    "training.steps=250",
    "training.learning_rate=0.01",
    "training.weight_decay=0",
    "training.steps_between_checkpoints=100000",
    "training.precision=32-true",
    "training.workers=0",
    "augmentation.flip_axes=[]",
    "augmentation.scaling=0",
    "augmentation.rotation_degrees=0",
    "augmentation.brightness=0",
    "augmentation.contrast=0",
    "augmentation.noise=0",
    "augmentation.coarsening=1",
)
OTHERWISE = {
    "conresnet-voxresnet": ("training.steps=350",),
    "conresnet-resdsn": ("training.steps=350",),
    # Windows smaller than the case, to test stitching; few of them, to save time.
    "coarse-to-fine": (
        "training.steps=400",
        "model.inference.window=[16, 16, 16]",
        "model.system.arguments.coarse_windows=1",
        "model.system.arguments.fine_windows=2",
        "model.system.arguments.margin=2",
    ),
}

pytestmark = pytest.mark.slow


def one_case(folder: Path, source: Path, part: tuple[slice, ...]) -> Path:
    """A Decathlon folder with one case under two names, because one case is always held out."""
    folder.mkdir()
    names = [f"{name}.nii.gz" for name in ("learned", "held_out")]
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir()
        for name in names:
            nibabel.save(nibabel.load(source / kind / CASE).slicer[part], folder / kind / name)
    content = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    content["training"] = [{"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"} for name in names]
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("system", SYSTEMS)
def test_system_overfits_a_case(data_folder, tmp_path, system):
    part = PART_OF_PYRAMID if system == "pyramid" else PART
    data_set = one_case(tmp_path / "one case", data_folder / "MSD_Task04_Hippocampus", part)
    run = start_run(planned(data_set, system), tmp_path / "run", 0)
    assert fit(run).finished
    dice = dice_at_the_models_resolution(run, tmp_path)
    assert min(dice.values()) > LEARNED, dice


def planned(data_set: Path, system: str) -> Plan:
    """A plan with a narrow network without dropout."""
    plan = make_plan(read_data_set(data_set), data_set, choices=Choices(system, base_width=8))[0]
    network = plan.model.system.networks[0].arguments
    for arguments in (network, network.get("network", {}).get("arguments", {})):
        if "dropout" in arguments:
            arguments["dropout"] = 0.0
    return with_settings(plan, [*SETTINGS, *OTHERWISE.get(system, ())])


def dice_at_the_models_resolution(run: Run, folder: Path) -> dict[str, float]:
    """Dice of each segment, found by the engine in a case with the model's spacing."""
    packed = pack_runs([run])
    package = write_package(packed.description, packed.files, folder / "package")
    case = read_data_set(run.plan.data).cases[0]
    prepared = prepare(packed.description, [read_volume(path) for path in case.images])
    truth = prepare_case(case, packed.description, folder).label
    image = Volume(prepared.images[0], prepared.space.grid, case.name)
    found = segment(load_model(package, "cpu", "fp32"), [image]).labels.array
    assert found.shape == truth.shape
    dice = {}
    for name, values in run.plan.targets.items():
        own, other = np.isin(found, values), np.isin(truth, values)
        dice[name] = 2 * (own & other).sum() / (own.sum() + other.sum())
    return dice
