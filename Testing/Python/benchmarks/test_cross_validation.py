"""ConResNet against its baseline by one command."""

import matplotlib.image
import numpy as np
import pytest

from conresnet_training.evaluation import Evaluation, read_evaluation
from conresnet_training.evaluation.results import COLUMNS
from conresnet_training.plan import read_plan


def evaluation(dice: dict[str, tuple[float, float]]) -> Evaluation:
    """Of two segments; of each case their Dice."""
    blank = dict.fromkeys(COLUMNS, 0.0)
    cases = {case: {"near": {**blank, "dice": a}, "far": {**blank, "dice": b}} for case, (a, b) in dice.items()}
    return Evaluation("boxes", "all", "model", 1.0, cases)


def test_differences_of_common_cases_are_drawn(benchmark, tmp_path):
    first = evaluation({"a": (0.9, 0.8), "b": (0.7, 0.9), "only here": (0.1, 0.1)})
    second = evaluation({"a": (0.8, 0.8), "b": (0.7, 0.6)})
    module = benchmark("cross_validation")
    module.draw_differences(first, second, tmp_path / "all.png")
    module.draw_differences(evaluation({"a": (0.9, 0.8), "b": (0.7, 0.9)}), second, tmp_path / "common.png")
    picture = matplotlib.image.imread(tmp_path / "all.png")
    assert picture.std() > 0.05
    assert np.array_equal(picture, matplotlib.image.imread(tmp_path / "common.png"))


@pytest.mark.slow
def test_both_networks_are_cross_validated_and_compared(run_benchmark, plan_file, tmp_path):
    output = tmp_path / "both"
    options = [plan_file, "--steps", 1, "--set", "training.batch=1", "--output", output]
    done = run_benchmark("cross_validation.py", *options)
    assert "A: ConResNet. B: its baseline. 1 steps, 3 folds, 3 cases." in done.stdout
    assert (output / "differences.png").stat().st_size > 1000
    mappings = {"conresnet": True, "baseline": False}
    for name, expected in mappings.items():
        assert sorted(read_evaluation(output / name / "evaluation").cases) == ["case_0", "case_1", "case_2"]
        plan = read_plan(output / name / "fold_2" / "plan.yaml")
        arguments = plan.description.system.networks[0].arguments
        assert (arguments["residual_mapping"], arguments["attention_mapping"]) == (expected, expected)
        assert plan.training.batch == 1
    again = run_benchmark("cross_validation.py", *options)
    assert again.stdout.count("is done already") == 6
