"""Downloads of model packages from a real local HTTP server: complete, damaged, wrong, slow, redirected, via proxy."""

import hashlib
import json
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conresnet.cli import main
from conresnet.errors import UserError
from conresnet.package import download
from conresnet.package.store import list_models
from engine.package_cases import WEIGHTS, document, make_folder, safetensors_bytes


class Server(ThreadingHTTPServer):
    """Serves bytes by path.

    Attributes:
        files: content by path.
        redirects: target address by path.
        stops_after: number of bytes after which the connection is closed; None for never.
        stalls_after: number of bytes after which nothing more is sent, without closing the connection.
        takes_ranges: whether the server sends a part of a file on request.
        always_sends_a_part: whether it does so without a request.
        requests: path and Range of every request.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.stops_after = self.stalls_after = None
        self.takes_ranges, self.always_sends_a_part = True, False
        self.requests: list[tuple[str, str | None]] = []
        self.end = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, range_header = self.server, self.headers.get("Range")
        server.requests.append((self.path, range_header))
        if self.path in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[self.path])
            self.end_headers()
            return
        if self.path not in server.files:
            self.send_error(404)
            return
        content, begin = server.files[self.path], 0
        if range_header and server.takes_ranges:
            begin = int(range_header.removeprefix("bytes=").removesuffix("-"))
            if begin >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(206 if server.always_sends_a_part else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        end = server.stops_after or server.stalls_after
        self.wfile.write(content[begin:end])
        self.wfile.flush()
        if server.stalls_after:
            server.end.wait()

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with Server() as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield serving
        serving.end.set()
        serving.shutdown()


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model package, zipped."""
    place = tmp_path_factory.mktemp("package")
    files = {WEIGHTS: safetensors_bytes(), "LICENSE.txt": random.Random(0).randbytes(200_000)}
    make_folder(place / "organ", document(), files)
    return Path(shutil.make_archive(str(place / "organ"), "zip", place / "organ")).read_bytes()


@pytest.fixture
def models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONRESNET_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def catalog(server: Server, content: bytes, tmp_path: Path) -> Path:
    """A catalog with one model, which the server has."""
    server.files["/tiny.zip"] = content
    return write_catalog(tmp_path / "catalog.json", server, content)


def write_catalog(path: Path, server: Server, content: bytes, **changes: object) -> Path:
    entry = {"name": "organ", "title": "Tiny", "version": "1.0.0", "url": f"{server.address}/tiny.zip"}
    entry |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "license": "CC0-1.0", **changes}
    path.write_text(json.dumps({"format": "conresnet-catalog", "models": [entry]}), encoding="utf-8")
    return path


def installed() -> list[Path]:
    return [entry.path for entry in list_models() if entry.kind == "user"]


def test_nothing_is_downloaded_into_a_package(catalog, models_folder, server):
    make_folder(models_folder, document(name="other"))
    before = sorted(models_folder.iterdir())
    for name in ("organ", f"{server.address}/tiny.zip"):
        with pytest.raises(UserError) as caught:
            download.get_model(name, catalog=str(catalog))
        assert caught.value.code == "models-folder-not-folder"
    assert not server.requests and sorted(models_folder.iterdir()) == before


def refused(catalog: Path | str, name: str = "organ", **options: str) -> str:
    """The code of the error; checks that nothing was installed."""
    with pytest.raises(UserError) as caught:
        download.get_model(name, catalog=str(catalog), **options)
    assert not installed()
    return caught.value.code


def test_model_from_catalog_is_installed(catalog, models_folder, content, capsys):
    assert main(["models", "catalog", "--catalog", str(catalog)]) == 0
    assert "organ" in capsys.readouterr().out
    assert main(["models", "get", "organ", "--catalog", str(catalog)]) == 0
    captured = capsys.readouterr()
    [path] = installed()
    assert str(path) in captured.out
    assert f"of {len(content) / 1e6:.1f} MB" in captured.err
    assert [item.name for item in models_folder.iterdir()] == [path.name], "nothing of the download is left"


def test_progress_reaches_100_percent(catalog, models_folder, content, monkeypatch):
    monkeypatch.setattr(download, "_BLOCK", 1000)
    fractions = []
    download.get_model("organ", catalog=str(catalog), on_progress=lambda *progress: fractions.append(progress))
    assert fractions[-1] == (len(content), len(content))
    assert [have for have, _ in fractions] == sorted({have for have, _ in fractions})


@pytest.mark.parametrize("kind", ["stops_after", "stalls_after"])
def test_interrupted_download_is_resumed(catalog, models_folder, server, content, kind, monkeypatch):
    monkeypatch.setattr(download, "_TIMEOUT", (5, 0.5))
    monkeypatch.setattr(download, "_BLOCK", 500)
    half = len(content) // 2
    setattr(server, kind, half)
    assert refused(catalog) == "download-interrupted"
    setattr(server, kind, None)
    server.requests.clear()
    download.get_model("organ", catalog=str(catalog))
    [(_, range_header)] = server.requests
    begin = int(range_header.removeprefix("bytes=").removesuffix("-"))
    assert half - 501 <= begin < half
    assert installed()


