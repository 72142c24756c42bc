"""Runs the commands on campaigns of damaged and odd inputs, and reports the problems.

    python Testing/Robustness/robustness.py                             # all campaigns, in full
    python Testing/Robustness/robustness.py images --seconds 60         # one, for a minute
    python Testing/Robustness/robustness.py images --seed 7 --only 3    # one trial again

Every trial runs a command on inputs made from the seed. For any input, the command must end with status 0 or 2 (or one
that the trial allows) and without a signal, print a message about everything that it refuses, and leave nothing behind
except its results. The seed is printed, so that every trial can be repeated.

To add a campaign, add a file ``campaign_<name>.py`` to this folder with a function that makes one trial::

    @campaign("models", full=500)
    def models(random: random.Random, folder: Path) -> Trial:
        path = damaged_package(random, folder)
        return Trial(("conresnet", "models", "verify", path))
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATHS = [ROOT / "ConResSegmentation", ROOT / "ConResTraining", ROOT / "Testing" / "Python", HERE]
#: Output of unexpected errors.
UNFORESEEN = ("Traceback (most recent call last)", "internal error", "fault of its own", "fault of ConResNet's own")


@dataclass
class Outcome:
    """The outcome of a command. ``status`` is negative for a signal and None if the command had to be stopped."""

    status: int | None
    out: str
    err: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """The lines on stderr."""
        return [line for line in self.err.replace("\r", "\n").splitlines() if line.strip()]


@dataclass
class Trial:
    """One run of a command.

    Args:
        command: the module and its arguments: ("conresnet", "segment", ...).
        parts: how many inputs it tries at once; they count toward the campaign's number.
        allowed: exit statuses.
        check: function that finds further problems.
        kill_after: seconds after which the command is killed, as when a computer loses power; None lets it end. A
            killed command may leave temporary files, so ``check`` must find those that are not allowed.
        kill_at: the same before the n-th change of a file or folder, from 0, with ``preload``; this can be repeated.
        seconds: time after which the command counts as hanging.
        memory: limit of the address space in bytes, with ``preload``; None for no limit.
        preload: modules. The command's process is then forked from one that has imported them, which saves the seconds
            that imports take.
    """

    command: Sequence[object]
    parts: int = 1
    allowed: Collection[int] = (0, 2)
    check: Callable[[Outcome], list[str]] = lambda outcome: []
    kill_after: float | None = None
    kill_at: int | None = None
    seconds: float = 1800.0
    memory: int | None = None
    preload: Sequence[str] = ()


@dataclass
class Campaign:
    """Trials of one kind: ``make(random, folder)`` makes one, ``full`` is the number of inputs in a full run."""

    name: str
    full: int
    make: Callable[[random.Random, Path], Trial]


CAMPAIGNS: dict[str, Campaign] = {}


def campaign(name: str, full: int) -> Callable:
    """Register the function below as a campaign of ``full`` inputs."""

    def register(make: Callable[[random.Random, Path], Trial]) -> Callable:
        CAMPAIGNS[name] = Campaign(name, full, make)
        return make

    return register


@dataclass
class Tally:
    """The inputs, problems and exit statuses of a campaign."""

    inputs: int = 0
    problems: list[str] = field(default_factory=list)
    statuses: dict[int | None, int] = field(default_factory=dict)


def run(trial: Trial, folder: Path) -> Outcome:
    """Run a trial's command in a folder, with a folder for temporary files of its own."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {
        **{"PYTHONPATH": os.pathsep.join(map(str, PATHS)), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)),
        "CONRESNET_MODELS": str(folder / "models"),
    }
    started = time.monotonic()
    status, out, err = (_forked if trial.preload else _started)(trial, folder, environment)
    return Outcome(status, out, err, time.monotonic() - started)


def _started(trial: Trial, folder: Path, environment: dict[str, str]) -> tuple[int | None, str, str]:
    """(exit status, stdout, stderr) of a new process."""
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, trial.command)],
        cwd=folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        out, err = process.communicate(timeout=trial.kill_after or trial.seconds)
        status = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        status = -signal.SIGKILL if trial.kill_after else None
    return status, out, err


