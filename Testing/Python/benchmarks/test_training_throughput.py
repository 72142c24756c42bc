"""Throughput of our training loop: the meaning of the figures, and that every loop really trains."""

import json

import pytest


def test_ratios_compare_runs_of_the_same_round(benchmark, capsys):
    measured = {"plain": [1.0, 10.0, 2.0], "ours, 0 workers": [0.8, 9.8, 1.6], "ours, 1 workers": [0.98, 9.9, 1.97]}
    benchmark("training_throughput").print_table(measured)
    lines = capsys.readouterr().out.splitlines()
    slow, quick = (line for line in lines if line.startswith("ours"))
    # A machine that was ten times faster in one round changes no ratio.
    assert "0.800 (0.800 to 0.980)" in slow
    assert slow.endswith("25.0%  over the goal")
    assert "0.985 (0.980 to 0.990)" in quick
    assert quick.endswith("1.5%  within the goal")


@pytest.mark.slow
def test_plain_loop_and_our_loop_are_measured(run_benchmark, plan_file, tmp_path):
    options = ["--steps", 2, "--warm-up", 1, "--rounds", 1, "--workers", 0, "--precision", "32-true"]
    output = tmp_path / "measured.json"
    done = run_benchmark("training_throughput.py", plan_file, *options, "--without-nnunet", "--output", output)
    measured = json.loads(output.read_text())
    assert list(measured["samples_per_second"]) == ["plain", "ours, 0 workers"]
    assert all(len(rates) == 1 and rates[0] > 0 for rates in measured["samples_per_second"].values())
    assert "Median of 1 rounds" in done.stdout


def test_both_loops_start_with_the_same_loss(benchmark, plan_file, tmp_path, monkeypatch):
    """The plain loop computes the same as ours: the same weights on the same batches give the same losses."""
    from conresnet_training.planning.plan import read_plan, with_settings, write_plan
    from conresnet_training.training import SegmentationTraining as training

    ways = benchmark("training_throughput")
    received: list[float] = []

    def losses(self, outputs, target, progress):
        found = original(self, outputs, target, progress)
        received.append(float(found["loss"].detach()))
        return found

    original = training.losses
    monkeypatch.setattr(training, "losses", losses)
    dropout = "model.system.networks.0.arguments.dropout=0"
    write_plan(with_settings(read_plan(plan_file), [dropout, "training.learning_rate=0.000000001"]), plan_file)
    task = {"plan": str(plan_file), "folder": str(tmp_path / "run"), "batches": str(tmp_path / "batches.pt")}
    for way in ("ours", "plain"):
        ways.measure({**task, "way": way})
    assert len(received) == 4
    assert received[:2] == received[2:]
