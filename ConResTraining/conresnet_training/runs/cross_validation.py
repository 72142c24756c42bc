"""Trains the folds of a plan in processes of their own, one by one or in parallel, and continues after interruptions.

The folder of a cross-validation contains one run folder per fold, ``fold_0``, ``fold_1`` and so on, and the plan that
all of them were started with. A fold that failed may get other training settings, such as a lower learning rate, in its
own plan.
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
from conresnet_training.data import DataSet
from conresnet_training.planning.plan import Plan, read_plan, write_plan
from conresnet_training.reporting import listed
from conresnet_training.runs import (
    CROSSVAL_FILE,
    FOLD_FILE,
    PLAN_FILE,
    PROGRESS_FILE,
    ask_to_stop,
    has_checkpoint,
    read_progress,
    sole_process,
)
from conresnet_training.runs.run import (
    MOST_NAMED,
    Run,
    check_fits_data,
    check_fold,
    check_folds,
    check_target_names,
    check_window,
    names_of_cases,
    open_run,
    split,
    start_run,
)
from conresnet_training.training import steps_of_run
from conresnet_training.training.stopping import (
    JOBS_VARIABLE,
    PARENT_VARIABLE,
    STOPPED,
    STOPPED_ELSEWHERE,
    StopWatch,
    signals_held_back,
)

_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass
class Fold:
    """A fold's run and, while it is being trained, its process; without ``log``, that writes to the terminal."""

    run: Run
    log: Path | None = None
    process: subprocess.Popen | None = None
    place: int | None = None

    def start(self, options: Callable[[int], Sequence[str]], place: int, jobs: int) -> None:
        """Train it further in a process of its own, which takes one of ``jobs`` places."""
        self.place = place
        command = [sys.executable, "-m", "conresnet_training", "resume", str(self.run.folder), *options(place)]
        with contextlib.ExitStack() as stack:
            output = {}
            if self.log is not None:
                output = {"stdout": stack.enter_context(open(self.log, "ab")), "stderr": subprocess.STDOUT}
            environment = os.environ | {JOBS_VARIABLE: str(jobs), PARENT_VARIABLE: str(os.getpid())}
            stack.enter_context(signals_held_back())
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, **output)

    def is_done(self, most_steps: int | None) -> bool:
        """Whether nothing remains to be trained, or nothing up to this step."""
        progress, steps = read_progress(self.run.folder / PROGRESS_FILE), steps_of_run(self.run.plan)
        # Its plan may have got more steps since it was finished.
        last = min(steps, steps if most_steps is None else most_steps)
        ended = ("finished",) if last == steps else ("finished", "stopped")
        return progress.step >= last and progress.state in ended

    @property
    def has_failed(self) -> bool:
        """Whether its process ended with an error, rather than done or stopped with a checkpoint."""
        state = read_progress(self.run.folder / PROGRESS_FILE).state
        return self.process.returncode != 0 and not (self.process.returncode >= STOPPED and state == "stopped")


def open_folds(plan: Plan, folder: Path, folds: Sequence[int]) -> list[Run]:
    """The runs of these folds, started if they do not exist yet; each keeps the training settings of its own plan.

    Raises:
        UserError: ``fold-unknown``, ``run-exists``, ``crossval-plan-differs`` if the cross-validation was started with
            another plan, ``fold-plan-differs`` if a fold's own plan now differs in its model, targets or folds.
    """
    begun_by = folder / CROSSVAL_FILE
    is_begun = begun_by.exists()
    if is_begun and read_plan(begun_by, plan.data) != plan:
        raise UserError("crossval-plan-differs", path=str(folder), plan=str(begun_by))
    runs = []
    for fold in folds:
        place = folder / f"fold_{fold}"
        if (place / PLAN_FILE).exists():
            run = open_run(place, plan.data)
            if is_begun and _common_to_folds(run.plan) != _common_to_folds(plan):
                raise UserError("fold-plan-differs", path=str(place / PLAN_FILE), plan=str(begun_by))
            # Trained before the cross-validation: whether any of its settings were changed later is unknown.
            if not is_begun and run.plan != plan:
                raise UserError("crossval-plan-differs", path=str(place), plan=str(place / PLAN_FILE))
        else:
            run = start_run(plan, place, fold)
        runs.append(run)
    if not is_begun:
        write_plan(plan, begun_by)
    return runs


def check_same_cases(plan: Plan, folder: Path, folds: Sequence[int], data_set: DataSet) -> None:
    """Refuse to begin folds if those that were begun have other cases: some would be held out twice and others never.

    Raises:
        UserError: ``crossval-cases-differ``, or ``split-damaged``.
    """
    begun = [fold for fold in range(plan.training.folds) if has_checkpoint(folder / f"fold_{fold}")]
    if set(folds) <= set(begun):
        # Nothing is divided anew, so each keeps its cases.
        return
    for fold in begun:
        run = Run(folder / f"fold_{fold}", plan, fold)
        before = names_of_cases(run, data_set)
        now = tuple({case.name for case in cases} for cases in split(data_set, plan, fold))
        if before != now:
            names = sorted(set.union(*before) ^ set.union(*now))
            what = listed(names, MOST_NAMED) if names else "the same cases in other folds"
            raise UserError("crossval-cases-differ", run=str(run.folder), data=data_set.name, what=what)


