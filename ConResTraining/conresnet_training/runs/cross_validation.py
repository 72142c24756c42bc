"""The folds of a plan trained as processes of their own, one by one or side by side, and gone on with when interrupted.

A cross-validation's folder holds a run's folder a fold: ``fold_0``, ``fold_1`` and so on, and the plan that all of them
were begun by. A fold that failed may get other training settings in its own plan, such as a lower learning rate.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from conresnet.errors import UserError
from conresnet.files import make_folder
from conresnet_training.data.samples import JOBS_VARIABLE
from conresnet_training.planning.plan import Plan, read_plan, write_plan
from conresnet_training.runs.progress import PROGRESS_FILE, read_progress
from conresnet_training.runs.run import PLAN_FILE, Run, open_run, start_run
from conresnet_training.runs.running import ask_to_stop, sole_process
from conresnet_training.training.network import steps_of_run
from conresnet_training.training.processes import StopWatch

# Not a run's PLAN_FILE, since the folder is no run's.
BEGUN_BY_FILE = "crossval.yaml"
_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass
class Fold:
    """A fold's run and, while one is at work on it, its process; without ``log`` the process writes to the terminal."""

    run: Run
    log: Path | None = None
    process: subprocess.Popen | None = None

    def start(self, options: Sequence[str], jobs: int) -> None:
        """Let a process of its own train it from where it stands, one of so many beside each other."""
        command = [sys.executable, "-m", "conresnet_training", "resume", str(self.run.folder), *options]
        with contextlib.ExitStack() as files:
            output = {}
            if self.log is not None:
                output = {"stdout": files.enter_context(open(self.log, "ab")), "stderr": subprocess.STDOUT}
            environment = os.environ | {JOBS_VARIABLE: str(jobs)}
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, **output)

    def is_done(self, most_steps: int | None) -> bool:
        """Whether nothing is left of it, or nothing up to this step."""
        progress = read_progress(self.run.folder / PROGRESS_FILE)
        if progress.state == "finished":
            return True
        last = steps_of_run(self.run.plan) if most_steps is None else most_steps
        return last < steps_of_run(self.run.plan) and progress.step >= last and progress.state == "stopped"


def open_folds(plan: Plan, folder: Path, folds: Sequence[int]) -> list[Run]:
    """The runs of these folds, started where they are not there yet; each keeps the training settings of its own plan.

    Raises:
        UserError: ``fold-unknown``, ``run-exists``, or ``plan-differs`` where the cross-validation was begun by another
            plan, or a fold's own has come to differ in what its networks are or are measured on.
    """
    begun_by = folder / BEGUN_BY_FILE
    is_begun = begun_by.exists()
    if is_begun and read_plan(begun_by, plan.data) != plan:
        sentence = f"{folder} was begun by another plan; name a new folder, or give the plan {begun_by} again."
        raise UserError("plan-differs", sentence, path=str(folder))
    runs = []
    for fold in folds:
        place = folder / f"fold_{fold}"
        if (place / PLAN_FILE).exists():
            run = open_run(place, plan.data)
            if is_begun and _what_folds_share(run.plan) != _what_folds_share(plan):
                sentence = f"{place / PLAN_FILE} is not of the model, targets and folds of {begun_by}; put these back."
                raise UserError("plan-differs", sentence, path=str(place))
            # One that was trained before the cross-validation: nothing tells which of its settings were changed later.
            if not is_begun and run.plan != plan:
                sentence = f"{place} was begun by another plan; name a new folder, or give the plan in {place} again."
                raise UserError("plan-differs", sentence, path=str(place))
        else:
            run = start_run(plan, place, fold)
        runs.append(run)
    if not is_begun:
        write_plan(plan, begun_by)
    return runs


def _what_folds_share(plan: Plan) -> tuple:
    """What must be the same for folds to be measured together, and to become one model."""
    return plan.model, plan.targets, plan.training.folds


def cross_validate(
    plan: Plan,
    folder: Path,
    folds: Sequence[int],
    jobs: int,
    most_steps: int | None,
    options: Sequence[str],
    say: Callable[[str], None],
) -> tuple[list[Run], bool]:
    """Train the folds that are not trained yet.

    Args:
        jobs: how many folds are trained at a time; with more than one, each writes to ``fold_<k>.log``.
        most_steps: the step at which to end, if not the last of each fold's own plan.
        options: of ``resume``, for every fold.
        say: takes a sentence about each fold.

    Returns:
        the folds' runs, and whether all of them are done; they are not where somebody asked to stop.

    Raises:
        UserError: ``fold-failed`` once the others have ended, ``run-in-use``, or those of ``make_folder`` and
            ``open_folds``.
    """

    def tell(sentence: str) -> None:
        # A terminal that was closed hears nothing any longer; the folds must still be asked to stop.
        with contextlib.suppress(OSError):
            say(sentence)

    make_folder(folder)
    with StopWatch(folder) as stop, sole_process(folder):
        runs = open_folds(plan, folder, folds)
        waiting = []
        for run in runs:
            fold = Fold(run, folder / f"fold_{run.fold}.log" if jobs > 1 else None)
            if fold.is_done(most_steps):
                tell(f"Fold {run.fold} is done already.")
            else:
                waiting.append(fold)
        failed = []
        for fold in _ended(waiting, jobs, options, stop, tell):
            if fold.process.returncode:
                failed.append(fold)
                tell(f"Fold {fold.run.fold} failed{f'; see {fold.log}' if fold.log else ''}.")
            else:
                tell(f"Fold {fold.run.fold} {'is done' if fold.is_done(most_steps) else 'was stopped'}.")
        if failed:
            names = ", ".join(str(fold.run.fold) for fold in failed)
            sentence = f"Fold {names} of {folder} failed; put right what its message says and give the command again."
            raise UserError("fold-failed", sentence, path=str(folder))
        return runs, all(Fold(run).is_done(most_steps) for run in runs)


def _ended(
    waiting: list[Fold], jobs: int, options: Sequence[str], stop: StopWatch, say: Callable[[str], None]
) -> Iterator[Fold]:
    """Each fold as its process ends; after a stop no further one is started."""
    working: list[Fold] = []
    try:
        while working or (waiting and not stop.asked()):
            while waiting and len(working) < jobs and not stop.asked():
                fold = waiting.pop(0)
                say(f"Fold {fold.run.fold} begins.")
                fold.start(options, jobs)
                working.append(fold)
            for fold in [fold for fold in working if fold.process.poll() is not None]:
                working.remove(fold)
                yield fold
            if stop.asked():
                for fold in working:
                    # Again and again, since one that has just begun does not listen yet.
                    with contextlib.suppress(UserError):
                        ask_to_stop(fold.run.folder)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        for fold in working:
            fold.process.terminate()
