"""Benchmark of scaled copies: probabilities are averaged per voxel, and the held-out cases are segmented."""

import numpy as np


def test_probabilities_are_averaged_per_voxel(benchmark):
    module = benchmark("scaled_copies")
    first, second = np.array([[0.6, 0.1], [0.4, 0.3]]), np.array([[0.1, 0.1], [0.5, 0.4]])
    assert module.most_probable([first], [7, 9]).tolist() == [7, 7]
    assert module.most_probable([first, second], [7, 9]).tolist() == [0, 7]
    assert module.most_probable([second], [7, 9]).tolist() == [0, 7]


def test_held_out_cases_are_measured(run_benchmark, repository):
    data = repository / "Testing" / "Data" / "MSD_Task04_Hippocampus"
    lines = run_benchmark("scaled_copies.py", data, "--scales", "1.6").stdout.splitlines()
    alone, averaged = (line.split("|")[2:4] for line in lines[2:])
    assert float(alone[0]) > 0.85
    # An organ that looks 1.6 times as large as any in training is not found as well.
    assert float(averaged[0]) < float(alone[0]) and averaged[1].split()[0].startswith("-")
