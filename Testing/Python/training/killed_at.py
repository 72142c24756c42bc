"""Runs commands of the training backend, each in a separate process that kills itself (SIGKILL) at a chosen moment.

Each line on stdin is a JSON list of a moment and the command's arguments; for each, a line with the exit status is
written to stdout. The processes are forked from this one, which imports torch only once.
"""

import contextlib
import json
import os
import signal
import sys

import torch

from conresnet_training.cli import main
from conresnet_training.data import preparation
from conresnet_training.runs import ProgressWriter
from conresnet_training.runs import run as run_folder
from conresnet_training.training import loop, trainer, validation


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies(owner, name: str, call: int = 1, after: bool = False) -> None:
    """Make the process die in the given call of a function, before or after the function runs."""
    original, calls = getattr(owner, name), iter(range(1, 10**6))

    def wrapper(*arguments, **options):
        is_it = next(calls) == call
        if is_it and not after:
            die()
        result = original(*arguments, **options)
        if is_it:
            die()
        return result

    setattr(owner, name, wrapper)


def dies_writing(owner, file: int, ending: str = ".ckpt") -> None:
    """Make the process die when ``owner`` has written half of the given file with that extension."""
    original, files = owner.replacing, iter(range(1, 10**6))

    @contextlib.contextmanager
    def replacing(path):
        with original(path) as temporary:
            yield temporary
            if str(path).endswith(ending) and next(files) == file:
                os.truncate(temporary, temporary.stat().st_size // 2)
                die()

    owner.replacing = replacing


def dies_in_a_line() -> None:
    """Make the process die when half of a line of the progress file is written."""
    original = ProgressWriter.write

    def write(self, event, **values):
        if event != "validation":
            return original(self, event, **values)
        self._file.write(b'{"event": "validation", "st')
        self._file.flush()
        return die()

    ProgressWriter.write = write


MOMENTS = {
    "never": lambda: None,
    "while a case is prepared": lambda: dies_writing(preparation, 5, ""),
    "between two cases": lambda: dies(trainer, "prepare_case", 3),
    "before the first step": lambda: dies(loop.TrainingLoop, "_make_step"),
    "between gradient and step": lambda: dies(loop, "clip_grad_norm_", 2),
    "right after a step": lambda: dies(torch.optim.Adam, "step", 2, after=True),
    "while the best checkpoint is written": lambda: dies_writing(run_folder, 1),
    "between best and last": lambda: dies_writing(run_folder, 2),
    "right after a checkpoint": lambda: dies(loop, "write_checkpoint", after=True),
    "during validation": lambda: dies(validation, "found_segments", 2),
    "right after it was resumed": lambda: dies(loop.TrainingLoop, "_restore", after=True),
    "in a line of the progress file": dies_in_a_line,
    "while it clears up": lambda: dies(trainer.shutil, "rmtree"),
}


def run(moment: str, arguments: list[str]) -> int:
    """Exit status of a forked process; negative for the signal that ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # stdout is reserved for the statuses.
            os.dup2(2, 1)
            MOMENTS[moment]()
            sys.argv = ["conresnet_training", *arguments]
            status = main()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        moment, *arguments = json.loads(line)
        print(run(moment, arguments), flush=True)
