"""Benchmark of windows: the model's own come first, and others are compared with them case by case."""

import json
import shutil

import pytest


@pytest.mark.slow
def test_other_windows_are_compared_with_the_models_own(run_benchmark, repository):
    data = repository / "Testing" / "Data" / "MSD_Task04_Hippocampus"
    options = ("--model", "hippocampus", "--window", "40,56,40", "--window", "16,24,16", "--overlap", "0.25")
    own, same, small = run_benchmark("window_overlap.py", data, *options).stdout.splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (own, same, small)]
    assert [row[:2] for row in cells] == [["40 x 56 x 40", "0.5"], ["40 x 56 x 40", "0.25"], ["16 x 24 x 16", "0.25"]]
    # A crop fits into one window, so that the overlap changes nothing.
    assert cells[0][3] == cells[1][3] and float(cells[0][3]) > 0.8
    assert float(cells[2][3]) < float(cells[0][3]) and cells[2][4].startswith("-")


@pytest.mark.slow
def test_models_are_compared_with_and_without_their_coarse_look(run_benchmark, repository, tmp_path):
    data = tmp_path / "heads"
    for kind, name in (("imagesTr", "IXI034.nii.gz"), ("labelsTr", "IXI034_tissue.nii.gz")):
        (data / kind).mkdir(parents=True)
        shutil.copy(repository / "Testing" / "Data" / "IXI_T1_2mm" / name, data / kind / "IXI034.nii.gz")
    labels = {"0": "background", "1": "CSF", "2": "Gray matter", "3": "White matter"}
    description = {"name": "heads", "modality": {"0": "MR"}, "labels": labels}
    files = {"image": "./imagesTr/IXI034.nii.gz", "label": "./labelsTr/IXI034.nii.gz"}
    (data / "dataset.json").write_text(json.dumps({**description, "numTraining": 1, "training": [files]}))
    options = ("--model", "brain-tissue", "--coarse-look", "none")
    rows = run_benchmark("window_overlap.py", data, *options).stdout.splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in rows]
    assert [row[2] for row in cells] == ["1.5, 16 mm", "none"]
    assert all(0.86 < float(row[3]) < 0.88 for row in cells) and cells[0][3] != cells[1][3]
