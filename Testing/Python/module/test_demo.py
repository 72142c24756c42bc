"""``make demo`` writes all files that the documentation lists."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import SimpleITK as sitk


@pytest.mark.slow
def test_demo_writes_segments_maps_surfaces_and_pictures(
    repository: Path, hippocampus_image: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "demo ü"
    command = [sys.executable, str(repository / "Testing" / "Demo" / "demo.py"), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, encoding="utf-8")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    case = sitk.ReadImage(str(hippocampus_image))
    for name, components in (("segmentation.seg", None), ("residual", 2), ("attention", 1)):
        image = sitk.ReadImage(str(folder / f"{name}.nrrd"))
        if components:
            assert image.GetNumberOfComponentsPerPixel() == components
            assert image.GetSize() == case.GetSize()
            assert max(abs(a - b) for a, b in zip(image.GetOrigin(), case.GetOrigin(), strict=True)) < 1e-4
    assert len(list(folder.glob("*.stl"))) == 2
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Anterior hippocampus" in page and "hippocampus_004" not in page and page.count("data:image/png") > 5
    assert (folder / "review.csv").read_text(encoding="utf-8").startswith("rank,kind,segment,slice,")
    assert len((folder / "statistics.csv").read_text(encoding="utf-8").splitlines()) == 3
    pictures = ("views", "surfaces", "volume_rendering", "whole_head", "brain_structures", "brain_tissue", "panel")
    for name in (f"{picture}.png" for picture in (*pictures, "synthetic_ct")):
        assert matplotlib.image.imread(folder / name)[..., :3].std() > 0.05, f"{name} is empty"
