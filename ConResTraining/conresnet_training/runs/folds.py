"""Which cases a fold trains on, and which it holds out."""

import json
from pathlib import Path

from conresnet.errors import UserError
from conresnet.files import replacing
from conresnet_training.data import Case, DataSet
from conresnet_training.planning.plan import Plan
from conresnet_training.reporting.text import listed
from conresnet_training.runs.run import Run

SPLIT_FILE = "split.json"
MOST_NAMED = 5

Split = tuple[list[Case], list[Case]]


def split(data_set: DataSet, plan: Plan, fold: int) -> Split:
    """(training cases, held-out cases) of a fold.

    A file of the data set that gives as many folds as the plan has is followed. Else fold k of n holds out every n-th
    patient by name, from the k-th on, with all time points: a patient on both sides would be known already.

    Raises:
        UserError: ``too-few-cases``.
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
        count = len(data_set.patients)
        of = f" of {count} {'patient' if count == 1 else 'patients'}" if count < len(cases) else ""
        raise UserError("too-few-cases", f"{len(cases)} cases{of} do not make {folds} folds; plan fewer folds.")
    return training, held_out


def begin_split(run: Run, data_set: DataSet, is_writer: bool = True) -> Split:
    """The split of a run, which is written down in its folder; from its first checkpoint on it stays as it is.

    A data set may get further cases; split anew, it would hold out cases that the run has learned from.

    Args:
        is_writer: whether this process writes it; one of several does.

    Raises:
        UserError: ``cases-gone`` where it lacks cases of the run, ``split-damaged``, ``too-few-cases``,
            ``disk-full`` or ``cannot-write``.
    """
    file = run.folder / SPLIT_FILE
    if file.exists() and run.checkpoint.exists():
        return _written(run, data_set, "training"), _written(run, data_set, "held_out")
    training, held_out = split(data_set, run.plan, run.fold)
    if is_writer:
        names = {"training": [case.name for case in training], "held_out": [case.name for case in held_out]}
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(names, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return training, held_out


def held_out_of_run(run: Run, data_set: DataSet) -> list[Case]:
    """The cases that a run never saw.

    Raises:
        UserError: ``cases-gone`` where the data set lacks some of them, or ``split-damaged``.
    """
    if not (run.folder / SPLIT_FILE).exists():
        return split(data_set, run.plan, run.fold)[1]
    return _written(run, data_set, "held_out")


def _written(run: Run, data_set: DataSet, part: str) -> list[Case]:
    names = _read_names(run.folder / SPLIT_FILE, part)
    by_name = {case.name: case for case in data_set.cases}
    gone = [name for name in names if name not in by_name]
    if gone:
        raise UserError(
            "cases-gone",
            f"The data set {data_set.name} lacks {listed(gone, MOST_NAMED)}, with which the run in {run.folder} was "
            "begun; put them back, or train anew.",
            cases=gone,
        )
    return [by_name[name] for name in names]


def _read_names(file: Path, part: str) -> list[str]:
    try:
        names = json.loads(file.read_text(encoding="utf-8"))[part]
    except (OSError, ValueError, KeyError, TypeError):
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            "split-damaged",
            f"{file} does not tell the run's {part.replace('_', '-')} cases; put a good copy in its place, or start a "
            "new run.",
            path=str(file),
        )
    return names
