"""Devices, precisions and threads, and the fallbacks when memory runs out."""

import math
import os
import re

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from conresnet.errors import as_user_error
from conresnet.inference.devices import (
    Backend,
    available_devices,
    choose_backend,
    cpu_has_bf16,
    default_threads,
    device_of_process,
    is_out_of_memory,
    using_threads,
)
from conresnet.inference.segmentation import segment
from conresnet.request import SegmentOptions
from engine.model_cases import make_model
from engine.package_cases import refusal
from engine.volumes import grid, random_volume


def test_auto_uses_half_precision_only_if_cpu_supports_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for capabilities, precision in [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({}, "fp32")]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert choose_backend() == Backend(torch.device("cpu"), precision)


@pytest.mark.parametrize(("version", "device"), [("2.8.0", "cpu"), ("2.9.1", "mps"), ("2.13.0", "mps")])
def test_apple_gpu_is_used_if_pytorch_has_all_operators(monkeypatch, version, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "__version__", version)
    assert choose_backend().device.type == device
    if device == "cpu":
        assert version in refusal("device-unavailable", choose_backend, "mps")


def test_bf16_support_is_detected_with_older_pytorch(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not cpu_has_bf16()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert cpu_has_bf16()


@pytest.mark.parametrize(
    ("count", "gpus", "devices"),
    [
        (0, 1, ["auto"] * 4),
        (1, 1, ["auto"] * 4),
        (2, 1, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),
        (5, 2, ["cuda:0", "cuda:2", "cuda:0", "cuda:2"]),
        (3, 2, ["auto"] * 4),
    ],
)
def test_processes_are_spread_over_gpus_unless_device_is_set(monkeypatch, count, gpus, devices):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert [device_of_process("auto", process, gpus) for process in range(4)] == devices
    assert {device_of_process(name, 1, gpus) for name in ("cpu", "cuda:0")} == {"cpu", "cuda:0"}


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError])
def test_gpu_that_does_not_work_is_not_listed(monkeypatch, error):
    """The list is part of the worker's first messages, which must not fail because of a GPU."""

    def name(index):
        if index == 0:
            raise error("CUDA unknown error")
        return "A GPU"

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    assert [device["name"] for device in available_devices()] == ["cpu", "cuda:1"]


@pytest.mark.parametrize(("capability", "precision"), [((9, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")])
def test_gpus_use_best_supported_precision(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_backend("cuda:1") == Backend(torch.device("cuda:1"), precision)
    assert "cuda:2" in refusal("device-unavailable", choose_backend, "cuda:2")


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("device-unknown", ("gpu",)),
        ("device-unknown", ("cuda:x",)),
        ("device-unknown", ("cpu:1",)),
        *(
            ("device-unknown", (name,))
            for name in ("cpu:", "cuda:", "mps:", "", ":0", "cuda:-1", "cuda:²", "cuda:" + "9" * 5000)
        ),
        ("device-unavailable", ("cuda:99",)),
        ("precision-unknown", ("cpu", "fp64")),
        ("precision-unavailable", ("cpu", "fp16")),
    ],
)
def test_invalid_devices_and_precisions_are_refused(code, arguments):
    refusal(code, choose_backend, *arguments)


def test_one_core_is_left_free(monkeypatch):
    monkeypatch.delitem(os.environ, "OMP_NUM_THREADS", raising=False)
    for cores, threads in [(1, 1), (2, 2), (3, 2), (16, 15)]:
        monkeypatch.setattr(torch, "get_num_threads", lambda cores=cores: cores)
        assert default_threads() == threads
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "16")
    assert default_threads() == 16


def test_number_of_threads_is_restored():
    before = torch.get_num_threads()
    with using_threads(before + 1) as count:
        assert count == torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_number_of_threads_applies_to_itk(monkeypatch):
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    monkeypatch.setattr("os.cpu_count", lambda: before + 1)
    with using_threads(before + 1):
        assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == before + 1
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == before


def test_half_precision_agrees_with_single(tmp_path):
    model = make_model(tmp_path)
    volume = random_volume(grid((20, 24, 28)))
    exact = segment(model, [volume], SegmentOptions(maps=("probability",), threads=1))
    half = segment(model, [volume], SegmentOptions(maps=("probability",), precision="bf16", threads=1))
    assert (exact.report["precision"], half.report["precision"]) == ("fp32", "bf16")
    difference = np.abs(exact.maps["probability"].astype(float) - half.maps["probability"])
    assert 0 < difference.mean() < 0.02
    again = segment(model, [volume], SegmentOptions(maps=("probability",), precision="fp32", threads=1))
    assert np.array_equal(again.maps["probability"], exact.maps["probability"])


def spoil(model, spoiled) -> None:
    """Make a model's network return NaN where ``spoiled`` is true for the data type of its output."""
    (network,) = model.system.predictors[0].networks
    layer = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv3d)][-1]
    layer.register_forward_hook(lambda layer, inputs, output: output * np.nan if spoiled(output.dtype) else output)


