"""Devices, precisions and threads, and what happens when memory runs out."""

import os
import re

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from conresnet.inference.devices import (
    Backend,
    choose_backend,
    cpu_has_bf16,
    default_threads,
    is_out_of_memory,
    using_threads,
)
from conresnet.inference.segmentation import SegmentOptions, segment
from engine.model_cases import make_model
from engine.package_cases import refusal
from engine.volumes import grid, random_volume


def test_auto_takes_half_precision_only_where_the_processor_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for capabilities, precision in [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({}, "fp32")]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert choose_backend() == Backend(torch.device("cpu"), precision)


@pytest.mark.parametrize(("version", "device"), [("2.8.0", "cpu"), ("2.9.1", "mps"), ("2.13.0", "mps")])
def test_an_apple_gpu_is_used_where_pytorch_has_all_operators_for_it(monkeypatch, version, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "__version__", version)
    assert choose_backend().device.type == device
    if device == "cpu":
        assert version in refusal("device-unavailable", choose_backend, "mps")


def test_older_pytorch_is_asked_another_way(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not cpu_has_bf16()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert cpu_has_bf16()


@pytest.mark.parametrize(("capability", "precision"), [((9, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")])
def test_gpus_compute_in_the_best_they_have(monkeypatch, capability, precision):
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
        ("device-unavailable", ("cuda:99",)),
        ("precision-unknown", ("cpu", "fp64")),
        ("precision-unavailable", ("cpu", "fp16")),
    ],
)
def test_refusals(code, arguments):
    refusal(code, choose_backend, *arguments)


def test_a_desktop_keeps_one_core(monkeypatch):
    monkeypatch.delitem(os.environ, "OMP_NUM_THREADS", raising=False)
    for cores, threads in [(1, 1), (2, 2), (3, 2), (16, 15)]:
        monkeypatch.setattr(torch, "get_num_threads", lambda cores=cores: cores)
        assert default_threads() == threads
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "16")
    assert default_threads() == 16


def test_threads_are_as_before_afterwards():
    before = torch.get_num_threads()
    with using_threads(before + 1) as count:
        assert count == torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_threads_hold_for_itk_too():
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
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
    """Let the network of a model answer with nan where ``spoiled`` says so of the answer's number format."""
    layer = [layer for layer in model.system.networks[0].modules() if isinstance(layer, torch.nn.Conv3d)][-1]
    layer.register_forward_hook(lambda layer, inputs, output: output * np.nan if spoiled(output.dtype) else output)


def test_a_network_that_gives_no_numbers_is_a_sentence(tmp_path):
    model = make_model(tmp_path)
    spoil(model, lambda number_format: True)
    for precision in ("fp32", "bf16"):
        options = SegmentOptions(threads=1, precision=precision)
        sentence = refusal("network-not-finite", segment, model, [random_volume(grid((20, 24, 28)))], options)
        assert model.description.title in sentence


def test_values_beyond_half_precision_are_computed_in_single(tmp_path):
    model = make_model(tmp_path)
    volume = random_volume(grid((20, 24, 28)))
    exact = segment(model, [volume], SegmentOptions(maps=("probability",), threads=1))
    spoil(model, lambda number_format: number_format != torch.float32)
    half = segment(model, [volume], SegmentOptions(maps=("probability",), precision="bf16", threads=1))
    assert half.report["precision"] == "fp32" and "bf16" in half.report["warnings"][0]
    assert np.array_equal(half.maps["probability"], exact.maps["probability"])
    assert model.backend.precision == "bf16", "the next case tries half precision again"


class ShortOfMemory:
    """Makes a model's predictor fail for windows of more voxels than fit; of several the n-th."""

    def __init__(self, monkeypatch, model, fits, on="any", error=None, index=0):
        self.sizes, self.places = [], []
        error = error or torch.OutOfMemoryError("CUDA out of memory.")
        predictor = model.system.predictors[index]
        predict, place = predictor.predict, predictor.place

        def short(block, maps):
            if tuple(block.shape[1:]) != (16, 16, 16):
                self.sizes.append(tuple(block.shape[1:]))
                if block[0].numel() > fits and on in ("any", self.places[-1] if self.places else "cuda"):
                    raise error
            return predict(block, maps)

        def moved(backend):
            self.places.append(backend.device.type)
            if backend.device.type != "cuda":
                place(backend)

        monkeypatch.setattr(predictor, "predict", short)
        monkeypatch.setattr(predictor, "place", moved)


def test_smaller_windows_when_memory_runs_out(tmp_path, monkeypatch):
    model = make_model(tmp_path, inference={"window": [64, 64, 64]})
    short = ShortOfMemory(monkeypatch, model, fits=70_000)
    result = segment(model, [random_volume(grid((60, 60, 60)))], SegmentOptions(threads=1))
    assert short.sizes[:3] == [(64, 64, 64), (32, 64, 64), (24, 40, 64)]
    assert result.report["window"] == [24, 40, 64] and len(result.report["warnings"]) == 2
    assert "ran out of memory with windows of 64 x 64 x 64" in result.report["warnings"][0]
    assert sum(row["voxels"] for row in result.report["segments"]) == np.count_nonzero(result.labels.array)


def test_a_gpu_that_is_too_small_leaves_it_to_the_cpu(tmp_path, monkeypatch):
    model = make_model(tmp_path, inference={"window": [64, 64, 64]})
    volume = random_volume(grid((60, 60, 60)))
    expected = segment(model, [volume], SegmentOptions(threads=1, precision="fp32"))
    model.backend = Backend(torch.device("cuda:0"), "fp16")
    short = ShortOfMemory(monkeypatch, model, fits=10, on="cuda")
    monkeypatch.setattr("conresnet.inference.segmentation.choose_backend", lambda *asked: model.backend)
    monkeypatch.setattr("conresnet.inference.devices.cpu_has_bf16", lambda: False)
    result = segment(model, [volume], SegmentOptions(threads=1))
    assert (result.report["device"], result.report["precision"]) == ("cpu", "fp32")
    assert "the CPU" in result.report["warnings"][-1] and "cuda:0" in result.report["warnings"][-1]
    assert np.array_equal(result.labels.array, expected.labels.array)
    assert short.places == ["cpu", "cuda"], "the next case tries the GPU again"


def test_too_little_memory_for_anything_is_a_sentence(tmp_path, monkeypatch):
    model = make_model(tmp_path)
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    ShortOfMemory(monkeypatch, model, fits=10, error=error)
    volume = random_volume(grid((30, 30, 30)))
    sentence = refusal("out-of-memory", segment, model, [volume], SegmentOptions(threads=1))
    assert re.search("ROI", sentence)


@pytest.mark.parametrize("step", ["prepare", "make_report"])
@pytest.mark.parametrize(
    "error",
    [MemoryError("Unable to allocate 9 GiB"), RuntimeError("ITK ERROR: Failed to allocate memory for image.")],
    ids=["numpy", "ITK"],
)
def test_too_little_memory_beside_the_windows_is_a_sentence(tmp_path, monkeypatch, step, error):
    def short(*arguments):
        raise error

    monkeypatch.setattr(f"conresnet.inference.segmentation.{step}", short)
    volume = random_volume(grid((20, 20, 20)))
    assert "ROI" in refusal("out-of-memory", segment, make_model(tmp_path), [volume], SegmentOptions(threads=1))


def test_other_errors_are_not_taken_for_lack_of_memory(tmp_path, monkeypatch):
    model = make_model(tmp_path)
    ShortOfMemory(monkeypatch, model, fits=10, error=RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        segment(model, [random_volume(grid((30, 30, 30)))], SegmentOptions(threads=1))
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(ValueError("out of memory"))
