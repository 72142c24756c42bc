"""A network of others against ours: the same data, split, steps, samples, augmentation, schedule and inference.

    python Testing/Benchmarks/peers.py PLAN.yaml --network dynunet --fold 0 --output FOLDER
    python -m conresnet_training compare OURS/evaluation FOLDER/evaluation

The network takes the place of the plan's own and goes through our loop with its own usual loss (peer_networks.py).
Then the engine segments the cases that the fold holds out, with the plan's window, overlap and mirroring, and they are
measured, as `python -m conresnet_training evaluate` does with our runs. Run again with the same folder, it goes on
where it was.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "ConResSegmentation"), str(ROOT / "ConResTraining"), str(Path(__file__).parent)]

FILE, FOLDER = click.Path(dir_okay=False, path_type=Path), click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("plan", type=FILE)
@click.option("--network", type=click.Choice(["dynunet", "segresnet"]), default="dynunet", show_default=True)
@click.option("--fold", type=click.IntRange(min=0), default=0, show_default=True, help="The fold that is held out.")
@click.option("--output", type=FOLDER, required=True, help="The run's folder.")
@click.option("--data", type=FOLDER, help="The data, if not where the plan says.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop once so many steps were made in all.")
def compare(plan: Path, network: str, fold: int, output: Path, data: Path | None, max_steps: int | None) -> None:
    """Train a peer by PLAN and measure it on the held-out cases, into FOLDER/evaluation; resumes what is unfinished."""
    from peer_networks import PEERS, PeerTraining, with_peer

    from conresnet.networks import NETWORKS
    from conresnet_training.evaluation import evaluate_runs, summary_table
    from conresnet_training.fitting import fit
    from conresnet_training.plan import read_plan
    from conresnet_training.run import PLAN_FILE, open_run, start_run

    NETWORKS.update(PEERS)
    if (output / PLAN_FILE).exists():
        run = open_run(output, data)
    else:
        run = start_run(with_peer(read_plan(plan, data), network), output, fold)
    outcome = fit(run, max_steps, kind=PeerTraining)
    if outcome.finished:
        click.echo(summary_table(evaluate_runs([run], output / "evaluation").summary))
    else:
        click.echo(f"Stopped after {outcome.step} of {outcome.steps} steps; run it again to go on.", err=True)


if __name__ == "__main__":
    from conresnet.command_line import main

    sys.exit(main(None, compare, "python Testing/Benchmarks/peers.py"))
