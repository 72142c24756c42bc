"""Many cases in several processes: real workers, some of which are killed, and a scheduler that stops."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest

from conresnet.cli import cohort, main
from conresnet.cli.cases import ListedCase, write_summary, write_table
from conresnet.errors import UserError
from conresnet.files import OwnedFolder
from conresnet.package.store import read_model
from conresnet.request import SegmentOptions
from conresnet.results import PREFIX
from engine.cohort_runs import IMAGES, command, run_cohort, running_scheduler, table


@pytest.fixture
def write_list(data_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a list with the given number of cases, and additional lines."""

    def write(count: int, *lines: str) -> Path:
        folder = data_folder / "MSD_Task04_Hippocampus" / "imagesTr"
        rows = [f"case {number},{folder / IMAGES[number % 3]}.nii.gz" for number in range(count)]
        path = tmp_path / "list.csv"
        path.write_text("\n".join(["name,T1", *rows, *lines]), encoding="utf-8")
        return path

    return write


def run(*arguments: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=500, env=environment)


def labels(folder: Path) -> np.ndarray:
    return np.asarray(nibabel.load(folder / "segmentation.nii.gz").dataobj)


def test_cases_get_same_result_as_single_runs_and_are_not_repeated(write_list, tmp_path: Path, capsys) -> None:
    cases, output = write_list(3, "gone,missing.nii.gz", "lost,missing.nii.gz"), tmp_path / "many"
    done = run("--cases", cases, "--output", output, "--jobs", 2, "--threads", 1)
    assert done.returncode == 2 and "2 of 5 cases could not be segmented" in done.stderr, done.stderr
    assert "5 of 5 cases" in done.stderr and "Traceback" not in done.stderr
    # The number of threads determines the order of summation.
    alone = ["segment", "--model", "hippocampus", "--cases", cases, "--output", tmp_path / "one", "--threads", 1]
    assert main([str(argument) for argument in alone]) == 2
    for number in range(3):
        np.testing.assert_array_equal(labels(output / f"case {number}"), labels(tmp_path / "one" / f"case {number}"))
    rows = table(output)
    assert {name: row["state"] for name, row in rows.items()} == {
        **{f"case {number}": "segmented" for number in range(3)},
        "gone": "failed",
        "lost": "failed",
    }
    assert float(rows["case 0"]["Anterior hippocampus (mL)"]) == pytest.approx(1.84, abs=0.01)
    assert 0.8 < float(rows["case 0"]["expected_dice"]) < 1
    assert "missing.nii.gz does not exist" in rows["gone"]["problem"]
    assert {path.name for path in output.iterdir() if not path.is_dir()} == {"cohort.csv", "cohort.html"}

    page = (output / "cohort.html").read_text(encoding="utf-8")
    places = [page.index(f"<h2>{name}</h2>") for name in ("gone", "lost", *sorted_by_dice(rows))]
    assert places == sorted(places), "failures first, then what is expected to be worst"
    assert page.count("<img ") == 3 and (output / ".cohort" / "case 0.png").read_bytes().startswith(b"\x89PNG")

    before = (output / "case 0" / "report.json").stat().st_mtime_ns
    capsys.readouterr()
    again = ["segment", "--model", "hippocampus", "--cases", cases, "--output", output, "--jobs", 1]
    assert main([str(argument) for argument in again]) == 2
    assert f"Kept {output / 'case 0'}" in capsys.readouterr().out
    assert (output / "case 0" / "report.json").stat().st_mtime_ns == before
    assert table(output)["case 1"] == {**rows["case 1"], "state": "already segmented"}


