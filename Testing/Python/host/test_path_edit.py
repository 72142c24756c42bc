"""The path field emits its signal as CTK's does: only for paths that its validator accepts."""

import gc

import ctk
import pytest
import qt


@pytest.mark.parametrize(
    ("filters", "accepted", "refused"),
    [
        ([], ["/", "plan"], [""]),
        # Without parentheses around them CTK takes the first extension, and lets its last letter be away.
        (["*.yaml *.yml"], ["/a/plan.yaml", "plan.yam"], ["", "/a/plan.yml", "/a/plan"]),
        (["Plans (*.yaml *.yml)"], ["/a/plan.yaml", "/a/plan.yml"], ["", "/a/plan.json"]),
        (["All files (*)"], ["/a/plan"], [""]),
    ],
)
def test_only_an_accepted_path_is_told(
    slicer_app: object, filters: list[str], accepted: list[str], refused: list[str]
) -> None:
    edit, told, typed = ctk.ctkPathLineEdit(), [], []
    edit.nameFilters = filters
    edit.connect("currentPathChanged(QString)", told.append)
    edit.comboBox().lineEdit().connect("textChanged(QString)", typed.append)
    for path in accepted:
        edit.currentPath = path
    assert told == accepted
    for path in refused:
        edit.currentPath = accepted[0]
        told.clear()
        edit.currentPath = path
        assert (told, typed[-1], edit.currentPath) == ([], path, path)


def test_what_is_refused_is_told_once(slicer_app: object) -> None:
    edit, valid = ctk.ctkPathLineEdit(), []
    edit.connect("validInputChanged(bool)", valid.append)
    for path in ("a", "ab", "", "c"):
        edit.currentPath = path
    assert valid == [True, False, True]


def test_without_its_history_the_field_is_no_combo_box(slicer_app: object) -> None:
    edit = ctk.ctkPathLineEdit()
    edit.showHistoryButton = False
    assert edit.comboBox() is None


def test_a_field_that_is_gone_takes_nothing_of_its_class_along(slicer_app: object) -> None:
    edit = ctk.ctkPathLineEdit()
    edit.comboBox().lineEdit().connect("textChanged(QString)", print)
    del edit
    gc.collect()
    assert qt.QLineEdit.staticMetaObject.indexOfProperty("text") >= 0
