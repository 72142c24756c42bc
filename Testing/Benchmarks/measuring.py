"""One measurement of ``against_plain.py``, in its own process."""

from __future__ import annotations

import time

import numpy as np
import plain
import torch
from process_memory import peak_memory

from conresnet.images.files import read_channels
from conresnet.images.grid import reordering
from conresnet.inference.segmentation import load_model, segment
from conresnet.networks.loading import load_network
from conresnet.package import read_package
from conresnet.request import SegmentOptions


def measure(task: dict) -> dict:
    """Run the variant named in ``task`` and return the seconds of each phase and the peak memory."""
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    package = read_package(task["model"])
    volumes = read_channels(task["images"], [item.name for item in package.description.inputs])
    match task["way"]:
        case "plain":
            result = _plain(package, volumes, task)
        case "logits":
            return _logits(package, volumes)
        case way:
            result = _ours(package, volumes, task, *way.split("-"))
    return {**result, "peak": peak_memory()}


def _plain(package, volumes, task: dict) -> dict:
    network, window = load_network(package), package.description.inference.window
    begun, cpu = time.perf_counter(), time.process_time()
    image = plain.prepare(in_model_order(package, volumes))
    prepared = time.perf_counter()
    regions = plain.segment(network, image, window, task["windows"] or None)
    segmented, used = time.perf_counter(), time.process_time() - cpu
    count = np.prod([len(plain.starts(side, size)) for side, size in zip(image.shape[1:], window, strict=True)])
    seconds = (segmented - prepared) * count / (task["windows"] or count)
    labels = np.zeros(image.shape[1:], np.uint8)
    for index, value in ((1, 2), (2, 1), (0, 4)):
        labels[regions[index]] = value
    written = time.perf_counter() - segmented
    np.save(task["result"], nested_regions(labels))
    how = f"{count} windows of {window}, {torch.get_num_threads()} threads"
    if task["windows"]:
        how += f"; time scaled up from {task['windows']} windows"
    return {
        "preparing": prepared - begun,
        "segmenting": seconds,
        "writing": written,
        "total": prepared - begun + seconds + written,
        "cpu": used * count / (task["windows"] or count),
        "windows": int(count),
        "how": how,
    }


def _ours(package, volumes, task: dict, tiling: str, precision: str) -> dict:
    model = load_model(package, "cpu", precision)
    options = SegmentOptions(tiling=tiling, threads=torch.get_num_threads())
    begun, cpu = time.perf_counter(), time.process_time()
    result = segment(model, volumes, options)
    total, used = time.perf_counter() - begun, time.process_time() - cpu
    report = result.report
    (labels,) = in_model_order(package, [result.labels])
    np.save(task["result"], nested_regions(labels))
    how = (
        f"{report['windows']} windows of {tuple(report['window'])}, {report['precision']}, {report['threads']} threads"
    )
    return {**report["seconds"], "total": total, "cpu": used, "windows": report["windows"], "how": how}


def nested_regions(labels: np.ndarray) -> np.ndarray:
    """(3, ...) bool masks of ET, WT and TC from BraTS label values."""
    return np.stack([labels == 4, labels > 0, (labels == 1) | (labels == 4)])


def in_model_order(package, volumes) -> list[np.ndarray]:
    """The arrays (S, H, W) in the model's orientation, as in the authors' code."""
    orientation = package.description.preparation.orientation
    return [reordering(volume.grid, orientation).view(volume.array) for volume in volumes]


@torch.inference_mode()
def _logits(package, volumes) -> dict:
    """Largest difference between the logits of plain inference and ours in the middle window."""
    window = package.description.inference.window
    image = plain.prepare(in_model_order(package, volumes))
    start = tuple((side - size) // 2 for side, size in zip(image.shape[1:], window, strict=True))
    expected = plain.logits(load_network(package), image, start, window)
    found = plain.logits(load_model(package, "cpu", "fp32").system.networks[0], image, start, window)
    largest = float(expected.abs().max())
    return {"difference": float((found - expected).abs().max()) / largest, "largest": largest}