def test_non_finite_network_output_is_reported(tmp_path):
    model = make_model(tmp_path)
    spoil(model, lambda number_format: True)
    for precision in ("fp32", "bf16"):
        options = SegmentOptions(threads=1, precision=precision)
        message = refusal("network-not-finite", segment, model, [random_volume(grid((20, 24, 28)))], options)
        assert model.description.title in message


def test_half_precision_overflow_falls_back_to_single(tmp_path):
    model = make_model(tmp_path)
    volume = random_volume(grid((20, 24, 28)))
    exact = segment(model, [volume], SegmentOptions(maps=("probability",), threads=1))
    spoil(model, lambda number_format: number_format != torch.float32)
    half = segment(model, [volume], SegmentOptions(maps=("probability",), precision="bf16", threads=1))
    assert half.report["precision"] == "fp32" and "bf16" in half.report["warnings"][0]
    assert np.array_equal(half.maps["probability"], exact.maps["probability"])


def test_half_precision_is_retried_for_next_case(tmp_path):
    model = make_model(tmp_path)
    spoiling = [True]
    spoil(model, lambda number_format: number_format != torch.float32 and spoiling[0])
    volume, options = random_volume(grid((20, 24, 28))), SegmentOptions(precision="bf16", threads=1)
    assert segment(model, [volume], options).report["precision"] == "fp32"
    spoiling[0] = False
    assert segment(model, [volume], options).report["precision"] == "bf16"


class ShortOfMemory:
    """Makes a model's predictor fail for windows with more voxels than fit; ``index`` selects the network."""

    def __init__(self, monkeypatch, model, fits, on="any", error=None, index=0):
        self.sizes, self.places, self.batches = [], [], []
        error = error or torch.OutOfMemoryError("CUDA out of memory.")
        predictor = model.system.predictors[index]
        predict, place = predictor.predict, predictor.place

        def short(windows, maps, mirrors=True, batch=1):
            size = tuple(windows.shape[2:])
            if size != (16, 16, 16):
                self.sizes.append(size)
                self.batches.append(batch)
                if batch * math.prod(size) > fits and on in ("any", self.places[-1] if self.places else "cuda"):
                    raise error
            return predict(windows, maps, mirrors, batch)

        def moved(backend):
            self.places.append(backend.device.type)
            if backend.device.type != "cuda":
                place(backend)

        monkeypatch.setattr(predictor, "predict", short)
        monkeypatch.setattr(predictor, "place", moved)


def test_windows_are_reduced_if_memory_runs_out(tmp_path, monkeypatch):
    model = make_model(tmp_path, inference={"window": [64, 64, 64]})
    short = ShortOfMemory(monkeypatch, model, fits=70_000)
    result = segment(model, [random_volume(grid((60, 60, 60)))], SegmentOptions(threads=1))
    assert short.sizes[:3] == [(64, 64, 64), (32, 64, 64), (24, 40, 64)] and set(short.batches) == {1}
    assert result.report["window"] == [24, 40, 64] and len(result.report["warnings"]) == 2
    assert "ran out of memory with windows of 64 x 64 x 64" in result.report["warnings"][0]
    assert sum(row["voxels"] for row in result.report["segments"]) == np.count_nonzero(result.labels.array)


