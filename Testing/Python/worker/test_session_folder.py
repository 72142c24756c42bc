"""Session folders: those of processes that no longer exist are removed, and nothing else is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conresnet.files import LOCK_FILE
from conresnet.worker import SessionFolder, remove_abandoned_sessions, remove_session
from worker.client import engine_environment

_HOLD = "import sys; from conresnet.worker import SessionFolder as S; s = S(sys.argv[1]); print(s.path, flush=True)"


def folder_of_a_killed_process(parent: Path) -> Path:
    """Session folder of a process that was killed, containing an array."""
    code = f"{_HOLD}; s.request_folder(1).joinpath('a.npy').write_bytes(b'1'); print('made', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=engine_environment(),
        encoding="utf-8",
    )
    with process:
        path = Path(process.stdout.readline().strip())
        process.stdout.readline()
        remove_abandoned_sessions(parent)
        assert (path / "1" / "a.npy").exists(), "a living process keeps its folder"
        process.kill()
    return path


def test_folder_of_killed_process_is_removed_at_next_start(tmp_path: Path) -> None:
    path = folder_of_a_killed_process(tmp_path)
    assert path.exists()
    remove_abandoned_sessions(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_client_removes_folder_of_killed_engine(tmp_path: Path) -> None:
    assert remove_session(folder_of_a_killed_process(tmp_path))


def test_client_removes_folder_without_lock_file(tmp_path: Path) -> None:
    """The engine was killed while its folder was being removed: the patient's image must not remain."""
    path = folder_of_a_killed_process(tmp_path)
    (path / LOCK_FILE).unlink()
    assert remove_session(path)


def test_folder_in_use_is_kept(tmp_path: Path) -> None:
    session = SessionFolder(tmp_path)
    assert not remove_session(session.path)
    remove_abandoned_sessions(tmp_path)
    assert session.path.is_dir()
    session.remove()
    assert list(tmp_path.iterdir()) == []


def test_other_folders_are_kept(tmp_path: Path) -> None:
    mine = tmp_path / "conresnet-results"
    mine.mkdir()
    (mine / "segmentation.nii.gz").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / LOCK_FILE).touch()
    (tmp_path / "conresnet-link").symlink_to(elsewhere)
    patient = tmp_path / "conresnet-studies" / "001"
    patient.mkdir(parents=True)
    (patient / "scan.nii.gz").touch()
    remove_abandoned_sessions(tmp_path)
    assert not remove_session(elsewhere) and not remove_session(mine) and not remove_session(patient.parent)
    assert (mine / "segmentation.nii.gz").exists() and (elsewhere / LOCK_FILE).exists()
    assert (patient / "scan.nii.gz").exists()


def test_links_in_abandoned_folder_are_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").touch()
    session = SessionFolder(tmp_path)
    (session.path / "link").symlink_to(precious)
    (session.path / "file").touch()
    session.remove()
    assert not session.path.exists()
    assert (precious / "data").exists()


def test_arrays_are_removed_when_request_is_released(tmp_path: Path) -> None:
    session = SessionFolder(tmp_path)
    (session.request_folder(1) / "a.npy").touch()
    (session.request_folder(2) / "a.npy").touch()
    session.release(1)
    assert [path.name for path in session.path.iterdir() if path.is_dir()] == ["2"]
    session.remove()


def test_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        SessionFolder(tmp_path / "missing")
