"""The authors' checkpoints: identical outputs, every tensor accounted for by name, and no code executed."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import conresnet
from conresnet.cli import main
from conresnet.importing.checkpoint import convert, read_checkpoint
from conresnet.networks import build_network
from conresnet.package.reader import read_package
from engine import authors_network
from engine.package_cases import make_folder, refusal

NEVER_ACTING = ("gn_res.", "gn_res2.", "conv_res2.")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def package(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' full-width network, imported from a .pth file with the command."""
    folder = tmp_path_factory.mktemp("full")
    tensors = {f"module.{name}": tensor for name, tensor in authors_network.state_dict(data_folder).items()}
    torch.save(tensors, folder / "final.pth")
    assert main(["import", str(folder / "final.pth"), "--output", str(folder / "brats")]) == 0
    return folder / "brats"


@pytest.fixture
def small(data_folder: Path) -> dict[str, torch.Tensor]:
    """A state_dict with base width 8."""
    return authors_network.state_dict(data_folder, base_width=8)


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_all_stored_outputs_are_reproduced(package: Path, data_folder: Path) -> None:
    network = conresnet.load_network(package)
    with torch.inference_mode():
        outputs = network(authors_network.input_tensor())
    stored = authors_network.stored_outputs(data_folder)
    computed = dict(zip(authors_network.RESIDUALS, outputs["residuals"], strict=True))
    computed[authors_network.SEGMENTATION] = outputs["segmentation"]
    for name, expected in stored.items():
        difference = (computed[name][0, :, ::2, ::4, ::4] - expected).abs().max()
        assert difference <= 1e-4 * expected.abs().max(), name


def test_package_has_preprocessing_of_authors(package: Path) -> None:
    read = read_package(package)
    description = read.description
    assert read.count_parameters("network.safetensors") == 19_018_732
    assert [item.name for item in description.inputs] == ["FLAIR", "T1", "T1ce", "T2"]
    assert [step["step"] for step in description.inputs[2].intensity] == ["clip_sparse_tail", "z_score"]
    assert description.preparation.orientation == "SLP" and description.preparation.spacing is None
    assert description.inference.tiling == "authors" and description.inference.window == (80, 160, 160)
    assert description.inference.blending == "uniform" and description.inference.mirror_axes == ()
    assert [(segment.name, segment.label) for segment in description.output.segments] == [
        ("Enhancing tumor", 4),
        ("Whole tumor", 2),
        ("Tumor core", 1),
    ]
    assert description.output.paint_order == ("Whole tumor", "Tumor core", "Enhancing tumor")
    assert description.residual_axis == "axial"


def test_width_channels_and_outputs_are_inferred(small: dict[str, torch.Tensor]) -> None:
    for name in ("seg_cls", "res_cls", "resx2_cls", "resx4_cls"):
        small[f"{name}.0.weight"] = small[f"{name}.0.weight"][:2]
        small[f"{name}.0.bias"] = small[f"{name}.0.bias"][:2]
    for name in ("conv_4_32.0.weight", "seg_x4.0.conv_mp_first.weight"):
        small[name] = small[name][:, :1]
    arguments, weights = convert(small, "a.pth")
    assert (arguments["input_channels"], arguments["outputs"], arguments["base_width"]) == (1, 2, 8)
    build_network("conresnet", arguments).load_state_dict(weights)


def test_missing_tensor_is_named(small: dict[str, torch.Tensor]) -> None:
    for name in list(small):
        acts = not any(part in name for part in NEVER_ACTING)
        remaining = {key: tensor for key, tensor in small.items() if key != name}
        # Each module uses its own projection.
        unused = (
            name.startswith(("seg_x4.0.gn_mp", "seg_x4.0.conv_mp.", "seg_x1.0.gn_mp", "seg_x1.0.conv_mp"))
            or name == "seg_x2.0.conv_mp_first.weight"
        )
        if acts and not unused:
            assert name in refusal("import-missing", convert, remaining, "a.pth")
        else:
            convert(remaining, "a.pth")


@pytest.mark.parametrize("name", ["extra.weight", "layer0.1.conv1.weight", "seg_x4.0.conv_res3.weight", "layer0"])
def test_unexpected_tensor_is_named(small: dict[str, torch.Tensor], name: str) -> None:
    message = refusal("import-left-over", convert, {**small, name: torch.zeros(1)}, "a.pth")
    assert f"such as {name})" in message and "a.pth" in message


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layer1.0.conv1.weight", (16, 16, 1, 1, 1)),
        ("fusionConv.0.bias", (1,)),
        ("conv_4_32.0.weight", (8,)),
        ("conv_4_32.0.weight", (12, 4, 3, 3, 3)),
        ("seg_cls.0.weight", (0, 8, 1, 1, 1)),
    ],
)
def test_tensor_of_wrong_shape_is_named(small: dict[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> None:
    assert name in refusal("import-shape", convert, {**small, name: torch.zeros(shape)}, "a.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensor_with_non_finite_values_is_named(small: dict[str, torch.Tensor], value: float) -> None:
    small["layer4.1.gn2.weight"][3] = value
    assert "layer4.1.gn2.weight" in refusal("import-values", convert, small, "a.pth")


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_state_dict_is_found_among_other_entries(tmp_path: Path, small: dict[str, torch.Tensor], key: str) -> None:
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-4}]}
    path = save(tmp_path / "a.pth", {"epoch": 3, key: small, "optimizer": optimizer})
    assert set(read_checkpoint(path).tensors) == set(small)


