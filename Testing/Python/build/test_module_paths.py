"""README's instructions for a Mac without the catalog: the paths exist, and Slicer works with them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from conresnet.needs import ENGINE_PACKAGES

CLONE = "~/SlicerConResNet/"


def test_mac_instructions_give_two_modules_and_an_engine_in_another_python(
    repository: Path, tmp_path: Path, hippocampus_image: Path
) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    lines, paths = re.search(r"On a Mac.*?```\n(.*?)```(.*?)restart Slicer", readme, re.DOTALL).groups()
    clone, environment = lines.strip().splitlines()
    assert clone.strip().endswith(CLONE.rstrip("/"))
    assert dict(re.findall(r'"(\w+)>=([\d.]+)"', environment)) == ENGINE_PACKAGES
    folder = tmp_path / "SlicerConResNet"
    folders = [path.removeprefix(CLONE) for path in re.findall(rf"{CLONE}\w+", paths)]
    for name in folders:
        shutil.copytree(repository / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    script = Path(__file__).with_name("run_module_paths.py")
    finished = subprocess.run(
        [sys.executable, script, sys.executable, hippocampus_image, *(folder / name for name in folders)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository / "Testing" / "SlicerHost"), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    report = json.loads(finished.stdout.splitlines()[-1])
    assert report["modules"] == ["ConResSegmentation", "ConResTraining"]
    assert {name for name, file in report["files"].items() if not file.startswith(str(folder))} == set()
    assert report["program"] == sys.executable
    assert report["status"].startswith("Done in") and "Anterior hippocampus 1.84 mL" in report["status"]
