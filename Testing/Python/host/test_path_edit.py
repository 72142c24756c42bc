"""The path field emits its signal like CTK: only for paths that its validator accepts."""

import gc

import ctk
import pytest
import qt


@pytest.mark.parametrize(
    ("filters", "accepted", "refused"),
    [
        ([], ["/", "plan"], [""]),
        # Without parentheses, CTK takes only the first extension, and its last letter may be missing.
        (["*.yaml *.yml"], ["/a/plan.yaml", "plan.yam"], ["", "/a/plan.yml", "/a/plan"]),
        (["Plans (*.yaml *.yml)"], ["/a/plan.yaml", "/a/plan.yml"], ["", "/a/plan.json"]),
        (["All files (*)"], ["/a/plan"], [""]),
    ],
)
def test_signal_is_emitted_only_for_accepted_paths(
    slicer_app: object, filters: list[str], accepted: list[str], refused: list[str]
) -> None:
    edit, emitted, typed = ctk.ctkPathLineEdit(), [], []
    edit.nameFilters = filters
    edit.connect("currentPathChanged(QString)", emitted.append)
    edit.comboBox().lineEdit().connect("textChanged(QString)", typed.append)
    for path in accepted:
        edit.currentPath = path
    assert emitted == accepted
    for path in refused:
        edit.currentPath = accepted[0]
        emitted.clear()
        edit.currentPath = path
        assert (emitted, typed[-1], edit.currentPath) == ([], path, path)


def test_invalid_input_is_signaled_once(slicer_app: object) -> None:
    edit, valid = ctk.ctkPathLineEdit(), []
    edit.connect("validInputChanged(bool)", valid.append)
    for path in ("a", "ab", "", "c"):
        edit.currentPath = path
    assert valid == [True, False, True]


def test_field_without_history_has_no_combo_box(slicer_app: object) -> None:
    edit = ctk.ctkPathLineEdit()
    edit.showHistoryButton = False
    assert edit.comboBox() is None


def test_deleted_field_does_not_affect_its_class(slicer_app: object) -> None:
    edit = ctk.ctkPathLineEdit()
    edit.comboBox().lineEdit().connect("textChanged(QString)", print)
    del edit
    gc.collect()
    assert qt.QLineEdit.staticMetaObject.indexOfProperty("text") >= 0
