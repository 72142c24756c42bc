"""Errors that ``segment`` reports before it imports torch, which takes seconds, and their priority."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conresnet.cli import main
from conresnet.package.store import find_model
from engine.test_dicom_series import write_series

# In a separate process, because torch is already imported in this one.
_CODES = """
import json, sys
from conresnet.cli import conresnet
from conresnet.errors import UserError

codes = []
for arguments in json.load(sys.stdin):
    try:
        conresnet.main(["segment", *arguments], standalone_mode=False)
    except UserError as error:
        codes.append(error.code)
slow = {"torch", "monai", "SimpleITK"} & set(sys.modules)
print(json.dumps([codes, sorted(slow)]))
"""


def test_errors_are_reported_without_importing_torch(hippocampus_image: Path, data_folder: Path, tmp_path: Path):
    taken, file = tmp_path / "taken", tmp_path / "file.txt"
    taken.mkdir()
    (taken / "segmentation.nii.gz").write_text("mine")
    file.write_text("text")
    lists = {"good": "name,T1\na,a.nii", "bad": "name\na"}
    for name, text in lists.items():
        (tmp_path / f"{name}.csv").write_text(text)
    odd = shutil.copytree(find_model("hippocampus"), tmp_path / "odd") / "model.json"
    odd.write_text(odd.read_text(encoding="utf-8").replace('"type": "conresnet"', '"type": "other"'), encoding="utf-8")
    image, model, new = [hippocampus_image], ["--model", "hippocampus"], ["--output", tmp_path / "new"]
    earlier = ["--output", taken]
    # If the output folder already has results, another error is more helpful.
    expected = [
        ([*image, *model, *earlier], "results-exist"),
        ([*image, *model, *earlier, "--overwrite"], "results-not-ours"),
        ([*image, "--model", "hippocampos", *earlier], "model-not-found-near"),
        ([tmp_path / "missing.nii", *model, *earlier], "image-not-found"),
        ([*image, *image, *model, *earlier], "wrong-channel-count"),
        ([*image, *model, *earlier, "--roi", "1,2"], "bad-roi"),
        ([*image, *model, *earlier, "--roi", "missing.mrk.json"], "roi-not-found"),
        ([*image, "--model", "brain-tissue", *earlier, "--roi", "auto"], "no-locator"),
        ([*image, *model, *earlier, "--maps", "foo"], "map-unknown"),
        ([*image, *model, *earlier, "--maps", "disagreement"], "map-unavailable"),
        ([*image, "--model", odd.parent, *earlier, "--maps", "residual"], "network-unknown"),
        ([*image, *model, *earlier, "--device", "gpu"], "device-unknown"),
        ([*image, *model, *earlier, "--device", "cpu", "--precision", "fp16"], "precision-unavailable"),
        ([*image, *model, *earlier, "--drop-below", "nan"], "volume-not-positive"),
        ([*image, *model, "--output", file], "output-not-folder"),
        ([*image, *model, "--output", file / "below"], "cannot-write"),
        (["--cases", tmp_path / "missing.csv", *model, *new], "cases-unreadable"),
        (["--cases", tmp_path / "bad.csv", *model, *new], "cases-columns"),
        (["--cases", tmp_path / "good.csv", *model, "--output", file / "below"], "cannot-write"),
        (["--cases", tmp_path / "good.csv", *model, *new, "--maps", "foo", "--jobs", "2"], "map-unknown"),
    ]
    commands = json.dumps([[str(word) for word in arguments] for arguments, _ in expected])
    process = subprocess.run(
        [sys.executable, "-c", _CODES], input=commands, capture_output=True, text=True, timeout=100
    )
    codes, slow = json.loads(process.stdout)
    assert codes == [code for _, code in expected] and not slow
    assert not (tmp_path / "new").exists() and (taken / "segmentation.nii.gz").read_text() == "mine"


def test_slices_of_a_series_suggest_its_folder(tmp_path: Path, capsys):
    write_series(tmp_path / "ct")
    arguments = [*(tmp_path / "ct").iterdir(), "--model", "head-neck-organs", "--output", tmp_path / "new"]
    assert main(["segment", *map(str, arguments)]) == 2
    assert capsys.readouterr().err.endswith("To segment a DICOM series, give its folder instead of its slices.\n")


@pytest.mark.parametrize(("count", "unnamed"), [(12, "and 4 more"), (9, "and 1 more")])
def test_several_images_suggest_a_list_of_cases(hippocampus_image: Path, tmp_path: Path, capsys, count, unnamed):
    images = [hippocampus_image] * count
    assert main(["segment", *map(str, images), "--model", "hippocampus", "--output", str(tmp_path / "new")]) == 2
    message = capsys.readouterr().err
    assert str(count) in message and unnamed in message and message.endswith("list them with --cases.\n")


def test_folder_of_image_files_suggests_a_list_of_cases(hippocampus_image: Path, tmp_path: Path, capsys):
    arguments = [hippocampus_image.parent, "--model", "hippocampus", "--output", tmp_path / "new"]
    assert main(["segment", *map(str, arguments)]) == 2
    message = capsys.readouterr().err
    assert "hippocampus_004.nii.gz" in message and "--cases" in message
