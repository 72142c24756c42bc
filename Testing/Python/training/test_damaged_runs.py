"""Files in a run's folder that are damaged or from another program: each is named in the error message."""

import json

import pytest
import torch

from conresnet_training.planning.plan import with_settings, write_plan
from conresnet_training.runs import run as run_folder
from conresnet_training.runs import sole_process
from training.commands import message_of, refused, run_command
from training.tiny_plan import write_tiny_plan
from training.trained_runs import finished_run, small_plan


@pytest.fixture
def run(data_set, tmp_path):
    return finished_run(small_plan(data_set), tmp_path / "run")


def refusal(monkeypatch, capsys, *arguments) -> str:
    assert run_command(monkeypatch, *arguments) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"a": torch.zeros(1)}},
        {"state_dict": {"a": torch.zeros(1)}, "global_step": "many"},
        {"state_dict": [torch.zeros(1)], "global_step": 7},
        {"state_dict": {"a": 1}, "global_step": 7},
        {"state_dict": {}, "global_step": 7},
        [torch.zeros(1)],
    ],
)
def test_checkpoint_of_another_program_is_refused(run, tmp_path, monkeypatch, capsys, content):
    torch.save(content, run.checkpoint)
    run.checkpoint_named("best").unlink()
    for command in (("resume", run.folder), ("export", run.folder, "--output", tmp_path / "package")):
        expected = message_of("checkpoint-damaged", path=run.checkpoint)
        assert refusal(monkeypatch, capsys, *command) == expected


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "{", '{"held_out": null}', '{"held_out": "case_0"}', '{"held_out": [[0]]}']
)
def test_split_without_cases_is_refused(run, monkeypatch, capsys, text):
    file = run.folder / "split.json"
    file.write_text(text, encoding="utf-8")
    for command, part in (("evaluate", "held_out"), ("resume", "training")):
        expected = message_of("split-damaged", path=file, part=part)
        assert refusal(monkeypatch, capsys, command, run.folder) == expected


def test_missing_file_of_a_trained_run_is_named(run, monkeypatch, capsys):
    for name, code, values in (
        ("plan.yaml", "plan-not-found", {"reason": "No such file or directory"}),
        ("fold.txt", "fold-file-damaged", {"last": 2}),
    ):
        file = run.folder / name
        content = file.read_bytes()
        file.unlink()
        assert refusal(monkeypatch, capsys, "resume", run.folder) == message_of(code, path=file, **values)
        file.write_bytes(content)


def test_cross_validation_is_not_written_into_a_run(run, monkeypatch, capsys):
    """Its evaluation would replace that of the run, and an export would use only the run."""
    before = sorted(run.folder.rglob("*"))
    message = refusal(monkeypatch, capsys, "crossval", run.folder / "plan.yaml", "--output", run.folder)
    assert message == message_of("run-exists", path=run.folder) and sorted(run.folder.rglob("*")) == before


def test_stopping_a_run_of_another_computer_names_that_computer(run, monkeypatch, capsys):
    """For example, a folder that was copied from the other computer while the run was active."""
    (run.folder / "running.json").write_text('{"pid": 1, "host": "node07"}', encoding="utf-8")
    assert run_command(monkeypatch, "stop", run.folder) == 0
    assert "It was started on node07. " in capsys.readouterr().err and (run.folder / "stop").exists()


def test_stopping_a_cross_validation_promises_no_checkpoint_of_its_evaluation(run, monkeypatch, capsys):
    (run.folder / "running.json").write_text('{"pid": 1, "host": "node07"}', encoding="utf-8")
    (run.folder / "crossval.yaml").touch()
    assert run_command(monkeypatch, "stop", run.folder) == 0
    assert "after the current case" in capsys.readouterr().err


