"""Every system of the catalog: the plan it makes for real data, and changes to an existing plan."""

import subprocess
import sys
from dataclasses import replace
from inspect import signature

import numpy as np
import pytest
import torch

from conresnet.networks import all_arguments, build_network, network_class
from conresnet_training.data.layouts import read_data_set
from conresnet_training.planning.memory import Budget
from conresnet_training.planning.plan import read_plan, with_settings, write_plan
from conresnet_training.planning.planner import Choices, make_plan
from conresnet_training.planning.systems import SYSTEMS, cataloged
from training.commands import message_of, refused, run_command
from training.data_folders import decathlon, label, nnunet, save

ROOM = Budget(64 * 2**30, (16, 8), "plenty")


def planned(folder, system="conresnet", **choices):
    return make_plan(read_data_set(folder), folder, ROOM, Choices(system, **choices))[0]


def networks(plan):
    """The networks of a plan, as its file has them."""
    return plan.document()["model"]["system"]["networks"]


def arguments_of(network):
    """The arguments of a network, including those of the network that it wraps."""
    return all_arguments(network["type"], network["arguments"])


@pytest.fixture(scope="module")
def plans(data_folder):
    """A plan of each system for the hippocampus in real MR."""
    return {name: planned(data_folder / "MSD_Task04_Hippocampus", name) for name in SYSTEMS}


@pytest.mark.parametrize("name", SYSTEMS)
def test_plan_of_each_system_is_valid_and_read_back_unchanged(plans, name, tmp_path):
    write_plan(plans[name], tmp_path / "plan.yaml")
    assert read_plan(tmp_path / "plan.yaml") == plans[name]
    description = plans[name].model
    assert description.system.networks[0].arguments["outputs"] == 3
    assert all(
        network.arguments["input_channels"] == description.channel_count for network in description.system.networks
    )


@pytest.mark.parametrize("name", SYSTEMS)
def test_networks_of_each_system_exist_and_accept_their_arguments(plans, name):
    for network in plans[name].model.system.networks:
        with torch.device("meta"):
            built = build_network(network.type, network.arguments)
        stages = SYSTEMS[name].stages(networks(plans[name])[0])
        assert built.stages * len(plans[name].model.system.networks) == stages
        assert built.input_channels == plans[name].model.channel_count


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_network_argument_is_written_to_the_plan(plans, name):
    """So that each can be set with ``--set``."""

    def check(network, inherited=()):
        names = set(signature(network_class(network["type"])).parameters)
        # A network without residuals has no axis.
        assert names - set(network["arguments"]) - set(inherited) <= {"residual_axis"}
        assert set(network["arguments"]) <= names - set(inherited)
        if "network" in network["arguments"]:
            check(network["arguments"]["network"], ("input_channels", "outputs", "residual_axis"))

    for network in networks(plans[name]):
        check(network)


def test_systems_without_special_inputs_differ_only_in_their_network(plans):
    reference = plans["conresnet"]
    for name, plan in plans.items():
        same = name not in ("pyramid", "voxresnet", "voxresnet-auto-context")
        images = plan.model.inputs, plan.model.preparation
        assert images == (reference.model.inputs, reference.model.preparation) or not same
        assert plan.targets == reference.targets and plan.training == reference.training
        unchanged = {key: getattr(reference.model, key) for key in ("inputs", "preparation", "inference", "system")}
        assert replace(plan.model, **unchanged) == reference.model


@pytest.mark.parametrize(
    ("setting", "network"),
    [
        ("attention_mapping=false", {"residual_mapping": True, "attention_mapping": False}),
        ("residual_axis=H", {"residual_axis": "H"}),
        ("residual_axis=W", {"residual_axis": "W"}),
    ],
)
def test_options_of_the_study_need_one_setting(plans, setting, network):
    """Tables III and IV; the rest of the study is below."""
    changed = with_settings(plans["conresnet"], [f"model.system.networks.0.arguments.{setting}"])
    arguments = changed.model.system.networks[0].arguments
    assert arguments == plans["conresnet"].model.system.networks[0].arguments | network
    build_network("conresnet", arguments)


def test_baseline_boundary_loss_and_lambda_need_one_option(plans):
    """Tables III and VI, and Fig. 8."""
    baseline = arguments_of(networks(plans["conresnet-baseline"])[0])
    assert not baseline["residual_mapping"] and not baseline["attention_mapping"]
    changed = with_settings(plans["conresnet"], ["training.boundary=true", "training.deep_supervision=0.1"])
    assert changed.training.boundary and changed.training.deep_supervision == 0.1


