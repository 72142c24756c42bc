"""Compare our engine with MONAI's SlidingWindowInferer and nnU-Net's predictor: same weights, image and mirroring.

    python Testing/Benchmarks/against_peers.py [--rows head,tumor,ct] [--precision fp32 --precision bf16] [--rounds 3]

- head: brain-structures on a whole head at 2 mm. Dice of gray and white matter, which the structures add up to.
- tumor: the paper's full-width network with random weights on four channels of 155 x 240 x 240 voxels.
- ct: head-neck-organs on a CT of 512 x 512 x 300 voxels. Dice of the organs, if --ct-labels is given.

Each program gets the image as our engine prepares it, cut to its foreground. MONAI and nnU-Net run as their users would
run them: windows of the model's size, the model's overlap (or ``--overlap``), Gaussian weights, autocast for bf16. Each
run has its own process, which reports its peak memory and the seconds from the prepared image to the label map. The
programs take turns, and ratios compare runs of the same round. Without --ct and --tumor, images of the test data are
stretched to that size. nnU-Net has an environment of its own, .venv-nnunet/ (``make benchmarks``).
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "Testing" / "Data"
FILE, FOLDER = click.Path(exists=True, path_type=Path), click.Path(exists=True, file_okay=False, path_type=Path)
ROWS = ("head", "tumor", "ct")
WAYS = {"ours": "ours", "fast": "ours, --fast", "monai": "MONAI", "nnunet": "nnU-Net", "plain": "authors' tiling"}
PEERS = ("monai", "nnunet")
# Windows that MONAI computes at once: the number that makes it fastest.
MONAI_BATCH = {"ct": 2}


@click.command()
@click.option("--rows", default=",".join(ROWS), show_default=True)
@click.option("--precision", "precisions", multiple=True, default=["fp32", "bf16"], show_default=True)
@click.option("--way", "ways", multiple=True, type=click.Choice(list(WAYS)), default=["ours", "monai", "nnunet"])
@click.option("--rounds", default=3, show_default=True, help="Runs of each program.")
@click.option("--threads", default=0, help="CPU threads.  [default: PyTorch's]")
@click.option("--head", type=FILE, default=DATA / "IXI_T1_2mm" / "IXI034.nii.gz", help="A head at 2 mm.")
@click.option(
    "--head-labels", type=FILE, default=DATA / "IXI_T1_2mm" / "IXI034_tissue.nii.gz", help="Its tissue labels."
)
@click.option("--tumor", type=FOLDER, default=DATA / "UPENN_GBM_4mm" / "pat2", help="Its FLAIR, T1, T1ce and T2.")
@click.option("--ct", type=FILE, default=DATA / "CT_Abdomen_3mm" / "ct.nii.gz")
@click.option("--ct-labels", type=FILE, help="Organs with the labels of head-neck-organs.")
@click.option("--overlap", type=float, help="Window overlap of the other programs.  [default: the model's]")
@click.option("--quick", is_flag=True, help="Small images and one round, to check that everything runs.")
def compare(rows, precisions, ways, rounds, threads, head, head_labels, tumor, ct, ct_labels, overlap, quick) -> None:
    """Compare inference programs, and print a table per image and precision."""
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "head": {"images": [str(head)], "labels": str(head_labels)},
            "tumor": {"images": [str(path) for path in _channels(tumor)], "labels": None},
            "ct": {"images": [str(ct)], "labels": ct_labels and str(ct_labels)},
        }
        for row in rows.split(","):
            place = Path(folder) / row
            place.mkdir()
            task = {"row": row, **files[row], "folder": str(place), "quick": quick, "threads": threads}
            task["overlap"] = overlap
            shape = _run("prepare", task)["shape"]
            for precision in precisions:
                runs: dict[str, list[dict]] = {way: [] for way in ways}
                for number in range(1 if quick else rounds):
                    for way in ways:
                        click.echo(f"... {row}, {precision}, round {number + 1}: {WAYS[way]}", err=True)
                        runs[way].append(_run(way, {**task, "precision": precision}))
                _print_table(f"{row}, {' x '.join(map(str, shape))}, {precision}", runs)


def _channels(folder: Path) -> list[Path]:
    """Find FLAIR, T1, T1ce and T2 in a folder."""
    files = sorted(folder.glob("*.nii*"))
    words = (("flair",), ("t1",), ("t1ce", "t1gd", "t1c"), ("t2",))
    found = [next((f for f in files if f.name.lower().split(".")[0].endswith(word)), None) for word in words]
    if None in found:
        raise click.BadParameter(f"{folder} must contain files that end in FLAIR, T1, T1ce (or T1Gd) and T2.")
    return found


def _run(way: str, task: dict) -> dict:
    """Run one step in a process of its own, so that its peak memory is not affected by others."""
    command = [__file__, "--measure", json.dumps({**task, "way": way})]
    if way == "nnunet":
        from nnunet_tools import Workplace

        done = Workplace(Path(task["folder"])).run(*command, stdout=subprocess.PIPE, text=True)
    else:
        done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _print_table(title: str, runs: dict[str, list[dict]]) -> None:
    """Print medians with the lowest and highest run, and ratios to our engine in the same round."""
    from measures import spread

    click.echo(f"\n| {title} | windows | seconds | times ours | CPU seconds | times ours | peak memory | Dice |")
    click.echo("|---|---|---|---|---|---|---|---|")
    ours = next(iter(runs.values()))
    for way, each in runs.items():
        ratios = {
            key: spread([run[key] / own[key] for run, own in zip(each, ours, strict=True)]) for key in ("wall", "cpu")
        }
        wall, cpu = (spread([run[key] for run in each]) for key in ("wall", "cpu"))
        peak = statistics.median(run["peak"] for run in each) / 1e9
        dice = " ".join(f"{value:.3f}" for value in each[-1]["dice"]) or f"{each[-1]['agreement']:.3f} with the first"
        cells = each[-1]["windows"], wall, ratios["wall"], cpu, ratios["cpu"], f"{peak:.2f} GB", dice
        click.echo(f"| {WAYS[way]} | {' | '.join(map(str, cells))} |")


# The functions below run in the measuring processes.


def measure(task: dict) -> dict:
    """Run the step that the task names; see ``compare``."""
    import torch

    if task["threads"]:
        torch.set_num_threads(task["threads"])
    if task["way"] == "prepare":
        return _prepare(task)
    from measures import peak_memory

    way = {"ours": _ours, "fast": _ours, "monai": _monai, "nnunet": _nnunet, "plain": _plain}[task["way"]]
    work, windows = way(task)
    begun, cpu = time.perf_counter(), time.process_time()
    labels = work()
    taken = {"wall": time.perf_counter() - begun, "cpu": time.process_time() - cpu, "peak": peak_memory()}
    return {**taken, "windows": windows(), **_judge(task, labels)}


def _prepare(task: dict) -> dict:
    """Write the prepared image, cut to its foreground, and the labels on its grid."""
    from conresnet.images import transformed

    folder = Path(task["folder"])
    if task["row"] == "tumor":
        write_random_model(folder / "model")
    case, _, _ = _case(task)
    box = case.box()
    image = case.block((0, 0, 0), case.shape)[(slice(None), *box)]
    np.save(folder / "image.npy", image)
    if task["labels"]:
        from conresnet.images.files import read_volume

        truth = read_volume(Path(task["labels"]))
        points = transformed(np.indices(case.shape).reshape(3, -1).T, case.space.grid.array_affine)
        index = np.rint(transformed(points, np.linalg.inv(truth.grid.array_affine))).astype(int)
        inside = ((index >= 0) & (index < truth.array.shape)).all(axis=1)
        labels = np.zeros(len(index), np.uint8)
        labels[inside] = truth.array[tuple(index[inside].T)]
        np.save(folder / "labels.npy", labels.reshape(case.shape)[box])
    return {"shape": image.shape[1:]}


def _package(task: dict):
    from conresnet.package.reader import read_package
    from conresnet.package.store import find_model

    names = {"head": "brain-structures", "ct": "head-neck-organs"}
    return read_package(find_model(names[task["row"]]) if task["row"] in names else Path(task["folder"]) / "model")


def write_random_model(folder: Path, channels: int = 4, base_width: int = 32, **settings) -> Path:
    """Write a package of the paper's network, by default at full width for four channels, with random weights.

    Args:
        settings: parts of ``model.json`` that differ from an imported checkpoint's.
    """
    import safetensors.torch
    import torch

    from conresnet.importing import INFERENCE, WEIGHTS_FILE, describe
    from conresnet.networks import build_network
    from conresnet.package.store import write_package

    torch.manual_seed(0)
    arguments = {"input_channels": channels, "outputs": 3, "base_width": base_width}
    weights = safetensors.torch.save(build_network("conresnet", arguments).state_dict())
    settings = {"name": "random", "inference": INFERENCE["fitted"], **settings}
    return write_package(describe(arguments, settings, "random weights"), {WEIGHTS_FILE: weights}, folder).path


def _case(task: dict):
    """The case as the engine prepares it, the images it was made of, and the package."""
    from conresnet.images.files import read_channels
    from conresnet.images.preparation import prepare

    package = _package(task)
    volumes = read_channels(list(map(Path, task["images"])), [item.name for item in package.description.inputs])
    if task["quick"]:
        volumes = [_middle(volume, 40) for volume in volumes]
    elif shape := {"tumor": (155, 240, 240), "ct": (300, 512, 512)}.get(task["row"]):
        volumes = [_stretched(volume, shape) for volume in volumes]
    return prepare(package.description, volumes), volumes, package


def _stretched(volume, shape: tuple[int, int, int]):
    """Resample a volume to a shape (k, j, i), with the same physical extent."""
    import SimpleITK as sitk

    from conresnet.images import Grid, Volume

    factors = np.divide(shape, volume.array.shape)
    image = sitk.GetImageFromArray(volume.array.astype(np.float32))
    image.SetSpacing((factors[::-1]).tolist())
    filled = sitk.Resample(image, [int(side) for side in shape[::-1]], sitk.Transform(), sitk.sitkNearestNeighbor)
    affine = volume.grid.affine @ np.diag([*(1 / factors[::-1]), 1])
    return Volume(sitk.GetArrayFromImage(filled), Grid(shape, affine), volume.name)


def _middle(volume, side: int):
    """Crop a volume to at most ``side`` voxels along each axis, around its center."""
    from conresnet.images import Grid, Volume

    starts = [max(0, (n - side) // 2) for n in volume.array.shape]
    array = volume.array[tuple(slice(start, start + side) for start in starts)]
    affine = volume.grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ starts[::-1]
    return Volume(array, Grid(array.shape, affine), volume.name)


def _ours(task: dict):
    from conresnet.inference import Tiling
    from conresnet.inference.devices import choose_backend, reused_memory
    from conresnet.inference.labels import FoundSegments
    from conresnet.inference.locating import look_for_segments
    from conresnet.inference.segmentation import load_model
    from conresnet.inference.sliding import Passes, segment_part
    from conresnet.request import Progress, Tracker

    case, volumes, package = _case(task)
    description, system = package.description, load_model(package, "cpu", task["precision"]).system
    tiling = Tiling.of(description.inference)
    tiling = tiling.faster() if task["way"] == "fast" else tiling
    tracker = Tracker(Progress(), {"segmenting": 1.0})
    found = FoundSegments(case, description.output)
    backend = choose_backend("cpu", task["precision"])
    passes = Passes(backend, tiling, (), found, tracker, mirrors=task["way"] != "fast" and bool(_mirrors(package)))

    def work() -> np.ndarray:
        with reused_memory():
            tracker.begin("segmenting")
            part = None
            if description.inference.coarse_look:
                part = look_for_segments(description, system, volumes, case, passes.without_mirrors())
            segment_part(system, case, part, passes, description.output)
        return found.labels[case.box()]

    return work, lambda: sum(len(each.plan) for each in passes.passes)


def _network(task: dict):
    """The network as MONAI or nnU-Net calls it, the prepared image, the package, and the number of calls."""
    import torch

    from conresnet.systems.predictors import load_network

    package, calls = _package(task), []
    network = load_network(package).eval()

    class Logits(torch.nn.Module):
        def forward(self, x):
            calls.append(len(x))
            with torch.autocast("cpu", torch.bfloat16, enabled=task["precision"] == "bf16"):
                return network(x, wanted=("segmentation",))["segmentation"].float()

    image = torch.from_numpy(np.load(Path(task["folder"]) / "image.npy"))
    return Logits(), image, package, lambda: sum(calls)


def _mirrors(package) -> list[int]:
    # The other programs cannot exchange segments in mirror images, so such models are not mirrored.
    if package.description.output.swapped_segments:
        return []
    return ["SHW".index(axis) for axis in package.description.inference.mirror_axes]


def _monai(task: dict):
    import torch
    from monai.inferers import SlidingWindowInferer

    network, image, package, windows = _network(task)
    inference = package.description.inference
    batch = MONAI_BATCH.get(task["row"], 1)
    overlap = task.get("overlap") or inference.overlap
    inferer = SlidingWindowInferer(inference.window, batch, overlap=overlap, mode="gaussian")
    axes = [axis + 2 for axis in _mirrors(package)]

    def work() -> np.ndarray:
        with torch.inference_mode():
            logits = inferer(image[None], network)
            for axis in axes:
                logits += inferer(image[None].flip(axis), network).flip(axis)
            return _decided(logits[0] / (1 + len(axes)), package)

    return work, windows


def _nnunet(task: dict):
    from types import SimpleNamespace

    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    network, image, package, windows = _network(task)
    inference, axes = package.description.inference, _mirrors(package)
    step = 1 - (task.get("overlap") or inference.overlap)
    device = torch.device("cpu")
    predictor = nnUNetPredictor(tile_step_size=step, use_mirroring=bool(axes), device=device, allow_tqdm=False)
    predictor.network, predictor.allowed_mirroring_axes = network, tuple(axes)
    predictor.configuration_manager = SimpleNamespace(patch_size=inference.window)
    output = package.description.output
    outputs = len(output.segments) + (output.kind == "labels")
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=outputs)

    def work() -> np.ndarray:
        with torch.inference_mode():
            return _decided(predictor.predict_sliding_window_return_logits(image), package)

    return work, windows


def _plain(task: dict):
    """The authors' tiling in a plain implementation, run eagerly, with all heads for each window."""
    import plain

    from conresnet.systems.predictors import load_network

    package = _package(task)
    image, window = np.load(Path(task["folder"]) / "image.npy"), package.description.inference.window
    network = load_network(package)
    counts = [len(plain.starts(side, size)) for side, size in zip(image.shape[1:], window, strict=True)]
    return lambda: plain.segment(network, image, window).argmax(axis=0).astype(np.uint8), lambda: math.prod(counts)


