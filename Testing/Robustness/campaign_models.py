"""Damaged model descriptions, packages and checkpoints, and ``models install`` killed at any point."""

from __future__ import annotations

import atexit
import functools
import hashlib
import io
import json
import os
import random
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from mutations import NUMBERS, damaged_bytes
from robustness import ROOT, Outcome, Trial, campaign

from conresnet.errors import UserError
from conresnet.package.reader import read_package
from conresnet.package.store import list_models
from engine import authors_network
from engine.coarse_to_fine_cases import coarse_to_fine, random_weights, write_pair
from engine.model_cases import description, write_model

PRELOADED = ("conresnet.cli", "conresnet.systems.predictors", "conresnet.importing.checkpoint")
# Limit of the address space, because a damaged size could otherwise use up all memory.
MEMORY = 12 * 2**30
ODD = (
    *(None, True, -1, 0, 1, 3, 7, 255, 256, 2**31, 2**63, 10**30, 1e308, -0.5, 0.5, float("nan"), float("inf")),
    *("", "x", "x" * 3000, "\x1b[2J", "\ud800", "ö/..\\", "../..", "/", "CON", "a.", [], {}, [[]], [None], {"a": 1}),
    *([1] * 300, [0, 0, 0], [16, 16, 16], "axial", "conresnet", "voxresnet", "SAR"),
)


def trial(*command: object, **settings: Any) -> Trial:
    """A trial of a command of the engine."""
    return Trial(("conresnet", *command), **{"seconds": 1800.0, "memory": MEMORY, "preload": PRELOADED, **settings})


