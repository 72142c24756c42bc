"""``segment`` killed at any point while it replaces the results of an earlier run."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
from campaign_images import model
from robustness import Outcome, Trial, campaign

from conresnet.images.files import write_volume
from conresnet.request import SegmentOptions
from conresnet.results import REPORT_FILE, check_replaceable, filling, result_files
from engine.volumes import grid, random_volume

PRELOADED = ("conresnet.cli", "conresnet.inference.segmentation", "conresnet.images.files")
OLD, NEW = SegmentOptions(maps=("residual", "attention")), ("residual",)


@campaign("results", full=100)
def results(chance: random.Random, folder: Path) -> Trial:
    """Overwrite an earlier run's results, usually killed in between."""
    volume = random_volume(grid((20, 20, 20)), seed=chance.randrange(1000))
    write_volume(volume.array, volume.grid, folder / "image.nii")
    output = folder / "output"
    with filling(output, OLD, overwrite=True) as temporary:
        for name in result_files(OLD):
            (temporary / name).write_text("old")
        report = {"conresnet": "", "model": {}, "volumes_ml": {}, "files": result_files(OLD)}
        (temporary / REPORT_FILE).write_text(json.dumps(report))
    (output / "notes.txt").write_text("not ours")
    command = ("conresnet", "segment", folder / "image.nii", "--model", model(), "--output", output, "--overwrite")
    options = ("--maps", ",".join(NEW), "--threads", 1)
    # Replacing the results makes 35 changes.
    kill_at = chance.choice((None, *[chance.randrange(42)] * 5))
    settings = {"preload": PRELOADED, "kill_at": kill_at}
    return Trial((*command, *options), check=lambda outcome: problems(output, outcome), **settings)


def problems(output: Path, outcome: Outcome) -> list[str]:
    """Problems with the folder after the command, and after the next run has checked it."""
    found = []
    names = {path.name for path in output.iterdir() if path.is_file()}
    if REPORT_FILE in names:
        found += mixture(output)
    check_replaceable(output, SegmentOptions(), overwrite=True)
    # The next run restores what was incomplete. It is ended here before it writes anything.
    try:
        with filling(output, SegmentOptions(), overwrite=True):
            found += [] if REPORT_FILE in {path.name for path in output.iterdir()} else ["the old results are lost"]
            found += mixture(output)
            raise KeyError
    except KeyError:
        pass
    left = sorted(path.name for path in output.iterdir() if path.name.startswith("."))
    found += [f"left behind: {', '.join(left)}"] if left else []
    found += [] if (output / "notes.txt").read_text() == "not ours" else ["another file was changed"]
    return found


def mixture(output: Path) -> list[str]:
    """A problem if the files are not those of the report."""
    report = json.loads((output / REPORT_FILE).read_text(encoding="utf-8"))
    texts = {name: (output / name).read_bytes()[:3] == b"old" for name in report["files"] if name != REPORT_FILE}
    is_old = report["conresnet"] == ""
    return [] if np.all([was_old == is_old for was_old in texts.values()]) else [f"a mixture of runs: {texts}"]
