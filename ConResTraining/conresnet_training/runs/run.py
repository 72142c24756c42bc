"""The folder of a training run: its plan, its fold, the cases that the fold holds out, and its checkpoints.

A checkpoint is complete or absent, and contains only plain tensors and numbers, so that loading one runs no code. It
has "state_dict" (the weights that validation and export use, each name after "network."), "training_state_dict" if
those are a moving average, "optimizer", "precision", "global_step" (steps made), "validated" (the step validated last),
"best_dice", "steps" (the plan's, for each stage), "learned" (what the weights depend on, see ``what_is_learned``) and
"split" (the names in ``split.json``). Checkpoints of earlier versions do not have all of these.
"""

import io
import json
import os
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conresnet.errors import UserError
from conresnet.files import make_folder, replacing, write_error, write_text
from conresnet.inference import MULTIPLE
from conresnet_training.data import Case, DataSet
from conresnet_training.data.layouts import read_data_set
from conresnet_training.planning.plan import Plan, read_plan, write_plan
from conresnet_training.reporting import backend_command, listed, product
from conresnet_training.runs import (
    CHECKPOINTS_FOLDER,
    CROSSVAL_FILE,
    FOLD_FILE,
    NO_FOLD,
    PLAN_FILE,
    PROGRESS_FILE,
    can_begin_in,
    has_checkpoint,
)