def test_batch_is_reduced_before_windows(tmp_path, monkeypatch):
    """The result does not depend on the batch size, so there is no warning."""
    model = make_model(tmp_path, inference={"mirror_axes": ["W"]})
    volume = random_volume(grid((60, 60, 40)))
    expected = segment(model, [volume], SegmentOptions(threads=1))
    short = ShortOfMemory(monkeypatch, model, fits=5 * 32**3)
    result = segment(model, [volume], SegmentOptions(threads=1))
    assert short.batches[:4] == [17, 8, 4, 4] and set(short.sizes) == {tuple(expected.report["window"])}
    assert result.report["warnings"] == [] and result.report["window"] == expected.report["window"]
    assert np.array_equal(result.labels.array, expected.labels.array)


def test_cpu_is_used_if_gpu_memory_is_too_small(tmp_path, monkeypatch):
    model = make_model(tmp_path, inference={"window": [64, 64, 64]})
    volume = random_volume(grid((60, 60, 60)))
    expected = segment(model, [volume], SegmentOptions(threads=1, precision="fp32"))
    short = ShortOfMemory(monkeypatch, model, fits=10, on="cuda")
    a_gpu(monkeypatch, "fp16")
    result = segment(model, [volume], SegmentOptions(threads=1))
    assert (result.report["device"], result.report["precision"]) == ("cpu", "fp32")
    assert "the CPU" in result.report["warnings"][-1] and "cuda:0" in result.report["warnings"][-1]
    assert np.array_equal(result.labels.array, expected.labels.array)
    segment(model, [volume], SegmentOptions(threads=1))
    tries = ["cuda"] * 4 + ["cpu"]
    assert short.places == tries * 2, "the next case tries the GPU again"


def a_gpu(monkeypatch, precision="fp32") -> None:
    """Let "auto" choose a GPU."""
    backend = Backend(torch.device("cuda:0"), precision)
    monkeypatch.setattr("conresnet.inference.segmentation.choose_backend", lambda *requested: backend)
    monkeypatch.setattr("conresnet.inference.devices.cpu_has_bf16", lambda: False)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
FAILURES = [
    RuntimeError(
        "CUDA error: no kernel image is available for execution on the device\nCompile with TORCH_USE_CUDA_DSA."
    ),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."),
    NotImplementedError("The operator 'aten::slow_conv3d' is not currently implemented for the MPS device."),
]


class FailingGPU:
    """Raises an error in one of the steps on a GPU, and otherwise computes on the CPU."""

    def __init__(self, monkeypatch, at: str, error: Exception):
        a_gpu(monkeypatch)
        self.placed = []
        placed_network, take = Backend.placed, Backend.take

        def placed(backend, network):
            self.placed.append(backend.device.type)
            if at == "place" and backend.device.type != "cpu":
                raise error
            return placed_network(Backend(torch.device("cpu"), backend.precision), network)

        def taken(backend, block):
            if backend.device.type == "cpu":
                return take(backend, block)
            if at == "window":
                raise error
            return block

        monkeypatch.setattr(Backend, "placed", placed)
        monkeypatch.setattr(Backend, "take", taken)


@pytest.mark.parametrize("at", ["place", "window"])
@pytest.mark.parametrize("error", FAILURES, ids=["kernel", "cuDNN", "driver", "MPS"])
def test_cpu_is_used_if_gpu_fails_and_reason_is_reported(tmp_path, monkeypatch, at, error):
    model = make_model(tmp_path)
    model.device = "auto"
    volume = random_volume(grid((30, 30, 30)))
    expected = segment(model, [volume], SegmentOptions(threads=1, device="cpu", precision="fp32"))
    gpu = FailingGPU(monkeypatch, at, error)
    result = segment(model, [volume], SegmentOptions(threads=1))
    assert result.report["device"] == "cpu" and gpu.placed == ["cuda", "cpu"]
    (warning,) = result.report["warnings"]
    assert "cuda:0" in warning and "the CPU" in warning and str(error).splitlines()[0].rstrip(".") in warning
    assert "memory" not in warning and "Compile" not in warning
    assert np.array_equal(result.labels.array, expected.labels.array)