def test_download_restarts_if_server_has_no_ranges(catalog, models_folder, server, content):
    server.stops_after = len(content) // 2
    assert refused(catalog) == "download-interrupted"
    server.stops_after, server.takes_ranges = None, False
    download.get_model("organ", catalog=str(catalog))
    assert installed()


def test_complete_partial_file_is_used(catalog, models_folder, server, content):
    server.stops_after = len(content) - 1
    assert refused(catalog) == "download-interrupted"
    [part] = (models_folder / ".downloads").iterdir()
    part.write_bytes(content)
    server.stops_after = None
    download.get_model("organ", catalog=str(catalog))
    assert installed()


def test_partial_file_that_is_too_long_is_discarded(models_folder, server, content):
    server.files["/tiny.zip"], server.stops_after = content, len(content) // 2
    url, sha256 = f"{server.address}/tiny.zip", hashlib.sha256(content).hexdigest()
    assert refused("", url, sha256=sha256) == "download-interrupted"
    [part] = (models_folder / ".downloads").iterdir()
    part.write_bytes(content + bytes(500))
    server.stops_after = None
    assert refused("", url, sha256=sha256) == "download-interrupted"
    download.get_model(url, sha256=sha256)
    assert installed()


def test_model_with_other_name_than_in_catalog_is_refused(models_folder, server, content, tmp_path):
    server.files["/tiny.zip"] = content
    download.get_model(f"{server.address}/tiny.zip")
    before = sorted(models_folder.rglob("*"))
    path = write_catalog(tmp_path / "catalog.json", server, content, name="lung")
    with pytest.raises(UserError) as caught:
        download.get_model("lung", catalog=str(path), overwrite=True)
    assert caught.value.code == "download-other-model" and caught.value.values["found"] == "organ"
    assert sorted(models_folder.rglob("*")) == before


def test_installed_model_is_not_downloaded_again(catalog, models_folder, server):
    download.get_model("organ", catalog=str(catalog))
    server.requests.clear()
    with pytest.raises(UserError) as caught:
        download.get_model("organ", catalog=str(catalog))
    assert caught.value.code == "package-exists" and not server.requests
    download.get_model("organ", catalog=str(catalog), overwrite=True)


def test_checksum_is_checked_before_the_download(models_folder, server, content):
    server.files["/tiny.zip"], url = content, f"{server.address}/tiny.zip"
    for text in ("xyz", "12" * 31, "g" * 64):
        assert refused("", url, sha256=text) == "download-checksum"
    assert not server.requests and not models_folder.exists()
    download.get_model(url, sha256=f" {hashlib.sha256(content).hexdigest().upper()}\n")


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1] + b"x", lambda data: data + b"x" * 5000, lambda data: data[:-1]]
)
def test_wrong_file_is_deleted(catalog, models_folder, server, content, change):
    server.files["/tiny.zip"] = change(content)
    assert refused(catalog) == "download-differs"
    assert not (models_folder / ".downloads").exists()


def test_file_that_is_not_a_package_is_not_installed(models_folder, server):
    server.files["/page.zip"] = b"<!DOCTYPE html><html>Sign in</html>"
    with pytest.raises(UserError) as caught:
        download.get_model(f"{server.address}/page.zip")
    assert caught.value.code == "file-web-page" and f"{server.address}/page.zip" in caught.value.message
    assert ".downloads" not in caught.value.message and not installed()
    assert not (models_folder / ".downloads").exists()


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://example.org/model.zip", "download-insecure"),
        ("ftp://example.org/model.zip", "download-insecure"),
        ("file:///etc/passwd", "download-insecure"),
        ("https://", "download-failed"),
        ("https://[::1/model.zip", "download-failed"),
        ("{server}/missing.zip", "download-failed"),
        ("{server}/elsewhere.zip", "download-insecure"),
        ("{server}/there_and_back.zip", "download-insecure"),
        ("{server}/file.zip", "download-failed"),
    ],
)
def test_unsafe_addresses_are_refused(models_folder, server, url, code, monkeypatch):
    server.redirects["/elsewhere.zip"] = f"http://example.org:{server.server_port}/model.zip"
    server.redirects["/there_and_back.zip"] = f"http://example.org:{server.server_port}/back.zip"
    server.redirects[f"http://example.org:{server.server_port}/back.zip"] = f"{server.address}/model.zip"
    server.files["/model.zip"] = server.files[f"{server.address}/model.zip"] = b"x"
    server.redirects["/file.zip"] = "file:///etc/passwd"
    # The server acts as the proxy and responds in place of the other computer.
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.files[f"http://example.org:{server.server_port}/model.zip"] = b"x"
    assert refused("", url.format(server=server.address)) == code
    assert not (models_folder / ".downloads").exists()


