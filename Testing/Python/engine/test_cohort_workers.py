"""The workers of a cohort: whether they can do the work, and what is reported if there are none."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from conresnet.cli import cohort
from conresnet.cli import workers as cluster
from conresnet.errors import UserError
from conresnet.files import OwnedFolder
from conresnet.package.store import SHIPPED_FOLDER, digest_with_locator
from engine.cohort_runs import IMAGES, command, run_cohort, running_scheduler, table


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler shared by all tests that do not end it."""
    with running_scheduler(tmp_path_factory.mktemp("scheduler")) as (_process, address):
        yield address


def test_workers_get_one_gpu_each_and_share_if_there_are_fewer(recwarn, tmp_path, monkeypatch) -> None:
    """Real workers, on a computer that appears to have two GPUs. They leave no files behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    # A folder left by a command that was killed.
    OwnedFolder.make("conresnet-cohort-").release()

    def with_gpus(device: str) -> tuple[int, str]:
        import torch
        from distributed import get_worker

        torch.cuda.device_count = lambda: 2
        return get_worker().name, cluster.device_of_worker(device, {get_worker().address: 5})

    with socket.socket() as other:
        # Occupy the port, as another cohort would; if the bind fails, another program is using it.
        with contextlib.suppress(OSError):
            other.bind(("", 8787))
            other.listen()
        with cohort.connected(3, "") as client:
            client.wait_for_workers(3)
            for device, devices in (("auto", ["cuda:0", "cuda:1", "cuda:0"]), ("cuda:1", ["cuda:1"] * 3)):
                places = [client.submit(with_gpus, device, workers=worker, pure=False) for worker in client.nthreads()]
                assert sorted(client.gather(places)) == list(enumerate(devices))
    assert not [str(warning.message) for warning in recwarn if "8787" in str(warning.message)]
    assert not list(tmp_path.iterdir())


def test_scheduler_workers_get_one_gpu_each_on_their_computer(scheduler) -> None:
    def with_gpus(workers: dict[str, int]) -> str:
        from unittest.mock import patch

        with patch("torch.cuda.device_count", lambda: 2):
            return cluster.device_of_worker("auto", workers)

    with cohort.connected(0, scheduler) as client:
        client.wait_for_workers(2)
        workers = cohort.numbered_by_computer(client.nthreads())
        used = client.gather([client.submit(with_gpus, workers, workers=one, pure=False) for one in workers])
        assert sorted(used) == ["cuda:0", "cuda:1"]
    elsewhere = cohort.numbered_by_computer(["tls://b:2", "tls://a:9", "tls://b:1"])
    assert elsewhere == {"tls://a:9": 0, "tls://b:1": 0, "tls://b:2": 1}


@contextlib.contextmanager
def answering(text: bytes) -> Iterator[str]:
    """The address of a server that is not a scheduler, such as Dask's own dashboard: it answers with this text."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connections.append(server.accept()[0])
                    connections[-1].sendall(text)

        threading.Thread(target=serve, daemon=True).start()
        yield "{}:{}".format(*server.getsockname())
        server.shutdown(socket.SHUT_RDWR)


def test_problems_with_scheduler_are_reported(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cluster, "_SECONDS_TO_CONNECT", 1)
    for address in ("tcp://127.0.0.1:1", "somewhere", "tcp://[::1", "tcp://x:99999"):
        assert run_cohort(["one"], tmp_path / "a" / "b", scheduler=address) == "cohort-no-scheduler"
    with answering(b"") as silent, answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as other:
        for address in (f"tcp://{silent}", f"tcp://{other}"):
            assert run_cohort(["one"], tmp_path / "a" / "b", scheduler=address) == "cohort-no-scheduler"
        assert run_cohort(["one"], tmp_path / "a" / "b", scheduler=f"tls://{other}") == "cohort-no-certificate"
    assert not list(tmp_path.iterdir()), "no empty folder is left"
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert run_cohort(["one"], tmp_path, jobs=2) == "cohort-needs-package"


def test_workers_with_another_version_are_refused(tmp_path, monkeypatch, scheduler) -> None:
    monkeypatch.setattr(cluster, "__version__", "0.0.1")
    assert run_cohort(["one"], tmp_path, scheduler=scheduler) == "cohort-versions-differ"


def test_unsuitable_workers_are_refused_before_work_starts(tmp_path, monkeypatch, scheduler) -> None:
    """One without ConResNet, one with another model, and one with a separate output folder."""
    only_here = ModuleType("only_here")
    exec("def facts(*_): pass", vars(only_here))
    monkeypatch.setitem(sys.modules, "only_here", only_here)
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "facts_of_worker", only_here.facts)
        assert run_cohort(["one"], tmp_path, scheduler=scheduler) == "cohort-worker-unusable"
    with monkeypatch.context() as patch:
        patch.setattr(cohort, "digest_with_locator", lambda _: "0000")
        assert run_cohort(["one"], tmp_path, scheduler=scheduler) == "cohort-model-differs"
    monkeypatch.setattr(cluster, "_SECONDS_TO_SEE", 0.1)
    model = SHIPPED_FOLDER / "hippocampus"
    with cluster.connected(0, scheduler) as client:
        for place, code in ((tmp_path, ""), (tmp_path / "results" / ".cohort" / "new", "cohort-folder-differs")):
            workers = cluster.Workers(client, scheduler, model, digest_with_locator(model), place)
            with contextlib.nullcontext() if not code else pytest.raises(UserError) as caught:
                assert len(workers.addresses()) == 2
            assert not code or (caught.value.code, caught.value.values["path"]) == (code, str(tmp_path / "results"))
    assert not list(tmp_path.iterdir())


