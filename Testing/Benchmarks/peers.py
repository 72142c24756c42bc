"""A network of others against ours: the same data, split, steps, samples, augmentation, schedule and inference.

    python Testing/Benchmarks/peers.py PLAN.yaml --network dynunet --fold 0 --output FOLDER
    python -m conresnet_training evaluate FOLDER/predictions DATA

The network takes the place of the plan's own and goes through our loop with its own usual loss (peer_networks.py).
Then the engine segments the cases that the fold holds out, with the plan's window, overlap and mirroring, as it does
for our models. Run again with the same folder, it goes on where it was.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "ConResSegmentation"), str(ROOT / "ConResTraining"), str(Path(__file__).parent)]

PREDICTIONS = "predictions"


@click.command()
@click.argument("plan", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--network", type=click.Choice(["dynunet", "segresnet"]), default="dynunet", show_default=True)
@click.option("--fold", type=click.IntRange(min=0), default=0, show_default=True, help="The fold that is held out.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="The run's folder.")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="The data, if not where the plan says.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop once so many steps were made in all.")
def compare(plan: Path, network: str, fold: int, output: Path, data: Path | None, max_steps: int | None) -> None:
    """Train a peer by PLAN and segment the held-out cases into FOLDER/predictions; resumes what is unfinished."""
    from peer_networks import PeerTraining, with_peer

    from conresnet_training.fitting import fit
    from conresnet_training.plan import read_plan
    from conresnet_training.run import PLAN_FILE, open_run, start_run

    if (output / PLAN_FILE).exists():
        run = open_run(output, data)
    else:
        run = start_run(with_peer(read_plan(plan, data), network), output, fold)
    fit(run, max_steps, kind=PeerTraining)
    predict(run, output / PREDICTIONS)


def predict(run, folder: Path) -> None:
    """Segment the run's held-out cases by the engine with the newest checkpoint's weights, a label map a case."""
    from conresnet.image_files import read_channels, write_volume
    from conresnet.segmentation import SegmentOptions, load_model, segment
    from conresnet_training.data_sets import read_data_set
    from conresnet_training.folds import split

    channels = [item.name for item in run.plan.description.inputs]
    held_out = split(read_data_set(run.plan.data), run.plan, run.fold)[1]
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        model = load_model(_package(run, Path(temporary) / "model"), "auto", "auto")
        for case in held_out:
            result = segment(model, read_channels(list(case.images), channels), SegmentOptions())
            write_volume(result.labels.array, result.labels.grid, folder / f"{case.name}.nii.gz")
    click.echo(f"{len(held_out)} cases are segmented in {folder}.", err=True)


def _package(run, folder: Path) -> Path:
    import safetensors.torch
    import torch

    from conresnet.package import write_package

    state = torch.load(run.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    # DynUNet names its tensors twice; a weights file holds none that share memory.
    weights = {name.removeprefix("network."): tensor.clone() for name, tensor in state.items()}
    description = run.plan.description
    file = description.system.networks[0].weights
    return write_package(description, {file: safetensors.torch.save(weights)}, folder).path


if __name__ == "__main__":
    compare()
