"""A plan for real data that is changed to another system, as ``compare_systems.py`` does."""

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


def test_norm_is_of_batches_while_they_are_large(plans, change_system):
    large = with_settings(plans["conresnet"], ["training.batch=16"])
    for name in ("voxresnet-auto-context", "resdsn", "pyramid"):
        network = networks(change_system(large, name))[0]
        assert all_arguments(network["type"], network["arguments"])["norm"] == "batch"


@pytest.mark.parametrize("name", SYSTEMS)
def test_system_of_a_plan_is_changed_and_the_rest_kept(plans, change_system, name):
    edited = with_settings(plans["conresnet"], ["training.steps=77", "augmentation.flip_axes=[W]"])
    edited = with_settings(edited, ["model.inference.window=[32, 48, 32]", "model.title=Edited"])
    changed = change_system(edited, name)
    assert (changed.training, changed.augmentation, changed.data) == (edited.training, edited.augmentation, edited.data)
    assert changed.model.inference.window == (32, 48, 32) and changed.model.title == "Edited"
    for key in ("system", "inputs", "preparation"):
        assert getattr(changed.model, key) == getattr(plans[name].model, key)
    assert edited.model.system == plans["conresnet"].model.system


def test_change_of_system_keeps_width_and_axis_and_refuses_what_it_cannot_undo(plans, change_system):
    settings = ["base_width=24", "residual_axis=H"]
    ours = with_settings(plans["conresnet"], [f"model.system.networks.0.arguments.{setting}" for setting in settings])
    refined = change_system(ours, "conresnet-refined")
    inner = networks(refined)[0]["arguments"]["network"]["arguments"]
    assert inner["base_width"] == 24 and networks(refined)[0]["arguments"]["residual_axis"] == "H"
    assert change_system(refined, "conresnet") == ours
    for name in ("voxresnet", "pyramid", "coarse-to-fine"):
        with refused("system-unchangeable"):
            change_system(plans[name], "conresnet")
    with refused("spacing-unknown"):
        change_system(with_settings(ours, ["model.preparation.spacing=null"]), "pyramid")


def test_regions_have_an_output_each_in_every_system(change_system, tmp_path):
    folder = brats(tmp_path / "set")
    for kind, outputs in (("regions", 3), ("labels", 4)):
        plan = planned(folder, kind=kind)
        for name in SYSTEMS:
            network = networks(change_system(plan, name))[0]
            assert network["arguments"]["outputs"] == outputs
            assert network["arguments"].get("exclusive", kind == "labels") == (kind == "labels")