def test_worker_that_does_not_respond_is_named(tmp_path, monkeypatch) -> None:
    """Such as one whose computer has been suspended."""
    monkeypatch.setattr(cluster, "_SECONDS_TO_ANSWER", 5.0)
    monkeypatch.setattr(cluster, "_SECONDS_BETWEEN_CHECKS", 2.0)
    with running_scheduler(tmp_path) as (_process, address), cluster.connected(0, address) as client:
        (suspended, process), (_other, _) = client.run(os.getpid).items()
        model = SHIPPED_FOLDER / "hippocampus"
        workers = cluster.Workers(client, address, model, digest_with_locator(model), tmp_path)
        os.kill(process, signal.SIGSTOP)
        try:
            with pytest.raises(UserError) as caught:
                workers.addresses()
            assert (caught.value.code, caught.value.values["worker"]) == ("cohort-worker-silent", suspended)
        finally:
            os.kill(process, signal.SIGCONT)
        assert len(workers.addresses()) == 2


def test_result_lost_with_its_worker_is_awaited_again(tmp_path) -> None:
    """Dask computes it again."""
    future, waited = SimpleNamespace(status="lost"), []

    class Completed:
        has_ready, add = staticmethod(lambda: True), staticmethod(waited.append)

        def __next__(self) -> SimpleNamespace:
            return future

    workers = cluster.Workers(None, "", tmp_path, "", tmp_path)
    workers._completed = Completed()
    assert workers.wait_for_any() is None and waited == [future]
    future.status = "finished"
    assert workers.wait_for_any() is future and waited == [future]


def test_locator_may_be_missing_on_one_side() -> None:
    assert (
        cluster.is_same_model("a b", "a b") and cluster.is_same_model("a", "a b") and cluster.is_same_model("a b", "a")
    )
    assert not any(cluster.is_same_model(*pair) for pair in (("a b", "a c"), ("a", "b"), ("", "a")))


def test_waiting_for_workers_is_reported_once(tmp_path, monkeypatch, capsys) -> None:
    """Dask waits silently while there is no worker, or while all of them are paused because of their memory."""
    monkeypatch.setattr(cluster, "_SECONDS_BETWEEN_CHECKS", 0.0)
    states: list[str] = []
    client = SimpleNamespace(
        nthreads=lambda: dict.fromkeys(states, 1),
        run=lambda *_, workers, **how: dict.fromkeys(workers, (cluster.__version__, "a", True)),
        # Some versions of Dask describe only five by default.
        scheduler_info=lambda n_workers=5: {
            "workers": {
                place: {"status": state} for place, state in enumerate(states) if n_workers < 0 or place < n_workers
            }
        },
    )
    workers = cluster.Workers(client, "tcp://x:1", tmp_path, "a", tmp_path)
    messages = []
    for states[:] in ([], [], ["paused"], ["paused"], ["paused", "running"], [], [*5 * ["paused"], "running"]):
        workers.addresses()
        assert workers.wait_for_any() is None
        messages.append(capsys.readouterr().err)
    assert [bool(text) for text in messages] == [True, False, True, False, False, True, False]
    assert "tcp://x:1" in messages[0] and "--memory-limit 0" in messages[2]
    # Workers on this computer are restarted.
    states.clear()
    assert cluster.Workers(client, "", tmp_path, "a", tmp_path).addresses() == []
    assert capsys.readouterr().err == ""


def test_workers_resolve_images_relative_to_list(data_folder, tmp_path, scheduler) -> None:
    """The workers run in another folder. The same list by another path counts as the same list."""
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "image.nii.gz").symlink_to(data_folder / "MSD_Task04_Hippocampus" / "imagesTr" / f"{IMAGES[0]}.nii.gz")
    (lists / "list.csv").write_text("name,T1\ncase,image.nii.gz\n", encoding="utf-8")
    for cases, state in (("list.csv", "segmented"), (lists / "list.csv", "already segmented")):
        arguments = command("--cases", cases, "--output", tmp_path / "many", "--scheduler", scheduler)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(arguments, capture_output=True, text=True, cwd=lists, env=environment)
        assert done.returncode == 0, done.stderr
        assert table(tmp_path / "many")["case"]["state"] == state


def test_worker_being_replaced_does_not_end_command(monkeypatch) -> None:
    """Dask knows no process id of a worker that has died; psutil would take None for the current process."""
    import distributed
    import psutil

    killed = []
    monkeypatch.setattr(psutil.Process, "kill", lambda process: killed.append(process.pid))
    with cluster.connected(1, "") as client:
        client.wait_for_workers(1)
        monkeypatch.setattr(distributed.Nanny, "pid", None)
    assert not killed


def test_worker_without_permission_to_read_model_is_not_treated_as_lost(tmp_path, monkeypatch) -> None:
    def refuse(_model: Path) -> str:
        raise PermissionError(13, "Permission denied", "model.json")

    monkeypatch.setattr(cluster, "digest_with_locator", refuse)
    assert cluster.facts_of_worker(tmp_path, tmp_path, 0) == (cluster.__version__, "", True)