def _decided(logits, package) -> np.ndarray:
    """Label values as in MONAI or nnU-Net: argmax, or for regions, those with a probability above one half on top."""
    output = package.description.output
    values = np.array([segment.label for segment in output.segments], np.uint8)
    if output.kind == "labels":
        return np.concatenate([[0], values]).astype(np.uint8)[logits.argmax(dim=0).numpy()]
    labels = np.zeros(logits.shape[1:], np.uint8)
    names = [segment.name for segment in output.segments]
    for name in output.paint_order:
        labels[(logits[names.index(name)] > 0).numpy()] = values[names.index(name)]
    return labels


def _judge(task: dict, labels: np.ndarray) -> dict:
    """Dice of each part, and the share of voxels with the same label as in the first program's result."""
    from measures import dice

    folder = Path(task["folder"])
    first = folder / f"first_{task['precision']}.npy"
    if not first.exists():
        np.save(first, labels)
    result = {"agreement": float(np.mean(np.load(first) == labels)), "dice": []}
    if not task["labels"]:
        return result
    truth, description = np.load(folder / "labels.npy"), _package(task).description
    parts = [([segment.label], [segment.label]) for segment in description.output.segments]
    if task["row"] == "head":
        from brain_structures import TISSUES, labels_ending

        parts = [(labels_ending(description, endings), [value]) for value, endings in TISSUES.values()]
    for own, value in parts:
        if (other := np.isin(truth, value)).any():
            result["dice"].append(dice(np.isin(labels, own), other))
    return result


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        shown, sys.stdout = sys.stdout, sys.stderr
        print(json.dumps(measure(json.loads(sys.argv[2]))), file=shown)
    else:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        compare()
