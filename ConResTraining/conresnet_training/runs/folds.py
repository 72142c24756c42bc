"""Which cases a fold trains on, and which it holds out."""

import json
from pathlib import Path

from conresnet.errors import UserError
from conresnet.files import replacing
from conresnet_training.data import Case, DataSet
from conresnet_training.planning.plan import Plan
from conresnet_training.reporting.text import listed
from conresnet_training.runs.run import SPLIT_FILE, Run

MOST_NAMED = 5

Split = tuple[list[Case], list[Case]]


def split(data_set: DataSet, plan: Plan, fold: int) -> Split:
    """(training cases, held-out cases) of a fold.

    Folds that the data set itself defines are used if they are as many as the plan has. Otherwise fold k of n holds out
    every n-th patient by name, starting with the k-th, with all time points: a patient never is on both sides.

    Raises:
        UserError: ``too-many-folds``.
    """
    cases, folds = data_set.cases, plan.training.folds
    if len(data_set.held_out) == folds:
        names = data_set.held_out[fold]
    else:
        patients = set(data_set.patients[fold::folds])
        names = {case.name for case in cases if case.patient in patients}
    training = [case for case in cases if case.name not in names]
    held_out = [case for case in cases if case.name in names]
    if not training or not held_out:
        raise UserError("too-many-folds", cases=len(cases), patients=len(data_set.patients), folds=folds)
    return training, held_out


def check_folds(data_set: DataSet, plan: Plan) -> None:
    """Refuse folds that cannot all be trained. Raises UserError ``too-many-folds``."""
    for fold in range(plan.training.folds):
        split(data_set, plan, fold)


def begin_split(run: Run, data_set: DataSet, is_writer: bool = True) -> Split:
    """The split of a run, which is recorded in its folder; once there is a checkpoint it no longer changes.

    If cases are added to the data set later, a new split would hold out cases that the run has learned from.

    Args:
        is_writer: whether this process records it; only one of several does.

    Raises:
        UserError: ``cases-gone``, ``split-damaged``, ``too-many-folds``, ``disk-full`` or ``cannot-write``.
    """
    file = run.folder / SPLIT_FILE
    if file.exists() and run.checkpoint.exists():
        return _recorded(run, data_set, "training"), _recorded(run, data_set, "held_out")
    training, held_out = split(data_set, run.plan, run.fold)
    if is_writer:
        names = {"training": [case.name for case in training], "held_out": [case.name for case in held_out]}
        with replacing(file) as temporary:
            text = json.dumps(names, indent=1, ensure_ascii=False) + "\n"
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return training, held_out


def held_out_of_run(run: Run, data_set: DataSet) -> list[Case]:
    """The cases that a run never saw.

    Raises:
        UserError: ``cases-gone`` if some of them are missing from the data set, or ``split-damaged``.
    """
    if not (run.folder / SPLIT_FILE).exists():
        return split(data_set, run.plan, run.fold)[1]
    return _recorded(run, data_set, "held_out")


def _recorded(run: Run, data_set: DataSet, part: str) -> list[Case]:
    names = _read_names(run.folder / SPLIT_FILE, part)
    by_name = {case.name: case for case in data_set.cases}
    gone = [name for name in names if name not in by_name]
    if gone:
        shown = listed(gone, MOST_NAMED)
        raise UserError("cases-gone", data=data_set.name, run=str(run.folder), names=shown, cases=gone)
    return [by_name[name] for name in names]


def _read_names(file: Path, part: str) -> list[str]:
    try:
        names = json.loads(file.read_text(encoding="utf-8"))[part]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError("split-damaged", path=str(file), part=part)
    return names
