"""The whole run, from a plan to a model that segments, including stopping and resuming."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
import yaml

from conresnet.errors import UserError
from conresnet.images.files import read_volume
from conresnet.inference.devices import Backend, choose_backend
from conresnet.inference.segmentation import load_model, segment
from conresnet.package import parse_description
from conresnet.package.reader import read_package
from conresnet.request import SegmentOptions
from conresnet_training.data.layouts import read_data_set
from conresnet_training.planning.plan import read_plan, with_settings, write_plan
from conresnet_training.planning.planner import make_plan
from conresnet_training.runs import PROGRESS_FILE, read_progress
from conresnet_training.runs.run import Run, check_fits_data, check_target_names
from conresnet_training.training import loop
from conresnet_training.training.processes import _precision, make_fabric
from training.broken_runs import checkpoint
from training.commands import message_of, refused, run_command
from training.data_folders import decathlon, save
from training.tiny_plan import write_tiny_plan


@pytest.fixture
def plan_file(data_set, tmp_path, monkeypatch):
    """Six steps, three checkpoints, base width 8, single precision; one point every 2 steps."""
    monkeypatch.setattr(loop, "STEPS_BETWEEN_POINTS", 2)
    plan = make_plan(read_data_set(data_set), data_set)[0]
    plan.training.steps, plan.training.steps_between_checkpoints, plan.training.folds = 6, 2, 3
    plan.training.precision, plan.training.learning_rate, plan.training.workers = "32-true", 2e-3, 0
    plan.model.system.networks[0].arguments["base_width"] = 8
    path = tmp_path / "plan.yaml"
    write_plan(plan, path)
    return path


def test_resumed_run_ends_with_same_weights_as_uninterrupted_run(plan_file, tmp_path, monkeypatch):
    complete_run, resumed_run = tmp_path / "whole", tmp_path / "broken run"
    assert run_command(monkeypatch, "train", plan_file, "--output", complete_run) == 0
    assert run_command(monkeypatch, "train", plan_file, "--output", resumed_run, "--max-steps", 2) == 0
    assert run_command(monkeypatch, "resume", resumed_run, "--max-steps", 4) == 0
    assert run_command(monkeypatch, "resume", resumed_run) == 0
    expected, resumed = (checkpoint(run)["state_dict"] for run in (complete_run, resumed_run))
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    # The learning rate schedule also continues (eq. 10, for the step completed last).
    rates = [
        [point["learning_rate"] for point in read_progress(run / PROGRESS_FILE).points]
        for run in (complete_run, resumed_run)
    ]
    assert rates[0] == rates[1] == pytest.approx([2e-3 * (1 - step / 6) ** 0.9 for step in (1, 3, 5)])


def test_best_checkpoint_is_kept_after_resuming_and_lines_tell_how_far_the_run_is(
    plan_file, tmp_path, monkeypatch, capsys
):
    dice = iter([0.5, 0.9, 0.6])
    monkeypatch.setattr(loop, "dice_of_cases", lambda *_: torch.full((2, 2), next(dice)))
    run = tmp_path / "run"
    assert run_command(monkeypatch, "train", plan_file, "--output", run, "--max-steps", 4) == 0
    assert run_command(monkeypatch, "resume", run) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Step ")]
    pattern = (
        r"Step [24] of 6, about \d+ (s|min) left: mean Dice 0\.\d+ \(Near box 0\.\d+, Far box 0\.\d+\); best so far\."
    )
    assert all(re.fullmatch(pattern, line) for line in lines[:2]) and lines[2].startswith("Step 6 of 6: mean Dice 0.6")
    assert (checkpoint(run)["global_step"], checkpoint(run, "best")["global_step"]) == (6, 4)
    assert [event["best"] for event in read_progress(run / PROGRESS_FILE).validations] == [True, True, False]


def test_run_on_all_cases_holds_none_out_and_resumes(plan_file, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    assert run_command(monkeypatch, "train", plan_file, "--output", run, "--fold", "nine") == 2
    assert "nine is neither the number of a fold nor none" in capsys.readouterr().err and not run.exists()
    assert run_command(monkeypatch, "train", plan_file, "--output", run, "--fold", "none", "--max-steps", 3) == 0
    assert run_command(monkeypatch, "resume", run, "--max-steps", 4) == 0
    split = json.loads((run / "split.json").read_text(encoding="utf-8"))
    assert split == {"training": [f"case_{number}" for number in range(6)], "held_out": []}
    progress = read_progress(run / PROGRESS_FILE)
    assert progress.started["fold"] is None and progress.started["cases"] == 6 and not progress.validations
    assert [point["step"] for point in progress.points] == [2, 4]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert run_command(monkeypatch, "resume", run) == 0
    assert "is finished, 6 of 6 steps" in capsys.readouterr().err
    (run / "fold.txt").write_text("nine\n", encoding="utf-8")
    assert run_command(monkeypatch, "resume", run) == 2
    assert message_of("fold-file-damaged", path=run / "fold.txt", last=2) in capsys.readouterr().err


def test_trained_and_exported_model_segments(plan_file, data_set, tmp_path, monkeypatch):
    content = yaml.safe_load(plan_file.read_text(encoding="utf-8"))
    content["training"] |= {"steps": 30, "steps_between_checkpoints": 30, "learning_rate": 4e-3}
    plan_file.write_text(yaml.safe_dump(content), encoding="utf-8")
    run, package = tmp_path / "run", tmp_path / "boxes"
    assert run_command(monkeypatch, "train", plan_file, "--output", run, "--fold", 1) == 0
    assert run_command(monkeypatch, "export", run, "--output", package) == 0
    metrics = json.loads(read_package(package).read_file("metrics.json"))
    assert sorted(metrics["dice_a_case"]) == ["case_1", "case_4"]
    assert metrics["mean_dice"] > 0.8
    image = read_volume(data_set / "imagesTr" / "case_1.nii.gz")
    labels = segment(load_model(package, "cpu", "fp32"), [image], SegmentOptions()).labels
    truth = read_volume(data_set / "labelsTr" / "case_1.nii.gz").array
    assert 2 * ((labels.array > 0) & (truth > 0)).sum() / ((labels.array > 0).sum() + (truth > 0).sum()) > 0.8


def test_invalid_arguments_are_refused(plan_file, tmp_path, monkeypatch, capsys):
    occupied, long = tmp_path / "occupied", tmp_path / ("x" * 300)
    occupied.mkdir()
    (occupied / "thesis.txt").write_text("mine", encoding="utf-8")
    several = tmp_path / "plan_crossval"
    several.mkdir()
    (several / "crossval.yaml").touch()
    seeds = tmp_path / "seeds"
    for name in ("seed_1", "seed_0"):
        (seeds / name).mkdir(parents=True)
        (seeds / name / "fold.txt").touch()
    again = f"python -m conresnet_training crossval {several / 'crossval.yaml'} --output {several}"
    for arguments, message in (
        (("train", plan_file, "--output", occupied), message_of("run-exists", path=occupied)),
        (("train", plan_file, "--output", occupied / "thesis.txt" / "run"), "cannot be written"),
        (("train", plan_file, "--output", tmp_path / "run", "--fold", 3), message_of("fold-unknown", fold=3, last=2)),
        (
            ("train", plan_file, "--output", tmp_path / "run", "--set", "training.folds=7"),
            message_of("too-many-folds", cases=6, patients=6, folds=7),
        ),
        (("train", plan_file, "--output", tmp_path / "run", "--data", tmp_path / "gone"), "gone"),
        (
            ("crossval", plan_file, "--output", tmp_path / "run", "--data", tmp_path / "gone"),
            message_of("run-data-not-found", path=tmp_path / "gone", run=tmp_path / "run"),
        ),
        (
            ("crossval", plan_file, "--output", tmp_path / "run", "--folds", "0,9"),
            message_of("fold-unknown", fold=9, last=2),
        ),
        (("resume", occupied), message_of("run-not-found", path=occupied)),
        (("resume", several), message_of("run-is-crossval", path=several, command=again)),
        (("resume", seeds), message_of("run-inside", path=seeds, names="seed_0, seed_1")),
        (("resume", long), message_of("run-unreadable", path=long, reason="File name too long")),
        (("export", occupied, "--output", tmp_path / "package"), message_of("run-not-found", path=occupied)),
        (("plan", occupied, "--output", tmp_path / "p.yaml"), message_of("data-set-not-found", path=occupied)),
    ):
        assert run_command(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error
    assert (occupied / "thesis.txt").read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "run").exists()


def test_segment_missing_in_all_training_cases_is_named(plan_file, data_set, tmp_path, monkeypatch, capsys):
    """Cases without it get a Dice of 1. A rare segment must not prevent training the fold that holds it out."""
    for number in range(1, 6):
        path = data_set / "labelsTr" / f"case_{number}.nii.gz"
        label = read_volume(path).array.T.copy()
        label[label == 2] = 0
        save(label, path)
    for fold in (0, 1):
        run = tmp_path / f"run_{fold}"
        assert run_command(monkeypatch, "train", plan_file, "--output", run, "--fold", fold, "--max-steps", 2) == 0
        errors = capsys.readouterr().err
        assert ("contains Far box, so nothing can be learned" in errors) == (fold == 0)
        events = map(json.loads, (run / PROGRESS_FILE).read_text(encoding="utf-8").splitlines())
        losses = [event["loss"] for event in events if event["event"] == "step"]
        assert losses and all(map(math.isfinite, losses))


def test_target_missing_in_data_set_is_refused(plan_file, data_set, tmp_path, monkeypatch, capsys):
    setting = "targets={Near box: [1], Far box: [7]}"
    expected = message_of("target-unknown", segment="Far box", value=7, known="1, 2")
    for arguments in (
        ("plan", data_set, "--output", tmp_path / "plan_2.yaml"),
        ("train", plan_file, "--output", tmp_path / "run"),
        ("crossval", plan_file, "--output", tmp_path / "folds"),
    ):
        assert run_command(monkeypatch, *arguments, "--set", setting) == 2
        assert expected in capsys.readouterr().err
        assert not arguments[-1].exists()


def test_target_with_the_name_of_another_label_is_refused(plan_file, data_set, tmp_path, monkeypatch, capsys):
    """Two labels were swapped in the data set or in the plan: the model would name them wrong."""
    run = tmp_path / "run"
    assert run_command(monkeypatch, "train", plan_file, "--output", run, "--max-steps", 2) == 0
    own = (data_set / "dataset.json").read_text(encoding="utf-8")
    content = json.loads(own)
    # Another name, or more values, are the user's choice.
    content["labels"] = {"1": "Proximal box", "2": "Far box", "3": "farther"}
    (data_set / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    setting = "targets={Near box: [1], Far box: [2, 3]}"
    assert run_command(monkeypatch, "plan", data_set, "--output", tmp_path / "plan_2.yaml") == 0
    check_target_names(read_data_set(data_set), with_settings(read_plan(plan_file), [setting]))
    assert run_command(monkeypatch, "evaluate", run) == 0
    content["labels"] = {"1": "far Box", "2": "Near box"}
    (data_set / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    expected = message_of("target-of-another-label", segment="Near box", ours="1", theirs="2", data="Boxes")
    for arguments in (
        ("train", plan_file, "--output", tmp_path / "other"),
        ("crossval", plan_file, "--output", tmp_path / "folds"),
        ("export", run, "--output", tmp_path / "package"),
        ("evaluate", run),
        ("resume", run),
    ):
        capsys.readouterr()
        assert run_command(monkeypatch, *arguments) == 2
        assert capsys.readouterr().err.strip().splitlines()[-1] == expected
        assert arguments[-1] == run or not arguments[-1].exists()
    (data_set / "dataset.json").write_text(own, encoding="utf-8")
    arguments = ("--output", tmp_path / "plan_3.yaml", "--set", "targets={Near box: [2], Far box: [1]}")
    assert run_command(monkeypatch, "plan", data_set, *arguments) == 2
    expected = message_of("target-of-another-label", segment="Near box", ours="2", theirs="1", data="Boxes")
    assert capsys.readouterr().err.strip() == expected


def test_inputs_in_other_order_than_channels_are_refused(tmp_path):
    """The package would name the channels by the plan, but get them in the wrong order."""
    folder = decathlon(tmp_path / "set", channels=("T1", "T2"))
    data_set = read_data_set(folder)
    plan = make_plan(data_set, folder)[0]
    first, second = plan.document()["model"]["inputs"]

    def refused(*names: str) -> str:
        inputs = [{**item, "name": name} for item, name in zip((first, second), names, strict=False)]
        changed = plan.model.to_dict() | {"inputs": inputs}
        changed["system"]["networks"][0]["arguments"]["input_channels"] = len(inputs)
        model = parse_description(changed, "model.json")
        with pytest.raises(UserError) as raised:
            check_fits_data(data_set, plan.model_copy(update={"model": model}))
        return raised.value.code

    assert refused("T2", "T1") == refused("FLAIR", "t1") == "input-of-another-channel"
    assert refused("T1") == "inputs-not-channels"
    renamed = {"inputs": (plan.model.inputs[0], replace(plan.model.inputs[1], name="T2 after contrast"))}
    check_fits_data(data_set, plan.model_copy(update={"model": replace(plan.model, **renamed)}))


@pytest.mark.parametrize(
    ("window", "precisions"), [((16, 24, 24), {"32-true"}), ((24, 24, 24), {"32-true", "bf16-mixed"})]
)
def test_precision_on_cpu_gives_correct_gradients(window, precisions):
    assert _precision(choose_backend("cpu"), "auto", window) in precisions


@pytest.mark.parametrize("precision_name", ["bf16-mixed", "16-mixed"])
def test_precision_with_wrong_gradients_on_cpu_is_refused(precision_name):
    cpu, gpu = (Backend(torch.device(kind), "bf16") for kind in ("cpu", "cuda"))
    with refused("bf16-window-too-small", smallest=16):
        _precision(cpu, precision_name, (16, 24, 24))
    assert _precision(cpu, precision_name, (24, 24, 24)) == precision_name
    with pytest.raises(UserError) as raised:
        _precision(cpu, precision_name, (32, 48, 48), 16)
    assert raised.value.values["smallest"] == 32
    assert _precision(gpu, precision_name, (16, 24, 24)) == precision_name


@pytest.mark.parametrize(
    ("system", "side", "precision"),
    [
        ("conresnet", 16, "32-true"),
        ("conresnet", 24, "bf16-mixed"),
        ("pyramid", 32, "32-true"),
        ("pyramid", 48, "bf16-mixed"),
    ],
)
def test_smallest_bf16_window_on_cpu_depends_on_network(data_set, tmp_path, monkeypatch, system, side, precision):
    """If its coarsest convolutions see two voxels."""
    monkeypatch.setattr(
        "conresnet_training.training.processes.choose_backend", lambda device: Backend(torch.device("cpu"), "bf16")
    )
    settings = f"model.inference.window=[{side}, 48, 48]", "training.precision=auto"
    plan = read_plan(write_tiny_plan(data_set, tmp_path / "plan.yaml", *settings, system=system))
    assert make_fabric(Run(tmp_path, plan, 0), 1, 1, "auto").strategy.precision.precision == precision


@pytest.mark.parametrize(
    ("device", "best", "window", "precision"),
    [
        ("cpu", "bf16", (24, 24, 24), "bf16-mixed"),
        ("cpu", "fp32", (24, 24, 24), "32-true"),
        ("cpu", "bf16", (16, 24, 24), "32-true"),
        ("cuda", "bf16", (16, 24, 24), "bf16-mixed"),
        ("cuda", "fp16", (24, 24, 24), "16-mixed"),
        ("cuda", "fp32", (24, 24, 24), "32-true"),
    ],
)
def test_precision_matches_engine_except_for_small_windows_on_cpu(device, best, window, precision):
    assert _precision(Backend(torch.device(device), best), "auto", window) == precision


@pytest.mark.parametrize(
    ("device", "devices", "trained_on"),
    [("auto", 1, [0]), ("cuda", 2, [0, 1]), ("cuda:2", 1, [2]), ("cuda:1", 2, [1, 2]), ("cuda:2", 2, None)],
)
def test_gpus_are_chosen_by_index(plan_file, tmp_path, monkeypatch, device, devices, trained_on):
    """On a simulated computer with three of them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr("lightning_fabric.accelerators.cuda._get_all_visible_cuda_devices", lambda: [0, 1, 2])
    monkeypatch.setattr("lightning_fabric.accelerators.cuda.num_cuda_devices", lambda: 3)
    run = Run(tmp_path, read_plan(plan_file), 0)
    if trained_on is None:
        with refused("devices-not-available"):
            make_fabric(run, devices, 1, device)
        return
    strategy = make_fabric(run, devices, 1, device).strategy
    used = [strategy.root_device] if devices == 1 else strategy.parallel_devices
    assert used == [torch.device("cuda", index) for index in trained_on]


@pytest.mark.parametrize(("device", "code"), [("cuda:99", "device-unavailable"), ("gpu", "device-unknown")])
def test_unavailable_device_is_refused_before_the_run_starts(plan_file, tmp_path, monkeypatch, capsys, device, code):
    assert run_command(monkeypatch, "train", plan_file, "--output", tmp_path / "run", "--device", device) == 2
    assert message_of(code, device=device, torch=torch.__version__) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