@pytest.mark.parametrize("url", ["ftp://example.org/model.zip", "file:///etc/passwd"])
def test_unsupported_scheme_is_refused_even_with_checksum(models_folder, url):
    with pytest.raises(UserError) as caught:
        download.download(url, sha256="0" * 64)
    assert caught.value.code == "download-failed" and "https://" in caught.value.message


def test_system_proxy_is_used(models_folder, server, content, tmp_path, monkeypatch):
    url = "http://models.example/tiny.zip"
    server.files[url] = content
    monkeypatch.setenv("http_proxy", server.address)
    download.get_model("organ", catalog=str(write_catalog(tmp_path / "catalog.json", server, content, url=url)))
    assert server.requests == [(url, None)]
    assert installed()


def test_concurrent_downloads_of_one_file_do_not_interfere(catalog, models_folder, server, content):
    server.stops_after = len(content) // 2
    assert refused(catalog) == "download-interrupted"
    [part] = (models_folder / ".downloads").iterdir()
    program = "import sys; from conresnet.files import lock; file = open(sys.argv[1], 'ab')"
    program += "; lock(file.fileno(), inherited=False); print('locked', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(part)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        assert refused(catalog) == "download-running"
        other.stdin.close()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"sha256": "12"}, "sha256"),
        ({"url": "ftp://x"}, "url"),
        ({"url": "https://[x/tiny.zip"}, "url"),
        ({"size": 3}, "size"),
        ({"bytes": -1}, "bytes"),
    ],
)
def test_invalid_catalog_is_refused_and_field_named(server, content, tmp_path, changes, word):
    path = write_catalog(tmp_path / "catalog.json", server, content, **changes)
    with pytest.raises(UserError) as caught:
        download.read_catalog(str(path))
    assert caught.value.code == "catalog-unreadable"
    assert word in caught.value.message


def test_catalog_with_duplicate_name_is_refused(server, content, tmp_path):
    """Otherwise, the first entry would be used silently."""
    path = write_catalog(tmp_path / "catalog.json", server, content)
    catalog = json.loads(path.read_text(encoding="utf-8"))
    catalog["models"].append(catalog["models"][0] | {"version": "9.0.0"})
    path.write_text(json.dumps(catalog), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        download.read_catalog(str(path))
    assert caught.value.code == "catalog-unreadable" and 'models contains "organ" twice' in caught.value.message


def test_checksum_may_be_in_upper_case(models_folder, server, content, tmp_path):
    server.files["/tiny.zip"], checksum = content, hashlib.sha256(content).hexdigest().upper()
    path = write_catalog(tmp_path / "catalog.json", server, content, sha256=checksum)
    assert download.get_model("organ", catalog=str(path)).description.name == "organ"


def test_catalog_with_newer_format_asks_for_an_update():
    with pytest.raises(UserError) as caught:
        download.parse_catalog(b'{"format": "conresnet-catalog", "format_version": 2, "networks": []}', "new.json")
    assert caught.value.code == "package-newer" and "new.json" in caught.value.message


def test_invalid_server_responses_are_reported_in_plain_language(models_folder, server, content):
    server.files["/part.zip"] = content
    server.redirects["/file.zip"] = "file:///etc/passwd"
    server.always_sends_a_part = True
    for name, words in (("file.zip", "redirects to an address that begins with neither"), ("part.zip", "206")):
        with pytest.raises(UserError) as caught:
            download.get_model(f"{server.address}/{name}")
        assert caught.value.code == "download-failed" and words in caught.value.message
    with socket.create_server(("127.0.0.1", 0)) as other:
        answering = threading.Thread(target=answer_without_http, args=[other])
        answering.start()
        with pytest.raises(UserError) as caught:
            download.get_model(f"http://127.0.0.1:{other.getsockname()[1]}/a.zip")
        answering.join()
    assert "the server's answer is not HTTP" in caught.value.message


def answer_without_http(server: socket.socket) -> None:
    connection, _address = server.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"garbage\r\n\r\n")


def test_catalog_may_be_on_a_server(catalog, models_folder, server, monkeypatch):
    server.files["/catalog.json"] = catalog.read_bytes()
    monkeypatch.setenv("CONRESNET_CATALOG", f"{server.address}/catalog.json")
    assert [entry.name for entry in download.read_catalog()] == ["organ"]
    assert refused("", "other") == "catalog-unknown-model"
    server.stops_after = 10
    assert refused("", "organ") == "download-interrupted"


def test_shipped_catalog_is_read(models_folder, monkeypatch):
    monkeypatch.delenv("CONRESNET_CATALOG", raising=False)
    assert download.read_catalog() == () and refused("", "other") == "catalog-empty"
