"""The check of training's requirements in the Python that runs it."""

import importlib.metadata
import os
import subprocess
import sys

import monai
import pytest

from conresnet.needs import TRAINING_PACKAGES, report
from training.commands import message_of
from training.tiny_plan import write_tiny_plan


def imported():
    """The report of what training needs from this Python."""
    return report(TRAINING_PACKAGES, really_import=True)


def test_outdated_package_is_a_problem(monkeypatch):
    fine = imported()
    assert fine["problems"] == {} and list(fine["packages"]) == list(TRAINING_PACKAGES)
    monkeypatch.setattr(monai, "__version__", "1.3.2")
    assert imported()["problems"] == {"monai": "1.3.2 is too old"}


def test_partially_removed_package_is_a_problem(tmp_path, monkeypatch):
    (tmp_path / "jinja2").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "jinja2", raising=False)
    assert imported()["problems"]["Jinja2"] == "only parts of it are installed"


HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in "{names}".split():
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Hidden())
"""


@pytest.mark.parametrize(
    ("modules", "names"),
    [
        ("monai", "monai"),
        ("scipy yaml jinja2", "PyYAML scipy Jinja2"),
        pytest.param("tensorboard", "tensorboard", marks=pytest.mark.slow),
    ],
)
def test_missing_packages_are_named_together_and_no_run_folder_remains(data_set, tmp_path, modules, names):
    plan, run = write_tiny_plan(data_set, tmp_path / "plan.yaml"), tmp_path / "run"
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(HIDE.replace("{names}", modules), encoding="utf-8")
    places = [str(tmp_path / "hide"), *(part for part in sys.path if part)]
    done = subprocess.run(
        [sys.executable, "-m", "conresnet_training", "train", plan, "--output", run],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    expected = message_of("training-packages-missing", names=names, python=sys.executable)
    assert (done.returncode, done.stderr.strip()) == (2, expected) and not run.exists()


def test_a_package_whose_version_is_unknown_is_no_problem(monkeypatch):
    def unknown(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.delattr(monai, "__version__")
    monkeypatch.setattr(importlib.metadata, "version", unknown)
    found = imported()
    assert found["packages"]["monai"] == "" and "monai" not in found["problems"]