def _common_to_folds(plan: Plan) -> tuple:
    """What must be the same for folds to be measured together and to become one model."""
    return plan.model, plan.targets, plan.training.folds


def cross_validate(
    plan: Plan,
    folder: Path,
    folds: Sequence[int],
    jobs: int,
    most_steps: int | None,
    options: Callable[[int], Sequence[str]],
    say: Callable[[str], None],
    evaluate: Callable[[list[Run], Callable[[], None]], None] = lambda runs, check: None,
) -> tuple[list[Run], int]:
    """Train the folds that are not trained yet, and evaluate them all.

    Args:
        jobs: how many folds are trained at a time; if more than one, each writes to ``fold_<k>.log``.
        most_steps: the step at which to end, if not the last of each fold's own plan.
        options: of ``resume`` for a fold; called with its place among ``jobs``, from 0.
        say: shows a sentence about a fold.
        evaluate: called once all folds are trained, with the runs and a function to call between cases. This function
            raises an exception, which must end the evaluation, if somebody asked to stop with the file ``stop``.

    Returns:
        The folds' runs, and the exit status: 0, or that of ``StopWatch`` if somebody asked to stop.

    Raises:
        UserError: ``run-exists`` if the folder is that of a single run, ``fold-failed`` once the others have ended,
            ``fold-unknown``, ``too-many-folds``, ``run-in-use``, or those of ``Run.data_set``, ``check_fits_data``,
            ``check_target_names``, ``check_same_cases``, ``make_folder`` and ``open_folds``.
    """

    def report(message: str) -> None:
        # If the terminal was closed, the folds must still be asked to stop.
        with contextlib.suppress(OSError):
            say(message)

    # Before anything is written.
    if (folder / FOLD_FILE).exists():
        raise UserError("run-exists", path=str(folder))
    if not (folder / CROSSVAL_FILE).exists():
        check_window(plan)
    for fold in folds:
        check_fold(plan, fold)
    data_set = Run(folder, plan, None).data_set()
    check_fits_data(data_set, plan)
    check_target_names(data_set, plan)
    check_folds(data_set, plan)
    check_same_cases(plan, folder, folds, data_set)
    make_folder(folder)
    with sole_process(folder):
        with StopWatch(folder) as stop:
            runs = open_folds(plan, folder, folds)
            _train(runs, plan, folder, jobs, most_steps, options, stop, report)
            # Whoever stops the last fold at its end does not want to wait for the evaluation either.
            if stop.asked() or not all(Fold(run).is_done(most_steps) for run in runs):
                return runs, stop.status or STOPPED_ELSEWHERE

        def check_between_cases() -> None:
            if stop.asked():
                raise _StoppedError

        # Signals end it at once, because the next evaluation starts over anyway.
        try:
            evaluate(runs, check_between_cases)
        except _StoppedError:
            return runs, stop.status
        return runs, 0


class _StoppedError(Exception):
    """Somebody asked to stop during the evaluation."""


def _train(
    runs: Sequence[Run],
    plan: Plan,
    folder: Path,
    jobs: int,
    most_steps: int | None,
    options: Callable[[int], Sequence[str]],
    stop: StopWatch,
    report: Callable[[str], None],
) -> None:
    """Train the folds that are not trained yet, as ``cross_validate`` describes."""
    waiting = []
    for run in runs:
        fold = Fold(run, folder / f"fold_{run.fold}.log" if jobs > 1 else None)
        if fold.is_done(most_steps):
            report(f"Fold {run.fold} is already trained.")
        else:
            waiting.append(fold)

    def check(fold: Fold) -> None:
        # Hours may have passed since the command checked the data set.
        check_same_cases(plan, folder, [fold.run.fold], fold.run.data_set())

    failed = []
    for fold in _ended(waiting, jobs, options, stop, report, check):
        if fold.has_failed:
            failed.append(fold)
            report(f"Fold {fold.run.fold} failed{f'; see {fold.log}' if fold.log else ''}.")
        else:
            report(f"Fold {fold.run.fold} {'is trained' if fold.is_done(most_steps) else 'was stopped'}.")
    if failed:
        raise UserError("fold-failed", path=str(folder), folds=", ".join(str(fold.run.fold) for fold in failed))


def _ended(
    waiting: list[Fold],
    jobs: int,
    options: Callable[[int], Sequence[str]],
    stop: StopWatch,
    say: Callable[[str], None],
    check: Callable[[Fold], None],
) -> Iterator[Fold]:
    """Yield each fold when its process ends. No further fold is started after a stop, or after ``check`` raises a
    UserError for one; the error is raised again once the others have ended.
    """
    working: list[Fold] = []
    refusal = None
    try:
        while working or (waiting and not stop.asked()):
            while waiting and len(working) < jobs and not stop.asked():
                fold = waiting.pop(0)
                try:
                    check(fold)
                except UserError as error:
                    refusal = error
                    waiting.clear()
                    break
                say(f"Training fold {fold.run.fold}.")
                fold.start(options, min(set(range(jobs)) - {other.place for other in working}), jobs)
                working.append(fold)
            for fold in [fold for fold in working if fold.process.poll() is not None]:
                working.remove(fold)
                yield fold
            if stop.asked():
                for fold in working:
                    # Repeatedly, because one that has just started does not listen yet.
                    with contextlib.suppress(UserError):
                        ask_to_stop(fold.run.folder)
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        for fold in working:
            fold.process.terminate()
    if refusal is not None:
        raise refusal