SPLIT_FILE, PREPARED_FOLDER = "split.json", "prepared"
PREFIX = "network."
# What reading a damaged checkpoint raises.
_DAMAGE = (
    OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run's folder and what it was started with.

    Args:
        fold: the fold that is held out; None if the run learns from all cases.
    """

    folder: Path
    plan: Plan
    fold: int | None

    @property
    def checkpoint(self) -> Path:
        return self.checkpoint_named("last")

    def checkpoint_named(self, name: str) -> Path:
        """The checkpoint "last" or "best" (by validation Dice)."""
        return self.folder / CHECKPOINTS_FOLDER / f"{name}.ckpt"

    def data_set(self) -> DataSet:
        """The data set of the plan. Raises UserError ``run-data-not-found``, or those of ``read_data_set``."""
        if not os.path.isdir(self.plan.data):
            raise UserError("run-data-not-found", path=str(self.plan.data), run=str(self.folder))
        return read_data_set(self.plan.data)


def check_fold(plan: Plan, fold: int | None) -> None:
    """Refuse a fold that the plan does not have. Raises UserError ``fold-unknown``."""
    if fold is not None and not 0 <= fold < plan.training.folds:
        raise UserError("fold-unknown", fold=fold, last=plan.training.folds - 1)


def check_window(plan: Plan) -> None:
    """Refuse a window that networks cannot halve three times without rounding. Raises UserError ``window-invalid``."""
    window = plan.model.inference.window
    if any(side % MULTIPLE for side in window):
        raise UserError("window-invalid", window=product(window), multiple=MULTIPLE)


def check_new_run(plan: Plan, folder: Path, fold: int | None, is_locked: bool = False) -> None:
    """Refuse what cannot become a run, without writing anything; for ``is_locked`` see ``can_begin_in``.

    Raises:
        UserError: ``fold-unknown``, ``window-invalid`` or ``run-exists``.
    """
    check_fold(plan, fold)
    check_window(plan)
    if not can_begin_in(folder, is_locked):
        raise UserError("run-exists", path=str(folder))


def start_run(plan: Plan, folder: Path, fold: int | None, is_locked: bool = False) -> Run:
    """Create the folder of a new run. A run that ended before its first checkpoint is replaced, see ``can_begin_in``.

    Raises:
        UserError: those of ``check_new_run``, ``disk-full`` or ``cannot-write``.
    """
    check_new_run(plan, folder, fold, is_locked)
    make_folder(folder)
    try:
        for name in (SPLIT_FILE, PROGRESS_FILE):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        # First, because it marks the folder as a run's: one that is killed here does not block its folder.
        (folder / FOLD_FILE).write_text(f"{NO_FOLD if fold is None else fold}\n", encoding="utf-8")
        write_plan(plan, folder / PLAN_FILE)
    except OSError as error:
        raise write_error(error, folder) from error
    return Run(folder, plan, fold)


def open_run(folder: Path, data: Path | None = None) -> Run:
    """Open the folder of a run that was started before; ``data`` is the data set's, if it is not where the plan says.

    Raises:
        UserError: ``run-not-found``, ``run-inside``, ``run-is-crossval``, ``run-unreadable``, ``fold-file-damaged``, or
            those of ``read_plan``. For a run with checkpoints, these name the missing file.
    """
    try:
        is_run = all(_exists(folder / name) for name in (PLAN_FILE, FOLD_FILE)) or has_checkpoint(folder)
    except OSError as error:
        raise UserError("run-unreadable", path=str(folder), reason=error.strerror or str(error)) from error
    if not is_run:
        if _exists(folder / CROSSVAL_FILE):
            again = backend_command("crossval", folder / CROSSVAL_FILE, "--output", folder)
            raise UserError("run-is-crossval", path=str(folder), command=again)
        if inside := sorted(path.parent.name for path in folder.glob(f"*/{FOLD_FILE}")):
            raise UserError("run-inside", path=str(folder), names=listed(inside))
        raise UserError("run-not-found", path=str(folder))
    plan = read_plan(folder / PLAN_FILE, data)
    try:
        text = (folder / FOLD_FILE).read_text(encoding="utf-8").strip()
        fold = None if text == NO_FOLD else int(text)
    except (OSError, ValueError):
        fold = -1
    if fold is not None and not 0 <= fold < plan.training.folds:
        raise UserError("fold-file-damaged", path=str(folder / FOLD_FILE), last=plan.training.folds - 1)
    return Run(folder, plan, fold)


def _exists(path: Path) -> bool:
    """Whether a file exists. Raises OSError if its folder must not be read."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def what_is_learned(plan: Plan) -> dict[str, Any]:
    """What a run's weights depend on, by the plan's own keys, in plain JSON types.

    Names, texts, thresholds and the window may change later, and so may the rest of training and augmentation. The
    model that a run started with must stay named, because figures are reported with a warning about its training cases.
    """
    model = plan.document()["model"]
    networks = [
        {
            "type": network["type"],
            "arguments": {k: v for k, v in network.get("arguments", {}).items() if k != "dropout"},
        }
        for network in model["system"]["networks"]
    ]
    learned = {
        "targets": [sorted(plan.targets[segment["name"]]) for segment in model["output"]["segments"]],
        "model.inputs": [[item.get("intensity", []), item.get("copies", [])] for item in model["inputs"]],
        "model.preparation": {
            **{k: v for k, v in model["preparation"].items() if k in ("orientation", "spacing")},
            "foreground": plan.model.preparation.foreground,
        },
        "model.output.kind": model["output"]["kind"],
        "model.system": [model["system"]["type"], networks],
        "training.optimizer": plan.training.optimizer,
        "training.start_from": plan.training.start_from,
    }
    return json.loads(json.dumps(learned))


def check_plan_unchanged(run: Run, checkpoint: dict) -> None:
    """Refuse a plan that was edited in what the weights depend on, and a split that was edited at all.

    Checkpoints of earlier versions do not record all of it.

    Raises:
        UserError: ``plan-changed`` or ``split-damaged``.
    """
    now = what_is_learned(run.plan)
    for part, before in checkpoint.get("learned", {}).items():
        current = now.get(part, before)
        if isinstance(before, dict):
            current = {key: current.get(key) for key in before}
        if current != before:
            raise UserError("plan-changed", path=str(run.folder / PLAN_FILE), part=part)
    for part, names in checkpoint.get("split", {}).items():
        if _read_names(run.folder / SPLIT_FILE, part) != names:
            raise _damaged_split(run.folder / SPLIT_FILE, part)


def write_checkpoint(content: dict, paths: Iterable[Path]) -> None:
    """Write one checkpoint under several names, in this order; an old one is kept until the new one is complete.

    Raises:
        UserError: ``disk-full`` or ``cannot-write``.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    for path in paths:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            # After a loss of power, a file must not have been renamed before its content was on the disk.
            os.fsync(file.fileno())


def read_checkpoint(path: Path) -> dict | None:
    """A checkpoint's content in CPU memory, or None if there is none.

    Raises:
        UserError: ``checkpoint-damaged``, also for another program's checkpoint.
    """
    try:
        # PyTorch does not compare checksums, so a damaged disk or transfer would go unnoticed.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        raise UserError("checkpoint-damaged", path=str(path)) from error
    if not _is_of_a_run(content):
        raise UserError("checkpoint-damaged", path=str(path))
    return content


def read_latest_checkpoint(run: Run) -> tuple[dict | None, Path]:
    """(content, file) of the latest checkpoint that can be read: "last", or "best" if "last" is damaged or missing.

    Without any, (None, "last"). A run whose damaged "last" was deleted must not start over, and replace its "best".

    Raises:
        UserError: ``checkpoint-damaged`` if there are some and none can be read.
    """
    last, best = run.checkpoint, run.checkpoint_named("best")
    damage = None
    try:
        if (content := read_checkpoint(last)) is not None:
            return content, last
    except UserError as error:
        damage = error
    content = read_checkpoint(best)
    if content is None and damage is not None:
        raise damage
    return content, last if content is None else best


def _is_of_a_run(content: Any) -> bool:
    """Whether it has what every checkpoint has; the training loop checks the rest."""
    if not isinstance(content, dict) or not isinstance(content.get("global_step"), int):
        return False
    weights = content.get("state_dict")
    if not isinstance(weights, dict) or not weights:
        return False
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items())


def with_prefix(state: dict) -> dict:
    """A network's tensors under the names they have in a checkpoint."""
    return {f"{PREFIX}{name}": tensor for name, tensor in state.items()}


def without_prefix(state: dict) -> dict:
    """The reverse of ``with_prefix``."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}


MOST_NAMED = 5

Split = tuple[list[Case], list[Case]]


def split(data_set: DataSet, plan: Plan, fold: int | None) -> Split:
    """(training cases, held-out cases) of a fold; without a fold, all cases are for training.

    Folds that the data set itself defines are used if their number is that of the plan. Otherwise fold k of n holds out
    every n-th patient by name, starting with the k-th, with all time points, so a patient is never on both sides.

    Raises:
        UserError: ``too-many-folds``.
    """
    cases, folds = data_set.cases, plan.training.folds
    if fold is None:
        return list(cases), []
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


def check_fits_data(data_set: DataSet, plan: Plan) -> None:
    """Refuse a plan whose inputs are not the data set's channels, or with targets that the data set does not name.

    An input may have another name than its channel, but not that of another channel.

    Raises:
        UserError: ``inputs-not-channels``, ``input-of-another-channel`` or ``target-unknown``.
    """
    names = [item.name for item in plan.model.inputs]
    if len(names) != len(data_set.channels):
        raise UserError(
            "inputs-not-channels", inputs=", ".join(names), channels=", ".join(data_set.channels), data=data_set.name
        )
    places = {channel.casefold(): place for place, channel in enumerate(data_set.channels)}
    for place, name in enumerate(names):
        if places.get(name.casefold(), place) != place:
            raise UserError(
                "input-of-another-channel", input=name, place=place + 1, channels=", ".join(data_set.channels)
            )
    for segment, values in plan.targets.items():
        unknown = sorted(set(values) - data_set.known_values)
        if unknown:
            known = ", ".join(map(str, sorted(data_set.known_values)))
            raise UserError("target-unknown", segment=segment, value=unknown[0], known=known)


def check_target_names(data_set: DataSet, plan: Plan) -> None:
    """Refuse a segment that has the name of one label and only values of others, as after swapping two labels.

    The model would have the wrong names. Renamed segments, and those that other values were added to, are fine.

    Raises:
        UserError: ``target-of-another-label``.
    """
    own: dict[str, set[int]] = {}
    for name, values in (
        *((name, (value,)) for value, name in data_set.labels.items()),
        *data_set.values_of_labels.items(),
        *data_set.regions.items(),
    ):
        own.setdefault(name.casefold(), set()).update(values)
    for segment, values in plan.targets.items():
        theirs = own.get(segment.casefold())
        if theirs and not theirs & set(values):
            ours, theirs = (", ".join(map(str, sorted(found))) for found in (set(values), theirs))
            raise UserError("target-of-another-label", segment=segment, ours=ours, theirs=theirs, data=data_set.name)


def names_of_split(training: Iterable[Case], held_out: Iterable[Case]) -> dict[str, list[str]]:
    """A split as ``split.json`` and checkpoints record it."""
    return {"training": [case.name for case in training], "held_out": [case.name for case in held_out]}


def begin_split(run: Run, data_set: DataSet, is_writer: bool = True) -> Split:
    """The split of a run. After the first checkpoint it stays.

    If cases are added to the data set later, a new split would hold out cases that the run has learned from.

    Args:
        is_writer: whether this process is the one that records the split.

    Raises:
        UserError: ``cases-gone``, ``split-damaged``, ``too-many-folds``, ``disk-full`` or ``cannot-write``.
    """
    file = run.folder / SPLIT_FILE
    if has_checkpoint(run.folder):
        return _recorded(run, data_set, "training"), _recorded(run, data_set, "held_out")
    training, held_out = split(data_set, run.plan, run.fold)
    if is_writer:
        names = names_of_split(training, held_out)
        write_text(file, json.dumps(names, indent=1, ensure_ascii=False) + "\n")
    return training, held_out


def held_out_of_run(run: Run, data_set: DataSet) -> list[Case]:
    """Cases that a run was not trained on; none if it was trained on all of them.

    Raises:
        UserError: ``cases-gone`` if some of them are missing from the data set, or ``split-damaged``.
    """
    if not (run.folder / SPLIT_FILE).exists() and not has_checkpoint(run.folder):
        return split(data_set, run.plan, run.fold)[1]
    return _recorded(run, data_set, "held_out")


def names_of_cases(run: Run, data_set: DataSet) -> tuple[set[str], set[str]]:
    """Names of the training and held-out cases of a run, including those that are no longer in the data set.

    Raises:
        UserError: ``split-damaged``.
    """
    file = run.folder / SPLIT_FILE
    if file.exists() or has_checkpoint(run.folder):
        return set(_read_names(file, "training")), set(_read_names(file, "held_out"))
    training, held_out = split(data_set, run.plan, run.fold)
    return {case.name for case in training}, {case.name for case in held_out}


def _recorded(run: Run, data_set: DataSet, part: str) -> list[Case]:
    names = _read_names(run.folder / SPLIT_FILE, part)
    if not names and not (part == "held_out" and run.fold is None):
        raise _damaged_split(run.folder / SPLIT_FILE, part)
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
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged_split(file, part)
    return names


def _damaged_split(file: Path, part: str) -> UserError:
    return UserError("split-damaged", path=str(file), part=part)