PREFIXES = ["_orig_mod.", "module._orig_mod.", "model.", "net.module.", "anything_else."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("place", [None, "state_dict", "checkpoint"])
def test_any_prefix_is_removed(tmp_path: Path, small: dict[str, torch.Tensor], prefix: str, place: str | None) -> None:
    named = {f"{prefix}{name}": tensor for name, tensor in small.items()}
    # Lightning stores a loss with its own weights in this way.
    named["criterion.weight"] = torch.ones(3)
    path = save(tmp_path / "a.pth", {place: named, "epoch": 3} if place else named)
    assert set(read_checkpoint(path).tensors) == set(small)


@pytest.mark.parametrize("inserted", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_name_inserted_by_wrapper_is_removed(tmp_path: Path, small: dict[str, torch.Tensor], inserted: str) -> None:
    named = {name.replace(".", f".{inserted}.", 1): tensor for name, tensor in small.items()}
    assert set(read_checkpoint(save(tmp_path / "a.pth", named)).tensors) == set(small)


def test_training_state_is_ignored(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    counted = small | {"total_ops": torch.zeros(1), "layer0.0.conv1.total_params": torch.zeros(1)}
    counted["n_averaged"] = torch.tensor(7)
    values = {
        "best_dice": np.float64(0.8),
        "losses": np.arange(3.0),
        "args": argparse.Namespace(lr=1, folder=Path("a")),
        "date": datetime.datetime.now(datetime.UTC),
        "history": collections.defaultdict(list, a=[1], b=collections.deque([1.0, 2.0])),
        "classes": frozenset({1}),
    }
    for new_format in (True, False):
        torch.save({"model": counted, **values}, tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
        assert set(read_checkpoint(tmp_path / "a.pth").tensors) == set(small)


def test_moving_average_is_preferred_and_reported(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    changed = {name: tensor + 1 for name, tensor in small.items()}
    name = "layer0.0.conv1.weight"
    wrapped = {f"module.{key}": tensor for key, tensor in changed.items()}
    for content, place in (
        ({"model": small, "model_ema": changed}, "model_ema"),
        ({"state_dict": small, "ema": {"module": changed}}, "ema.module"),
        (
            {
                f"{part}.{key}": item
                for part, items in (("net", small), ("ema_net", changed))
                for key, item in items.items()
            },
            "ema_net",
        ),
        ({"n_averaged": torch.tensor(3), **wrapped}, "module (averaged)"),
    ):
        checkpoint = read_checkpoint(save(tmp_path / "a.pth", content))
        assert checkpoint.average == place
        assert torch.equal(checkpoint.tensors[name], changed[name])
    assert not read_checkpoint(save(tmp_path / "a.pth", {"semantic": small})).average
    path = save(tmp_path / "a.pth", {"teacher": small, "student": changed})
    assert "student, teacher" in refusal("import-several", read_checkpoint, path)


def test_safetensors_file_is_read(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    safetensors.torch.save_file(small, tmp_path / "a.safetensors")
    assert set(read_checkpoint(tmp_path / "a.safetensors").tensors) == set(small)


def test_other_kinds_of_files_are_recognized(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n")
    refusal("file-lfs-pointer", read_checkpoint, tmp_path / "pointer.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    refusal("file-empty", read_checkpoint, tmp_path / "empty.pth")
    folder = make_folder(tmp_path / "organ")
    refusal("import-of-package", read_checkpoint, folder)
    shutil.make_archive(str(folder), "zip", folder)
    refusal("import-of-package", read_checkpoint, tmp_path / "organ.zip")
    of_run = {"state_dict": small, "global_step": 3, "best_dice": None, "validated": 0}
    refusal("import-of-run", read_checkpoint, save(tmp_path / "last.ckpt", of_run))
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as made:
        made.writestr("script/constants.pkl", b"")
    refusal("import-torchscript", read_checkpoint, tmp_path / "script.pt")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: torch.full_like(tensor, 1e300, dtype=torch.float64),
        lambda tensor: tensor.int(),
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: tensor.to("meta"),
        lambda tensor: tensor.to_sparse(),
        lambda tensor: torch.zeros(()).expand(tensor.shape),
    ],
    ids=["infinite in 32 bits", "integers", "complex", "without values", "sparse", "one value"],
)
def test_tensors_not_allowed_in_a_package_are_refused(small: dict[str, torch.Tensor], change) -> None:
    name = "layer1.0.conv1.weight"
    assert name in refusal("import-values", convert, small | {name: change(small[name])}, "a.pth")


def test_8_bit_floats_are_read(small: dict[str, torch.Tensor]) -> None:
    name = "layer1.0.conv1.weight"
    small[name] = small[name].to(torch.float8_e4m3fn)
    _, weights = convert(small, "a.pth")
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


def test_half_precision_and_old_file_format_are_read(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    half = {name: tensor.half() for name, tensor in small.items()}
    torch.save(half, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    _, weights = convert(read_checkpoint(tmp_path / "a.pth").tensors, "a.pth")
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


class Exploding:
    """Exits the process when unpickled."""

    def __reduce__(self):
        return os._exit, (3,)


@pytest.mark.parametrize("content", [Exploding(), {"state_dict": Exploding()}, {"conv_4_32.0.weight": Exploding()}])
@pytest.mark.parametrize("new_format", [True, False])
def test_pickled_object_is_refused_and_not_executed(tmp_path: Path, content: object, new_format: bool) -> None:
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
    assert "a.pth" in refusal("import-object", read_checkpoint, tmp_path / "a.pth")


def test_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", torch.nn.Conv3d(1, 1, 1))
    refusal("import-object", read_checkpoint, path)


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {1: torch.zeros(1)}, torch.zeros(3)])
def test_object_that_is_not_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    refusal("import-content", read_checkpoint, save(tmp_path / "a.pth", content))


def test_weights_of_a_model_package_need_no_import(small: dict[str, torch.Tensor]) -> None:
    refusal("import-of-own-weights", convert, convert(small, "a.pth")[1], "b.safetensors")


def test_dict_that_contains_itself_is_visited_once(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    content: dict = {"epoch": 3}
    content |= {f"copy {number}": content for number in range(300)}
    refusal("import-content", read_checkpoint, save(tmp_path / "a.pth", content))
    content["net"] = small
    assert set(read_checkpoint(save(tmp_path / "a.pth", content)).tensors) == set(small)


@pytest.mark.parametrize("data", [b"text of some kind", b"PK\x03\x04", b"\x80\x02"])
def test_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(data)
    assert "a.pth" in refusal("import-unreadable", read_checkpoint, tmp_path / "a.pth")


def test_truncated_checkpoint_is_refused(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    path = save(tmp_path / "a.pth", small)
    path.write_bytes(path.read_bytes()[:-1000])
    refusal("import-unreadable", read_checkpoint, path)


def test_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    refusal("import-not-found", read_checkpoint, tmp_path / "nowhere.pth")
    refusal("import-folder", read_checkpoint, tmp_path)


def test_command_options_override_defaults(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"inference": {"window": [64, 96, 96]}, "attribution": "A. Nobody"}))
    options = ["--name", "mine", "--title", "Mine", "--license", "CC0-1.0", "--settings", str(settings)]
    for channel in ("A", "B", "C", "D"):
        options += ["--channel", channel]
    for segment in ("Big=1", "Middle one=2", "Small=7"):
        options += ["--segment", segment]
    options += ["--orientation", "SAR", "--spacing", "2,1,1", "--tiling", "fitted"]
    checkpoint = save(tmp_path / "é a.pth", small)
    assert main(["import", str(checkpoint), "--output", str(tmp_path / "out.zip"), *options]) == 0
    description = read_package(tmp_path / "out.zip").description
    assert (description.name, description.title, description.license) == ("mine", "Mine", "CC0-1.0")
    assert description.attribution == "A. Nobody"
    assert [item.name for item in description.inputs] == ["A", "B", "C", "D"]
    assert description.output.paint_order == ("Big", "Middle one", "Small")
    assert description.output.segments[2].label == 7
    assert (description.preparation.orientation, description.preparation.spacing) == ("SAR", (2, 1, 1))
    assert (description.inference.tiling, description.inference.window) == ("fitted", (64, 96, 96))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--channel", "CT"], "--channel"),
        (["--segment", "Tumor"], "NAME=LABEL"),
        (["--spacing", "1;1;1"], "three numbers"),
        (["--spacing", "1,1"], "preparation.spacing"),
        (["--orientation", "XYZ"], "preparation.orientation"),
        (["--settings", "nowhere.json"], "nowhere.json"),
        (["--name", "a/b"], "plain name"),
        (["--name", "hüfte"], "unaccented"),
        (["--name", "con"], "Windows"),
        (["--segment", "A=1", "--segment", "B=0", "--segment", "C=2"], "output.segments[1].label"),
        (["--settings", "a.pth"], "a.pth"),
    ],
)
def test_invalid_options_are_refused_and_write_nothing(
    tmp_path: Path, small: dict[str, torch.Tensor], options: list[str], part: str, capsys, monkeypatch
) -> None:
    checkpoint = save(tmp_path / "a.pth", small)
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(checkpoint), "--output", str(tmp_path / "out"), *options]) == 2
    message = capsys.readouterr().err
    assert part in message and message.count("\n") == 1
    # The folder does not exist yet.
    assert "copy of the" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
