"""A plan for real data is changed to another system, as in ``compare_systems.py``."""

import pytest

from conresnet.networks import all_arguments
from conresnet_training.planning.plan import with_settings
from conresnet_training.planning.systems import SYSTEMS
from training.commands import refused
from training.data_folders import brats
from training.test_planning_systems import networks, planned


@pytest.fixture(scope="module")
def plans(data_folder):
    """A plan of each system for the hippocampus in real MR."""
    return {name: planned(data_folder / "MSD_Task04_Hippocampus", name) for name in SYSTEMS}


@pytest.fixture
def change_system(benchmark):
    return benchmark("system_rows").change_system


def test_batch_norm_is_used_for_large_batches(plans, change_system):
    large = with_settings(plans["conresnet"], ["training.batch=16"])
    for name in ("voxresnet-auto-context", "resdsn", "pyramid"):
        network = networks(change_system(large, name))[0]
        assert all_arguments(network["type"], network["arguments"])["norm"] == "batch"


@pytest.mark.parametrize("name", SYSTEMS)
def test_change_of_system_keeps_the_rest_of_the_plan(plans, change_system, name):
    edited = with_settings(plans["conresnet"], ["training.steps=77", "augmentation.flip_axes=[W]"])
    edited = with_settings(edited, ["model.inference.window=[32, 48, 32]", "model.title=Edited"])
    changed = change_system(edited, name)
    assert (changed.training, changed.augmentation, changed.data) == (edited.training, edited.augmentation, edited.data)
    assert changed.model.inference.window == (32, 48, 32) and changed.model.title == "Edited"
    for key in ("system", "inputs", "preparation"):
        assert getattr(changed.model, key) == getattr(plans[name].model, key)
    assert edited.model.system == plans["conresnet"].model.system


def test_change_of_system_keeps_width_and_axis_or_is_refused(plans, change_system):
    settings = ["base_width=24", "residual_axis=H"]
    changed = with_settings(
        plans["conresnet"], [f"model.system.networks.0.arguments.{setting}" for setting in settings]
    )
    refined = change_system(changed, "conresnet-refined")
    inner = networks(refined)[0]["arguments"]["network"]["arguments"]
    assert inner["base_width"] == 24 and networks(refined)[0]["arguments"]["residual_axis"] == "H"
    assert change_system(refined, "conresnet") == changed
    for name in ("voxresnet", "pyramid", "coarse-to-fine"):
        with refused("system-unchangeable"):
            change_system(plans[name], "conresnet")
    with refused("spacing-unknown"):
        change_system(with_settings(changed, ["model.preparation.spacing=null"]), "pyramid")


def test_every_system_has_one_output_per_region(change_system, tmp_path):
    folder = brats(tmp_path / "set")
    for kind, outputs in (("regions", 3), ("labels", 4)):
        plan = planned(folder, kind=kind)
        for name in SYSTEMS:
            network = networks(change_system(plan, name))[0]
            assert network["arguments"]["outputs"] == outputs
            assert network["arguments"].get("exclusive", kind == "labels") == (kind == "labels")
