"""The comparison with nnU-Net: our data sets in its layout and, if its environment exists, nnU-Net itself."""

import json
import subprocess

import click
import nibabel
import numpy as np
import pytest

from conresnet_training.data.layouts import read_data_set
from conresnet_training.evaluation import read_evaluation
from training.data_folders import brats, decathlon, nnunet


def test_files_are_linked_and_described(benchmark, boxes, tmp_path):
    benchmark("nnunet_tools").write_raw(read_data_set(boxes), tmp_path / "raw")
    image = tmp_path / "raw" / "imagesTr" / "case_0_0000.nii.gz"
    assert image.resolve() == (boxes / "imagesTr" / "case_0.nii.gz").resolve()
    assert json.loads((tmp_path / "raw" / "dataset.json").read_text()) == {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "Near box": 1, "Far box": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }


def test_channels_of_one_file_become_separate_files(benchmark, tmp_path):
    data = decathlon(tmp_path / "data", channels=("T1", "T2"))
    benchmark("nnunet_tools").write_raw(read_data_set(data), tmp_path / "raw")
    whole = nibabel.load(data / "imagesTr" / "case_2.nii.gz")
    for channel in range(2):
        part = nibabel.load(tmp_path / "raw" / "imagesTr" / f"case_2_{channel:04}.nii.gz")
        assert np.array_equal(part.get_fdata(), whole.get_fdata()[..., channel])
        assert np.allclose(part.affine, whole.affine)


def test_data_unsuitable_for_a_fair_nnunet_training_are_refused(benchmark, tmp_path):
    write_raw = benchmark("nnunet_tools").write_raw
    with pytest.raises(click.ClickException, match="regions"):
        write_raw(read_data_set(brats(tmp_path / "brats")), tmp_path / "raw")
    gap = nnunet(tmp_path / "gap", labels={"background": 0, "near": 1, "far": 3})
    with pytest.raises(click.ClickException, match="these are 1, 3"):
        write_raw(read_data_set(gap), tmp_path / "raw")


@pytest.fixture
def needs_nnunet(benchmark):
    """Skip without nnU-Net's environment: it takes 2 GB and minutes, so the tests do not create it."""
    if not (benchmark("nnunet_tools").ENVIRONMENT / "ready").exists():
        pytest.skip("nnU-Net's environment .venv-nnunet/ does not exist; make benchmarks creates it")


@pytest.mark.slow
def test_nnunet_trains_on_our_fold_and_is_evaluated_like_our_runs(needs_nnunet, run_benchmark, plan_file, tmp_path):
    output = tmp_path / "nnunet"
    options = [plan_file, "--fold", 2, "--batch", 2, "--samples", 4, "--output", output]
    assert "nnU-Net made 2 steps of 2 windows" in run_benchmark("nnunet.py", *options).stderr
    splits = json.loads(next(output.rglob("splits_final.json")).read_text())
    assert splits[2] == {"train": ["case_0", "case_1"], "val": ["case_2"]}
    evaluation = read_evaluation(output / "evaluation")
    assert list(evaluation.cases) == ["case_2"]
    assert evaluation.segments == ("Near box", "Far box")


@pytest.mark.slow
def test_nnunets_trainer_runs_our_network(needs_nnunet, run_benchmark, plan_file, tmp_path):
    options = ["--steps", 2, "--warm-up", 1, "--rounds", 1, "--workers", 0, "--workers", 1]
    run_benchmark("training_throughput.py", plan_file, *options, "--output", tmp_path / "measured.json")
    rates = json.loads((tmp_path / "measured.json").read_text())["samples_per_second"]
    assert list(rates) == ["plain", "ours, 0 workers", "ours, 1 workers", "nnU-Net, 0 workers", "nnU-Net, 1 workers"]
    assert all(rate > 0 for way in rates.values() for rate in way)


@pytest.mark.slow
def test_stages_agree_with_nnunet(needs_nnunet, benchmark):
    questions = [((s, 160, 96), (spacing, 0.7, 0.9)) for s in (12, 24, 48) for spacing in (0.8, 1.5, 4)]
    ask = (
        "import json, sys\n"
        "from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props\n"
        "answers = [get_pool_and_conv_props(s, w, 4, 999)[1:3] for w, s in json.loads(sys.argv[1])]\n"
        "print(json.dumps([[[list(map(int, row)) for row in part] for part in answer] for answer in answers]))"
    )
    command = [benchmark("nnunet_tools").environment_python(), "-c", ask, json.dumps(questions)]
    answers = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1])
    stages = benchmark("peer_networks").nnunet_stages
    assert [list(stages(*question)) for question in questions] == answers