def test_missing_split_is_not_drawn_again(run, data_set, monkeypatch, capsys):
    """A case added in the meantime would move cases that the network has learned into the held-out ones."""
    file = run.folder / "split.json"
    file.unlink()
    for name in ("best", "last"):
        for command, part in (("evaluate", "held_out"), ("resume", "training")):
            expected = message_of("split-damaged", path=file, part=part)
            options = ("--checkpoint", "last") if command == "evaluate" else ()
            assert refusal(monkeypatch, capsys, command, run.folder, *options) == expected
        if name == "best":
            run.checkpoint_named("best").unlink()
    assert not file.exists()


def test_edited_split_is_refused(data_set, tmp_path, monkeypatch, capsys):
    """The checkpoint records the cases its weights were trained on."""
    plan, folder = write_tiny_plan(data_set, tmp_path / "plan.yaml"), tmp_path / "run"
    assert run_command(monkeypatch, "train", plan, "--output", folder, "--max-steps", 1) == 0
    file = folder / "split.json"
    names = json.loads(file.read_text(encoding="utf-8"))
    names["held_out"][0], names["training"][0] = names["training"][0], names["held_out"][0]
    file.write_text(json.dumps(names), encoding="utf-8")
    capsys.readouterr()
    for command in ("evaluate", "resume"):
        expected = message_of("split-damaged", path=file, part="training")
        assert refusal(monkeypatch, capsys, command, folder) == expected


def test_flipped_bytes_are_detected(run, monkeypatch, capsys):
    """PyTorch reads such a file without an error."""
    content = bytearray(run.checkpoint.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 0xFF
    run.checkpoint.write_bytes(content)
    torch.load(run.checkpoint, weights_only=True)
    expected = message_of("checkpoint-damaged", path=run.checkpoint)
    assert refusal(monkeypatch, capsys, "evaluate", run.folder) == expected
    checkpoint, path = run_folder.read_latest_checkpoint(run)
    assert path == run.checkpoint_named("best") and checkpoint["global_step"] == 7


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("model.preparation", "model.preparation.foreground=all"),
        ("training.start_from", "training.start_from=null"),
    ],
)
def test_settings_the_weights_depend_on_cannot_change(data_set, part, change):
    plan = with_settings(small_plan(data_set), ["training.start_from=hippocampus"])
    before = run_folder.what_is_learned(plan)
    changed = run_folder.Run(data_set, with_settings(plan, [change]), 0)
    with refused("plan-changed", part=part):
        run_folder.check_plan_unchanged(changed, {"learned": before})
    # Earlier versions did not record these settings.
    before.pop("training.start_from")
    before["model.preparation"].pop("foreground")
    run_folder.check_plan_unchanged(changed, {"learned": before})


@pytest.mark.parametrize("content", [b"", b"two", b"3", b"-1", b"\xff\xfe"])
def test_fold_that_is_not_in_the_plan_is_refused(run, monkeypatch, capsys, content):
    file = run.folder / "fold.txt"
    file.write_bytes(content)
    for command in ("evaluate", "resume"):
        expected = message_of("fold-file-damaged", path=file, last=2)
        assert refusal(monkeypatch, capsys, command, run.folder) == expected


def test_run_killed_during_start_does_not_block_its_folder(data_set, tmp_path, monkeypatch):
    plan, folder = small_plan(data_set), tmp_path / "run"
    with monkeypatch.context() as dying:
        dying.setattr(run_folder, "write_plan", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_folder.start_run(plan, folder, 1)
    (folder / ".part-123-running.json").touch()
    assert run_folder.start_run(plan, folder, 2).folder == folder
    assert run_folder.open_run(folder).fold == 2
    with sole_process(folder):
        assert not list(folder.glob(".part-*"))


def test_folder_in_place_of_the_stop_file_is_named(run, monkeypatch, capsys):
    (run.folder / "stop").mkdir()
    assert str(run.folder / "stop") in refusal(monkeypatch, capsys, "resume", run.folder)


def test_users_plan_in_a_folder_is_not_replaced(data_set, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    write_plan(small_plan(data_set), folder / "plan.yaml")
    with refused("run-exists"):
        run_folder.start_run(small_plan(data_set), folder, 0)
