"""How commands end: exit status, a one-message message, no traceback; help is fast and does not need torch."""

from __future__ import annotations

import errno
import importlib.abc
import json
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from conresnet import __version__, cli
from conresnet.cli import main
from conresnet.errors import Cancelled, UserError
from engine.coarse_to_fine_cases import coarse_to_fine, random_weights, write_pair
from engine.model_cases import description, write_model
from engine.package_cases import ARGUMENTS, WEIGHTS, changed, document, make_folder, safetensors_bytes


@pytest.fixture
def models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    monkeypatch.setenv("CONRESNET_MODELS", str(folder))
    return folder


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch):
    """Make the command ``models`` end with an exception, or as a function ends, and return its exit status."""

    def end(error: BaseException | Callable[[], None]) -> int:
        @click.command()
        def failing() -> None:
            if not isinstance(error, BaseException):
                return error()
            raise error

        monkeypatch.setattr("conresnet.cli.models.models", failing)
        return main(["models"])

    return end


def test_help_names_every_command(capsys: pytest.CaptureFixture) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in ("segment", "models", "import", "worker"))
    assert main([]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("command", [["models"], ["models", "list"], ["models", "show"], ["import"]])
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Usage: python -m conresnet")
    assert max(map(len, text.splitlines())) <= 100


def test_help_needs_no_torch(repository: Path) -> None:
    code = (
        "import sys\nfor name in ('torch', 'SimpleITK', 'numpy'): sys.modules[name] = None\n"
        "from conresnet.cli import main\n"
        "for command in ([], ['models'], ['models', 'verify'], ['import']): main([*command, '--help'])\n"
    )
    folder = repository / "ConResSegmentation"
    finished = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0 and finished.stderr == ""
    assert finished.stdout.count("Usage: python -m conresnet") == 4


def test_version(capsys: pytest.CaptureFixture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ConResNet {__version__}\n"


def test_user_error_gives_one_sentence_and_status_2(ending, capsys: pytest.CaptureFixture) -> None:
    assert ending(UserError("image-not-found", "There is no image\nat é.nii; check the path.")) == 2
    captured = capsys.readouterr()
    assert captured.err == "There is no image at é.nii; check the path.\n" and captured.out == ""


@pytest.mark.parametrize("arguments", [["modles"], ["import"], ["models", "list", "--fodler"], ["models", "verify"]])
def test_invalid_arguments_give_one_sentence_and_status_2(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "--help" in message


def test_internal_error_names_log_and_gives_status_1(
    ending, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path))
    assert ending(ZeroDivisionError("division by zero")) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "Traceback" not in message and "division by zero" in message
    log = Path(re.search(r"log (\S+\.log)\.", message).group(1)).read_text(encoding="utf-8")
    assert "Traceback" in log and "ZeroDivisionError" in log and __version__ in log and "['models']" in log


def test_internal_error_is_reported_even_if_log_cannot_be_written(
    ending, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert ending(ZeroDivisionError()) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_missing_package_is_named(ending, capsys: pytest.CaptureFixture) -> None:
    assert ending(ModuleNotFoundError("No module named 'torch'", name="torch")) == 2
    assert "requires torch" in capsys.readouterr().err
    assert ending(ModuleNotFoundError("No module named 'monai'", name="monai")) == 2
    assert "requires monai" in capsys.readouterr().err
    assert ending(ModuleNotFoundError("No module named 'conresnet.typo'", name="conresnet.typo")) == 1


@pytest.mark.parametrize(
    "number",
    [errno.EACCES, errno.ENAMETOOLONG, errno.EROFS, errno.EIO, errno.ENOSPC, errno.ENOTDIR, errno.EEXIST, errno.EISDIR],
)
def test_file_system_error_is_reported(ending, capsys: pytest.CaptureFixture, number: int) -> None:
    assert ending(OSError(number, os.strerror(number), "/some/päth")) == 2
    assert "/some/päth" in capsys.readouterr().err
    assert ending(OSError(number, os.strerror(number))) == 1, "without a path, nobody could do anything about it"
    capsys.readouterr()


def test_out_of_memory_is_reported(ending, capsys: pytest.CaptureFixture) -> None:
    assert ending(MemoryError()) == 2
    assert "memory" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["models", "show", ""], ["models", "list", "--folder", " "], [""]])
def test_empty_argument_is_refused(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(arguments) == 2
    assert "empty" in capsys.readouterr().err


def test_closed_output_is_not_an_error(repository: Path) -> None:
    command = [sys.executable, "-m", "conresnet", "models", "list"]
    running = subprocess.Popen(
        command, cwd=repository / "ConResSegmentation", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    running.stdout.close()
    assert running.wait(60) == 0 and running.stderr.read() == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full device")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["models", "list"], ["segment", "--help"]])
def test_full_disk_for_output_is_reported(repository: Path, arguments: list[str], unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        finished = subprocess.run(
            [sys.executable, "-m", "conresnet", *arguments],
            cwd=repository / "ConResSegmentation",
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert finished.returncode == 2 and finished.stderr.count("\n") == 1
    assert finished.stderr.startswith("Standard output cannot be written")


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a current folder")
def test_deleted_working_folder_is_reported(ending, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert ending(lambda: 0) == 2
    assert capsys.readouterr().err == "The current folder no longer exists; change to another folder, and try again.\n"


def test_signal_during_exec_in_an_import_gives_its_status(repository: Path, tmp_path: Path) -> None:
    """For example, torch generates dataclasses with exec. CPython then died of SIGINT later."""
    code = (
        "import os, signal, sys\n"
        "import click\n"
        "from conresnet.__main__ import run\n"
        "from conresnet import cli\n"
        "def slow(): exec('os.kill(os.getpid(), signal.SIGTERM)')\n"
        "def main(): return cli.main([], click.command()(slow))\n"
        "if __name__ == '__main__': sys.exit(run('slow_command'))\n"
    )
    (tmp_path / "slow_command.py").write_text(code, encoding="utf-8")
    paths = os.pathsep.join([str(repository / "ConResSegmentation"), str(tmp_path)])
    finished = subprocess.run(
        [sys.executable, "-m", "slow_command"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (finished.returncode, finished.stderr.strip()) == (128 + signal.SIGTERM, "Stopped.")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Cancelled()])
def test_interrupt_gives_status_130(ending, error: BaseException, capsys: pytest.CaptureFixture) -> None:
    assert ending(error) == 130
    assert capsys.readouterr().err.strip() == "Stopped."


@pytest.mark.parametrize("name", ["SIGTERM", "SIGXCPU", "SIGUSR1", "SIGUSR2", "SIGQUIT"])
def test_termination_signals_let_the_process_clean_up(ending, name: str) -> None:
    number = getattr(signal, name)
    cleaned = []

    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(True)

    # Some signals are ignored when the tests run in the background of a shell.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        assert ending(work) == 128 + number and cleaned
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_second_interrupt_does_not_stop_cleanup(ending, capsys: pytest.CaptureFixture) -> None:
    cleaned = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            cleaned.append(True)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert ending(work) == 130 and cleaned
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.strip() == "Stopped."


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has none")
def test_closed_terminal_ends_process_unless_started_with_nohup(ending) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert ending(lambda: signal.raise_signal(signal.SIGHUP)) == 129
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert ending(lambda: signal.raise_signal(signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_module_exits_with_status(repository: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "CONRESNET_MODELS": str(tmp_path / "modèles")}
    finished = subprocess.run(
        [sys.executable, "-m", "conresnet", "models", "show", "organe-é"],
        cwd=repository / "ConResSegmentation",
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 2 and finished.stdout == ""
    assert finished.stderr.count("\n") == 1 and 'no model named "organe-' in finished.stderr


def test_interrupt_during_start_gives_no_traceback(monkeypatch, capsys: pytest.CaptureFixture) -> None:
    class Interrupted(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "conresnet.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "conresnet.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("conresnet", run_name="__main__")
    assert end.value.code == 130 and capsys.readouterr().err == "Stopped.\n"


def test_models_are_listed_with_broken_ones_last(models_folder: Path, capsys: pytest.CaptureFixture) -> None:
    make_folder(models_folder / "a")
    make_folder(models_folder / "b", document(version="0.9.0"))
    (make_folder(models_folder / "c") / WEIGHTS).unlink()
    assert main(["models", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "VERSION", "FROM", "CHANNELS", "SEGMENTS", "TITLE"]
    assert ["organ", "1.2.0", "user", "CT", "2", "An", "organ"] in [line.split() for line in lines]
    assert any(line.startswith("Hidden:") and str(models_folder / "b") in line for line in lines)
    assert any(line.startswith("Cannot be used:") and WEIGHTS in line for line in lines)
    assert lines[-1] == f"Your models folder is {models_folder}."


def test_models_show_prints_a_model(models_folder: Path, capsys: pytest.CaptureFixture) -> None:
    figures = b'{"dice": {"mean": 0.9012345, "cases": ["a", "b"]}, "each": {"a": {"dice": 0.1}}}'
    make_folder(models_folder / "a", files={WEIGHTS: safetensors_bytes(), "metrics.json": figures})
    assert main(["models", "show", "organ"]) == 0
    text = capsys.readouterr().out
    for part in ("An organ (organ 1.2.0)", "CC-BY-4.0", "SCT 64033007 Kidney", "2 x 1 x 1 mm", "dice, mean", "0.9012"):
        assert part in text
    assert "0.1" not in text.split("\nEvaluation\n")[1]


def test_models_show_prints_maps_mirroring_and_locator(capsys: pytest.CaptureFixture) -> None:
    assert main(["models", "show", "hippocampus"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    for part in (
        "Maps probability, residual,",
        "copies mirrored along W",
        "Locator brain-structures, which finds: Left",
    ):
        assert part in output


def test_models_show_prints_the_coarse_look(capsys: pytest.CaptureFixture) -> None:
    assert main(["models", "show", "brain-structures"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "Coarse look with voxels 1.5 times as large, margin 12 mm" in output


@pytest.mark.parametrize(("name", "content"), [("metrics.json", b"[1, 2]"), ("review.json", b"{}")])
def test_unreadable_metrics_and_review_lists_are_reported_by_install_and_verify(
    models_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str, content: bytes
) -> None:
    package = make_folder(tmp_path / "a", files={WEIGHTS: safetensors_bytes(), name: content})
    assert main(["models", "install", str(package)]) == 2
    assert name in capsys.readouterr().err and not (models_folder / "organ").exists()
    assert main(["models", "verify", str(package)]) == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize("tiling", ["fitted", "authors"])
def test_models_show_prints_tiling_of_two_networks(tmp_path: Path, capsys: pytest.CaptureFixture, tiling: str) -> None:
    pair = coarse_to_fine(description("resdsn", base_width=8))
    pair["inference"]["tiling"] = tiling
    write_pair(tmp_path, pair, *(random_weights(pair, index) for index in (0, 1)))
    assert main(["models", "show", str(tmp_path / "model")]) == 0
    assert f"Window 32 x 32 x 32, {tiling} tiling" in " ".join(capsys.readouterr().out.split())


def test_models_show_prints_copies_of_a_channel(models_folder: Path, capsys: pytest.CaptureFixture) -> None:
    whole = changed("system.networks.0.arguments", {**ARGUMENTS, "input_channels": 2})
    whole["inputs"][0]["copies"] = [[{"step": "equalize", "clip_limit": 0.01, "tiles": 8}]]
    make_folder(models_folder / "a", whole)
    assert main(["models", "show", "organ"]) == 0
    assert "intensity: clip; a copy: equalize" in capsys.readouterr().out


def test_control_characters_in_metrics_are_escaped(models_folder: Path, capsys: pytest.CaptureFixture) -> None:
    metrics = {"\x1b[2J": {"a": "\x1b[2J", "b\x1b": [1, {"c": None}, "x\x1b"]}}
    files = {WEIGHTS: safetensors_bytes(), "metrics.json": json.dumps(metrics).encode()}
    make_folder(models_folder / "a", document(), files)
    assert main(["models", "show", "organ"]) == 0
    output = capsys.readouterr().out
    assert "\\x1b[2J, a" in output and "\x1b" not in output


def test_models_are_verified(models_folder: Path, capsys: pytest.CaptureFixture) -> None:
    small = changed("system.networks.0.arguments", {**ARGUMENTS, "base_width": 8})
    write_model(models_folder / "a", small)
    make_folder(models_folder / "c", document(name="other-weights"))
    broken = make_folder(models_folder / "b", document(name="broken"))
    (broken / WEIGHTS).write_bytes((broken / WEIGHTS).read_bytes()[:-1] + b"\x01")
    assert main(["models", "verify", "organ"]) == 0
    assert "organ: complete (LICENSE.txt, network.safetensors;" in capsys.readouterr().out
    assert main(["models", "verify", "other-weights"]) == 2
    assert "does not have the tensor" in capsys.readouterr().err
    assert main(["models", "verify", "broken"]) == 2
    assert "checksum" in capsys.readouterr().err
    assert main(["models", "verify", "broken", "organ", "nowhere"]) == 2
    captured = capsys.readouterr()
    assert "organ: complete" in captured.out and "broken: broken" not in captured.out
    assert captured.err == "2 of 3 models cannot be used, for the reasons above.\n"
    assert main(["models", "verify", "organ", "nowhere"]) == 2
    assert capsys.readouterr().err == "1 of 2 models cannot be used, for the reasons above.\n"


def test_model_is_installed(models_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = make_folder(tmp_path / "download")
    assert main(["models", "install", str(source)]) == 0
    assert str(models_folder / "organ") in capsys.readouterr().out
    assert main(["models", "install", str(source)]) == 2
    assert main(["models", "install", str(source), "--overwrite"]) == 0


@pytest.mark.parametrize("given", ["--folder=~/none", "--folder=NAME=~/none"])
def test_home_folder_is_expanded(given, models_folder, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert main(["models", "list", given]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_suggestion_from_click_ends_with_punctuation(capsys) -> None:
    assert main(["models", "uninstall", "organ"]) == 2
    assert capsys.readouterr().err.endswith("'install'? See python -m conresnet models --help.\n")


def test_local_package_is_not_downloaded(models_folder, tmp_path, capsys) -> None:
    (tmp_path / "organ.zip").write_bytes(b"PK")
    assert main(["models", "get", str(tmp_path / "organ.zip")]) == 2
    assert "models install" in capsys.readouterr().err
