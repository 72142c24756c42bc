"""Which cases a fold trains on, and which it holds out."""

from conresnet.errors import UserError
from conresnet_training.data_sets import Case, DataSet
from conresnet_training.plan import Plan


def split(data_set: DataSet, plan: Plan, fold: int) -> tuple[list[Case], list[Case]]:
    """(training cases, held-out cases) of a fold: fold k of n holds out every n-th case by name, from the k-th on."""
    cases = data_set.cases
    held_out = list(cases[fold :: plan.training.folds])
    names = {case.name for case in held_out}
    training = [case for case in cases if case.name not in names]
    if not training or not held_out:
        folds = plan.training.folds
        raise UserError("too-few-cases", f"{len(cases)} cases do not make {folds} folds; plan fewer folds.")
    return training, held_out
