"""Checkpoints of the paper's authors: reads one without executing it, and renames its tensors to our names.

Such a file is a ``state_dict`` saved with ``torch.save``, alone or inside what a training loop keeps next to it.
Wrappers such as DataParallel, torch.compile, Lightning or weight averaging put a prefix before each name; any prefix is
taken off. The authors' network computes the same as our `ConResNet`, with other names and with tensors that are never
used.
"""

import functools
import io
import pickle
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conresnet.errors import UserError
from conresnet.files import check_content, names_in_zip
from conresnet.networks import build_network
from conresnet.networks.blocks import GROUPS
from conresnet.package import DESCRIPTION_FILE

# A checkpoint of a ConRes training run has these next to its state_dict.
_OF_A_RUN = {"state_dict", "global_step", "best_dice", "validated"}
# What wrappers of single modules insert into names.
_INSERTED = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# The tensor by whose name a state_dict of the authors' network is found, with any prefix.
_FIRST = "conv_4_32.0.weight"
_ENDS_AS_FIRST = re.compile(rf"(.*\.)?conv_4_32\.({_INSERTED.pattern})?0\.({_INSERTED.pattern})?weight")
# By-products of common tools among the tensors: an operation counter's, and the number of averaged states.
_BY_PRODUCTS = {"total_ops", "total_params", "n_averaged"}
_AVERAGE = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?|shadow)(?![a-z])", re.IGNORECASE)
_MOST_LEVELS = 4
_MOST_PICKLE_BYTES = 2**24


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint by the authors' names, without prefixes and by-products.

    ``average`` is where in the file they are, if they are a running average, preferred to others or the only one.
    """

    tensors: dict[str, Tensor]
    average: str = ""


class _Placeholder:
    """Stands in for a value that is not needed, such as a NumPy number. Every operation on it does nothing."""

    def __new__(cls, *arguments: Any, **keywords: Any) -> "_Placeholder":
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **keywords: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


@functools.cache
def _harmless() -> list[tuple[Callable, str]]:
    """Values that training loops keep next to the weights, by their names in a pickle. None of them is instantiated."""
    names = [f"numpy.{module}.multiarray.{name}" for module in ("core", "_core") for name in ("scalar", "_reconstruct")]
    names += [f"numpy.dtypes.{name}" for name in dir(np.dtypes) if name.endswith("DType")]
    names += ["numpy.dtype", "numpy.ndarray", "numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"]
    names += [f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")]
    names += [f"pathlib._local.{name}" for name in ("Path", "PosixPath", "WindowsPath")]
    names += [f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")]
    names += ["argparse.Namespace", "types.SimpleNamespace"]
    names += ["uuid.UUID", "fractions.Fraction", "decimal.Decimal", "torch.torch_version.TorchVersion"]
    # The argument of a defaultdict, and of some reduced values.
    names += [f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool", "object")]
    names += [f"builtins.{name}" for name in ("frozenset", "slice", "range")]
    # One class for each name, since the unpickler compares what it may call.
    placeholders = [(type("Placeholder", (_Placeholder,), {}), name) for name in names]
    return [*placeholders, (lambda *_: {}, "collections.defaultdict"), (lambda *_: [], "collections.deque")]


_BLOCKS = {"first": "1", "second": "2"}
_STAGES = {
    "stage1": ("layer0.0",),
    "stage2": ("layer1.0", "layer1.1"),
    "stage3": ("layer2.0", "layer2.1"),
    "stage4": ("layer3.0", "layer3.1"),
    "stage5": ("layer4.0", "layer4.1"),
}
_STAGE_ENTRIES = {"stage2": "conv_32_64", "stage3": "conv_64_128", "stage4": "conv_128_256"}
_MODULES = {"decoder_quarter": "seg_x4.0", "decoder_half": "seg_x2.0", "decoder_full": "seg_x1.0"}
_HEADS = {
    "segmentation_head": "seg_cls.0",
    "residual_head_full": "res_cls.0",
    "residual_head_half": "resx2_cls.0",
    "residual_head_quarter": "resx4_cls.0",
}
# Every context residual module has these tensors; those that no module uses have no effect.
_NORMS = ("gn_seg", "gn_res", "gn_res1", "gn_res2", "gn_mp")
_CONVOLUTIONS = ("conv_seg", "conv_res", "conv_res1", "conv_res2", "conv_mp_first", "conv_mp")


def read_checkpoint(path: str | PathLike) -> Checkpoint:
    """The tensors of a checkpoint, wherever in the file they are.

    Nothing in the file is executed. Pickled objects other than tensors in plain containers are refused, except for
    common values such as NumPy numbers and parsed arguments, which are skipped.

    Raises:
        UserError: a code that begins with ``import-``, or those of `conresnet.files.check_content`.
    """
    path = Path(path)
    _refuse_other_kinds(path)
    content = _load(path)
    if isinstance(content, Mapping) and set(content) >= _OF_A_RUN:
        raise UserError("import-of-run", path=str(path))
    found = dict(_state_dicts(content, set()))
    averages = [place for place in found if _AVERAGE.search(place)]
    if len(averages) == 1:
        return Checkpoint(found[averages[0]], averages[0])
    if len(found) > 1:
        raise UserError("import-several", path=str(path), places=", ".join(sorted(found)))
    if found:
        return Checkpoint(*found.values())
    tensors = _any_tensors(content)
    if not tensors:
        raise UserError("import-content", path=str(path))
    return Checkpoint(tensors)


def _refuse_other_kinds(path: Path) -> None:
    """Refuse other kinds of files and folders that users may pass, and name what they are."""
    try:
        if path.is_dir():
            if (path / DESCRIPTION_FILE).exists():
                raise UserError("import-of-package", path=str(path))
            if (path / "plan.yaml").exists():
                raise UserError("import-of-run", path=str(path))
            raise UserError("import-folder", path=str(path))
        check_content(path)
    except FileNotFoundError:
        raise UserError("import-not-found", path=str(path)) from None
    except OSError as error:
        raise UserError("import-cannot-read", path=str(path), reason=error.strerror or str(error)) from None
    names = names_in_zip(path)
    if DESCRIPTION_FILE in names:
        raise UserError("import-of-package", path=str(path))
    if "constants.pkl" in names:
        raise UserError("import-torchscript", path=str(path))


def _state_dicts(
    content: Any, seen: set[int], place: str = "", level: int = 0
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(where, tensors by the authors' names) of each of the authors' networks in a file.

    ``seen`` are the dicts that were visited: a file of a few bytes can name one any number of times, or put it into
    itself.
    """
    if not isinstance(content, Mapping) or level > _MOST_LEVELS or id(content) in seen:
        return
    seen.add(id(content))
    tensors = {key: item for key, item in content.items() if isinstance(key, str) and isinstance(item, Tensor)}
    for found in filter(None, map(_ENDS_AS_FIRST.fullmatch, tensors)):
        prefix = found[1] or ""
        own = {
            _INSERTED.sub("", name.removeprefix(prefix)): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        is_average = any(name.split(".")[-1] == "n_averaged" for name in tensors)
        where = f"{place}{prefix}".rstrip(".") or "the file"
        yield where + (" (averaged)" if is_average else ""), _without_by_products(own)
    for key, item in content.items():
        if isinstance(key, str):
            yield from _state_dicts(item, seen, f"{place}{key}.", level + 1)


def _any_tensors(content: Any) -> dict[str, Tensor]:
    """The tensors of a file that has no network of the authors, to name what differs; {} if it has none."""
    seen: set[int] = set()
    while isinstance(content, Mapping) and id(content) not in seen:
        seen.add(id(content))
        tensors = {key: item for key, item in content.items() if isinstance(key, str) and isinstance(item, Tensor)}
        if tensors:
            names = list(tensors)
            prefix = next((f"{name.split('.')[0]}." for name in names), "")
            if len(names) > 1 and all(name.startswith(prefix) for name in names):
                tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            return _without_by_products(tensors)
        content = next((item for item in content.values() if isinstance(item, Mapping)), None)
    return {}


def _without_by_products(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor) and name.split(".")[-1] not in _BY_PRODUCTS
    }


