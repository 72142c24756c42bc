"""Where and in which number format a network computes.

Keeping the memory of large tensors for the next one instead of fetching it from the system every time.

Watching a network from inside, so that progress moves and a cancel is heard within one window.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import SimpleITK as sitk
import torch
from torch import Tensor, nn

from conresnet.errors import UserError
from conresnet.needs import is_enough

PRECISIONS = ("auto", "fp32", "bf16", "fp16")

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What PyTorch says, and ITK.
_NO_MEMORY = ("out of memory", "can't allocate memory", "failed to allocate memory", "bad_alloc")
# Before it, PyTorch has no trilinear upsampling or 3-D pooling on Apple's GPU.
_MPS_SINCE = "2.9"
_CPU_BF16 = ("amx_bf16", "avx512_bf16", "avx10_2", "bf16")


@dataclass(frozen=True)
class Backend:
    """A device and the precision of the convolutions on it; both as they are, not "auto"."""

    device: torch.device
    precision: str

    @property
    def memory_format(self) -> torch.memory_format:
        """Channels last where it is fast; never in fp32 on a CPU, where PyTorch's group norm would be inexact in it."""
        return torch.contiguous_format if self.precision == "fp32" else torch.channels_last_3d

    def place(self, network: nn.Module) -> None:
        """Move a network's weights here."""
        network.to(device=self.device, memory_format=self.memory_format)

    def take(self, block: Tensor) -> Tensor:
        """A (batch, C, S, H, W) float32 input brought here."""
        return block.to(device=self.device, memory_format=self.memory_format)

    def computing(self) -> AbstractContextManager:
        """The context in which the network runs."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_TYPES[self.precision])

    def __str__(self) -> str:
        return str(self.device)


def choose_backend(device: str = "auto", precision: str = "auto") -> Backend:
    """Resolve what the user asked for.

    Args:
        device: "auto" (the first GPU, else the CPU), "cpu", "cuda", "cuda:1", "mps".
        precision: "auto" (half precision where the processor gains from it), "fp32", "bf16" or "fp16".

    Raises:
        UserError: "device-unknown", "device-unavailable", "precision-unknown" or "precision-unavailable".
    """
    chosen = _choose_device(device)
    if precision not in PRECISIONS:
        raise UserError(
            "precision-unknown",
            f"There is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}.",
            precision=precision,
        )
    if precision == "auto":
        return Backend(chosen, _best_precision(chosen))
    if precision == "fp16" and chosen.type == "cpu":
        raise UserError("precision-unavailable", "fp16 does not compute on the CPU; choose auto, bf16 or fp32.")
    return Backend(chosen, precision)


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if has_mps() else "cpu"
        return torch.device(kind)
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not (kind == "cuda" and index.isdecimal())):
        raise UserError(
            "device-unknown", f"There is no device {name!r}; choose auto, cpu, cuda, cuda:N or mps.", device=name
        )
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(has_mps())}[kind]
    if int(index or 0) >= available:
        raise UserError(
            "device-unavailable",
            f"The device {name} is not there (or this PyTorch, {torch.__version__}, cannot use it); choose auto or "
            "another.",
            device=name,
        )
    return torch.device(name)


def has_mps() -> bool:
    """Whether there is an Apple GPU on which this PyTorch computes all that our networks need."""
    return torch.backends.mps.is_available() and is_enough(torch.__version__, _MPS_SINCE)


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16" if major >= 8 else "fp16" if major >= 7 else "fp32"
    if device.type == "cpu" and cpu_has_bf16():
        return "bf16"
    return "fp32"


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices itself; where PyTorch cannot tell, it is taken not to."""
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in _CPU_BF16)
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask() for ask in asked if ask)


def default_threads() -> int:
    """As many as PyTorch would take, less one that keeps a desktop alive; all of one or two, or what OMP_NUM_THREADS
    says."""
    threads = torch.get_num_threads()
    return threads - 1 if threads > 2 and "OMP_NUM_THREADS" not in os.environ else threads


@contextmanager
def using_threads(count: int | None) -> Iterator[int]:
    """Compute with ``count`` threads, or with the default number, in ITK too; gives the number."""
    before, itk_before = torch.get_num_threads(), sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    count = count or default_threads()
    torch.set_num_threads(count)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(itk_before)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the computer had no memory left for a tensor."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of glibc's mallopt, malloc.h
_DEFAULT_MMAP_MAX = 65536
_DEFAULT_TRIM = 128 * 1024


@contextmanager
def reused_memory() -> Iterator[None]:
    """While it lasts, memory that is freed stays with the process.

    glibc gives every block over 32 MB back to the system as it is freed, so that each operation on a large tensor
    pays for fresh pages. Afterwards its own ways are back and what is free is returned. Elsewhere than on glibc
    nothing happens.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX)
        libc.mallopt(_TRIM_THRESHOLD, _DEFAULT_TRIM)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None


_ELEMENT_COST = 300
"""What norms, activations and resizing cost beside each element of a convolution's output, in multiply-adds."""

_WATCHED = (nn.Conv3d, nn.ConvTranspose3d)


class ForwardMonitor:
    """Calls back after every convolution with the share of the forward pass that is done.

    A trial pass on a tiny input tells in what order the convolutions come, deconvolutions among them, and how much
    each costs; their shares hardly depend on the input's size. To be used as a context: no hook is left behind.

    Args:
        networks: whose convolutions to watch.
        trial: makes the pass that will be made for every window, on a tiny input.
        tick: called with the share done, 0 to 1; before each convolution with the same share as after the last. What
            it raises ends the pass.
    """

    def __init__(self, networks: Iterable[nn.Module], trial: Callable[[], object], tick: Callable[[float], None]):
        self._networks = list(networks)
        self._trial = trial
        self._tick = tick
        self._stack = ExitStack()
        self._shares: list[float] = []
        self._calls = 0

    def __enter__(self) -> ForwardMonitor:
        costs: list[float] = []
        with ExitStack() as recording:
            for layer in self._convolutions():
                handle = layer.register_forward_hook(lambda *call: costs.append(_cost(*call)))
                recording.callback(handle.remove)
            self._trial()
        done = 0.0
        for cost in costs:
            done += cost
            self._shares.append(done / sum(costs))
        for layer in self._convolutions():
            self._stack.callback(layer.register_forward_pre_hook(self._before).remove)
            self._stack.callback(layer.register_forward_hook(self._after).remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def restart(self) -> None:
        """The next pass begins."""
        self._calls = 0

    def _convolutions(self) -> list[nn.Module]:
        return [layer for network in self._networks for layer in network.modules() if isinstance(layer, _WATCHED)]

    def _before(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._tick(self._shares[self._calls - 1] if self._calls else 0.0)

    def _after(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._calls += 1
        self._tick(self._shares[self._calls - 1])


def _cost(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> float:
    """About how many multiply-adds: a convolution gathers every output from a kernel, a deconvolution spreads every
    input by one."""
    applied = inputs[0] if isinstance(layer, nn.ConvTranspose3d) else output
    return applied.numel() * layer.weight[0].numel() + output.numel() * _ELEMENT_COST
