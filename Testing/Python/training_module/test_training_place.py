"""Where training runs: another Python, a command before it, or the environment that the module creates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from conresnet.needs import TRAINING_PACKAGES
from slicer_host import dialogs
from training_module.training_driver import TrainingDriver


@pytest.mark.slow
def test_test_of_another_python_shows_its_versions(here: TrainingDriver) -> None:
    here.run_command(here.ui.testPlaceButton)
    here.wait(lambda: here.ui.testPlaceButton.text == "Test")
    text = here.ui.placeStatusLabel.text
    assert text.startswith("ConResNet ") and "PyTorch 2." in text


def test_missing_python_and_missing_packages_are_reported(training: TrainingDriver, tmp_path: Path) -> None:
    training.choose_python(str(tmp_path / "nowhere"))
    assert "does not exist" in training.ui.placeStatusLabel.text and not training.ui.testPlaceButton.enabled
    bare = tmp_path / "bare"
    base = Path(sys.base_prefix) / "bin" / "python3"
    subprocess.run([base, "-m", "venv", "--without-pip", bare], check=True)
    training.choose_python(str(bare / "bin" / "python"))
    training.run_command(training.ui.testPlaceButton)
    text = training.ui.placeStatusLabel.text
    assert text.startswith("Missing packages: torch") and "pip install" in text


def test_files_in_the_working_directory_are_not_imported(
    here: TrainingDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong random')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    launch = here.widget.logic.backend.launch("--version")
    command_line = [launch.program, *launch.arguments]
    answer = subprocess.run(command_line, capture_output=True, env=launch.environment, text=True)
    assert answer.returncode == 0 and answer.stdout.startswith("ConResNet "), answer.stderr


def test_pythons_of_homebrew_are_found_on_a_mac(training: TrainingDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    library = sys.modules["ConResTrainingLib.PlacePanel"]
    asked: list[str] = []
    monkeypatch.setattr(library.shutil, "which", lambda name, path: asked.append(path) or f"{path}/{name}")
    monkeypatch.setattr(library.sys, "platform", "darwin")
    programs = [command_line[0] for command_line, _isSlicers in library._candidates()]
    homebrew = "/opt/homebrew/bin:/usr/local/bin"
    assert asked.index(homebrew) == len(asked) / 2, "after those on the PATH"
    assert f"{homebrew}/python3.12" in programs


@pytest.mark.parametrize(("machine", "able"), [("x86_64", False), ("arm64", True)])
def test_intel_python_on_a_mac_cannot_create_an_environment(training: TrainingDriver, machine: str, able: bool) -> None:
    question = sys.modules["ConResTrainingLib.PlacePanel"]._QUESTION
    mac = f"import platform, sys; sys.platform = 'darwin'; platform.machine = lambda: '{machine}'\n"
    answer = subprocess.run([sys.executable, "-c", mac + question], capture_output=True, check=True)
    assert json.loads(answer.stdout)["able"] is able


def test_arguments_are_unchanged_for_a_command_and_quoted_for_ssh(
    training: TrainingDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = training.widget.logic.backend
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    # Like the real programs: srun runs its arguments, and ssh passes them to a shell.
    for name, body in (("srun", 'shift 2\nexec "$@"'), ("ssh", 'shift\nexec sh -c "$*"')):
        (folder / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$PYTHONPATH" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    ssh = folder / "ssh"
    for command in ("srun -c 8", "ssh host", f"nice -5 {ssh} host", f"env A=1 {ssh} host", f"ssh jump {ssh} host"):
        training.choose_command(command, str(python))
        launch = backend.launch("check", "a folder/Übung; rm -rf x")
        command_line = [launch.program, *launch.arguments]
        answer = subprocess.run(command_line, capture_output=True, env=launch.environment, check=True)
        path, *arguments = answer.stdout.decode().splitlines()
        assert arguments == ["-m", "conresnet_training", "check", "a folder/Übung; rm -rf x"]
        assert all(
            (Path(place) / name).is_dir()
            for place, name in zip(path.split(os.pathsep), ("conresnet", "conresnet_training"), strict=True)
        )
    training.choose_command("no-such-program host", "")
    assert "cannot be started" in training.ui.placeStatusLabel.text


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder from which pip installs a tiny package called torch."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    files = {
        "torch/__init__.py": "class cuda: device_count = staticmethod(int)",
        "torch-9.9.dist-info/METADATA": "Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n",
        "torch-9.9.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, "torch-9.9.dist-info/RECORD"])
    with zipfile.ZipFile(folder / "torch-9.9-py3-none-any.whl", "w") as wheel:
        for name, text in {**files, "torch-9.9.dist-info/RECORD": record}.items():
            wheel.writestr(name, text)
    return folder


def make_environment(training: TrainingDriver, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Click the button and agree; only the fake "PyTorch" is installed, from its folder."""
    library = sys.modules["ConResTrainingLib.PlacePanel"]
    variables = library.pythonEnvironment

    def without_pip_settings(is_slicers: bool) -> dict[str, str]:
        kept = {name: value for name, value in variables(is_slicers).items() if not name.startswith("PIP_")}
        return kept | {"PIP_CONFIG_FILE": os.devnull}

    training.ui.torchOptionsEdit.text = f"--no-index --find-links '{wheels}'"
    dialogs.answer("OK")
    with monkeypatch.context() as patch:
        patch.setattr(library, "TRAINING_PACKAGES", {"torch": "2.6"})
        # Ignores the configuration of pip on this computer, which may name other sources of wheels.
        patch.setattr(library, "pythonEnvironment", without_pip_settings)
        training.click(training.ui.makeEnvironmentButton)
        training.wait(lambda: training.widget.placePanel._maker is not None)