@pytest.mark.parametrize(
    ("name", "connections"),
    [("resdsn", (True, False)), ("fresdsn", (True, True)), ("sresdsn", (False, True)), ("dsn", (False, False))],
)
def test_variants_of_resdsn_have_the_connections_of_table_1(plans, name, connections):
    arguments = plans[name].model.system.networks[0].arguments
    assert (arguments["long_residual"], arguments["short_residual"]) == connections
    assert arguments["deep_supervision"] is True


@pytest.mark.parametrize("name", ["voxresnet", "voxresnet-auto-context"])
def test_voxresnet_gets_a_copy_of_each_image(tmp_path, name):
    """Six channels of three images, as in its paper."""
    plan = planned(decathlon(tmp_path / "set", channels=("T1", "T1 IR", "FLAIR")), name)
    assert plan.model.channel_count == 6
    assert plan.model.system.networks[0].arguments["input_channels"] == 6
    for item in plan.model.inputs:
        assert [step["step"] for step in item.intensity] == ["clip_percentiles", "z_score_slices"]
        (copy,) = item.copies
        assert [step["step"] for step in copy] == ["subtract_gaussian", "equalize", "z_score_slices"]


def test_coarse_to_fine_clips_ct_to_abdomen_range_and_keeps_mr(tmp_path, plans):
    folder = nnunet(tmp_path / "set", channels=("CT", "MRI"))
    for number in range(3):
        array = np.full((20, 18, 16), 100, np.int16) + label(number=number)
        save(array, folder / "imagesTr" / f"case_{number}_0000.nii.gz")
    plan = planned(folder, "coarse-to-fine")
    ct, mr = plan.model.inputs
    assert [dict(step) for step in ct.intensity] == [
        {"step": "clip", "low": -100, "high": 240},
        {"step": "z_score", "over": "all", "outside": "keep"},
    ]
    assert mr.intensity == plans["conresnet"].model.inputs[0].intensity
    system = plan.model.system
    assert [network.weights for network in system.networks] == ["coarse.safetensors", "fine.safetensors"]
    assert system.networks[0].arguments == system.networks[1].arguments
    assert (system.arguments["coarse_windows"], system.arguments["fine_windows"]) == (6, 12)


@pytest.mark.parametrize("value", [400, -900])
def test_coarse_to_fine_keeps_ct_range_outside_the_papers_range(tmp_path, value):
    folder = nnunet(tmp_path / "set")
    for number in range(3):
        array = np.full((20, 18, 16), value, np.int16) + 20 * label(number=number)
        save(array, folder / "imagesTr" / f"case_{number}_0000.nii.gz")
    plan, why = make_plan(read_data_set(folder), folder, ROOM, Choices("coarse-to-fine"))
    assert plan.model.inputs == planned(folder).model.inputs
    (ct,) = plan.model.inputs
    assert dict(ct.intensity[0]) == {"step": "clip", "low": value + 20, "high": value + 40}
    (explanation,) = [reason.why for reason in why if reason.what == "intensity CT"]
    assert "which the paper's range (-100 ... 240) does not contain" in explanation


def test_pyramid_uses_half_resolution_and_windows_divisible_by_its_levels(plans):
    reference, pyramid = plans["conresnet"].model, plans["pyramid"].model
    assert pyramid.preparation.spacing == tuple(2 * mm for mm in reference.preparation.spacing)
    window = np.array(pyramid.inference.window)
    assert (window % 16 == 0).all() and (window >= 32).all()
    # The part that trains the last level covers the window of another system.
    half = window / 2 * pyramid.preparation.spacing
    assert (half >= np.array(reference.inference.window) * reference.preparation.spacing).all()


def test_pyramid_with_little_memory_has_windows_divisible_by_its_levels(tmp_path):
    folder = decathlon(tmp_path / "set", cases=2)
    for number in range(2):
        save(np.zeros((100, 90, 80), np.int16), folder / "imagesTr" / f"case_{number}.nii.gz")
    for gigabytes in (4, 2.6, 2.2, 1.8):
        budget = Budget(int(gigabytes * 2**30), (16,), "little")
        window = make_plan(read_data_set(folder), folder, budget, Choices("pyramid"))[0].model.inference.window
        assert all(side % 16 == 0 and side >= 32 for side in window), window
    assert window < (80, 96, 112)


