"""The engine on another computer: a real OpenSSH server on this computer, real workers, and broken connections."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from conresnet.errors import UserError
from conresnet.images import Grid, Volume
from conresnet.images.files import read_volume
from conresnet.package.reader import read_package
from conresnet.package.store import SHIPPED_FOLDER, write_package
from conresnet.request import SegmentOptions, SegmentRequest
from conresnet.worker import write_block
from ConResSegmentationLib.EngineConnection import EngineConnection, EngineResult
from ConResSegmentationLib.EngineProcess import sendModels
from ConResSegmentationLib.EnginePython import EngineServer
from ConResSegmentationLib.Processes import ProcessLaunch
from ConResSegmentationLib.Widgets import errorSentence
from worker.client import FAKE, NO_FILES, REAL, is_alive, wait_until
from worker.engine_driver import Driver, Recorder
from worker.models import make_model
from worker.ssh_server import NAME, SshServer

PATIENT = "DOE^JANE 19700101"
REMOTE_FAKE = (*FAKE, "--remote")
# For make test; make test-all breaks the connection twenty times.
FEW_CUTS = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """The server used by all tests in this file."""
    server = SshServer(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model packages, some named after what the stand-in engine does with them; the server has none of them."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("any", "slow", "patient", "deaf", "faulty", "hungry", "crashing", "organ"):
        make_model(folder, name)
    return folder


class ServerDriver(Driver):
    """The module's side, with the engine on the server."""

    def __init__(self, app, folder: Path, server: SshServer, models: Path):
        super().__init__(app, folder)
        self.server, self.models, self.python = server, models, server.python(*REMOTE_FAKE)
        self.sent: list[dict] = []

    def launch(self) -> ProcessLaunch:
        return EngineServer(NAME, self.python).launch()

    def segment(self, model: str, array: np.ndarray, **options) -> Recorder:
        recorder = Recorder()
        path = self.models / model
        volume = Volume(array, Grid(array.shape, np.eye(4)), PATIENT)
        request = SegmentRequest(str(path if path.exists() else model), (volume,), SegmentOptions(**options))
        recorder.number = self.engine.segment(request, recorder)
        return recorder


@pytest.fixture
def driver(
    slicer_app: object, tmp_path: Path, server: SshServer, models: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ServerDriver]:
    """The module's side; checks that no files remain on either side."""
    folder = tmp_path / "here ä"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("PATH", f"{server.bin}{os.pathsep}{os.environ['PATH']}")
    server.configure()
    driver = ServerDriver(slicer_app, folder, server, models)
    send = EngineConnection.send
    monkeypatch.setattr(
        EngineConnection, "send", lambda self, message: (driver.sent.append(message), send(self, message))
    )
    yield driver
    driver.engine.stop(wait=True)
    assert driver.sessions() == []
    wait_until(lambda: server.sessions() == [] and driver.children() == [])


def test_result_is_identical_to_local_result(driver: ServerDriver, hippocampus_image: Path) -> None:
    """With the real engine, a shipped model and maps; the server has the model, so it is not sent."""
    array = read_volume(hippocampus_image).array
    model = str(SHIPPED_FOLDER / "hippocampus")
    options = {"maps": ("residual", "uncertainty"), "precision": "fp32", "threads": 1, "review": True}
    local = Driver(driver.app, driver.folder)
    local.arguments = REAL
    expected = local.run(model, array, **options).result
    expected = EngineResult(
        np.array(expected.labels), {name: np.array(values) for name, values in expected.maps.items()}, expected.report
    )
    local.engine.stop(wait=True)
    driver.python = driver.server.python()
    recorder = driver.run(model, array, **options)
    assert recorder.ending == "done", recorder.error
    assert expected.labels.any() and recorder.events.count("array") == 3
    np.testing.assert_array_equal(recorder.result.labels, expected.labels)
    assert recorder.result.maps.keys() == expected.maps.keys() == set(options["maps"])
    for name, values in expected.maps.items():
        np.testing.assert_array_equal(recorder.result.maps[name], values)
    assert recorder.result.report["volumes_ml"] == expected.report["volumes_ml"]
    assert recorder.result.report["review"]["rows"] == expected.report["review"]["rows"]
    assert not any(message.get("file", "").startswith("models/") for message in driver.sent)


