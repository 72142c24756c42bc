"""Running nnU-Net for the benchmarks: an environment of its own, our data set in its layout, and our folds.

nnunet_side.py runs in a process of that environment, so our packages and nnU-Net's need not agree. Run as a program,
this creates the environment (``make benchmarks``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click

from conresnet.images.files import read_channels, write_volume
from conresnet_training.data import DataSet
from conresnet_training.planning.plan import Plan
from conresnet_training.runs.run import split

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENT = ROOT / ".venv-nnunet"
PINS = ROOT / "requirements"
REQUIREMENTS = HERE / "requirements.txt"
CONSTRAINTS = tuple(PINS / f"{name}.txt" for name in ("constraints", "engine", "tests", "torch", "training"))
DATA_SET = "Dataset001_Benchmark"
SUFFIX = ".nii.gz"


def environment_python() -> Path:
    """Python of nnU-Net's environment, which is created if it is missing or its requirements have changed."""
    python = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = ENVIRONMENT / "ready"
    wanted = "".join(path.read_text(encoding="utf-8") for path in (REQUIREMENTS, *CONSTRAINTS))
    if not ready.exists() or ready.read_text(encoding="utf-8") != wanted:
        click.echo(f"... installing nnU-Net in {ENVIRONMENT.name}/", err=True)
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        constraints = [part for path in CONSTRAINTS for part in ("-c", path)]
        # torch is installed first and separately, so that a CPU build that pip finds first is kept.
        for path in (PINS / "torch.txt", REQUIREMENTS):
            subprocess.run([*install, *constraints, "-r", path], check=True, stdout=sys.stderr)
        ready.write_text(wanted, encoding="utf-8")
    return python


class Workplace:
    """A folder in which nnU-Net finds a data set and writes its own files.

    Args:
        folder: created if it does not exist.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.raw = self.folder / "nnunet_raw" / DATA_SET
        self.preprocessed = self.folder / "nnunet_preprocessed" / DATA_SET
        self.plans_file = self.preprocessed / "nnUNetPlans.json"
        self._variables = {
            "nnUNet_raw": str(self.raw.parent),
            "nnUNet_preprocessed": str(self.preprocessed.parent),
            "nnUNet_results": str(self.folder / "nnunet_results"),
            "nnUNet_def_n_proc": "1",
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("ConResSegmentation", "ConResTraining")),
        }

    def run(self, *command: str | Path, workers: int = 1, **options) -> subprocess.CompletedProcess:
        """Run a Python command line in nnU-Net's environment.

        Args:
            workers: processes that prepare samples; 0, which planning does not accept, is the training process itself.

        Raises:
            CalledProcessError: the command failed.
        """
        environment = {**os.environ, **self._variables, "nnUNet_n_proc_DA": str(workers)}
        return subprocess.run([environment_python(), *command], check=True, env=environment, **options)

    def prepare(self, data_set: DataSet, plan: Plan) -> dict:
        """Convert the data set and all folds of the plan to nnU-Net's layout, and let nnU-Net plan and preprocess.

        Steps that are done already are not repeated.

        Returns:
            nnU-Net's own plan for 3d_fullres.
        """
        done = self.folder / "nnunet_preprocessed" / "done"
        if not done.exists():
            write_raw(data_set, self.raw)
            steps = "extract_fingerprint_entry", "plan_experiment_entry", "preprocess_entry"
            options = [["-np", "1"], [], ["-np", "1", "-c", "3d_fullres"]]
            for step, more in zip(steps, options, strict=True):
                call = f"from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import {step}; {step}()"
                self.run("-c", call, "-d", "1", *more, stdout=sys.stderr)
            done.touch()
        folds = [split(data_set, plan, fold) for fold in range(plan.training.folds)]
        splits = [{"train": [case.name for case in used], "val": [case.name for case in left]} for used, left in folds]
        (self.preprocessed / "splits_final.json").write_text(json.dumps(splits, indent=1), encoding="utf-8")
        return self._plans()["configurations"]["3d_fullres"]

    def change(self, **settings) -> None:
        """Change settings of nnU-Net's own plan for 3d_fullres, such as ``batch_size``."""
        plans = self._plans()
        plans["configurations"]["3d_fullres"] |= settings
        self.plans_file.write_text(json.dumps(plans, indent=1), encoding="utf-8")

    def _plans(self) -> dict:
        return json.loads(self.plans_file.read_text(encoding="utf-8"))


def write_raw(data_set: DataSet, folder: Path) -> None:
    """Write a data set in nnU-Net's layout, with one file per channel; existing files are linked where possible.

    Raises:
        ClickException: the data set has regions, which this layout does not support, or its labels are not 1, 2, 3,
            ..., which nnU-Net refuses.
    """
    if data_set.regions:
        raise click.ClickException(f"The regions of {data_set.name} may overlap; choose a data set with plain labels.")
    if sorted(data_set.labels) != list(range(1, len(data_set.labels) + 1)):
        values = ", ".join(map(str, sorted(data_set.labels)))
        raise click.ClickException(f"nnU-Net accepts only consecutive label values 1, 2, 3, ...; these are {values}.")
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for case in data_set.cases:
        images = [
            folder / "imagesTr" / f"{case.name}_{channel:04}{SUFFIX}" for channel in range(len(data_set.channels))
        ]
        _lay(case.images, images, data_set.channels)
        _lay([case.label], [folder / "labelsTr" / f"{case.name}{SUFFIX}"], ["label"])
    description = {
        "channel_names": {str(channel): name for channel, name in enumerate(data_set.channels)},
        "labels": {"background": 0, **{name: value for value, name in sorted(data_set.labels.items())}},
        "numTraining": len(data_set.cases),
        "file_ending": SUFFIX,
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1), encoding="utf-8")


def _lay(sources, places, channels) -> None:
    if len(sources) == len(places) and all(source.name.endswith(SUFFIX) for source in sources):
        for source, place in zip(sources, places, strict=True):
            place.unlink(missing_ok=True)
            place.symlink_to(source.resolve())
        return
    for volume, place in zip(read_channels(list(sources), list(channels)), places, strict=True):
        write_volume(volume.array, volume.grid, place)


if __name__ == "__main__":
    environment_python()
