"""The folder of a training run: its plan, its fold, its checkpoints."""

from dataclasses import dataclass
from pathlib import Path

from conresnet.errors import UserError
from conresnet_training.folders import make_folder
from conresnet_training.plan import Plan, read_plan, write_plan

PLAN_FILE = "plan.yaml"
FOLD_FILE = "fold.txt"


@dataclass(frozen=True)
class Run:
    """A run's folder and what it was started with."""

    folder: Path
    plan: Plan
    fold: int

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.checkpoint_named("last")

    def checkpoint_named(self, name: str) -> Path:
        """The checkpoint "last" or "best" (by validation Dice)."""
        return self.folder / "checkpoints" / f"{name}.ckpt"


def start_run(plan: Plan, folder: Path, fold: int) -> Run:
    """Make the folder of a new run.

    Raises:
        UserError: ``run-exists``, ``fold-unknown``, ``disk-full`` or ``cannot-write``.
    """
    if not 0 <= fold < plan.training.folds:
        raise UserError("fold-unknown", f"There is no fold {fold}; the plan has folds 0 to {plan.training.folds - 1}.")
    if folder.exists() and any(folder.iterdir()):
        sentence = f"{folder} is not empty; resume the run in it, or name a new folder."
        raise UserError("run-exists", sentence, path=str(folder))
    make_folder(folder)
    write_plan(plan, folder / PLAN_FILE)
    (folder / FOLD_FILE).write_text(f"{fold}\n", encoding="utf-8")
    return Run(folder, plan, fold)


def open_run(folder: Path, data: Path | None = None) -> Run:
    """Open the folder of a run that was started before.

    Raises:
        UserError: ``run-not-found`` where it is none, ``fold-unknown`` where it does not say which of the plan's folds
            it holds out, or those of ``read_plan``.
    """
    if not (folder / PLAN_FILE).is_file() or not (folder / FOLD_FILE).is_file():
        raise UserError("run-not-found", f"{folder} is not the folder of a training run.", path=str(folder))
    plan = read_plan(folder / PLAN_FILE, data)
    return Run(folder, plan, _read_fold(folder / FOLD_FILE, plan.training.folds))


def _read_fold(path: Path, folds: int) -> int:
    try:
        fold = int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        fold = -1
    if not 0 <= fold < folds:
        sentence = f"{path} does not hold the number of a fold, 0 to {folds - 1}; write that of the run into it."
        raise UserError("fold-unknown", sentence, path=str(path))
    return fold