def convert(tensors: Mapping[str, Tensor], source: str | PathLike) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Rename the authors' tensors to our names.

    Args:
        tensors: from `read_checkpoint`.
        source: the file's name for messages.

    Returns:
        The arguments for ``build_network("conresnet", arguments)``, inferred from the shapes, and that network's
        state_dict in float32.

    Raises:
        UserError: ``import-missing``, ``import-left-over``, ``import-shape`` or ``import-values``, with the name of a
            tensor; ``import-of-own-weights`` for those of a model package.
    """
    names = dict(_names())
    missing = [theirs for theirs in names.values() if theirs not in tensors]
    if missing and names.keys() <= tensors.keys():
        raise UserError("import-of-own-weights", path=str(source))
    if missing:
        raise UserError("import-missing", path=str(source), tensor=missing[0], count=len(missing))
    left_over = sorted(set(tensors) - set(names.values()) - _never_acting(set(names.values())))
    if left_over:
        raise UserError("import-left-over", path=str(source), tensor=left_over[0], count=len(left_over))
    arguments = _arguments(tensors, source)
    with torch.device("meta"):
        expected = build_network("conresnet", arguments).state_dict()
    weights = {}
    for ours, template in expected.items():
        tensor = tensors[names[ours]]
        if tensor.shape != template.shape:
            raise _wrong_shape(source, names[ours], tensor, f"{tuple(template.shape)}")
        weights[ours] = _as_float32(tensor, names[ours], source)
    return arguments, weights


def _as_float32(tensor: Tensor, name: str, source: str | PathLike) -> Tensor:
    """The values in the format of a package, in memory of their own."""
    error = UserError("import-values", path=str(source), tensor=name)
    # A file of a few bytes can have tensors of any size that repeat one value, or that have no values at all.
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.is_floating_point()
    if not is_plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise error
    values = tensor.detach().to(torch.float32).clone(memory_format=torch.contiguous_format)
    # After the conversion, in which large float64 values become infinite.
    if not torch.isfinite(values).all():
        raise error
    return values


def _names() -> Iterator[tuple[str, str]]:
    """Our name and theirs for every tensor that is used."""

    def affine(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        return ((f"{ours}.{part}", f"{theirs}.{part}") for part in ("weight", "bias"))

    def activated(ours: str, norm: str, convolution: str) -> Iterator[tuple[str, str]]:
        yield from affine(f"{ours}.norm", norm)
        yield f"{ours}.conv.weight", f"{convolution}.weight"

    yield "encoder.stage1.0.weight", "conv_4_32.0.weight"
    for stage, theirs in _STAGE_ENTRIES.items():
        yield from activated(f"encoder.{stage}.0", f"{theirs}.0", f"{theirs}.2")
    for stage, blocks in _STAGES.items():
        # The last stage has no entry convolution before its blocks.
        first = 0 if stage == "stage5" else 1
        for index, block in enumerate(blocks, start=first):
            for half, number in _BLOCKS.items():
                yield from activated(f"encoder.{stage}.{index}.{half}", f"{block}.gn{number}", f"{block}.conv{number}")
    yield from activated("bottleneck", "fusionConv.0", "fusionConv.3")
    for module, theirs in _MODULES.items():
        yield from activated(f"{module}.segmentation", f"{theirs}.gn_seg", f"{theirs}.conv_seg")
        yield f"{module}.residual_projection.weight", f"{theirs}.conv_res.weight"
        yield from activated(f"{module}.residual", f"{theirs}.gn_res1", f"{theirs}.conv_res1")
    yield "decoder_quarter.residual_input.weight", "seg_x4.0.conv_mp_first.weight"
    yield from activated("decoder_half.residual_input", "seg_x2.0.gn_mp", "seg_x2.0.conv_mp")
    for head, theirs in _HEADS.items():
        yield from affine(head, theirs)


def _never_acting(acting: set[str]) -> set[str]:
    parts = [f"{norm}.{kind}" for norm in _NORMS for kind in ("weight", "bias")]
    parts += [f"{convolution}.weight" for convolution in _CONVOLUTIONS]
    return {f"{module}.{part}" for module in _MODULES.values() for part in parts} - acting


def _arguments(tensors: Mapping[str, Tensor], source: str | PathLike) -> dict[str, Any]:
    """The network's arguments, from the shapes of its first and last tensors; all other shapes must then match."""
    ends = {
        "input_channels": (_FIRST, 1, 64),
        "outputs": ("seg_cls.0.weight", 0, 255),
        "residual_outputs": ("res_cls.0.weight", 0, 255),
        "base_width": (_FIRST, 0, 256),
    }
    arguments: dict[str, Any] = {}
    for argument, (name, axis, most) in ends.items():
        shape = tensors[name].shape
        if len(shape) != 5 or not 1 <= shape[axis] <= most:
            raise _wrong_shape(source, name, tensors[name], f"one that has 1 to {most} along axis {axis}")
        arguments[argument] = shape[axis]
    if arguments["base_width"] % GROUPS:
        raise _wrong_shape(source, _FIRST, tensors[_FIRST], f"one whose first size is a multiple of {GROUPS}")
    return {**arguments, "residual_axis": "S"}