def sorted_by_dice(rows: dict[str, dict[str, str]]) -> list[str]:
    found = [name for name, row in rows.items() if row["expected_dice"]]
    return sorted(found, key=lambda name: (float(rows[name]["expected_dice"]), name))


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, 300])
def test_no_case_is_lost_if_workers_are_killed(write_list, tmp_path: Path, count: int) -> None:
    output = tmp_path / "many"
    arguments = command("--cases", write_list(count), "--output", output, "--jobs", 2 if count < 100 else 4)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # Separated by a pause, since a case that ends two workers is given up.
    moments = tuple(f"{finished} of {count} cases, about" for finished in (1, 5 if count < 100 else 100))
    killed: set[int] = set()
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as job:
        lines = []
        for line in job.stdout:
            lines.append(line)
            if line.startswith(moments):
                victim = next(worker for worker in workers_of(job.pid) if worker.pid not in killed)
                victim.kill()
                killed.add(victim.pid)
    assert job.returncode == 0, "".join(lines)
    assert len(killed) == 2
    assert {row["state"] for row in table(output).values()} == {"segmented"} and len(table(output)) == count
    assert not list(output.glob("*/.conresnet-*")), "what a killed worker has left is removed"


def workers_of(pid: int) -> list[psutil.Process]:
    """Processes that load a model: those that have loaded PyTorch."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [process] if any("libtorch_cpu" in part.path for part in process.memory_maps()) else []
    return found


def deadly(job: cohort.Job) -> cohort.Outcome:
    """Replaces segmentation: one case kills its worker, another one raises an internal error."""
    if job.case.name == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.case.name == "faulty":
        return cohort.Outcome("faulty", cohort.FAILED, cohort.CaseProblem.of("faulty", ZeroDivisionError("0")))
    return cohort.Outcome(job.case.name, cohort.DONE, volumes_ml={"A": 1.0}, seconds=1.0)


def test_case_that_kills_two_workers_is_reported_and_others_continue(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(cohort, "segment_case", deadly)
    names = ["one", "deadly", "two", "three", "four"]
    status = run_cohort(names, tmp_path, jobs=2)
    assert status == "cases-failed"
    rows = table(tmp_path)
    assert [name for name, row in rows.items() if row["state"] == "failed"] == ["deadly"]
    assert "two worker processes died" in rows["deadly"]["problem"]
    assert run_cohort(["one", "faulty"], tmp_path, jobs=1) == "RuntimeError"
    assert "an internal error occurred (ZeroDivisionError: 0)" in capsys.readouterr().err


@pytest.mark.slow
def test_lost_scheduler_keeps_finished_cases(write_list, tmp_path) -> None:
    output = tmp_path / "many"
    with (
        running_scheduler(tmp_path) as (process, address),
        subprocess.Popen(
            command("--cases", write_list(30), "--output", output, "--scheduler", address),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as job,
    ):
        for line in job.stdout:
            if line.startswith("Wrote "):
                process.kill()
                break
        _rest, errors = job.communicate(timeout=300)
    assert job.returncode == 2, errors
    assert "The connection to the Dask scheduler was lost" in errors and "Traceback" not in errors
    finished = [name for name, row in table(output).items() if row["state"] == "segmented"]
    assert finished and len(finished) < 30
    wait_until(lambda: not list(output.glob("*/.conresnet-*")), 60)
    assert all((output / name / "segmentation.nii.gz").exists() for name in finished)


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_summary_does_not_replace_other_files(tmp_path, monkeypatch, capsys) -> None:
    """They are refused before any work starts; the summary of an earlier run is replaced."""
    monkeypatch.setattr(cohort, "connected", lambda *_: pytest.fail("work has begun"))
    case_list = tmp_path / "cohort.csv"
    case_list.write_text("name,T1\ncase,image.nii.gz\n", encoding="utf-8")
    arguments = ["segment", "--model", "hippocampus", "--cases", case_list, "--output", tmp_path, "--jobs", 1]
    assert main([str(argument) for argument in arguments]) == 2
    assert f"{case_list} would be replaced" in capsys.readouterr().err
    for name, text in (("cohort.csv", "patient,age\n"), ("cohort.csv", ""), ("cohort.html", "<title>Mine</title>")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert run_cohort(["one"], tmp_path, jobs=1) == "summary-not-ours"
        assert (tmp_path / name).read_text(encoding="utf-8") == text
        write_summary([], tmp_path)
        with pytest.raises(pytest.fail.Exception):
            run_cohort(["one"], tmp_path, jobs=1)
    (tmp_path / "cohort.csv").unlink()
    (tmp_path / "cohort.csv").mkdir()
    assert run_cohort(["one"], tmp_path, jobs=1) == "summary-not-ours"


def test_file_in_place_of_output_folder_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert run_cohort(["one"], tmp_path / "file", jobs=1) == "output-not-folder"
    assert run_cohort(["one"], tmp_path / "file" / "below", jobs=1) == "cannot-write"


def test_stopped_run_keeps_earlier_summary_until_it_writes_its_own(tmp_path, monkeypatch) -> None:
    asked, finished = [], []

    @contextlib.contextmanager
    def client(jobs: int, scheduler: str) -> Iterator[None]:
        asked.append(jobs)
        yield

    def segmented(client: None, waiting: Iterable[cohort.Job]) -> Iterator[cohort.Outcome]:
        yield from finished
        # A worker is killed while it works.
        folder = next(iter(waiting)).folder
        folder.mkdir()
        OwnedFolder.make(PREFIX, folder).release()
        raise KeyboardInterrupt

    def run_interrupted() -> None:
        with pytest.raises(KeyboardInterrupt):
            run_cohort(["b", "a", "c"], tmp_path, jobs=6)

    monkeypatch.setattr(cohort, "connected", client)
    monkeypatch.setattr(cohort, "_segmented", segmented)
    write_summary([cohort.Outcome("a", cohort.DONE, volumes_ml={"Body": 12345.678})], tmp_path)
    before = table(tmp_path)
    assert before["a"]["Body (mL)"] == "12345.678"
    run_interrupted()
    assert table(tmp_path) == before and {path.name for path in tmp_path.iterdir()} == {"cohort.csv", "cohort.html"}
    finished.append(cohort.Outcome("b", cohort.DONE, volumes_ml={"Body": 1.0}, seconds=1.0))
    run_interrupted()
    assert {name: row["state"] for name, row in table(tmp_path).items()} == {
        "a": "not reached",
        "b": "segmented",
        "c": "not reached",
    }
    assert "1 cases segmented, 0 failed, 2 not reached" in (tmp_path / "cohort.html").read_text(encoding="utf-8")
    assert asked == [3, 3], "no more workers than cases"


def test_case_lists_only_images_in_its_own_folder(tmp_path, monkeypatch) -> None:
    """Otherwise, with 10,000 cases, every case would hold a list of all images, which would fill the memory."""
    jobs = []

    def segmented(client: None, waiting: Iterable[cohort.Job]) -> Iterator[cohort.Outcome]:
        jobs.extend(waiting)
        raise KeyboardInterrupt

    monkeypatch.setattr(cohort, "connected", lambda jobs, scheduler: contextlib.nullcontext())
    monkeypatch.setattr(cohort, "_segmented", segmented)
    images = [tmp_path / "a" / "scan.nii", tmp_path / "a" / "segmentation.nii.gz", tmp_path / "c.nii"]
    (tmp_path / "a").mkdir()
    for image in images:
        image.touch()
    cases = [ListedCase(name, (image,), "") for name, image in zip("abc", images, strict=True)]
    how = {"case_list": Path(__file__), "overwrite": False, "jobs": 1, "scheduler": ""}
    with pytest.raises(KeyboardInterrupt):
        cohort.segment_cohort(cases, read_model("hippocampus"), SegmentOptions(), tmp_path, **how)
    assert [sorted(set(job.inputs)) for job in jobs] == [images[:2], [images[1]], [images[2]]]


def test_summary_is_kept_if_all_cases_are_refused(tmp_path, monkeypatch, capsys) -> None:
    def fail(name: str, code: str) -> cohort.Outcome:
        error = UserError(code, path=name, differences="--fast differs", changed="a", files="b")
        return cohort.Outcome(name, cohort.FAILED, cohort.CaseProblem.of(name, error))

    def run_with(*outcomes: cohort.Outcome) -> dict[str, str]:
        monkeypatch.setattr(cohort, "_segmented", lambda *_: iter(outcomes))
        assert run_cohort([outcome.name for outcome in outcomes], tmp_path, jobs=1) == "cases-failed"
        return {name: row["state"] for name, row in table(tmp_path).items()}

    monkeypatch.setattr(cohort, "connected", lambda jobs, scheduler: contextlib.nullcontext())
    done = [cohort.Outcome(name, cohort.DONE, volumes_ml={"Body": 1.0}) for name in "ab"]
    refused = [fail("a", "results-differ"), fail("b", "results-out-of-date"), fail("c", "results-exist")]
    missing = fail("d", "image-not-found")
    assert run_with(*refused) == dict.fromkeys("abc", "failed"), "there is none yet"
    before = {**dict.fromkeys("ab", "segmented"), "d": "failed"}
    assert run_with(*done, missing) == before
    pages = (tmp_path / "cohort.html").read_bytes()
    capsys.readouterr()
    assert run_with(*refused) == run_with(*refused, missing) == before
    assert (tmp_path / "cohort.html").read_bytes() == pages
    printed = capsys.readouterr()
    assert f"Kept {tmp_path / 'cohort.csv'}" in printed.out and "Wrote" not in printed.out
    assert "if an option differs, change it back" in printed.err
    assert run_with(refused[0], done[1]) == {"a": "failed", "b": "segmented"}
    assert run_with(missing) == {"d": "failed"}


def test_time_remaining_is_estimated_from_segmented_cases() -> None:
    """Skipped cases do not count, and there is no estimate after the last case."""

    def line(cases: int, *states: str) -> str:
        return cohort.progress_line([cohort.Outcome("case", state) for state in states], cases, 100.0)

    assert line(4, cohort.DONE, cohort.DONE) == "2 of 4 cases, about 1 min 40 s left"
    assert line(4, cohort.SKIPPED, cohort.DONE) == "2 of 4 cases, about 3 min 20 s left"
    assert line(4, cohort.SKIPPED) == "1 of 4 cases" and line(2, cohort.DONE, cohort.DONE) == "2 of 2 cases"


def test_names_in_table_are_not_formulas(tmp_path) -> None:
    problem = cohort.CaseProblem("-1 image")
    outcomes = [cohort.Outcome("@a", cohort.DONE, None, {"=1+1": 2.0}), cohort.Outcome("b", cohort.FAILED, problem)]
    write_table(outcomes, tmp_path / "cohort.csv")
    cells = [cell for line in csv.reader((tmp_path / "cohort.csv").open(encoding="utf-8")) for cell in line]
    assert {"'@a", "'=1+1 (mL)", "'-1 image"} <= set(cells) and not any(
        cell.startswith(tuple("=+-@")) for cell in cells
    )


@pytest.mark.parametrize("arguments", [["--jobs", "2"], ["--scheduler", "tcp://x:1"]])
def test_jobs_option_requires_a_list(data_folder, tmp_path, arguments, capsys) -> None:
    image = data_folder / "MSD_Task04_Hippocampus" / "imagesTr" / f"{IMAGES[0]}.nii.gz"
    given = ["segment", str(image), "--model", "hippocampus", "--output", str(tmp_path / "o"), *arguments]
    assert main(given) == 2
    assert "--cases" in capsys.readouterr().err


def test_unwritable_output_folder_is_named_instead_of_its_hidden_folder(write_list, tmp_path, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / ".cohort").write_text("in the way")
    arguments = ["--cases", write_list(1), "--model", "hippocampus", "--output", tmp_path / "results", "--jobs", 1]
    assert main(["segment", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'results'} cannot be written" in error and ".cohort" not in error