@pytest.mark.parametrize(
    ("name", "largest"), [("conresnet", (80, 160, 160)), ("voxresnet", (80,) * 3), ("pyramid", (128,) * 3)]
)
def test_window_is_no_larger_than_in_the_systems_paper(tmp_path, name, largest):
    folder, shape = decathlon(tmp_path / "set", cases=2), (200, 170, 165)
    for number in range(2):
        save(np.zeros(shape, np.int16), folder / "imagesTr" / f"case_{number}.nii.gz")
    assert planned(folder, name).model.inference.window == largest


def test_group_norm_is_used_for_small_batches(plans):
    assert arguments_of(networks(plans["unet"])[0])["norm"] == "group"
    # Group norm would be affected by the pyramid's larger windows in use than in training.
    assert arguments_of(networks(plans["pyramid"])[0])["norm"] == "batch"


@pytest.mark.parametrize("batch", ["training.batch=16", "training.batch = 1_6"])
def test_batch_set_by_the_user_determines_the_norm(tmp_path, monkeypatch, capsys, batch):
    output = tmp_path / "plan.yaml"
    command = ["plan", decathlon(tmp_path / "set"), "--output", output, "--memory", "8", "--system", "resdsn"]
    settings = ("--set", batch, "--set", "training.optimizer=sgd")
    assert run_command(monkeypatch, *command, *settings) == 0
    plan = read_plan(output)
    assert (plan.training.batch, plan.training.optimizer) == (16, "sgd")
    assert plan.model.system.networks[0].arguments["norm"] == "batch"
    assert "group" not in capsys.readouterr().out


def test_unknown_system_gets_a_suggestion():
    with refused("plan-system-unknown", nearest="conresnet"):
        cataloged("conresne")


def test_command_suggests_a_similar_system(tmp_path, monkeypatch, capsys):
    command = ("plan", tmp_path, "--output", tmp_path / "plan.yaml", "--system", "ResDNS")
    assert run_command(monkeypatch, *command) == 2
    assert capsys.readouterr().err.strip() == message_of("plan-system-unknown", system="ResDNS", nearest="resdsn")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unet", {"norm": "plan with --set training.batch=8 or more"}),
        ("coarse-to-fine", {"margin": "20 voxels", "steps": "in each of 2 stages"}),
        ("pyramid", {"spacing": "the median of 3 cases, doubled", "window": "training uses its middle half"}),
        ("voxresnet", {"copy of MRI": "minus its blur by 5 mm, contrast equalized, z-score of each slice"}),
        ("conresnet-refined", {"residual axis": "residuals between axial slices"}),
        ("conresnet-baseline", {"norm": "always the norm of this network"}),
    ],
)
def test_command_plans_a_system_and_explains_it(tmp_path, monkeypatch, capsys, name, expected):
    output = tmp_path / "plan.yaml"
    command = ["plan", decathlon(tmp_path / "set"), "--output", output, "--memory", "8", "--system", name]
    assert run_command(monkeypatch, *command) == 0
    lines = {line.split("  ")[0].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert SYSTEMS[name].title in lines["system"] and SYSTEMS[name].sentence in lines["system"]
    for what, text in expected.items():
        assert text in lines[what]
    assert ("residual axis" in lines) == SYSTEMS[name].takes_residuals
    assert read_plan(output).model.system.type == ("coarse_to_fine" if name == "coarse-to-fine" else "single")


def test_help_lists_every_system_without_slow_imports():
    program = """
import sys
for name in ("torch", "numpy", "pydantic", "monai", "lightning_fabric", "SimpleITK"):
    sys.modules[name] = None
from conresnet_training.cli import main
sys.argv = ["x", "plan", "--help"]
main()
"""
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    lines = [line.split(maxsplit=1) for line in output.split("Systems:")[1].strip().splitlines()]
    assert [tuple(line) for line in lines] == [(name, entry.title) for name, entry in SYSTEMS.items()]


def test_titles_are_unique_and_descriptions_are_short_sentences():
    titles = [entry.title for entry in SYSTEMS.values()]
    assert len({title.casefold() for title in titles}) == len(titles)
    assert all(entry.sentence.endswith(".") and len(entry.sentence) < 160 for entry in SYSTEMS.values())
