"""Download model packages from a catalog or a web address, resume interrupted downloads, and verify and install them.

A catalog is a JSON file that lists packages with their checksums::

    {"format": "conresnet-catalog", "models": [{"name": "lung", "title": "Lung in CT", "version": "1.0.0",
     "url": "https://example.org/lung.zip", "sha256": "0f3c...", "bytes": 9600000, "license": "CC-BY-4.0"}]}

Downloads use requests, which is imported only when needed and uses the system's proxies.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

from conresnet.errors import UserError
from conresnet.files import lock, write_error
from conresnet.package import packed_file
from conresnet.package.reader import ModelPackage, read_package
from conresnet.package.schema import Place, dump, field, load, load_json, repeated
from conresnet.package.store import check_replaceable, install_model, place_to_install, user_folder

if TYPE_CHECKING:
    from requests import Response

CATALOG_VARIABLE = "CONRESNET_CATALOG"
_FORMAT = "conresnet-catalog"
_SHIPPED_CATALOG = Path(__file__).with_name("catalog.json")
_MOST_BYTES = 10 * 2**30
_LARGEST_CATALOG = 2**20
# Seconds to connect, and seconds without receiving data.
_TIMEOUT = (15, 60)
# An interruption loses the block being received.
_BLOCK = 2**14
_BAD_ADDRESS = "it begins with neither https:// nor http://"
_BAD_REDIRECT = "it redirects to an address that begins with neither https:// nor http://"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class CatalogEntry:
    """A model package that can be downloaded."""

    name: str = field("The model's name.", pattern="[a-z0-9][a-z0-9._-]{0,63}", shape="be a model's name")
    title: str = field("Title that users see.")
    version: str = field("The model's version.")
    url: str = field(
        "Address of the .zip file.",
        pattern="https?://[A-Za-z0-9.-]+(:[0-9]+)?(/.*)?",
        shape="be an address that begins with https:// or http://",
    )
    sha256: str = field("Checksum of the .zip file.", pattern="[0-9A-Fa-f]{64}", shape="be 64 hexadecimal digits")
    bytes: int = field("Size of the .zip file.", low=1, high=_MOST_BYTES)
    license: str = field("License of the weights.")
    modality: str = field("Modality, such as MR or CT.", default="")
    segments: tuple[str, ...] = field("Names of the segments.", default=(), most=1000)
    measured: str = field("The main measured result, and the data it was measured on.", default="")


@dataclass(frozen=True)
class _Catalog:
    format: str = field("What the file is.", choices=(_FORMAT,))
    models: tuple[CatalogEntry, ...] = field("What can be downloaded.", most=10_000)

    def faults(self) -> Iterator[tuple[str, str]]:
        """Two models with the same name: the second could never be chosen."""
        if reason := repeated(entry.name for entry in self.models):
            yield "models", reason


Report = Callable[[int, int], None]


def catalog_source() -> str:
    """Path or address of the catalog: the value of ``CONRESNET_CATALOG``, or the included catalog."""
    return os.environ.get(CATALOG_VARIABLE, "") or str(_SHIPPED_CATALOG)


def read_catalog(source: str = "") -> tuple[CatalogEntry, ...]:
    """The models of a catalog.

    Args:
        source: path or address of the catalog. Defaults to `catalog_source`.

    Raises:
        UserError: ``catalog-unreadable``, or as `download`.
    """
    source = source or catalog_source()
    if is_address(source):
        with _answer(source, "", {}) as response:
            text = b""
            for block in _blocks(response, source):
                text += block
                if len(text) > _LARGEST_CATALOG:
                    break
    else:
        try:
            with open(source, "rb") as file:
                text = file.read(_LARGEST_CATALOG + 1)
        except OSError as error:
            raise UserError("catalog-unreadable", file=source, reason=error.strerror or str(error)) from error
    if len(text) > _LARGEST_CATALOG:
        raise UserError("catalog-unreadable", file=source, reason="it is larger than 1 MB")
    return parse_catalog(text, source)


def catalog_text(models: Iterable[CatalogEntry]) -> str:
    """A catalog as `parse_catalog` reads it, in one line."""
    return json.dumps({"format": _FORMAT, "models": [dump(entry) for entry in models]})


def parse_catalog(text: bytes, source: str) -> tuple[CatalogEntry, ...]:
    """Parse a catalog; messages name it as ``source``. Raises UserError ``catalog-unreadable``."""
    try:
        content = load_json(text, source)
        version = content.get("format_version")
        if content.get("format") == _FORMAT and isinstance(version, int) and 1 < version <= 10**6:
            raise UserError("package-newer", file=source, version=version, ours=1)
        return load(_Catalog, content, Place(source), 1).models
    except UserError as error:
        if error.code == "package-newer":
            raise
        reason = " ".join(str(error.values[key]) for key in ("field", "reason") if key in error.values)
        raise UserError("catalog-unreadable", file=source, reason=reason) from error


def get_model(
    name_or_url: str, *, sha256: str = "", catalog: str = "", overwrite: bool = False, on_progress: Report | None = None
) -> ModelPackage:
    """Download a model package, verify it, and install it into the user's models folder.

    An interrupted download is kept, and the next call continues it.

    Args:
        name_or_url: the name of a model in the catalog, or the address of a .zip file.
        sha256: the expected checksum, if an address is given.
        catalog: see `read_catalog`.
        overwrite: replace an installed model of the same name.
        on_progress: called with the bytes received and the total, which is 0 if unknown.

    Raises:
        UserError: as `download`, `read_catalog` or `conresnet.package.store.install_model`, ``catalog-empty``,
            ``catalog-unknown-model``, or ``download-other-model`` for a package whose name is not that in the catalog;
            nothing is installed then.
    """
    entry = None
    if is_address(name_or_url):
        url, size = name_or_url, 0
    else:
        entries = read_catalog(catalog)
        entry = next((item for item in entries if item.name == name_or_url), None)
        if not entries:
            raise UserError("catalog-empty", name=name_or_url)
        if entry is None:
            raise UserError("catalog-unknown-model", name=name_or_url, names=", ".join(item.name for item in entries))
        url, sha256, size = entry.url, entry.sha256, entry.bytes
        # Before the download, which may take long.
        check_replaceable(place_to_install(entry.name), overwrite)
    path = download(url, sha256=sha256, size=size, on_progress=on_progress)
    try:
        if entry and (found := read_package(path, verify=False).description.name) != entry.name:
            # Otherwise a mistake in the catalog would replace another model.
            raise UserError("download-other-model", url=url, found=found, name=entry.name)
        return install_model(path, overwrite)
    except UserError as error:
        raise error.naming(str(path), url) from error
    finally:
        remove_download(path)


def remove_download(path: str | Path) -> None:
    """Delete a file returned by `download` after it was installed, or the empty part of a download that failed."""
    path = Path(path)
    with contextlib.suppress(OSError):
        path.unlink()
        path.parent.rmdir()  # fails, on purpose, if an interrupted download is kept there


def download(url: str, *, sha256: str = "", size: int = 0, on_progress: Report | None = None) -> Path:
    """Download a file, or continue an interrupted download of the same address and checksum.

    Args:
        url: https, or http if the checksum is known.
        sha256, size: expected checksum, with spaces around it or not, and size; empty and 0 if unknown.
        on_progress: see `get_model`.

    Returns:
        the path of the complete file in the user's models folder; its checksum was verified if one was given.

    Raises:
        UserError: one whose code begins with ``download-``, ``disk-full`` or ``cannot-write``. What has arrived is
            kept, unless it is not what was expected (``download-differs``).
    """
    text, sha256 = sha256, sha256.strip().lower()
    if sha256 and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise UserError("download-checksum", text=text)
    folder = user_folder() / ".downloads"
    key = hashlib.sha256(f"{url} {sha256}".encode()).hexdigest()[:16]
    part, whole = folder / f"{key}.part", folder / f"{key}.zip"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            try:
                lock(file.fileno(), inherited=False)
            except OSError as error:
                raise UserError("download-running", url=url) from error
            # Without a checksum, parts of two different files could be joined unnoticed. The last byte is requested
            # again, because servers refuse a range that begins at the end of the file.
            have = max(file.tell() - 1, 0) if sha256 else 0
            try:
                have = _receive(file, url, sha256, have, size, on_progress)
            except BaseException:
                # While it is locked; Windows refuses, and the next attempt uses the file.
                if file.seek(0, os.SEEK_END) == 0:
                    remove_download(part)
                raise
        if have > _MOST_BYTES or (size and have != size) or (sha256 and packed_file(part).sha256 != sha256):
            remove_download(part)
            raise UserError("download-differs", url=url)
        part.replace(whole)
    except OSError as error:
        raise write_error(error, folder) from error
    return whole


def _receive(file: BinaryIO, url: str, sha256: str, have: int, size: int, on_progress: Report | None) -> int:
    """Append the rest of the download to a file; returns its size, which may differ from the expected size."""
    with _answer(url, sha256, {"Range": f"bytes={have}-"} if have else {}) as response:
        if response.status_code != 206:
            have = 0
        file.truncate(have)
        if response.status_code == 416:
            # What is here is longer than the file, so it is not a part of it.
            raise UserError("download-interrupted", url=url)
        length = response.headers.get("Content-Length", "")
        sent = have + int(length) if length.isdecimal() else 0
        total = size or sent
        for block in _blocks(response, url):
            file.write(block)
            have += len(block)
            if have > (size or _MOST_BYTES):
                break
            if on_progress:
                on_progress(have, total)
    # A file that the server has sent to its end is complete, however large it was expected to be.
    if have < total and have != sent:
        raise UserError("download-interrupted", url=url)
    return have


def is_address(text: str) -> bool:
    """Whether a text is a web address rather than a path or name."""
    return "://" in text


def _refuse_insecure(url: str, sha256: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UserError("download-failed", url=url, reason=_reason(error)) from error
    if sha256 and parts.scheme not in ("https", "http"):
        raise UserError("download-failed", url=url, reason=_BAD_ADDRESS)
    is_checked = bool(sha256) or parts.hostname in _LOOPBACK
    if parts.scheme != "https" and not (parts.scheme == "http" and is_checked):
        raise UserError("download-insecure", url=url)


@contextlib.contextmanager
def _answer(url: str, sha256: str, headers: dict[str, str]) -> Iterator[Response]:
    _refuse_insecure(url, sha256)
    try:
        import requests
    except ImportError as error:
        raise UserError("download-needs-package") from error
    # With compression, the bytes received would not match the checksum.
    headers = {"Accept-Encoding": "identity", **headers}
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT)
    except requests.exceptions.InvalidSchema as error:
        raise UserError("download-failed", url=url, reason=_BAD_REDIRECT) from error
    except (requests.RequestException, ValueError) as error:
        raise UserError("download-failed", url=url, reason=_reason(error)) from error
    with response:
        # It may have been redirected, and an attacker who changes an answer may name an https:// address of their own.
        for hop in (*response.history, response):
            _refuse_insecure(hop.url, sha256)
        if response.status_code not in ((200, 206, 416) if "Range" in headers else (200,)):
            raise UserError("download-failed", url=url, reason=f"{response.status_code} {response.reason}".strip())
        yield response


def _blocks(response: Response, url: str) -> Iterator[bytes]:
    import requests

    try:
        yield from response.iter_content(_BLOCK)
    except requests.RequestException as error:
        raise UserError("download-interrupted", url=url) from error


def _reason(error: Any) -> str:
    """The system's error message, without the address and Python class names."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__
    if isinstance(error, HTTPException):
        return "the server's answer is not HTTP"
    return str(getattr(error, "strerror", None) or error).rstrip(".") or type(error).__name__