def test_model_missing_on_server_is_sent_once(driver: ServerDriver, image: np.ndarray) -> None:
    driver.python = driver.server.python()
    array = np.resize(image, (16, 32, 32))
    first, second = (driver.run("organ", array, precision="fp32") for _ in range(2))
    assert (first.ending, second.ending) == ("done", "done"), first.error
    np.testing.assert_array_equal(first.result.labels, second.result.labels)
    sent = [message["file"] for message in driver.sent if message.get("file", "").startswith("models/organ/")]
    assert sent[-1] == "models/organ/model.json" and sent.count("models/organ/model.json") == 1
    # The model changed while keeping its name, so the server's copy must change, too.
    changed = make_model(driver.folder / "changed", "organ", base_width=16)
    third = driver.run(str(changed), array, precision="fp32")
    assert third.ending == "done", third.error
    assert (third.result.labels != first.result.labels).any()


def test_locator_is_sent_with_its_model() -> None:
    sent, known = [], {}
    for _ in sendModels(read_package(SHIPPED_FOLDER / "hippocampus"), known, sent.append):
        pass
    assert {message["file"].split("/")[1] for message in sent} == {"hippocampus", "brain-structures"} == known.keys()


def test_all_model_files_are_sent_even_if_empty_or_without_locator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an ROI, the model is used without its locator."""
    shipped = read_package(SHIPPED_FOLDER / "hippocampus")
    description = replace(shipped.description, locator=replace(shipped.description.locator, model="not-installed"))
    files = {**{name: shipped.read_file(name) for name in shipped.description.files}, "LICENSE.txt": b""}
    write_package(description, files, tmp_path / "model")
    package = read_package(tmp_path / "model")
    (tmp_path / "session").mkdir()
    for _ in sendModels(package, {}, lambda message: write_block(tmp_path / "session", message)):
        pass
    received = read_package(tmp_path / "session" / "models" / "hippocampus")
    assert received.description.digest == package.description.digest


def test_names_and_paths_are_not_sent(driver: ServerDriver, image: np.ndarray) -> None:
    recorder = driver.run("any", image, maps=("residual",))
    assert recorder.ending == "done" and recorder.result.report["name"] == "T1"
    # Without the arrays: in base64, any few letters may occur by chance.
    text = json.dumps([{**message, "data": ""} for message in driver.sent])
    for private in (PATIENT, "DOE", str(driver.models), str(driver.folder), str(Path.home())):
        assert private not in text, private
    (request,) = (message for message in driver.sent if message.get("request") == "segment")
    assert (request["model"], request["channels"][0]["npy"]) == ("any", f"{recorder.number}/channel0.npy")


def test_progress_preview_and_cancel_work_as_with_local_engine(driver: ServerDriver, image: np.ndarray) -> None:
    slow = driver.segment("slow", image)
    driver.until(lambda: "labels" in slow.arrays and slow.arrays["labels"].any())
    labels = slow.arrays["labels"]
    assert not labels[-1].any(), "it grows while the server computes"
    driver.until(lambda: slow.ending)
    np.testing.assert_array_equal(labels, image > image.mean())
    assert slow.fractions == sorted(slow.fractions) and len(slow.fractions) > 5
    patient = driver.segment("patient", image)
    driver.until(lambda: max(patient.fractions, default=0) > 0)
    driver.cancel(patient)
    driver.until(lambda: patient.ending)
    assert patient.ending == "cancelled"
    pid = driver.hello["pid"]
    assert driver.run("any", image).ending == "done" and driver.hello["pid"] == pid


def test_unresponsive_worker_is_abandoned_and_exits(driver: ServerDriver, image: np.ndarray) -> None:
    """The process id belongs to another computer, so no process with this id may be killed here."""
    deaf = driver.segment("deaf", image)
    driver.until(lambda: max(deaf.fractions, default=0) > 0)
    pid = driver.hello["pid"]
    driver.cancel(deaf)
    driver.until(lambda: deaf.ending)
    assert deaf.ending == "cancelled"
    assert driver.run("any", image).ending == "done" and driver.hello["pid"] != pid
    wait_until(lambda: not is_alive(pid))


@pytest.mark.slow
def test_large_image_is_sent_in_chunks_and_can_be_cancelled(driver: ServerDriver) -> None:
    array = np.random.default_rng(0).normal(size=(64, 256, 256)).astype(np.float32)
    first = driver.segment("any", array)
    driver.until(lambda: sum("data" in message for message in driver.sent) > 3)
    assert driver.engine._connection._process.bytesToWrite < 8 << 20
    driver.cancel(first)
    driver.until(lambda: first.ending)
    assert first.ending == "cancelled"
    second = driver.run("any", array)
    np.testing.assert_array_equal(second.result.labels, array > array.mean())


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[] if seed < FEW_CUTS else pytest.mark.slow) for seed in range(20)]
)
def test_connection_lost_at_any_time_is_reported(driver: ServerDriver, image: np.ndarray, seed: int) -> None:
    chance = random.Random(seed)
    events, seconds = chance.randint(0, 16), chance.uniform(0, 0.5)
    print(f"seed {seed}: cut {seconds:.2f} s after {events} signs of the engine")
    recorder = driver.segment("slow", image, maps=("residual",))
    driver.until(lambda: recorder.ending or len(recorder.events) >= events)
    end = time.monotonic() + seconds
    driver.until(lambda: time.monotonic() > end)
    print(f"it was {recorder.events[-1] if recorder.events else 'starting'}")
    was_done = recorder.ending == "done"
    driver.server.cut()
    # Before ssh started, nothing was cut; after the result, wait until the module has noticed before the next request.
    driver.until(lambda: not was_done or not driver.engine.isRunning)
    driver.until(lambda: recorder.ending)
    print(recorder.ending, recorder.error and recorder.error.code)
    if recorder.ending == "error":
        assert recorder.error.code in ("engine-server-lost", "engine-server-unreachable"), recorder.error
        assert NAME in recorder.error.message and "click Segment" in recorder.error.message
    else:
        np.testing.assert_array_equal(recorder.result.labels, image > image.mean())
    again = driver.run("any", image)
    assert again.ending == "done", again.error
    assert driver.sessions() == [driver.engine._connection.session], "nothing of the first is left here"
    wait_until(lambda: len(driver.server.sessions()) == 1)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"UserKnownHostsFile": "empty"}, "engine-server-unknown"),
        ({"UserKnownHostsFile": "changed"}, "engine-server-key-changed"),
        ({"IdentityFile": "stranger"}, "engine-server-login"),
        ({"Port": 1}, "engine-server-unreachable"),
    ],
)
def test_connection_failures_are_reported_with_reason(
    driver: ServerDriver, image: np.ndarray, changes: dict, code: str
) -> None:
    folder = driver.server.folder
    driver.server.configure(**{name: folder / value if value != 1 else 1 for name, value in changes.items()})
    recorder = driver.run("any", image)
    assert recorder.error.code == code and NAME in recorder.error.message, recorder.error
    driver.server.configure()
    assert driver.run("any", image).ending == "done"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("-m", "no_such_module"), "engine-server-failed", "No module named no_such_module"),
        (("-c", "raise SystemExit(7)"), "engine-server-failed", "7"),
        (("-c", "raise SystemExit('Unknown option: -P\\nTry `python -h`.')"), "engine-server-failed", "too old"),
        ((*REMOTE_FAKE, "without-torch"), "engine-incomplete", "is missing torch"),
        (("-c", NO_FILES, *REMOTE_FAKE), "no-temporary-folder", "free some disk space"),
        (("-c", 'print(\'{"event":"hello","protocol":4,"version":"9"}\')'), "engine-server-version", "ConResNet 9"),
        (("-c", 'print(\'{"event":"hello","protocol":3,"version":"0"}\')'), "engine-server-version", "protocol 3"),
    ],
)
def test_failed_start_of_remote_engine_is_reported_with_reason(
    driver: ServerDriver, image: np.ndarray, arguments: tuple[str, ...], code: str, message: str
) -> None:
    driver.server.python(*arguments)
    recorder = driver.run("any", image)
    assert recorder.error.code == code and message in recorder.error.message, recorder.error
    driver.server.python(*REMOTE_FAKE)
    assert driver.run("any", image).ending == "done"


def test_unterminated_output_of_remote_shell_does_not_hide_hello(driver: ServerDriver, image: np.ndarray) -> None:
    driver.server.python(*REMOTE_FAKE, limits="printf 'Welcome to the cluster'")
    recorder = driver.segment("any", image)
    driver.until(lambda: recorder.ending, 60)
    assert recorder.ending == "done"
    driver.engine.stop()
    driver.server.python("-c", NO_FILES, *REMOTE_FAKE, limits="printf 'Welcome to the cluster'")
    assert driver.run("any", image).error.code == "no-temporary-folder", "nor an error in its place"
    driver.server.python(*REMOTE_FAKE)


def test_server_banner_is_not_reported_as_reason(driver: ServerDriver, image: np.ndarray) -> None:
    driver.server.python("-c", "raise SystemExit(7)")
    assert "exit code 7" in driver.run("any", image).error.message
    driver.server.python(*REMOTE_FAKE)


def test_login_that_waits_for_input_times_out(
    driver: ServerDriver, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, a .bashrc that asks a question, which nobody sees."""
    driver.server.python(*REMOTE_FAKE, limits="read -r answer")
    with monkeypatch.context() as patch:
        patch.setattr("ConResSegmentationLib.EngineConnection.SECONDS_TO_START", 2)
        recorder = driver.run("any", image)
    assert recorder.error.code == "engine-server-silent" and f"ssh {NAME}" in recorder.error.message
    driver.server.python(*REMOTE_FAKE)