def _load(path: Path) -> Any:
    try:
        if path.suffix.lower() == ".safetensors":
            import safetensors.torch

            return safetensors.torch.load_file(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            # Errors in the file's format, or in entries that are not tensors.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # A pickle names an object before it is made; anything else is damaged or is not a pickle.
        if names := _foreign_objects(path):
            raise UserError("import-object", path=str(path), objects=", ".join(names[:3])) from error
        raise UserError("import-unreadable", path=str(path)) from error
    except OSError as error:
        raise UserError("import-cannot-read", path=str(path), reason=error.strerror or str(error)) from None
    except MemoryError:
        raise
    except Exception as error:
        # The exception that torch raises for a truncated file or one of another kind depends on where it fails.
        raise UserError("import-unreadable", path=str(path)) from error


def _foreign_objects(path: Path) -> list[str]:
    """The classes and functions that a pickle names and that are not of tensors, without executing it."""
    known = {name for _, name in _harmless()}
    names: set[str] = set()
    for data in _pickles(path):
        texts: list[str] = []
        try:
            for operation, argument, _ in pickletools.genops(data):
                if operation.name == "GLOBAL":
                    names.add(".".join(argument.split(" ", 1)))
                elif operation.name == "STACK_GLOBAL":
                    names.add(".".join(texts[-2:]))
                elif isinstance(argument, str):
                    texts.append(argument)
        except (ValueError, UnicodeDecodeError, IndexError, AttributeError):
            continue
    return sorted(name for name in names - known if not name.startswith(("torch.", "collections.OrderedDict")))


def _pickles(path: Path) -> Iterator[io.BytesIO | bytes]:
    """The pickles in a checkpoint of the new format, a zip archive, or of the old one."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl") and archive.getinfo(name).file_size <= _MOST_PICKLE_BYTES:
                    yield archive.read(name)
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, EOFError, RuntimeError):
        with path.open("rb") as file:
            data = io.BytesIO(file.read(_MOST_PICKLE_BYTES))
        if not data.getbuffer()[:1] == b"\x80":
            return
        # The old format: a magic number, a version, the system's properties, the content.
        for _ in range(4):
            yield data


def _wrong_shape(source: str | PathLike, name: str, tensor: Tensor, wanted: str) -> UserError:
    return UserError("import-shape", path=str(source), tensor=name, shape=str(tuple(tensor.shape)), wanted=wanted)