@functools.cache
def templates() -> list[Path]:
    """Small packages of several systems, with metrics and a model card."""
    folder = Path(tempfile.mkdtemp(prefix="robustness-models-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    window = {"window": [16, 16, 16]}
    single = {
        "conresnet": description(inference=window),
        "resdsn": description("resdsn", base_width=8, inference=window),
    }
    made = [write_model(folder / kind, document).path for kind, document in single.items()]
    pair = coarse_to_fine(description("resdsn", base_width=8, inference=window))
    write_pair(folder / "pair", pair, *(random_weights(pair, index) for index in (0, 1)))
    made.append(folder / "pair" / "model")
    for path in made:
        document = json.loads((path / "model.json").read_text(encoding="utf-8"))
        texts = {"metrics.json": b'{"dice": {"Left part": 0.5}, "cases": 3}', "MODEL_CARD.md": b"# A model\n"}
        for name, data in texts.items():
            (path / name).write_bytes(data)
            document["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        (path / "model.json").write_text(json.dumps(document), encoding="utf-8")
    return made


def damaged_value(value: Any, chance: random.Random) -> Any:
    """A value of a JSON document with one odd value somewhere in it."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        match chance.randrange(12):
            case 0:
                return {name: item for name, item in value.items() if name != key}
            case 1:
                return {**value, chance.choice(("x", "", key + " ", key.upper(), "\ud800")): chance.choice(ODD)}
            case _:
                return {**value, key: damaged_value(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        match chance.randrange(8):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return [*value, value[place]]
            case _:
                return [*value[:place], damaged_value(value[place], chance), *value[place + 1 :]]
    return chance.choice(ODD)


def damaged_description(text: str, chance: random.Random) -> bytes:
    """A description with damaged values, damaged bytes, or both."""
    document = json.loads(text)
    for _ in range(chance.choice((0, 1, 1, 1, 2))):
        document = damaged_value(document, chance)
    if chance.random() < 0.1 and isinstance(document, dict):
        document["format_version"] = chance.choice((1, 2, 3, 4, 5))
    data = json.dumps(document).encode()
    kind = chance.random()
    if kind < 0.15:
        data = damaged_bytes(data, chance)
    elif kind < 0.2:
        data = data.replace(b"0", chance.choice(NUMBERS).encode(), 1)
    elif kind < 0.23:
        data = data.decode().encode(chance.choice(("utf-16", "utf-8-sig", "utf-32")))
    elif kind < 0.25:
        data = b"[" * 100_000
    return data


@campaign("descriptions", full=500)
def descriptions(chance: random.Random, folder: Path) -> Trial:
    """A package with a damaged model.json that is shown, verified, installed or used."""
    shutil.copytree(chance.choice(templates()), folder / "model")
    path = folder / "model" / "model.json"
    path.write_bytes(damaged_description(path.read_text(encoding="utf-8"), chance))
    if chance.random() < 0.3:
        from conresnet.images.files import write_volume
        from engine.volumes import grid, random_volume

        volume = random_volume(grid((12, 13, 14)), seed=1)
        write_volume(volume.array, volume.grid, folder / "image.nii")
        options = ("--model", folder / "model", "--output", folder / "out", "--device", "cpu", "--threads", 1)
        images = [folder / "image.nii"] * chance.choice((1, 1, 1, 2))
        return trial("segment", *images, *options, check=lambda outcome: _result_problems(folder / "out", outcome))
    command = chance.choice(("show", "verify", "verify", "install"))
    return trial("models", command, folder / "model", check=lambda outcome: _message_problems(outcome))


def _result_problems(output: Path, outcome: Outcome) -> list[str]:
    found = _message_problems(outcome) if outcome.status == 2 and not outcome.out else []
    if (outcome.status == 0) != (output / "report.json").exists():
        found.append("the exit status and the results contradict each other")
    return found


def _message_problems(outcome: Outcome) -> list[str]:
    """Check that an error message is one line."""
    return (
        [f"{len(outcome.lines)} lines: {outcome.lines[0][:200]}"]
        if outcome.status == 2 and len(outcome.lines) > 1
        else []
    )


def damaged_archive(source: Path, path: Path, chance: random.Random) -> Path:
    """A zip file of a package, damaged or as other programs and attackers could make it."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # repeated names
        top = chance.choice(("", "", "organ/", "organ\\", "./", "a/b/", "../", "/", "C:\\", "ü/"))
        for file in sorted(source.iterdir()):
            item = zipfile.ZipInfo()
            item.filename = item.orig_filename = top + file.name
            item.compress_type = chance.choice((zipfile.ZIP_STORED,) * 6 + (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
            data = file.read_bytes()
            if chance.random() < 0.1:
                data = damaged_bytes(data, chance, 300)
            if chance.random() < 0.05:
                item.external_attr = chance.choice((0o120777, 0o40755, 0o10644)) << 16
            archive.writestr(item, data)
        for _ in range(chance.choice((0, 0, 0, 1, 2))):
            name = chance.choice(
                ("model.json", f"{top}model.json", "__MACOSX/._model.json", "x" * 300, "a:b", "other/")
            )
            archive.writestr(name, chance.choice((b"", b"{}", bytes(5 * 2**20))), zipfile.ZIP_DEFLATED)
    if chance.random() < 0.5:
        path.write_bytes(damaged_bytes(path.read_bytes(), chance, None if chance.random() < 0.5 else 400))
    return path


@campaign("packages", full=200)
def packages(chance: random.Random, folder: Path) -> Trial:
    """An archive given to ``models install``, which must install it completely or not at all."""
    name = chance.choice(("organ.zip", "organ.zip", "organ.ZIP", "organ", "organ.pth"))
    source = damaged_archive(chance.choice(templates()), folder / name, chance)
    if chance.random() < 0.1:
        source.write_bytes(
            chance.choice((b"", b"<html>", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04"))
        )
    return trial("models", "install", source, check=lambda outcome: _installed_problems(folder / "models", outcome))


def _installed_problems(models: Path, outcome: Outcome) -> list[str]:
    installed = [path for path in models.iterdir()] if models.exists() else []
    found = _message_problems(outcome)
    if outcome.status == 2 and installed:
        found.append(f"refused, but installed {installed[0].name}")
    for path in installed:
        try:
            read_package(path)
        except UserError as error:
            found.append(f"installed {path.name}, but {error.message}")
    return found


@functools.cache
def authors_weights() -> dict[str, torch.Tensor]:
    """The authors' network with few channels."""
    return authors_network.state_dict(ROOT / "Testing" / "Data", base_width=8)


def odd_tensor(tensor: torch.Tensor, chance: random.Random) -> Any:
    """A tensor that is not allowed in a package, or another object in its place."""
    warnings.filterwarnings("ignore", module="torch")
    warnings.filterwarnings("ignore", message=".*quantize")
    makers: tuple[Callable[[], Any], ...] = (
        lambda: tensor.double() * chance.choice((1.0, 1e300)),
        lambda: tensor.to(chance.choice((torch.float16, torch.bfloat16, torch.int8, torch.complex64))),
        lambda: tensor.to(torch.float8_e4m3fn),
        lambda: tensor.to("meta"),
        lambda: tensor.to_sparse(),
        lambda: torch.zeros(()).expand(tensor.shape),
        lambda: torch.full_like(tensor, chance.choice((float("nan"), float("inf")))),
        lambda: tensor.flatten()[: chance.randrange(tensor.numel() + 1)],
        lambda: tensor[None],
        lambda: torch.zeros((), dtype=torch.float32).expand(2**20, 2**20),
        lambda: torch.nn.Parameter(tensor),
        lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        lambda: tensor.numpy(),
        lambda: None,
        lambda: {"weight": tensor},
        lambda: _Hostile(),
    )
    return chance.choice(makers)()


class _Hostile:
    """Creates a folder when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("executed",)


def damaged_checkpoint(path: Path, chance: random.Random) -> Path:
    """A checkpoint, valid or damaged, along with other data that training loops save."""
    tensors: dict[Any, Any] = dict(authors_weights())
    for _ in range(chance.choice((0, 0, 1, 1, 2))):
        name = chance.choice(list(tensors))
        match chance.randrange(5):
            case 0:
                del tensors[name]
            case 1:
                tensors[chance.choice(("extra.weight", "", 7, "\ud800", "total_ops", "a" * 5000))] = torch.zeros(2)
            case _ if isinstance(tensors[name], torch.Tensor):
                tensors[name] = odd_tensor(tensors[name], chance)
    prefixes = ("", "", "", "module.", "_orig_mod.", "model.", "module._orig_mod.", "ema_model.module.", "é.")
    prefix = chance.choice(prefixes)
    content: Any = {f"{prefix}{name}" if isinstance(name, str) else name: item for name, item in tensors.items()}
    for key in chance.choice(((), (), ("state_dict",), ("model",), ("model_ema",), ("a", "b"), ("x",) * 30)):
        content = {key: content}
    others = {
        "epoch": 3,
        "best": np.float64(0.5),
        "losses": np.arange(3.0),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "state_dict_ema": dict(authors_weights()),
        "folder": Path("a"),
        "hostile": _Hostile(),
        "types": [int, np.float32, torch.float32],
        3: "number",
    }
    for key in chance.sample(list(others), chance.choice((0, 0, 1, 2))):
        content[key] = others[key]
    buffer = io.BytesIO()
    if chance.random() < 0.05:
        safetensors.torch.save_file(authors_weights(), path.with_suffix(".safetensors"))
        path = path.with_suffix(".safetensors")
        data = path.read_bytes()
    else:
        protocol = chance.choice((2, 2, 2, 3, 4, 5))
        torch.save(content, buffer, _use_new_zipfile_serialization=chance.random() < 0.7, pickle_protocol=protocol)
        data = buffer.getvalue()
    if chance.random() < 0.4:
        data = damaged_bytes(data, chance, chance.choice((None, 300, 5000)))
    path.write_bytes(data)
    return path


@campaign("checkpoints", full=300)
def checkpoints(chance: random.Random, folder: Path) -> Trial:
    """A checkpoint given to ``import``, which must not execute it and must write a complete package or none."""
    path = damaged_checkpoint(folder / "a.pth", chance)
    output = folder / chance.choice(("package", "package.zip"))

    def problems(outcome: Outcome) -> list[str]:
        found = _message_problems(outcome)
        found += ["the checkpoint was executed"] if (folder / "executed").exists() else []
        if output.exists() != (outcome.status == 0):
            found.append("the exit status and the package contradict each other")
        if outcome.status == 0:
            package = read_package(output)
            tensors = safetensors.torch.load(package.read_file("network.safetensors"))
            if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
                found.append("the package has values that are not finite")
        return found

    return trial("import", path, "--output", output, check=problems)


@functools.cache
def two_versions() -> Path:
    """A folder with the packages "1.0.0" and "2.0.0" of one model."""
    folder = Path(tempfile.mkdtemp(prefix="robustness-models-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    document = {**description(inference={"window": [16, 16, 16]}), "name": "organ"}
    for seed, version in enumerate(("1.0.0", "2.0.0")):
        write_model(folder / version, {**document, "version": version}, seed)
    return folder


@campaign("installs", full=100)
def installs(chance: random.Random, folder: Path) -> Trial:
    """Replace an installed model, usually killed in between: one of the two versions must be installed completely."""
    shutil.copytree(two_versions() / "1.0.0", folder / "models" / "organ")

    def problems(outcome: Outcome) -> list[str]:
        os.environ["CONRESNET_MODELS"] = str(folder / "models")
        try:
            entries = [entry for entry in list_models() if entry.kind == "user"]
        finally:
            del os.environ["CONRESNET_MODELS"]
        found = []
        if len(entries) != 1 or entries[0].description is None:
            return [f"{len(entries)} models are installed after status {outcome.status}"]
        version = entries[0].description.version
        try:
            read_package(entries[0].path)
        except UserError as error:
            found.append(error.message)
        if outcome.status == 0 and version != "2.0.0":
            found.append("the old model is still installed")
        left = [path.name for path in (folder / "models").iterdir() if path.name != "organ"]
        return found + ([f"left behind: {', '.join(left)}"] if left else [])

    # An installation makes 17 changes.
    kill_at = chance.choice((None, *[chance.randrange(22)] * 5))
    return trial("models", "install", two_versions() / "2.0.0", "--overwrite", check=problems, kill_at=kill_at)