def test_missing_remote_python_is_reported(driver: ServerDriver, image: np.ndarray) -> None:
    driver.python = "/no/such/python"
    recorder = driver.run("any", image)
    assert recorder.error.code == "engine-server-failed" and "/no/such/python" in recorder.error.message


@pytest.mark.parametrize("kilobytes", [1, 16])
def test_full_disk_on_server_is_reported_with_server_name(driver: ServerDriver, kilobytes: int) -> None:
    """There is no space for the image, which compresses well, or for the result."""
    array = np.ones((12, 20, 20), np.int16 if kilobytes > 1 else np.float32)
    driver.server.python(*REMOTE_FAKE, limits=f"ulimit -f {kilobytes * 2}")
    recorder = driver.run("any", array, maps=("residual",))
    assert recorder.error.code == "disk-full", recorder.error
    assert errorSentence(recorder.error).startswith(f"{NAME}: There is not enough disk space")
    (session,) = driver.server.sessions()
    wait_until(lambda: not (session / str(recorder.number)).exists())
    driver.server.python(*REMOTE_FAKE)
    driver.engine.stop()
    assert driver.run("any", array).ending == "done"


def test_model_that_server_could_not_store_is_sent_again(driver: ServerDriver, image: np.ndarray) -> None:
    driver.start()
    (session,) = driver.server.sessions()
    stored = session / "models" / "any" / "model.json"
    # A folder in its place blocks the file.
    stored.mkdir(parents=True)
    assert driver.run("any", image).error.code == "cannot-write"
    stored.rmdir()
    assert driver.run("any", image).ending == "done" and stored.is_file()