def _forked(trial: Trial, folder: Path, environment: dict[str, str]) -> tuple[int | None, str, str]:
    """The same for a process forked from one that has imported the trial's modules."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(trial.preload))
    with tempfile.TemporaryDirectory() as output:
        files = [Path(output) / name for name in ("out", "err")]
        arguments = (list(map(str, trial.command)), folder, environment, files, trial.memory, trial.kill_at)
        process = context.Process(target=_run_module, args=arguments)
        process.start()
        process.join(trial.kill_after or trial.seconds)
        status = process.exitcode
        if status is None:
            process.kill()
            process.join()
            status = -signal.SIGKILL if trial.kill_after else None
        out, err = (file.read_text(encoding="utf-8", errors="replace") if file.exists() else "" for file in files)
    return status, out, err


def _run_module(
    command: list[str],
    folder: Path,
    environment: dict[str, str],
    files: list[Path],
    memory: int | None,
    kill_at: int | None,
) -> None:
    """``python -m COMMAND`` in this process."""
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), number)
    if memory:
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    os.environ.update(environment)
    tempfile.tempdir = None
    os.chdir(folder)
    sys.argv = command
    if kill_at is not None:
        _die_at_change(kill_at)
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def _die_at_change(number: int) -> None:
    """Kill this process before its n-th change of a file or folder."""
    left = number

    def look(event: str, arguments: tuple) -> None:
        nonlocal left
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if is_write or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(look)


def problems_of(trial: Trial, outcome: Outcome, folder: Path) -> list[str]:
    """Problems with the outcome of a trial."""
    found = []
    was_killed = (trial.kill_after, trial.kill_at) != (None, None) and outcome.status == -9
    if outcome.status is None:
        found.append(f"still running after {trial.seconds:.0f} s")
    elif outcome.status not in trial.allowed and not was_killed:
        how = f"signal {-outcome.status}" if outcome.status < 0 else f"exit status {outcome.status}"
        found.append(f"{how}: {outcome.lines[-1][:200] if outcome.lines else 'no message'}")
    if outcome.status == 2 and not outcome.lines:
        found.append("exit status 2 without a message")
    found += [line[:300] for line in outcome.lines if any(words in line for words in UNFORESEEN)]
    if "\x1b" in outcome.out + outcome.err:
        found.append("control characters from an input reach the terminal")
    if not was_killed and outcome.status is not None:
        # When imported, PyTorch creates a folder for its compiler, which is not used here.
        left = [path for path in (folder / "tmp").iterdir() if not path.name.startswith("torchinductor_")]
        left = [path.relative_to(folder) for top in left for path in (top, *top.rglob("*"))]
        hidden = (path for path in folder.rglob(".*") if path.name.startswith((".conresnet", ".part")))
        left += [path.relative_to(folder) for path in hidden]
        found += [f"left behind: {path}" for path in left[:5]]
    return found + trial.check(outcome)


def run_campaign(
    one: Campaign,
    tally: Tally,
    seed: int,
    count: int,
    seconds: float,
    only: int | None = None,
    keep: Path | None = None,
) -> None:
    """Run trials until ``count`` inputs were tried or ``seconds`` have passed, and record them in ``tally``."""
    number, end = 0, time.monotonic() + seconds
    while tally.inputs < count and (time.monotonic() < end or not number):
        number += 1
        if only is not None:
            number = only
        with tempfile.TemporaryDirectory(prefix="robustness-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            trial = one.make(random.Random(f"{seed}-{one.name}-{number}"), folder)
            outcome = run(trial, folder)
            problems = problems_of(trial, outcome, folder)
            tally.inputs += trial.parts
            tally.statuses[outcome.status] = tally.statuses.get(outcome.status, 0) + 1
            for problem in problems:
                print(f"  {one.name} {number}: {problem}", flush=True)
            tally.problems += problems
            if keep and (problems or only is not None):
                shutil.copytree(folder, keep / f"{one.name}-{number}", dirs_exist_ok=True)
                (keep / f"{one.name}-{number}" / "stderr.txt").write_text(outcome.err, encoding="utf-8")
        if only is not None:
            break


def main() -> int:
    """The command line; returns 1 if there were problems."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="CAMPAIGN", help="default: all")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop each campaign after this time")
    parser.add_argument("--count", type=int, help="inputs per campaign  [default: those of a full run]")
    parser.add_argument("--seed", type=int, help="default: a new one, which is printed")
    parser.add_argument("--only", type=int, metavar="N", help="run only the N-th trial")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the inputs of trials with problems here")
    options = parser.parse_args()
    sys.path[:0] = map(str, PATHS)
    # For processes that are not forked from this one.
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, PATHS))
    # This file is __main__ now; campaigns import it by its name.
    sys.modules["robustness"] = sys.modules[__name__]
    for path in sorted(HERE.glob("campaign_*.py")):
        importlib.import_module(path.stem)
    unknown = set(options.names) - set(CAMPAIGNS)
    if unknown:
        parser.error(f"unknown campaign {', '.join(sorted(unknown))}; choose from {', '.join(CAMPAIGNS)}")
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    has_problems = False
    for name in options.names or CAMPAIGNS:
        one, tally = CAMPAIGNS[name], Tally()
        try:
            run_campaign(one, tally, seed, options.count or one.full, options.seconds, options.only, options.keep)
        except KeyboardInterrupt:
            print(f"{name} was interrupted", flush=True)
        statuses = ", ".join(f"{count} x status {status}" for status, count in sorted(tally.statuses.items(), key=str))
        print(f"{name}: {tally.inputs} inputs, {statuses}; {len(tally.problems)} problems", flush=True)
        has_problems |= bool(tally.problems)
    return int(has_problems)


if __name__ == "__main__":
    sys.exit(main())
