"""Responses and behavior of the worker, in a real process with a stand-in engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from conresnet import __version__
from conresnet.files import LOCK_FILE
from conresnet.worker import PROTOCOL
from worker.client import FAKE, NO_FILES, Client, running, wait_until


@pytest.fixture(scope="module")
def shared_client() -> Iterator[Client]:
    """A worker shared by the tests: it must survive all their requests."""
    with running(*FAKE) as client:
        client.ready()
        yield client


def test_first_line_identifies_the_worker(client: Client) -> None:
    hello = client.hello
    assert (hello["protocol"], hello["version"], hello["pid"]) == (PROTOCOL, __version__, client.process.pid)
    assert Path(hello["session"]).is_dir()
    assert client.sessions() == [Path(hello["session"]).name]


def test_segmentation_is_returned_in_files(client: Client, image: np.ndarray) -> None:
    client.segment(7, "any", image, maps=["residual", "attention"])
    done = client.expect("done")
    assert done["id"] == 7 and done["report"] == {"requests": 1, "name": "Bild ä"}
    np.testing.assert_array_equal(np.load(done["labels"]), image > image.mean())
    residual = np.load(done["maps"]["residual"], mmap_mode="r")
    assert residual.shape == (2, *image.shape) and residual.dtype == np.float16
    np.testing.assert_array_equal(residual[0], image.astype(np.float16))
    assert not residual[1].any()
    assert set(done["maps"]) == {"residual", "attention"}
    assert Path(done["labels"]).parent == Path(client.hello["session"]) / "7"


def test_output_of_libraries_goes_to_log(client: Client, image: np.ndarray) -> None:
    """The stand-in prints a line and writes to file descriptor 1; neither reaches the protocol."""
    client.segment(1, "any", image)
    names = set()
    while "done" not in names:
        names.add(client.events.get(timeout=120)["event"])
    assert "nonsense" not in names
    wait_until(lambda: b"nonsense" in client.log and "log of any ä".encode() in client.log)


def test_result_is_readable_while_it_grows(client: Client, image: np.ndarray) -> None:
    client.segment(1, "slow", image)
    announced = client.expect("array")
    assert announced == {
        "event": "array",
        "id": 1,
        "name": "labels",
        "npy": announced["npy"],
        "shape": list(image.shape),
        "dtype": "uint8",
    }
    labels = np.load(announced["npy"], mmap_mode="r")
    client.expect("progress")
    assert labels[0].any() and not labels[-1].any()
    done = client.expect("done")
    assert done["labels"] == announced["npy"] and labels[-1].any()


def test_progress_never_decreases(client: Client, image: np.ndarray) -> None:
    client.segment(1, "any", image)
    seen = []
    while (message := client.events.get(timeout=120))["event"] != "done":
        if message["event"] == "progress":
            assert message["phase"] == "segmenting" and message["seconds_left"] is None
            seen.append(message["fraction"])
    assert seen == sorted(seen) and seen[-1] == 1.0


def test_requests_are_answered_in_order_by_same_engine(client: Client, image: np.ndarray) -> None:
    client.segment(1, "any", image)
    client.segment(2, "any", image)
    first, second = client.expect("done"), client.expect("done")
    assert (first["id"], second["id"]) == (1, 2)
    assert second["report"]["requests"] == 2


def test_released_arrays_are_deleted(client: Client, image: np.ndarray) -> None:
    client.segment(1, "any", image)
    folder = Path(client.expect("done")["labels"]).parent
    client.send(request="release", id=1)
    wait_until(lambda: not folder.exists())


def test_running_request_cannot_be_released(client: Client, image: np.ndarray) -> None:
    client.segment(1, "slow", image)
    path = Path(client.expect("array")["npy"])
    client.send(request="release", id=1)
    client.send(request="unknown", id=2)
    client.expect("error")
    assert path.exists()


@pytest.mark.parametrize("which", [{}, {"id": 1}])
def test_cancel_ends_request_and_next_is_processed(client: Client, image: np.ndarray, which: dict) -> None:
    client.segment(1, "patient", image)
    client.expect("progress")
    client.send(request="cancel", **which)
    assert client.expect("cancelled")["id"] == 1
    assert not (Path(client.hello["session"]) / "1").exists()
    client.segment(2, "any", image)
    assert client.expect("done")["id"] == 2


def test_cancel_applies_to_waiting_requests(client: Client, image: np.ndarray) -> None:
    client.segment(1, "patient", image)
    client.segment(2, "any", image)
    client.send(request="cancel", id=2)
    client.send(request="cancel", id=99)
    client.expect("progress")
    client.send(request="cancel", id=1)
    assert [client.expect("cancelled")["id"] for _ in range(2)] == [1, 2]


def test_internal_error_is_reported_with_traceback_and_worker_continues(client: Client, image: np.ndarray) -> None:
    client.segment(1, "faulty", image)
    error = client.expect("error")
    assert (error["id"], error["code"], error["ours"]) == (1, "engine-fault", True)
    assert "RuntimeError: the fault of ä" in error["message"] and "Traceback" in error["log"]
    client.segment(2, "any", image)
    assert client.expect("done")["report"]["requests"] == 1, "what was kept was forgotten"


def test_user_error_keeps_code_and_values(client: Client, image: np.ndarray) -> None:
    client.segment(1, "refusing", image)
    assert client.expect("error") == {
        "event": "error",
        "id": 1,
        "code": "image-constant",
        "message": "The image is constant.",
        "values": {"path": "a.nii", "sizes": [1, 2]},
        "ours": False,
        "log": None,
    }


def test_out_of_memory_is_reported(client: Client, image: np.ndarray) -> None:
    client.segment(1, "hungry", image)
    error = client.expect("error")
    assert error["code"] == "out-of-memory" and not error["ours"]
    client.segment(2, "any", image)
    assert client.expect("done")["report"]["requests"] == 1, "the model was let go"


def bad_segment_requests() -> dict[str, dict]:
    right = {"npy": "{npy}", "grid": {"shape": [2, 2, 2], "ijk_to_ras": np.eye(4).tolist()}, "name": "a"}
    return {
        "no channels": {"channels": []},
        "channels that are no list": {"channels": 5},
        "a channel that is no object": {"channels": ["a.npy"]},
        "no model": {"channels": [right], "model": None},
        "no grid": {"channels": [{**right, "grid": None}]},
        "a bad grid": {"channels": [{**right, "grid": {"shape": [2], "ijk_to_ras": []}}]},
        "a grid of another shape": {"channels": [{**right, "grid": {**right["grid"], "shape": [2, 2, 3]}}]},
        "no such file": {"channels": [{**right, "npy": "missing.npy"}]},
        "a pickle": {"channels": [{**right, "npy": "{pickle}"}]},
        "no array": {"channels": [{**right, "npy": "{text}"}]},
        "a bad ROI": {"channels": [right], "options": {"roi": {"center": [0, 0, 0]}}},
        "an ROI that is no object": {"channels": [right], "options": {"roi": [1, 2]}},
        "maps that are no list": {"channels": [right], "options": {"maps": "residual"}},
        "threads that are not a number": {"channels": [right], "options": {"threads": True}},
        "an option of another version": {"channels": [right], "options": {"sharpness": 1}},
        "options that are not an object": {"channels": [right], "options": []},
    }


@pytest.mark.parametrize("what", bad_segment_requests())
def test_invalid_request_is_refused_with_message(shared_client: Client, tmp_path: Path, what: str) -> None:
    np.save(tmp_path / "right.npy", np.zeros((2, 2, 2)))
    np.save(tmp_path / "pickle.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("text")
    message = bad_segment_requests()[what]
    for channel in message["channels"] if isinstance(message["channels"], list) else []:
        if isinstance(channel, dict):
            names = {name: str(tmp_path / f"{name}.npy") for name in ("pickle", "text")}
            channel["npy"] = channel["npy"].format(npy=tmp_path / "right.npy", **names)
    shared_client.send(**{"request": "segment", "id": 1, "model": "any", **message})
    error = shared_client.expect("error")
    assert error["id"] == 1 and error["code"] in ("bad-request", "bad-grid", "bad-roi", "channel-unreadable")
    assert not error["ours"] and error["message"].endswith(".")


HUGE_ID = b'{"request":"release","id":1' + b"0" * 300 + b"}"


@pytest.mark.parametrize(
    "line",
    [b"garbage", b"[]", b"\xff", b"{}", b'{"request":"segment"}', b'{"request":"fly","id":1}', b'{"id":true}', HUGE_ID],
)
def test_line_that_is_not_a_request_gets_error_and_worker_continues(
    shared_client: Client, image: np.ndarray, line: bytes
) -> None:
    client = shared_client
    client.process.stdin.write(line + b"\n")
    client.process.stdin.flush()
    assert client.expect("error")["code"] == "bad-request"
    client.segment(5, "any", image)
    assert client.expect("done")["id"] == 5


def test_id_in_use_is_refused(client: Client, image: np.ndarray) -> None:
    client.segment(1, "patient", image)
    client.segment(1, "any", image)
    assert client.expect("error")["code"] == "bad-request"


def test_request_whose_file_was_not_stored_is_answered_once(image: np.ndarray) -> None:
    with running(*FAKE, "--remote") as client:
        client.ready()
        client.send(request="block", id=1, file="../away.npy", offset=0, data="")
        # Sent before the client receives the error.
        client.segment(1, "plain", image)
        client.segment(2, "refusing", image)
        assert [client.expect("error")["id"] for _ in range(2)] == [1, 2]


def test_removed_session_folder_is_created_again(client: Client, image: np.ndarray) -> None:
    """macOS and systemd remove files from temporary folders that were not used for days."""
    session = Path(client.hello["session"])
    session.joinpath(LOCK_FILE).unlink()
    session.rmdir()
    client.segment(1, "any", image)
    assert client.expect("done")["id"] == 1
    client.close()
    assert client.sessions() == []


@pytest.mark.parametrize(("what", "code"), [("without-torch", "engine-incomplete"), ("broken-torch", "engine-broken")])
def test_engine_that_cannot_be_loaded_is_reported_with_reason(what: str, code: str) -> None:
    with running(*FAKE, what) as client:
        client.expect("hello")
        error = client.expect("error")
        assert error["code"] == code and "id" not in error and "Traceback" in error["log"]
        assert client.wait() == 1
        assert client.sessions() == []


def test_unwritable_temporary_folder_is_reported_at_start() -> None:
    """As on a full disk; the error is sent instead of the hello message."""
    with running("-c", NO_FILES, *FAKE) as client:
        error = client.events.get(timeout=30)
        assert (error["event"], error["code"]) == ("error", "no-temporary-folder") and "id" not in error
        assert client.wait() == 1


@pytest.mark.parametrize("variables", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}])
def test_locale_does_not_matter(image: np.ndarray, variables: dict[str, str]) -> None:
    with running(*FAKE, environment=variables) as client:
        client.ready()
        client.segment(1, "any", image)
        assert client.expect("done")["report"]["name"] == "Bild ä"