def test_full_local_disk_is_reported_and_server_stops(
    driver: ServerDriver, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.run("any", image)

    def full(*_arguments) -> None:
        raise UserError("disk-full", path="/here")

    with monkeypatch.context() as patch:
        patch.setattr("ConResSegmentationLib.EngineProcess.write_block", full)
        recorder = driver.run("slow", image)
    assert recorder.error.code == "disk-full" and recorder.error.server == ""
    assert driver.run("any", image).ending == "done"


@pytest.mark.slow
def test_insufficient_memory_on_server_is_reported(driver: ServerDriver, head_image: Path) -> None:
    """The real engine, with little more memory than it uses once torch is loaded."""
    array = np.resize(read_volume(head_image).array.astype(np.int16), (192, 256, 256))
    driver.python = driver.server.python()
    driver.start()
    kilobytes = psutil.Process(driver.hello["pid"]).memory_info().vms // 1024 + 100_000
    driver.engine.stop()
    driver.server.python(limits=f"ulimit -v {kilobytes}")
    recorder = driver.run(str(SHIPPED_FOLDER / "hippocampus"), array, roi="all", device="cpu")
    assert recorder.ending == "error" and "memory" in recorder.error.message, recorder.error
    assert recorder.error.code in ("out-of-memory", "memory-short", "engine-server-lost"), recorder.error
    driver.engine.stop()
    driver.server.python(*REMOTE_FAKE)
    assert driver.run("any", array).ending == "done"


@pytest.mark.parametrize("model", ["crashing", "faulty", "hungry"])
def test_failures_of_remote_engine_are_reported(driver: ServerDriver, image: np.ndarray, model: str) -> None:
    recorder = driver.run(model, image)
    codes = {"crashing": "engine-server-lost", "faulty": "engine-fault", "hungry": "out-of-memory"}
    assert recorder.error.code == codes[model], recorder.error
    assert driver.run("any", image).ending == "done"


@pytest.mark.parametrize("side", ["here", "there"])
def test_removed_temporary_folder_is_reported(driver: ServerDriver, image: np.ndarray, side: str) -> None:
    driver.run("any", image)
    shutil.rmtree(driver.engine._connection.session if side == "here" else driver.server.sessions()[0])
    assert driver.run("any", image).error.code == "engine-folder-gone"
    assert driver.run("any", image).ending == "done"


@pytest.mark.parametrize(
    "server", ["-oProxyCommand=id", "-", "user@-oProxyCommand=id", "a b", "a;b", "a@b@c", "", "a\nb", "ssh://x"]
)
def test_server_name_that_looks_like_an_ssh_option_is_refused(slicer_app: object, server: str) -> None:
    with pytest.raises(UserError) as caught:
        EngineServer(server, "python3").launch()
    assert caught.value.code == "engine-server-invalid"


@pytest.mark.parametrize(
    "server", ["gpu", "user@host.example.org", "DOMAIN\\jane@10.0.0.1", "u.s-er_1@[::1]", "x@fe80::1%eth0"]
)
def test_server_names_are_checked(slicer_app: object, server: str) -> None:
    launch = EngineServer(server, "").launch()
    assert launch.arguments[-3:-1] == ("--", server) and launch.server == server
    assert launch.arguments[-1].startswith("python3 -P ")


def test_path_of_remote_python_is_quoted(driver: ServerDriver, image: np.ndarray) -> None:
    folder = driver.server.folder / "it's; touch `x` $(y)"
    folder.mkdir(exist_ok=True)
    python = folder / "python"
    python.unlink(missing_ok=True)
    python.symlink_to(driver.python)
    driver.python = str(python)
    assert driver.run("any", image).ending == "done"
    assert EngineServer(NAME, "~/env/bin/python").launch().arguments[-1].startswith("./env/bin/python ")


def test_missing_ssh_is_reported(slicer_app: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError) as caught:
        EngineServer("gpu", "").launch()
    assert caught.value.code == "engine-ssh-missing"
