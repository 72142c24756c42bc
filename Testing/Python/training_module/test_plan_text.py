"""The panel reads the same values from a plan's text as the backend."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

LONG = "a folder with many spaces in its name " * 4


@pytest.mark.parametrize(
    "folder",
    [
        "/data/scans",
        "scans",
        r"D:\Müller's scans",
        r"D:\scans",
        "/data/it's: a folder #2",
        "/data/ #3",
        "/data/患者 ü",
        f"/data/{LONG}end",
        f"/data/{LONG}it's: end",
        f"/data/\u200b{LONG}end",
        "007",
        "/tab\tin it",
    ],
)
def test_data_folder_is_read_from_the_plan(training: object, folder: str) -> None:
    from ConResTrainingLib.PlanPanel import dataOfPlan, foldsOfPlan

    plan = {"data": folder, "targets": {"data": [1]}, "training": {"folds": 4}}
    for width in (40, 100):
        text = yaml.safe_dump(plan, sort_keys=False, allow_unicode=True, width=width)
        assert dataOfPlan(text) == Path(folder), text
        assert foldsOfPlan(text) == 4


def test_comments_are_ignored_and_unreadable_values_are_none(training: object) -> None:
    from ConResTrainingLib.PlanPanel import dataOfPlan, foldsOfPlan

    assert dataOfPlan("data: /scans  # on the server\ntargets: {}\n") == Path("/scans")
    for text in ("", "data:\n", "data: 'cut", 'data: "cut', "targets:\n  data: /scans\n"):
        assert dataOfPlan(text) is None and foldsOfPlan(text) is None
