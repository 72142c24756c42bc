"""Devices: where a network runs, in which precision, progress of a forward pass, failures, CPU threads and memory."""

from __future__ import annotations

import copy
import ctypes
import math
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass

import SimpleITK as sitk
import torch
from torch import Tensor, nn

from conresnet.errors import UserError
from conresnet.needs import is_enough
from conresnet.request import check_backend

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Earlier versions of PyTorch have no trilinear upsampling or 3D pooling on Apple's GPU.
_MPS_SINCE = "2.9"
_CPU_BF16 = ("amx_bf16", "avx512_bf16", "avx10_2", "bf16")

# Voxels per batch. In fp32 on the CPU, PyTorch computes a single small window without oneDNN, which takes up to 1.8
# times as long; larger batches are no faster there. On a GPU, small windows leave most of the device idle.
_CPU_BATCH = 2**19
_GPU_BATCH = 2**21

# Messages of PyTorch, GPU libraries and ITK when memory runs out.
_NO_MEMORY = (
    *("out of memory", "can't allocate memory", "failed to allocate memory", "not enough memory", "bad_alloc"),
    *("cudnn_status_alloc_failed", "cublas_status_alloc_failed", "cusolver_status_alloc_failed"),
)
# The whole message of oneDNN, which computes convolutions on the CPU. A longer one, about a primitive descriptor, means
# that oneDNN does not support an operation.
_NO_MEMORY_OF_ONEDNN = ("could not create a primitive", "could not execute a primitive")
# Beginnings of error messages when the GPU, its driver or its libraries fail: a GPU that this PyTorch was not built
# for, a driver that is too old, an operator that is missing on Apple's GPU.
_GPU_FAILED = (
    *("cuda error", "cuda driver", "no kernel image", "cudnn", "cublas", "cusolver", "cufft", "nvrtc", "nvidia"),
    *("hip error", "miopen", "rocblas", "hipblas", "mps backend", "mps device", "mps:", "metal"),
)


@dataclass(frozen=True)
class Backend:
    """A device and the precision of the convolutions on it; neither is "auto"."""

    device: torch.device
    precision: str

    @property
    def memory_format(self) -> torch.memory_format:
        """Channels last where that is fast; never for fp32, where PyTorch's group norm on the CPU would be inexact."""
        return torch.contiguous_format if self.precision == "fp32" else torch.channels_last_3d

    def placed(self, network: nn.Module) -> nn.Module:
        """The network on this device: itself for fp32 on the CPU, and otherwise a copy, so that the original is kept.

        In half precision, the weights of convolutions are converted once; otherwise autocast would convert them for
        every batch.
        """
        if self.device.type == "cpu" and self.precision == "fp32":
            return network
        placed = copy.deepcopy(network)
        if self.precision != "fp32":
            for module in placed.modules():
                if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                    module.to(_TYPES[self.precision])
        return placed.to(device=self.device, memory_format=self.memory_format)

    def take(self, block: Tensor) -> Tensor:
        """Copy a (batch, C, S, H, W) float32 input to this device.

        The copy to a CUDA device is asynchronous, from pinned memory, so that the CPU can prepare the next input.
        PyTorch does not reuse that memory before the copy is done.
        """
        if self.device.type == "cuda":
            block = block.pin_memory()
        return block.to(device=self.device, memory_format=self.memory_format, non_blocking=True)

    def wait(self) -> None:
        """Wait until a GPU has finished its work, because PyTorch calls return earlier."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def batch(self, window: Sequence[int]) -> int:
        """How many windows or mirrored copies of this size (S, H, W) to compute at once."""
        most = _CPU_BATCH if self.device.type == "cpu" else _GPU_BATCH
        return max(1, most // math.prod(window))

    def computing(self) -> AbstractContextManager:
        if self.precision == "fp32":
            return _without_tf32() if self.device.type == "cuda" else nullcontext()
        return torch.autocast(self.device.type, dtype=_TYPES[self.precision])

    def __str__(self) -> str:
        return str(self.device)


@contextmanager
def _without_tf32() -> Iterator[None]:
    """fp32 in all 24 bits: by default, PyTorch lets cuDNN round what convolutions multiply to the 11 bits of TF32."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed


def choose_backend(device: str = "auto", precision: str = "auto") -> Backend:
    """Resolve the requested device and precision.

    A device is "auto" (the first GPU, else the CPU), "cpu", "cuda", "cuda:1" or "mps"; a precision is "auto" (half
    precision if it is faster on the device), "fp32", "bf16" or "fp16". Raises UserError "device-unknown",
    "device-unavailable", "precision-unknown" or "precision-unavailable".
    """
    check_backend(device, precision)
    chosen = _choose_device(device)
    if precision == "auto":
        return Backend(chosen, _best_precision(chosen))
    if precision == "fp16" and chosen.type == "cpu":
        raise UserError("precision-unavailable")
    return Backend(chosen, precision)


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps() else "cpu")
    kind, _, index = name.partition(":")
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(has_mps())}[kind]
    if int(index or 0) >= available:
        raise UserError("device-unavailable", device=name, torch=torch.__version__)
    return torch.device(name)


