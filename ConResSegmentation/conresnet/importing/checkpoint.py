"""Checkpoints of the paper's authors: reading one without executing it, and its tensors under our names.

Such a file is a ``state_dict`` saved with ``torch.save``, its names prefixed ``module.`` where several GPUs trained it.
The authors' network is our `ConResNet` in the arithmetic, with other names and with tensors that never act.
"""

import pickle
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from conresnet.errors import UserError
from conresnet.networks import build_network
from conresnet.networks.blocks import GROUPS

PARALLEL_PREFIX = "module."
# Under these a training script may keep the state_dict beside its optimizer's.
WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net")

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
# Every context residual module carries these; what none of them uses never acts.
_NORMS = ("gn_seg", "gn_res", "gn_res1", "gn_res2", "gn_mp")
_CONVOLUTIONS = ("conv_seg", "conv_res", "conv_res1", "conv_res2", "conv_mp_first", "conv_mp")


def read_checkpoint(path: str | PathLike) -> dict[str, Tensor]:
    """The tensors of a checkpoint by the authors' names, ``module.`` taken off.

    Nothing in the file is executed: pickled objects other than tensors in plain containers are refused.

    Raises:
        UserError: ``checkpoint-not-found``, ``checkpoint-unreadable``, ``checkpoint-object``, ``checkpoint-content``.
    """
    content = _load(path)
    if isinstance(content, Mapping) and not _is_state_dict(content):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise _wrong(path, "checkpoint-content", "holds no state_dict, that is tensors by their names")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise _wrong(path, "checkpoint-content", f"holds {str(name)[:80]!r}, which is not a tensor with a name")
    if all(name.startswith(PARALLEL_PREFIX) for name in content):
        content = {name.removeprefix(PARALLEL_PREFIX): tensor for name, tensor in content.items()}
    return dict(content)


def convert(tensors: Mapping[str, Tensor], source: str | PathLike) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Bring the authors' tensors under our names.

    Args:
        tensors: from `read_checkpoint`.
        source: the file's name for messages.

    Returns:
        The arguments for ``build_network("conresnet", arguments)``, inferred from the shapes, and that network's
        state_dict in float32.

    Raises:
        UserError: ``checkpoint-missing``, ``checkpoint-left-over``, ``checkpoint-shape`` or ``checkpoint-values``, with
            the name of a tensor.
    """
    names = dict(_names())
    missing = [theirs for theirs in names.values() if theirs not in tensors]
    if missing:
        raise _wrong(source, "checkpoint-missing", f"lacks the tensor {_listed(missing)}")
    left_over = sorted(set(tensors) - set(names.values()) - _never_acting(set(names.values())))
    if left_over:
        raise _wrong(source, "checkpoint-left-over", f"holds the tensor {_listed(left_over)}, which ConResNet lacks")
    arguments = _arguments(tensors, source)
    with torch.device("meta"):
        expected = build_network("conresnet", arguments).state_dict()
    weights = {}
    for ours, template in expected.items():
        tensor = tensors[names[ours]]
        if tensor.shape != template.shape:
            raise _wrong(
                source,
                "checkpoint-shape",
                f"holds the tensor {names[ours]} in the shape {tuple(tensor.shape)} instead of {tuple(template.shape)}",
            )
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise _wrong(source, "checkpoint-values", f"holds values in the tensor {names[ours]} that are not finite")
        weights[ours] = tensor.to(torch.float32).clone(memory_format=torch.contiguous_format)
    return arguments, weights


def _names() -> Iterator[tuple[str, str]]:
    """Our name and theirs of every tensor that acts."""

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
    carried = {
        f"{module}.{part}"
        for module in _MODULES.values()
        for part in (
            *(f"{norm}.{kind}" for norm in _NORMS for kind in ("weight", "bias")),
            *(f"{convolution}.weight" for convolution in _CONVOLUTIONS),
        )
    }
    return carried - acting


def _arguments(tensors: Mapping[str, Tensor], source: str | PathLike) -> dict[str, Any]:
    """The network's arguments as the shapes of its ends say, which the shapes of all others must then meet."""
    sizes = []
    for name, dimensions, axis, most in (
        ("conv_4_32.0.weight", 5, 1, 64),
        ("seg_cls.0.weight", 5, 0, 255),
        ("res_cls.0.weight", 5, 0, 255),
        ("conv_4_32.0.weight", 5, 0, 256),
    ):
        shape = tensors[name].shape
        if len(shape) != dimensions or not 1 <= shape[axis] <= most:
            raise _wrong(source, "checkpoint-shape", f"holds the tensor {name} in the shape {tuple(shape)}")
        sizes.append(shape[axis])
    inputs, outputs, residual_outputs, width = sizes
    if width % GROUPS:
        reason = f"has a base width of {width} in conv_4_32.0.weight, no multiple of {GROUPS}"
        raise _wrong(source, "checkpoint-shape", reason)
    return {
        "input_channels": inputs,
        "outputs": outputs,
        "residual_outputs": residual_outputs,
        "base_width": width,
        "residual_axis": "S",
    }


def _load(path: str | PathLike) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            "checkpoint-not-found", f"There is no checkpoint at {path}; check the path.", file=str(path)
        ) from None
    except pickle.UnpicklingError as error:
        # torch tells an object that it will not make from bytes that are no pickle in words alone.
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise UserError(
                "checkpoint-object",
                f"{path} holds Python objects besides tensors, which would run code when read, and was refused; have "
                "its maker save the bare state_dict.",
                file=str(path),
            ) from None
        raise _unreadable(path) from None
    except OSError as error:
        raise UserError(
            "checkpoint-unreadable", f"{path} cannot be read ({error.strerror}); check the file.", file=str(path)
        ) from None
    except MemoryError:
        raise
    except Exception:
        # What torch raises for a file that is cut off or of another kind differs by where it stumbles.
        raise _unreadable(path) from None


def _unreadable(path: str | PathLike) -> UserError:
    return UserError(
        "checkpoint-unreadable",
        f"{path} is no whole checkpoint as torch.save writes it; get a fresh copy.",
        file=str(path),
    )


def _is_state_dict(content: Mapping) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())


def _listed(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _wrong(source: str | PathLike, code: str, reason: str) -> UserError:
    return UserError(
        code, f"{source} {reason}; only checkpoints of the paper authors' ConResNet can be imported.", file=str(source)
    )