@pytest.mark.parametrize(("requested", "used"), [("fp32", "fp32"), ("auto", "bf16")])
def test_cpu_fallback_keeps_requested_fp32(tmp_path, monkeypatch, requested, used):
    model = make_model(tmp_path)
    model.precision = "auto"
    FailingGPU(monkeypatch, "window", FAILURES[0])
    monkeypatch.setattr("conresnet.inference.devices.cpu_has_bf16", lambda: True)
    result = segment(model, [random_volume(grid((30, 30, 30)))], SegmentOptions(threads=1, precision=requested))
    assert (result.report["device"], result.report["precision"]) == ("cpu", used)


def test_cpu_is_used_if_network_does_not_fit_on_gpu(tmp_path, monkeypatch):
    model = make_model(tmp_path)
    gpu = FailingGPU(monkeypatch, "place", OUT_OF_MEMORY)
    result = segment(model, [random_volume(grid((30, 30, 30)))], SegmentOptions(threads=1))
    assert result.report["device"] == "cpu" and gpu.placed == ["cuda", "cpu"], "smaller windows would not help"
    (warning,) = result.report["warnings"]
    assert warning.startswith("The GPU cuda:0 does not have enough memory") and "computer" not in warning


@pytest.mark.parametrize("status", ["CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_failed_allocation_in_a_library_counts_as_out_of_memory(status):
    assert is_out_of_memory(RuntimeError(f"cuDNN error: {status}"))
    assert not is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"))


@pytest.mark.parametrize("text", ["could not create a primitive", "could not execute a primitive"])
def test_onednn_allocation_failure_counts_as_out_of_memory(text):
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError(f"{text} descriptor for a convolution forward propagation primitive"))


def test_unrelated_errors_do_not_cause_cpu_fallback(tmp_path, monkeypatch):
    model = make_model(tmp_path)
    FailingGPU(monkeypatch, "window", RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"))
    with pytest.raises(RuntimeError, match="must match"):
        segment(model, [random_volume(grid((30, 30, 30)))], SegmentOptions(threads=1))


def test_fp32_on_a_gpu_is_not_rounded_to_tf32():
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    assert before[0], "PyTorch's own default"
    # Another program in the same process may have allowed it.
    switches[1].allow_tf32 = True
    try:
        with Backend(torch.device("cuda:0"), "fp32").computing():
            assert [switch.allow_tf32 for switch in switches] == [False, False]
        assert [switch.allow_tf32 for switch in switches] == [True, True]
    finally:
        switches[1].allow_tf32 = before[1]


def test_too_little_memory_for_any_window_is_reported(tmp_path, monkeypatch):
    model = make_model(tmp_path)
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    ShortOfMemory(monkeypatch, model, fits=10, error=error)
    volume = random_volume(grid((30, 30, 30)))
    message = refusal("out-of-memory", segment, model, [volume], SegmentOptions(threads=1))
    assert re.search("ROI", message)


@pytest.mark.parametrize("step", ["prepare", "_report"])
@pytest.mark.parametrize(
    "error",
    [MemoryError("Unable to allocate 9 GiB"), RuntimeError("ITK ERROR: Failed to allocate memory for image.")],
    ids=["numpy", "ITK"],
)
def test_too_little_memory_outside_the_network_is_reported(tmp_path, monkeypatch, step, error):
    def short(*arguments):
        raise error

    monkeypatch.setattr(f"conresnet.inference.segmentation.{step}", short)
    volume = random_volume(grid((20, 20, 20)))
    assert "ROI" in refusal("out-of-memory", segment, make_model(tmp_path), [volume], SegmentOptions(threads=1))


def test_other_errors_do_not_count_as_out_of_memory(tmp_path, monkeypatch):
    model = make_model(tmp_path)
    ShortOfMemory(monkeypatch, model, fits=10, error=RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        segment(model, [random_volume(grid((30, 30, 30)))], SegmentOptions(threads=1))
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(ValueError("out of memory"))


def test_library_that_does_not_fit_into_memory_counts_as_out_of_memory():
    text = "libtorch_cpu.so: failed to map segment from shared object"
    assert as_user_error(ImportError(text)).code == "memory-short"
    assert as_user_error(ImportError(f"{text}: Operation not permitted")) is None, "as in a folder without execution"
