"""``segment --cases`` end to end, one case after another: what it keeps, writes and says."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from conresnet.cli import cohort
from conresnet.images.files import read_volume
from conresnet.inference.segmentation import WarmModel
from conresnet.results.review import FALLBACK
from engine.cohort_runs import table
from engine.test_segment_command import call, process, refused


def test_file_in_place_of_output_folder_is_refused(capsys, tmp_path, model, image):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "file" in refused(capsys, tmp_path, image, "--model", model, "--output", output)
    cases = write_list(tmp_path, image, "name,T1\nfirst,{image}\nsecond,{image}\n")
    assert "file" in refused(capsys, tmp_path, "--cases", cases, "--model", model, "--output", tmp_path / "file")


def write_list(folder: Path, image: Path, rows: str) -> Path:
    (folder / "list.csv").write_text(rows.replace("{image}", str(image)), encoding="utf-8")
    return folder / "list.csv"


def test_one_of_several_cases_fails(capsys, tmp_path, model, image):
    center = read_volume(image).grid.center
    roi = ",".join(str(value + side) for value in center for side in (-6, 6))
    path = write_list(tmp_path, image, f'name,T1,roi\nfirst,{{image}},\nbad,none.nii,\nlast,{{image}},"{roi}"\n')
    assert call("--cases", path, "--model", model, "--output", tmp_path / "out") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "of 3 cases," not in line]
    assert lines[0].startswith("bad: ") and "none.nii" in lines[0] and "1 of 3" in lines[-1]
    found = {found.name for found in (tmp_path / "out").iterdir()}
    assert found == {"first", "last", ".cohort", "cohort.csv", "cohort.html"}
    whole, part = (read_volume(tmp_path / "out" / name / "segmentation.nii.gz").array for name in ("first", "last"))
    assert np.count_nonzero(whole) > np.count_nonzero(part) > 0
    assert call(image, "--model", model, "--output", tmp_path / "single") == 0
    assert np.array_equal(read_volume(tmp_path / "single" / "segmentation.nii.gz").array, whole)


def test_warnings_name_their_case_and_existing_results_are_kept(capsys, tmp_path, model, image):
    path = write_list(tmp_path, image, f"name,T1\nfirst,{shutil.copy(image, tmp_path / 'a_T2.nii.gz')}\n")
    settings = json.loads((model / "model.json").read_text(encoding="utf-8"))
    settings["inputs"][0]["exclude_keywords"] = ["t2"]
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "model.json").write_text(json.dumps(settings), encoding="utf-8")
    command = ["--cases", path, "--model", tmp_path / "model", "--output", tmp_path / "out"]
    assert call(*command) == 0
    assert "first: The name of the image" in capsys.readouterr().err
    before = (tmp_path / "out" / "first" / "report.json").read_bytes()
    assert call(*command) == 0
    captured = capsys.readouterr()
    assert f"Kept {tmp_path / 'out' / 'first'}: " in captured.out and "1 of 1 cases" in captured.err
    assert (tmp_path / "out" / "first" / "report.json").read_bytes() == before
    assert table(tmp_path / "out")["first"]["warnings"].startswith("The name of the image")


def test_internal_error_in_one_case_does_not_stop_the_others(capsys, tmp_path, model, image, monkeypatch):
    from conresnet import api

    read = api.read_channels
    monkeypatch.setattr(
        api, "read_channels", lambda paths, names: 1 / 0 if paths[0].name == "x.nii" else read(paths, names)
    )
    (tmp_path / "x.nii").touch()
    path = write_list(tmp_path, image, "name,T1\na,x.nii\nb,{image}\n")
    assert call("--cases", path, "--model", model, "--output", tmp_path / "out") == 1
    output = capsys.readouterr().err
    assert output.splitlines()[0].startswith("a: ") and "ZeroDivisionError" in output and "Traceback" not in output
    log = Path(output[output.index(" log ") + 5 :].strip().rstrip("."))
    assert "1 / 0" in log.read_text(encoding="utf-8")
    log.unlink()
    assert (tmp_path / "out" / "b" / "report.json").exists()


def test_closed_output_does_not_stop_segmentation(tmp_path, model, image):
    """As after ``| head -1``: the other cases are still segmented, and the exit status is that of the work."""
    path = write_list(tmp_path, image, "name,T1\na,{image}\nb,{image}\n")
    running = process("--cases", path, "--model", model, "--output", tmp_path / "out", "--threads", 1)
    running.stdout.close()
    assert running.wait(200) == 0
    assert all("of 2 cases" in line for line in running.stderr.read().splitlines())
    assert (tmp_path / "out" / "a" / "report.json").exists() and (tmp_path / "out" / "b" / "report.json").exists()


def test_image_of_another_case_is_never_replaced(capsys, tmp_path, model, image):
    assert call(image, "--model", model, "--output", tmp_path / "out" / "b") == 0
    before = (tmp_path / "out" / "b" / "segmentation.nii.gz").read_bytes()
    path = write_list(tmp_path, image, "name,T1\nb,{image}\na,out/b/segmentation.nii.gz\n")
    assert call("--cases", path, "--model", model, "--output", tmp_path / "out", "--overwrite") == 2
    assert "b: " in capsys.readouterr().err
    assert (tmp_path / "out" / "b" / "segmentation.nii.gz").read_bytes() == before


def test_unwritable_folder_fails_only_one_case(capsys, tmp_path, model, image, monkeypatch):
    from conresnet import results as result_folder

    def closed(folder, *arguments):
        if folder.name == "a":
            raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(result_folder, "check_replaceable", closed)
    path = write_list(tmp_path, image, "name,T1\na,{image}\nb,{image}\n")
    assert call("--cases", path, "--model", model, "--output", tmp_path / "out") == 2
    assert "Permission denied" in capsys.readouterr().err
    assert (tmp_path / "out" / "b" / "report.json").exists()


def test_loading_time_counts_for_first_case_of_a_list(tmp_path, model, image):
    path = write_list(tmp_path, image, "name,T1\na,{image}\nb,{image}\n")
    assert call("--cases", path, "--model", model, "--output", tmp_path / "out") == 0
    seconds = [json.loads((tmp_path / "out" / name / "report.json").read_text())["seconds"] for name in "ab"]
    assert seconds[0]["loading"] > 0 and seconds[1]["loading"] == 0
    for each in seconds:
        assert each.pop("total") == pytest.approx(sum(each.values()))


def test_a_case_that_is_kept_has_no_progress_bar(capsys, tmp_path, model, image, monkeypatch):
    how = "--cases", write_list(tmp_path, image, "name,T1\na,{image}\n"), "--model", model, "--output", tmp_path / "out"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert call(*how) == 0 and "100%" in capsys.readouterr().err
    assert call(*how) == 0 and "%" not in capsys.readouterr().err


@pytest.mark.parametrize("linked", ["folder", "image"])
def test_an_image_of_another_case_is_not_replaced_through_a_link(capsys, tmp_path, model, image, linked):
    (tmp_path / "other name").symlink_to(tmp_path / "out")
    assert call(image, "--model", model, "--output", tmp_path / "out" / "b") == 0
    result = tmp_path / "out" / "b" / "segmentation.nii.gz"
    (tmp_path / "link.nii.gz").symlink_to(result)
    before = result.read_bytes()
    second, output = ("out/b/segmentation.nii.gz", "other name") if linked == "folder" else ("link.nii.gz", "out")
    path = write_list(tmp_path, image, f"name,T1\nb,{{image}}\na,{second}\n")
    assert call("--cases", path, "--model", model, "--output", tmp_path / output, "--overwrite") == 2
    assert "b: " in capsys.readouterr().err and result.read_bytes() == before


def test_how_good_the_review_lists_are_is_said_once_for_all_cases(capsys, tmp_path, model, image):
    path = write_list(tmp_path, image, "name,T1\na,{image}\nb,{image}\n")
    assert call("--cases", path, "--model", model, "--output", tmp_path / "out", "--review") == 0
    assert capsys.readouterr().err.count(FALLBACK.note) == 1


def test_a_case_that_is_stopped_while_its_picture_is_drawn_is_segmented_again(tmp_path, model, image, monkeypatch):
    how = "--cases", write_list(tmp_path, image, "name,T1\na,{image}\n"), "--model", model, "--output", tmp_path / "out"

    def interrupted(_result):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("conresnet.api.Result.picture", interrupted)
        assert call(*how) == 130
    assert call(*how) == 0 and (tmp_path / "out" / ".cohort" / "a.png").is_file()


@pytest.fixture
def loads(monkeypatch) -> Callable[[], int]:
    """How often a model was loaded. Each time, "A model is loaded." is printed."""
    load, count = WarmModel.get, []

    def get(model: WarmModel, *arguments: object) -> object:
        count.append(model)
        print("A model is loaded.", file=sys.stderr)
        return load(model, *arguments)

    monkeypatch.setattr(WarmModel, "get", get)
    return lambda: len(count)


@pytest.mark.parametrize("jobs", [(), ("--jobs", 2)])
def test_finished_list_is_repeated_without_a_model_or_workers(capsys, tmp_path, model, image, loads, monkeypatch, jobs):
    path = write_list(tmp_path, image, "name,T1\na,{image}\nb,{image}\n")
    command = ["--cases", path, "--model", model, "--output", tmp_path / "out", "--threads", 1]
    assert call(*command) == 0
    before = loads()
    capsys.readouterr()
    monkeypatch.setattr(cohort, "connected", lambda *_: pytest.fail("workers were started"))
    assert call(*command, *jobs) == 0 and loads() == before
    assert capsys.readouterr().out.count("Kept ") == 2
    assert {row["state"] for row in table(tmp_path / "out").values()} == {"already segmented"}


def test_missing_images_are_reported_before_a_model_is_loaded(capsys, tmp_path, model, image, loads):
    path = write_list(tmp_path, image, "name,T1,roi\na,{image},\nb,none.nii,\nc,{image},wrong\n")
    command = ["--cases", path, "--model", model, "--output", tmp_path / "out"]
    assert call(*command) == 2 and loads()
    lines = capsys.readouterr().err.splitlines()
    places = [
        next(n for n, line in enumerate(lines) if text in line) for text in ("b: ", "c: ", "A model is", "3 of 3")
    ]
    assert places == sorted(places) and "none.nii does not exist" in lines[places[0]]
    assert {name: row["state"] for name, row in table(tmp_path / "out").items()} == {
        "a": "segmented",
        "b": "failed",
        "c": "failed",
    }


def test_time_remaining_does_not_include_loading_the_model(capsys, tmp_path, model, image, monkeypatch):
    now = [0.0]

    def segment(job: cohort.Job, *_: object) -> cohort.Outcome:
        now[0] += 10
        return cohort.Outcome(job.case.name, cohort.DONE, volumes_ml={})

    def load(*_: object) -> None:
        now[0] += 1000

    monkeypatch.setattr(cohort, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(cohort, "segment_case", segment)
    monkeypatch.setattr(WarmModel, "get", load)
    path = write_list(tmp_path, image, "name,T1\na,{image}\nb,{image}\nc,{image}\n")
    assert call("--cases", path, "--model", model, "--output", tmp_path / "out") == 0
    assert "1 of 3 cases, about 20 s left" in capsys.readouterr().err
