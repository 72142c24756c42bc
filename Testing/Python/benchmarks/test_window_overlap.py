"""Benchmark of windows: the model's own come first, and others are compared with them case by case."""

import pytest


@pytest.mark.slow
def test_other_windows_are_compared_with_the_models_own(run_benchmark, repository):
    data = repository / "Testing" / "Data" / "MSD_Task04_Hippocampus"
    options = ("--model", "hippocampus", "--window", "40,56,40", "--window", "16,24,16", "--overlap", "0.25")
    own, same, small = run_benchmark("window_overlap.py", data, *options).stdout.splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (own, same, small)]
    assert [row[:2] for row in cells] == [["40 x 56 x 40", "0.5"], ["40 x 56 x 40", "0.25"], ["16 x 24 x 16", "0.25"]]
    # A crop fits into one window, so that the overlap changes nothing.
    assert cells[0][2] == cells[1][2] and float(cells[0][2]) > 0.8
    assert float(cells[2][2]) < float(cells[0][2]) and cells[2][3].startswith("-")
