"""Train, evaluate or measure one row of ``compare_systems.py``, in its own process.

    python Testing/Benchmarks/row_work.py TASK

TASK is JSON: "do" ("train", "evaluate" or "measure"), "runs" (folders), "data" (folder of the data set). For train also
"max_steps"; for evaluate "output" (a folder) and "plan" (a file, whose segments are measured); for measure "output" (a
file) and "cases" (maximum number of timed cases).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click


@click.command()
@click.argument("task", type=json.loads)
def work(task: dict) -> None:
    """Run one task."""
    from peer_networks import PEERS

    from conresnet.networks import NETWORKS
    from conresnet_training.runs.run import open_run

    NETWORKS.classes.update(PEERS)
    runs = [open_run(Path(folder), Path(task["data"])) for folder in task["runs"]]
    match task["do"]:
        case "train":
            train(runs, task["max_steps"])
        case "evaluate":
            evaluate(runs, Path(task["output"]), Path(task["plan"]))
        case "measure":
            measure(runs, Path(task["output"]), task["cases"])


def train(runs: Sequence, most_steps: int | None) -> None:
    """Train each run to its end, or up to ``most_steps``."""
    from conresnet_training.training.trainer import fit

    for run in runs:
        fit(run, most_steps)


def evaluate(runs: Sequence, output: Path, plan_file: Path) -> None:
    """Segment the held-out cases with the engine and measure the segments of a plan.

    Runs may have been trained for other segments, such as the labels that make up regions. Then the label maps are
    measured.
    """
    from conresnet.files import make_folder
    from conresnet_training.data.layouts import read_data_set
    from conresnet_training.evaluation.report import write_results
    from conresnet_training.evaluation.runs import SEGMENTATIONS, measure_predictions, measure_runs
    from conresnet_training.planning.plan import read_plan

    data = runs[0].plan.data
    plan = read_plan(plan_file, data)
    make_folder(output / SEGMENTATIONS)
    measured = measure_runs(runs, output / SEGMENTATIONS)
    if runs[0].plan.targets != plan.targets:
        painted = {segment.name: segment.label for segment in plan.model.output.segments}
        regions = {name: tuple(values) for name, values in plan.targets.items()}
        of_regions = measure_predictions(
            output / SEGMENTATIONS, replace(read_data_set(data), regions=regions, region_labels=painted)
        )
        own, found = measured.evaluation, of_regions.evaluation.cases
        measured = replace(of_regions, evaluation=replace(own, cases={case: found[case] for case in own.cases}))
    write_results(measured, output)


def measure(runs: Sequence, output: Path, most_cases: int) -> None:
    """Write the size of the runs' networks, and the time and memory for segmenting held-out cases with all of them.

    The first case of a process takes longer, so one case is segmented before timing starts.
    """
    import torch
    from measures import acting_parameters, multiply_adds, peak_memory

    from conresnet.images.files import read_channels
    from conresnet.inference.segmentation import load_model, segment
    from conresnet.networks import build_network
    from conresnet.package.store import write_package
    from conresnet.request import SegmentOptions
    from conresnet_training.data.layouts import read_data_set
    from conresnet_training.evaluation import write_json
    from conresnet_training.runs.packing import pack_runs
    from conresnet_training.runs.run import held_out_of_run

    plan = runs[0].plan
    held_out = held_out_of_run(runs[0], read_data_set(plan.data))
    packed = pack_runs(runs)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(write_package(packed.description, packed.files, Path(folder) / "model").path)
        channels = [item.name for item in packed.description.inputs]
        for place, case in enumerate([held_out[0], *held_out[:most_cases]]):
            images = read_channels(list(case.images), channels)
            begun = time.perf_counter()
            report = segment(model, images, SegmentOptions()).report
            if place:
                seconds[case.name] = round(time.perf_counter() - begun, 4)
    device = torch.device(report["device"])
    is_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_reserved(device) if is_gpu else peak_memory()
    # Counting runs the networks too, so it comes last and does not affect the peak memory.
    networks = [build_network(network.type, network.arguments) for network in packed.description.system.networks]
    window = plan.model.inference.window
    found = {
        "parameters": sum(map(acting_parameters, networks)),
        "multiply_adds": sum(multiply_adds(network, window) for network in networks),
        "window": list(window),
        "seconds": seconds,
        "peak_bytes": peak,
        "device": torch.cuda.get_device_name(device) if is_gpu else device.type,
        "precision": report["precision"],
        "threads": report["threads"],
    }
    write_json(found, output)


if __name__ == "__main__":
    from conresnet.cli import main

    sys.exit(main(None, work, "python Testing/Benchmarks/row_work.py"))