def test_environment_is_created_and_removed_after_confirmation(
    training: TrainingDriver, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, ui = training.widget.logic.backend, training.ui
    folder = backend.environment.folder
    assert tmp_path in folder.parents
    dialogs.answer("Cancel")
    training.click(ui.makeEnvironmentButton)
    training.wait(lambda: not training.widget.placePanel.isMaking)
    assert not folder.exists() and "Several gigabytes" in dialogs.shown[-1].text
    # An incomplete environment, as after the computer was turned off.
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    assert not backend.environment.isReady and "no training environment yet" in backend.problem
    make_environment(training, wheels, monkeypatch)
    training.wait(lambda: not training.widget.placePanel.isMaking)
    assert backend.environment.isReady, training.log
    # It is tested immediately, and contains only the fake package.
    training.wait(lambda: ui.testPlaceButton.text == "Test")
    assert ui.placeStatusLabel.text.startswith("Missing packages: ")
    found = subprocess.run(
        [backend.environment.python, "-c", "import torch; print(torch.__file__)"], capture_output=True
    )
    assert Path(found.stdout.decode().strip()).is_relative_to(folder)
    assert backend.problem == "" and "-m pip install" in training.log
    dialogs.answer("No", "Yes")
    training.click(ui.removeEnvironmentButton)
    assert backend.environment.isReady and f"Delete the training environment in {folder} (" in dialogs.shown[-1].text
    assert dialogs.shown[-1].text.endswith(" MB)?")
    training.click(ui.removeEnvironmentButton)
    assert not folder.exists() and not ui.removeEnvironmentButton.enabled
    assert "no training environment yet" in ui.placeStatusLabel.text


def test_environment_that_cannot_be_created_leaves_nothing_behind(training: TrainingDriver, tmp_path: Path) -> None:
    environment = training.widget.logic.backend.environment
    library = sys.modules["ConResTrainingLib.PlacePanel"]
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nmkdir -p \"$3\"\necho 'No space left on device' >&2\nexit 1\n", encoding="utf-8")
    python.chmod(0o755)
    base = sys.modules["ConResTrainingLib.PlacePanel"].BasePython(str(python), "3.12.0")
    ended: list[str] = []
    library.EnvironmentMaker(environment, base, [], training.widget.logic.backend.log, ended.append).start()
    training.wait(lambda: len(ended) == 1)
    assert ended[0] == "The environment could not be created: No space left on device"
    assert not environment.folder.exists()
    python.write_text("#!/bin/sh\nexit 7\n", encoding="utf-8")
    library.EnvironmentMaker(environment, base, [], training.widget.logic.backend.log, ended.append).start()
    training.wait(lambda: len(ended) == 2)
    assert ended.pop() == "The environment could not be created: exit code 7"
    environment.folder.parent.rmdir()
    environment.folder.parent.write_text("not a folder", encoding="utf-8")
    library.EnvironmentMaker(environment, base, [], training.widget.logic.backend.log, ended.append).start()
    training.wait(lambda: len(ended) == 2)
    assert "cannot be written" in ended[1]


