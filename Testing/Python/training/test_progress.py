"""The progress file: written line by line, and read back as one curve even if processes were interrupted."""

import json
import subprocess
import sys

import pytest

from conresnet_training.runs import ProgressReader, ProgressWriter, read_progress


@pytest.fixture
def path(tmp_path):
    return tmp_path / "Lauf ü" / "progress.jsonl"


def write(path, *events):
    path.parent.mkdir(exist_ok=True)
    writer = ProgressWriter(path)
    for event, values in events:
        writer.write(event, **values)
    writer.close()


def steps(*numbers, loss=1.0):
    return [("step", {"step": number, "loss": loss / number}) for number in numbers]


def start(step, steps=40):
    return ("started", {"step": step, "steps": steps})


def test_uninterrupted_run_is_read_back(path):
    write(path, start(0), ("preparing", {"done": 2, "of": 3}))
    assert read_progress(path).prepared == (2, 3) and read_progress(path).state == "preparing"
    write(path, *steps(10, 20), ("validation", {"step": 20, "dice": 0.5, "best": True}), ("finished", {"step": 20}))
    progress = read_progress(path)
    assert (progress.state, progress.step, progress.steps) == ("finished", 20, 40)
    assert [point["step"] for point in progress.points] == [10, 20]
    assert progress.best["dice"] == 0.5
    assert all(event["time"] > 1.7e9 for event in progress.points)


def test_repeated_steps_count_once(path):
    write(path, start(0), *steps(10, 20, 30, loss=7.0))
    write(path, start(20), *steps(30, 40), ("validation", {"step": 40, "dice": 0.6, "best": False}))
    progress = read_progress(path)
    assert [point["step"] for point in progress.points] == [10, 20, 30, 40]
    assert progress.points[2]["loss"] == pytest.approx(1 / 30)
    assert progress.best is None and len(progress.validations) == 1


def test_partial_line_is_ignored_and_does_not_affect_the_next(path):
    write(path, start(0), *steps(10))
    with open(path, "ab") as file:
        file.write(b'{"event": "step", "st')
    assert [point["step"] for point in read_progress(path).points] == [10]
    write(path, start(10), *steps(20))
    assert [point["step"] for point in read_progress(path).points] == [10, 20]


def test_reader_returns_each_event_once_and_waits_for_complete_lines(path):
    reader = ProgressReader(path)
    assert reader.new_events() == []
    write(path, ("stopping", {"reason": "Größe"}))
    assert [event["reason"] for event in reader.new_events()] == ["Größe"]
    line = json.dumps({"event": "stopped", "step": 3, "note": "ü"}, ensure_ascii=False).encode() + b"\n"
    with open(path, "ab") as file:
        for part in (line[:-4], line[-4:-2]):
            file.write(part)
            file.flush()
            assert reader.new_events() == []
        file.write(line[-2:])
    assert [event["step"] for event in reader.new_events()] == [3]
    path.write_bytes(line)
    assert len(reader.new_events()) == 1


def test_non_finite_numbers_are_null(path):
    write(path, ("step", {"step": 1, "loss": float("nan"), "parts": {"a": float("inf")}}))
    event = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert event["loss"] is None and event["parts"] == {"a": None}


def test_failure_is_kept_until_the_next_start(path):
    write(path, start(0), ("failed", {"code": "not-finite", "message": "No.", "cases": ["a"]}))
    assert read_progress(path).failed["cases"] == ["a"]
    write(path, start(0))
    assert read_progress(path).failed is None and read_progress(path).state == "training"


@pytest.mark.parametrize(
    "line",
    [
        '{"event": 5}',
        '{"event": "started"}',
        '{"event": "started", "step": "0", "steps": null}',
        '{"event": "preparing", "done": 1}',
        '{"event": "step", "step": 1, "loss": "low"}',
        '{"event": "validation", "step": 1}',
        '{"event": "failed"}',
        '{"event": "stopped", "step": null}',
    ],
)
def test_line_without_required_fields_is_skipped(path, line):
    write(path, start(0), *steps(1))
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
    write(path, *steps(2))
    progress = read_progress(path)
    assert (progress.state, progress.step) == ("training", 2) and len(progress.points) == 2


def test_progress_can_be_read_in_slicers_python():
    """Without torch and the backend's other packages."""
    code = "import sys, conresnet_training.runs; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "pydantic", "yaml", "lightning_fabric", "monai"} & set(loaded)
