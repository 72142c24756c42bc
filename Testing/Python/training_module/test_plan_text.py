"""The panel reads of a plan's text what the backend would."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

LONG = "a folder with blanks in its name, which are many " * 4


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
def test_the_folder_of_the_data_is_read_as_it_was_written(training: object, folder: str) -> None:
    from ConResTrainingLib.PlanPanel import dataOfPlan, foldsOfPlan

    plan = {"data": folder, "targets": {"data": [1]}, "training": {"folds": 4}}
    for width in (40, 100):
        text = yaml.safe_dump(plan, sort_keys=False, allow_unicode=True, width=width)
        assert dataOfPlan(text) == Path(folder), text
        assert foldsOfPlan(text) == 4


def test_a_comment_is_not_part_of_it_and_what_cannot_be_read_is_none(training: object) -> None:
    from ConResTrainingLib.PlanPanel import dataOfPlan, foldsOfPlan

    assert dataOfPlan("data: /scans  # on the server\ntargets: {}\n") == Path("/scans")
    for text in ("", "data:\n", "data: 'cut", 'data: "cut', "targets:\n  data: /scans\n"):
        assert dataOfPlan(text) is None and foldsOfPlan(text) is None