@pytest.fixture
def ready(training: TrainingDriver) -> Path:
    """The folder of an environment that the panel takes for complete."""
    environment = training.widget.logic.backend.environment
    Path(environment.python).parent.mkdir(parents=True)
    Path(environment.python).symlink_to(sys.executable)
    environment.markReady(sys.executable, "3.12.0", False)
    (environment.folder / "old").touch()
    training.choose_command("env", "python3")
    training.ui.placeSelector.setCurrentIndex(0)
    assert training.ui.removeEnvironmentButton.enabled
    return environment.folder


@pytest.mark.parametrize("outcome", ["failed", "canceled", "closed"])
def test_working_environment_is_kept_until_the_new_one_is_complete(
    training: TrainingDriver, ready: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    environment, panel = training.widget.logic.backend.environment, training.widget.placePanel
    if outcome == "failed":
        for wheel in wheels.iterdir():
            wheel.unlink()
    make_environment(training, wheels, monkeypatch)
    assert not environment.isReady, "nothing may start in an incomplete environment"
    if outcome == "canceled":
        training.click(training.ui.makeEnvironmentButton)
    if outcome == "closed":
        panel.close()
    else:
        training.wait(lambda: not panel.isMaking)
    assert environment.isReady and (ready / "old").exists()
    assert [path.name for path in ready.parent.iterdir()] == [ready.name]


def test_environment_set_aside_by_a_killed_slicer_is_restored(
    training: TrainingDriver, ready: Path, tmp_path: Path
) -> None:
    """A second process stands for the Slicer that sets the environment aside and is killed."""
    code = """
import sys, time
from pathlib import Path
from slicer_host import start_application
app = start_application()
from ConResTrainingLib.Backend import TrainingEnvironment
environment = TrainingEnvironment()
environment.setAside()
print("ready", flush=True)
time.sleep(600)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    with other:
        assert other.stdout.readline() == b"ready\n"
        training.unload()
        training.load()
        assert not ready.exists(), "the other Slicer is still creating one"
        other.kill()
    training.unload()
    training.load()
    assert (ready / "old").exists() and training.widget.logic.backend.environment.isReady
    assert [path.name for path in ready.parent.iterdir()] == [ready.name]


def test_new_environment_replaces_the_earlier_one(
    training: TrainingDriver, ready: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_environment(training, wheels, monkeypatch)
    training.wait(lambda: not training.widget.placePanel.isMaking)
    assert training.widget.logic.backend.environment.isReady and not (ready / "old").exists()
    assert [path.name for path in ready.parent.iterdir()] == [ready.name]


def test_environment_in_use_is_neither_removed_nor_replaced(
    training: TrainingDriver, ready: Path, data_set: Path, tmp_path: Path
) -> None:
    ui, python = training.ui, Path(training.widget.logic.backend.environment.python)
    python.unlink()
    python.write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    python.chmod(0o755)
    training.use_tiny_plan(data_set)

    def refused() -> None:
        for button in (ui.removeEnvironmentButton, ui.makeEnvironmentButton):
            training.click(button)
            training.wait(lambda: not training.widget.placePanel.isMaking)
            assert ui.placeStatusLabel.text.startswith("The environment may be in use. First stop"), button.text
            assert dialogs.shown == [] and (ready / "old").exists()

    training.click(ui.checkButton)
    refused()
    training.click(ui.checkButton)
    training.wait(lambda: ui.checkButton.text == "Check")
    training.click(ui.startButton)
    refused()
    training.end_training()
    training.widget.jobPanel.look()
    dialogs.answer("Yes")
    training.click(ui.removeEnvironmentButton)
    assert not ready.exists()


def test_creating_the_environment_can_be_canceled(
    training: TrainingDriver, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_environment(training, wheels, monkeypatch)
    assert training.ui.makeEnvironmentButton.text == "Cancel"
    training.click(training.ui.makeEnvironmentButton)
    training.wait(lambda: not training.widget.placePanel.isMaking)
    assert "Canceled" in training.ui.placeStatusLabel.text
    assert not training.widget.logic.backend.environment.folder.exists()


def test_installed_packages_match_those_in_pyproject(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["training"]]
    # Only downloads of models need the package requests, and the environment is not used for them.
    wanted = [need for need in wanted if not need.startswith("requests")]
    assert sorted(wanted) == sorted(f"{name}>={least}" for name, least in TRAINING_PACKAGES.items())