def device_of_process(device: str, process: int, gpus: int = 1) -> str:
    """The device of one of several processes on this computer, which are numbered from 0 and use ``gpus`` GPUs each.

    If there are several GPUs, "auto" is the first of the process's own. With too few, processes share them.
    """
    shares = torch.cuda.device_count() // gpus if device == "auto" else 0
    return f"cuda:{process % shares * gpus}" if shares > 1 else device


def has_mps() -> bool:
    """Whether there is an Apple GPU for which this PyTorch has all operators of our networks."""
    return torch.backends.mps.is_available() and is_enough(torch.__version__, _MPS_SINCE)


def available_devices() -> list[dict[str, str]]:
    """The devices that the user can choose from: each with "name" and "title"."""
    found = [{"name": "cpu", "title": f"{platform.processor() or platform.machine()}, {default_threads()} threads"}]
    for index in range(torch.cuda.device_count()):
        # A GPU or driver that cannot even give the name cannot be used.
        with suppress(RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError):
            found.append({"name": f"cuda:{index}", "title": torch.cuda.get_device_name(index)})
    if has_mps():
        found.append({"name": "mps", "title": "Apple GPU"})
    return found


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16" if major >= 8 else "fp16" if major >= 7 else "fp32"
    if device.type == "cpu" and cpu_has_bf16():
        return "bf16"
    return "fp32"


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware; False where PyTorch cannot tell."""
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in _CPU_BF16)
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask() for ask in asked if ask)


def default_threads() -> int:
    """PyTorch's number, minus one if there are at least three, to keep a desktop responsive; or OMP_NUM_THREADS."""
    threads = torch.get_num_threads()
    return threads - 1 if threads > 2 and "OMP_NUM_THREADS" not in os.environ else threads


# Whether this process has computed with several threads, and whether it was forked from one that had. A fork does not
# copy these threads, and PyTorch would wait for them forever.
_has_threads = _is_forked = False


def _after_fork() -> None:
    global _is_forked
    if _has_threads:
        _is_forked = True
        # For loading a model, too.
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def using_threads(count: int | None) -> Iterator[int]:
    """Compute with ``count`` threads, or with the default number, in PyTorch and ITK; yields the number.

    It is 1 in a process that was forked from one that had computed with several.
    """
    global _has_threads
    before, itk_before = torch.get_num_threads(), sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    # With far too many, the system would kill the process without a message.
    count = min(count, os.cpu_count() or 1) if count else default_threads()
    count = 1 if _is_forked else count
    _has_threads |= count > 1
    torch.set_num_threads(count)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(itk_before)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch, ITK or numpy means that a device or the computer ran out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    says_so = text in _NO_MEMORY_OF_ONEDNN or any(words in text for words in _NO_MEMORY)
    return says_so and isinstance(error, RuntimeError)


def is_gpu_failure(error: BaseException) -> bool:
    """Whether an error is about the GPU itself, its driver or its libraries, so that the CPU may work."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _GPU_FAILED)


def free_memory(backend: Backend) -> None:
    """Return GPU memory cached by PyTorch to the system; does nothing for a GPU that has failed."""
    with suppress(RuntimeError):
        if backend.device.type == "cuda":
            torch.cuda.empty_cache()
        elif backend.device.type == "mps":
            torch.mps.empty_cache()


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of glibc's mallopt, from malloc.h
_DEFAULT_MMAP_MAX = 65536
_DEFAULT_TRIM = 128 * 1024


@contextmanager
def reused_memory() -> Iterator[None]:
    """Within this context, memory that is freed stays with the process, to be used for the next large tensor.

    glibc returns every block over 32 MB to the system as soon as it is freed, so that each operation on a large tensor
    has to wait for new pages. Afterwards, the defaults are restored and free memory is returned. Without glibc, this
    does nothing.
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
"""What norms, activations and resizing cost per element of a convolution's output, in multiply-adds."""

_WATCHED = (nn.Conv3d, nn.ConvTranspose3d)


class ForwardMonitor:
    """Calls a function after every convolution with the share of the forward pass that is done.

    A trial pass on a tiny input shows in what order the convolutions and deconvolutions come and how much each costs;
    their shares hardly depend on the input's size. A pass with fewer of them, such as for a last batch, ends early.
    A context manager, so that no hook is left behind.

    Args:
        trial: runs the same pass on a tiny input.
        tick: called with the share done, 0 to 1; before each convolution with the same share as after the previous one.
            An exception from it ends the pass.
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
        """Start the next pass."""
        self._calls = 0

    def _convolutions(self) -> list[nn.Module]:
        return [layer for network in self._networks for layer in network.modules() if isinstance(layer, _WATCHED)]

    def _before(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._tick(self._shares[self._calls - 1] if self._calls else 0.0)

    def _after(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._calls += 1
        self._tick(self._shares[self._calls - 1])


def _cost(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> float:
    """Multiply-adds, roughly: a convolution applies its kernel once per output, a deconvolution once per input."""
    applied = inputs[0] if isinstance(layer, nn.ConvTranspose3d) else output
    return applied.numel() * layer.weight[0].numel() + output.numel() * _ELEMENT_COST
