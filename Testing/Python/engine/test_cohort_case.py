"""One case of a cohort, in this process: when earlier results match the request, and when they are replaced."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from conresnet.cli import cohort
from conresnet.cli.cases import ListedCase
from conresnet.errors import UserError
from conresnet.images.files import write_volume
from conresnet.package.store import SHIPPED_FOLDER, digest_with_locator
from conresnet.request import SegmentOptions
from engine.model_cases import description, write_model
from engine.volumes import grid, random_volume


@pytest.fixture
def job(tmp_path: Path) -> cohort.Job:
    """A case without results when its cohort was started."""
    image, model = tmp_path / "image.nii", tmp_path / "model"
    write_model(model, description())
    write_volume(random_volume(grid((12, 12, 12))).array, grid((12, 12, 12)), image)
    (tmp_path / ".cohort").mkdir()
    case, options = ListedCase("case", (image,), ""), SegmentOptions(review=True, threads=1)
    return cohort.Job(case, model, options, tmp_path, False, (image,), had_results=False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fast": True}, "(--fast differs)"),
        ({"drop_below": 0.5}, "(--drop-below differs)"),
        ({"roi": "-30,30,-60,60,-60,60"}, "(the ROI differs)"),
        ({"maps": ("residual",)}, "(without residual.nii.gz)"),
    ],
)
def test_results_with_other_options_are_not_reused(data_folder, tmp_path, change, named) -> None:
    image = data_folder / "MSD_Task04_Hippocampus" / "imagesTr" / "hippocampus_004.nii.gz"
    options = SegmentOptions(review=True, threads=1)

    def segment(roi: str = "", **changes: object) -> cohort.Outcome:
        case, model = ListedCase("case", (image,), roi), SHIPPED_FOLDER / "hippocampus"
        return cohort.segment_case(cohort.Job(case, model, replace(options, **changes), tmp_path, False, (image,)))

    (tmp_path / ".cohort").mkdir()
    assert segment().state == cohort.DONE
    assert segment().state == segment(threads=2, device="cpu").state == cohort.SKIPPED
    other = segment(**change)
    assert other.state == cohort.FAILED and "--overwrite" in other.problem.sentence, other
    assert named in other.problem.sentence


def test_results_of_another_image_or_model_are_not_reused(job) -> None:
    """With the same paths, names and version."""
    (image,), model = job.case.images, job.model

    def segment(overwrite: bool = False) -> cohort.Outcome:
        return cohort.segment_case(replace(job, overwrite=overwrite, had_results=True))

    assert segment().state == cohort.DONE and segment().state == cohort.SKIPPED
    write_volume(random_volume(grid((12, 12, 12)), seed=7).array, grid((12, 12, 12)), image)
    stale = segment()
    assert stale.state == cohort.FAILED and f"because {image} changed" in stale.problem.sentence
    assert "--overwrite" in stale.problem.sentence and segment(overwrite=True).state == cohort.DONE
    shutil.rmtree(model)
    write_model(model, description(), seed=5)
    stale = segment()
    assert stale.state == cohort.FAILED and "because the model test changed" in stale.problem.sentence
    assert segment(overwrite=True).state == cohort.DONE
    # Results are kept when their images are removed.
    image.unlink()
    assert segment().state == cohort.SKIPPED
    report = job.folder / "report.json"
    old = json.loads(report.read_text(encoding="utf-8"))
    del old["sources"]
    report.write_text(json.dumps(old), encoding="utf-8")
    assert "--overwrite" in segment().problem.sentence, "as in reports of version 0.1"


def test_case_counts_as_segmented_if_worker_was_killed_before_reporting(job) -> None:
    """It counts as segmented in this run, and its picture is drawn."""
    first, picture = cohort.segment_case(job), job.output / ".cohort" / "case.png"
    picture.unlink()
    retried = cohort.segment_case(job)
    assert (retried.state, retried.volumes_ml) == (cohort.DONE, first.volumes_ml)
    assert picture.exists()
    assert cohort.segment_case(replace(job, had_results=True)).state == cohort.SKIPPED


def test_results_written_by_a_concurrent_command_are_kept(job, monkeypatch) -> None:
    segment = cohort.segment_to_folder

    def twice(*arguments: object) -> object:
        monkeypatch.undo()
        assert cohort.segment_case(job).state == cohort.DONE
        return segment(*arguments)

    monkeypatch.setattr(cohort, "segment_to_folder", twice)
    outcome = cohort.segment_case(job)
    assert (outcome.state, outcome.problem) == (cohort.SKIPPED, None)


def test_restored_results_are_checked_like_others(job, monkeypatch) -> None:
    """A run that was killed while it replaced them is undone only when the case starts."""
    assert cohort.segment_case(job).state == cohort.DONE
    (image,), away = job.case.images, job.output / "away"
    job.folder.rename(away)
    write_volume(random_volume(grid((12, 12, 12)), seed=7).array, grid((12, 12, 12)), image)
    segment = cohort.segment_to_folder

    def undo(*arguments: object) -> object:
        away.rename(job.folder)
        return segment(*arguments)

    monkeypatch.setattr(cohort, "segment_to_folder", undo)
    outcome = cohort.segment_case(job)
    assert outcome.state == cohort.FAILED and f"because {image} changed" in outcome.problem.sentence


def test_image_missing_on_worker_is_reported_as_such(job) -> None:
    """Otherwise, the message would say that a file does not exist, although the user can see it."""

    def problem(**changes: object) -> str:
        missing = UserError("image-not-found", path="scan.nii")
        outcome = cohort.Outcome("case", cohort.FAILED, cohort.CaseProblem.of("case", missing))
        future = SimpleNamespace(status="finished", result=lambda: outcome)
        return cohort._outcome(future, replace(job, **changes)).problem.code

    assert problem() == "cohort-image-elsewhere"
    assert problem(case=replace(job.case, images=(Path("gone.nii"),))) == "image-not-found"


def test_threads_of_a_worker_process_one_case_at_a_time(job) -> None:
    """By default, a scheduler's worker has one thread per core, but a network can process only one case at a time."""
    jobs = [replace(job, case=replace(job.case, name=f"case {number}")) for number in range(6)]
    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(cohort.segment_case, jobs))
    assert [(outcome.state, outcome.problem) for outcome in outcomes] == [(cohort.DONE, None)] * len(jobs)
    assert len({str(outcome.volumes_ml) for outcome in outcomes}) == 1


def test_model_that_differs_from_the_commands_is_refused(job) -> None:
    """The model was replaced in the meantime, or the worker is on another computer."""
    matching = replace(job, digest=digest_with_locator(job.model))
    assert cohort.segment_case(matching).state == cohort.DONE
    shutil.rmtree(job.model)
    write_model(job.model, description(), seed=5)
    other = replace(matching, case=replace(job.case, name="other"))
    assert cohort.segment_case(other).problem.code == "model-changed" and not other.folder.exists()
    assert cohort.segment_case(replace(other, digest="")).state == cohort.DONE
    assert cohort.segment_case(replace(other, version="0.0.1")).problem.code == "cohort-versions-differ"
