"""A network and a system in an external package, found by entry points: planned, trained, exported, installed, used."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from conresnet.cli import main as conresnet_main
from conresnet.images.files import read_volume
from conresnet.package.reader import read_package
from training.broken_runs import checkpoint

NETWORK = """
from torch import nn

from conresnet.networks import register_network


@register_network("tinynet", provides={"attention": True}, window=(16, 16, 16), plans={
    "tiny": {"title": "Tiny network", "sentence": "Two convolutions.", "arguments": {"depth": 2}},
})
class TinyNet(nn.Module):
    provides = frozenset({"segmentation", "attention"})
    stages = 1

    def __init__(self, input_channels, outputs, base_width=8, depth=1):
        super().__init__()
        self.input_channels = input_channels
        steps = [nn.Conv3d(input_channels, base_width, 3, padding=1)]
        steps += [nn.Sequential(nn.ReLU(), nn.Conv3d(base_width, base_width, 3, padding=1)) for _ in range(depth - 1)]
        self.body, self.head = nn.Sequential(*steps), nn.Conv3d(base_width, outputs, 1)

    def forward(self, x, wanted=("segmentation",)):
        y = self.body(x)
        given = {"segmentation": lambda: self.head(y), "attention": lambda: y.mean(1, keepdim=True).sigmoid()}
        return {name: given[name]() for name in wanted if name in given}
"""
SYSTEM = """
from dataclasses import dataclass

from conresnet.package.schema import field
from conresnet.systems import Single, register_system


@dataclass(frozen=True)
class Arguments:
    patience: int = field("how often it looks", default=3, low=1, high=9)


@register_system("patient")
class Patient(Single):
    Arguments = Arguments
    plans = {"patient": {"title": "Patient", "sentence": "Tiny network, alone.", "network": "tinynet"}}
"""
ENTRY_POINTS = """
[conresnet.networks]
tinynet = outside.network
gone = outside.nothing
plain = outside
broken = outside.broken

[conresnet.systems]
patient = outside.system
single = outside.single
"""
WARNINGS = {
    "gone": "there is no module outside.nothing",
    "plain": "outside has no @register_network",
    "broken": "broken.py, line 1",
    "single": "'single' is already registered by conresnet.systems",
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the installed package, as created by pip."""
    site = tmp_path / "site"
    for name, text in {
        "outside/__init__.py": "raise ImportError('reading a declaration must not import the package')",
        "outside/network.py": NETWORK,
        "outside/system.py": SYSTEM,
        "outside/broken.py": "@register_network('broken', window=",
        "outside/single.py": "@register_system('single')\nclass Another: ...",
        "outside-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n",
        "outside-1.0.dist-info/entry_points.txt": ENTRY_POINTS,
    }.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text, encoding="utf-8")
    return site


def run_python(site: Path, *arguments: object) -> subprocess.CompletedProcess:
    """Python with the package installed."""
    folders = [str(site), *(path for path in sys.path if path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done


def run_commands(site: Path, group: str, *commands: Sequence[object]) -> subprocess.CompletedProcess:
    """Run several commands in one process, because importing torch takes most of their time."""
    module, _, name = group.rpartition(".")
    lines = [f"import sys; from {module} import {name}; from conresnet.cli import main"]
    lines += [f"sys.argv = {[group, *map(str, command)]}; assert main(None, {name}) == 0" for command in commands]
    return run_python(site, "-c", "\n".join(lines))


def test_network_and_system_of_external_package_work(site, data_set, tmp_path, capsys):
    (site / "outside" / "__init__.py").write_text("", encoding="utf-8")
    plan, run, package, output = (tmp_path / name for name in ("plan.yaml", "run", "package", "out"))
    settings = ["training.steps=5", "training.folds=3", "training.workers=0", "training.optimizer=sgd"]
    options = [part for setting in settings for part in ("--set", setting)]
    made = run_commands(
        site,
        "conresnet_training.cli.conresnet_training",
        ["plan", data_set, "--output", plan, "--system", "patient", *options],
        ["train", plan, "--output", run],
        ["export", run, "--output", package, "--name", "tiny"],
    )
    assert "Tiny network, alone." in made.stdout
    assert checkpoint(run)["optimizer"]["param_groups"][0]["momentum"] == 0.9
    system = read_package(package).description.system
    assert (system.type, system.networks[0].type, system.arguments) == ("patient", "tinynet", {"patience": 3})
    assert system.networks[0].arguments == {"input_channels": 1, "outputs": 3, "base_width": 16, "depth": 1}
    image = data_set / "imagesTr" / "case_0.nii.gz"
    segmented = "segment", image, "--model", "tiny", "--maps", "attention", "--output", output, "--threads", "1"
    run_commands(site, "conresnet.cli.conresnet", ["models", "install", package], segmented)
    attention = read_volume(output / "attention.nii.gz").array
    assert attention.shape == read_volume(image).array.shape and np.ptp(attention) > 0
    # Without the package, as in this process, the engine reports what is missing.
    assert conresnet_main([*map(str, segmented), "--overwrite"]) == 2
    assert "needs the system patient" in capsys.readouterr().err


def test_declarations_are_read_without_import_and_broken_ones_get_a_warning(site):
    program = """
import sys
for name in ("torch", "numpy", "SimpleITK", "pydantic"):
    sys.modules[name] = None
import logging
logging.basicConfig(format="%(message)s")
from conresnet.networks import network_names, provided_outputs
from conresnet_training.planning.systems import SYSTEMS
print(sorted(provided_outputs("tinynet", {})), network_names(), SYSTEMS["tiny"].title, "patient" in SYSTEMS)
network_names()
"""
    done = run_python(site, "-c", program)
    assert done.stdout.startswith("['attention', 'segmentation']")
    assert "'tinynet'" in done.stdout and "'broken'" not in done.stdout
    # A system's file must be imported, which this package prevents.
    assert done.stdout.rstrip().endswith("Tiny network False")
    warnings = [line for line in done.stderr.splitlines() if "is ignored" in line]
    assert len(warnings) == len(WARNINGS)
    for point, reason in WARNINGS.items():
        (line,) = [line for line in warnings if f"The entry point {point} of the package outside is ignored" in line]
        assert reason in line
    assert "The system patient is not available" in done.stderr
