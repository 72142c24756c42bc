"""Segment many cases at once with Dask: ``segment --cases LIST --jobs N`` here, ``--scheduler URL`` on a cluster.

Each worker process keeps the model loaded and segments one case at a time, exactly as without workers. Cases with
complete results are not computed again. A case whose worker dies is tried once more elsewhere; if that worker dies too,
the case is reported as failed, and the others continue. Dask schedules the cases, and restarts workers here.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import socket
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from conresnet import __version__
from conresnet.cli.cases import (
    PAGE_FILE,
    PICTURES,
    TABLE_FILE,
    CaseProblem,
    ListedCase,
    duration,
    raise_for,
    segment_to_folder,
)
from conresnet.cli.main import say
from conresnet.errors import UserError
from conresnet.files import csv_cell, replacing
from conresnet.images.roi import roi_from_text
from conresnet.package.maps import check_maps, provided_maps
from conresnet.package.store import read_model
from conresnet.report import RESEARCH_ONLY
from conresnet.request import SegmentOptions
from conresnet.result_folder import REPORT_FILE, REVIEW_FILE, result_files, wanted_tables
from conresnet.review import ALL

if TYPE_CHECKING:
    from distributed import Client, Future

    from conresnet.inference.segmentation import WarmModel
    from conresnet.package import ModelPackage

DONE, SKIPPED, FAILED = "segmented", "already segmented", "failed"
# How many workers may die on a case. If one more dies, the case is given up.
_ALLOWED_DEATHS = 1
_SECONDS_TO_CONNECT = 30


@dataclass(frozen=True)
class Job:
    """One case for a worker.

    Args:
        model: path of the package.
        output: folder of all cases; the results of this one go to ``output / case.name``.
        inputs: images that the results must not replace.
    """

    case: ListedCase
    model: Path
    options: SegmentOptions
    output: Path
    overwrite: bool
    inputs: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        return self.output / self.case.name


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case.

    Args:
        state: ``DONE``, ``SKIPPED`` or ``FAILED``.
        problem: why it failed.
        volumes_ml: volume of each segment in mL.
        expected_dice: from the review list; None if there is none, or nothing was found.
        seconds: time that the engine took, in all phases.
        warnings: sentences about what to check.
    """

    name: str
    state: str
    problem: CaseProblem | None = None
    volumes_ml: dict[str, float] | None = None
    expected_dice: float | None = None
    seconds: float | None = None
    warnings: tuple[str, ...] = ()


def segment_cohort(
    cases: Sequence[ListedCase],
    package: ModelPackage,
    options: SegmentOptions,
    output: Path,
    *,
    overwrite: bool = False,
    jobs: int = 0,
    scheduler: str = "",
) -> None:
    """Segment cases in several processes, and write ``cohort.csv`` and ``cohort.html`` to ``output``.

    Args:
        package: the model; on the computers of a scheduler, it must be at the same path.
        jobs: number of processes on this computer.
        scheduler: address of a running Dask scheduler, to use its workers instead.

    Raises:
        UserError: ``cohort-needs-package``, ``cohort-no-scheduler``, ``cohort-versions-differ`` or
            ``cohort-scheduler-lost``; finished cases are kept. ``cases-failed`` at the end.
    """
    maps = check_maps(options.maps, provided_maps(package.description), package.description.name)
    options = replace(
        options, maps=maps, threads=options.threads or (max(1, (os.cpu_count() or 1) // jobs) if jobs else None)
    )
    # The page is sorted by the expected Dice, which comes from the review list.
    options = replace(options, review=True)
    cases = [_absolute(case) for case in cases]
    images = [image for case in cases for image in case.images]
    # Only images inside the output folder could be replaced by another case's results.
    endangered = tuple(image for image in images if output.absolute() in image.parents)
    waiting = deque(
        Job(case, package.path.absolute(), options, output.absolute(), overwrite, (*case.images, *endangered))
        for case in cases
    )
    outcomes: list[Outcome] = []
    first = 0.0
    (output / PICTURES).mkdir(parents=True, exist_ok=True)
    with _client(jobs, scheduler) as client:
        try:
            for outcome in _segmented(client, waiting):
                outcomes.append(outcome)
                _tell(outcome, output)
                first = first or time.monotonic()
                # The first case waited for the workers to start.
                each = (time.monotonic() - first) / max(1, len(outcomes) - 1)
                left = f", about {duration(each * (len(cases) - len(outcomes)))} left" if len(outcomes) > 1 else ""
                say(f"{len(outcomes)} of {len(cases)} cases{left}", err=True)
        finally:
            write_table(outcomes, output / TABLE_FILE)
            write_page(outcomes, output / PAGE_FILE)
    say(f"Wrote {output / TABLE_FILE} and {output / PAGE_FILE}.")
    raise_for([outcome.problem for outcome in outcomes if outcome.problem], len(cases))


def _absolute(case: ListedCase) -> ListedCase:
    """The case for workers that were started in another folder."""
    roi = str(Path(case.roi).absolute()) if case.roi.lower().endswith(".json") else case.roi
    return ListedCase(case.name, tuple(image.absolute() for image in case.images), roi)


def _check_address(scheduler: str) -> None:
    """Raise UserError("cohort-no-scheduler") for an address that does not answer. Dask would try for a minute."""
    url = urlsplit(scheduler)
    try:
        if url.scheme not in ("tcp", "tls"):
            raise ValueError(url.scheme)
        socket.create_connection((url.hostname, url.port), _SECONDS_TO_CONNECT).close()
    except (OSError, TypeError, ValueError) as error:
        raise UserError("cohort-no-scheduler", address=scheduler) from error


@contextlib.contextmanager
def _client(jobs: int, scheduler: str) -> Iterator[Client]:
    """Connect to the workers of a scheduler, or start workers on this computer, which end with the connection."""
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise UserError("cohort-needs-package") from error
    # Silence Dask's messages about lost workers and connections, which we report ourselves. Some of its loggers set
    # their own levels.
    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "distributed"]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if scheduler:
        _check_address(scheduler)
        try:
            client = Client(scheduler, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UserError("cohort-no-scheduler", address=scheduler) from error
        with client:
            versions = {version for version in client.run(_version).values() if version != __version__}
            if versions:
                raise UserError("cohort-versions-differ", theirs=", ".join(sorted(versions)), ours=__version__)
            if not client.nthreads():
                say(f"No worker is connected to {scheduler} yet; waiting for one.", err=True)
            yield client
        return
    with (
        tempfile.TemporaryDirectory(prefix="conresnet-cohort-", ignore_cleanup_errors=True) as folder,
        dask.config.set({"distributed.scheduler.allowed-failures": _ALLOWED_DEATHS}),
        # Encrypted, because otherwise any user of this computer could run code in the workers. The engine handles lack
        # of memory itself, so Dask must not end its processes.
        LocalCluster(
            n_workers=jobs,
            threads_per_worker=1,
            memory_limit=None,
            security=True,
            local_directory=folder,
            silence_logs=logging.CRITICAL,
            dashboard_address="127.0.0.1:0" if _has_dashboard() else None,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        if _has_dashboard():
            say(f"Dashboard: {cluster.dashboard_link}", err=True)
        yield client


def _has_dashboard() -> bool:
    try:
        import bokeh  # noqa: F401
    except ImportError:
        return False
    return True


def _version() -> str:
    return __version__


def _segmented(client: Client, waiting: deque[Job]) -> Iterator[Outcome]:
    """Yield the outcomes as cases finish."""
    from distributed import as_completed
    from distributed.comm import CommClosedError

    running: dict[str, Job] = {}
    completed = as_completed(loop=client.loop)
    while waiting or running:
        try:
            places = max(1, sum(client.nthreads().values()))
        except CommClosedError as error:
            raise UserError("cohort-scheduler-lost") from error
        # No more cases than workers, because Dask blames a worker's death on every case that was assigned to it.
        while waiting and len(running) < places:
            job = waiting.popleft()
            future = client.submit(segment_case, job, key=f"{job.case.name}-{time.monotonic_ns()}", pure=False)
            running[future.key] = job
            completed.add(future)
        future = next(completed)
        yield _outcome(future, running.pop(future.key))


def _outcome(future: Future, job: Job) -> Outcome:
    from distributed import KilledWorker

    if future.status == "finished":
        return future.result()
    if future.status != "error":
        raise UserError("cohort-scheduler-lost")
    error = future.exception()
    if isinstance(error, KilledWorker):
        error = UserError("cohort-case-killed")
    return Outcome(job.case.name, FAILED, CaseProblem.of(job.case.name, error))


def segment_case(job: Job) -> Outcome:
    """Segment one case on a worker, unless its results are already complete."""
    name = job.case.name
    try:
        roi = roi_from_text(job.case.roi) if job.case.roi else None
        options = replace(job.options, roi=roi)
        if not job.overwrite and _is_complete(job, options):
            return _read_outcome(job, SKIPPED)
        options = replace(options, device=_device(options.device))
        model = _warm_model().get(read_model(job.model))
        result = segment_to_folder(model, job.case.images, options, job.folder, job.overwrite, job.inputs)
        with contextlib.suppress(UserError), replacing(_picture_file(job.output, name)) as path:
            path.write_bytes(result.picture())
        return _read_outcome(job, DONE)
    except Exception as error:
        return Outcome(name, FAILED, CaseProblem.of(name, error))


_warm: WarmModel | None = None


def _warm_model() -> WarmModel:
    """This worker's model, which stays loaded from case to case."""
    global _warm
    if _warm is None:
        from conresnet.inference.segmentation import WarmModel

        _warm = WarmModel()
    return _warm


def _device(name: str) -> str:
    """Give each worker on this computer its own GPU if there are several; these workers have numbers as names."""
    import torch
    from distributed import get_worker

    from conresnet.inference.devices import device_of_process

    worker = get_worker().name if torch.cuda.device_count() > 1 else None
    return device_of_process(name, worker) if isinstance(worker, int) else name


def _is_complete(job: Job, options: SegmentOptions) -> bool:
    """Whether the folder contains all results of this model for these images and options."""
    report = _read_report(job)
    description = read_model(job.model).description
    model, channels = report.get("model"), report.get("channels")
    wanted = set(result_files(options.maps, wanted_tables(options)))
    return (
        isinstance(model, dict)
        and (model.get("name"), model.get("version")) == (description.name, description.version)
        and isinstance(channels, dict)
        and {name: Path(str(path)).absolute() for name, path in channels.items()}
        == {item.name: path for item, path in zip(description.inputs, job.case.images, strict=False)}
        and report.get("options", {}) == options.of_labels()
        and wanted <= set(report.get("files", ()))
        and all((job.folder / name).is_file() for name in wanted)
    )


def _read_report(job: Job) -> dict[str, Any]:
    try:
        report = json.loads((job.folder / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def _read_outcome(job: Job, state: str) -> Outcome:
    report = _read_report(job)
    dice = _expected_dice(job.folder / REVIEW_FILE, sum(row["voxels"] for row in report["segments"]))
    seconds = report["seconds"].get("total")
    return Outcome(job.case.name, state, None, report["volumes_ml"], dice, seconds, tuple(report.get("warnings", ())))


def _expected_dice(review: Path, voxels: int) -> float | None:
    """Estimate the Dice of the whole case from its expected wrong voxels, assuming that half of them are missing."""
    with review.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "slice" and row["segment"] == ALL]
    wrong = [float(row["expected_wrong_voxels"]) for row in rows if row["expected_wrong_voxels"]]
    return max(0.0, 1 - sum(wrong) / (2 * voxels)) if wrong and voxels else None


def _tell(outcome: Outcome, output: Path) -> None:
    for warning in outcome.warnings if outcome.state == DONE else ():
        say(f"{outcome.name}: {' '.join(warning.split())}", err=True)
    if outcome.state == FAILED:
        say(f"{outcome.name}: {outcome.problem.sentence}", err=True)
        return
    volumes = ", ".join(f"{name} {volume:.2f} mL" for name, volume in outcome.volumes_ml.items())
    verb = "Wrote" if outcome.state == DONE else "Kept"
    say(f"{verb} {output / outcome.name}: {volumes}.")


def _picture_file(output: Path, name: str) -> Path:
    return output / PICTURES / f"{name}.png"


def write_table(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write one line per case: state, expected Dice, seconds, the volume of each segment, and the problem."""
    segments = list(dict.fromkeys(name for outcome in outcomes for name in outcome.volumes_ml or ()))
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["name", "state", "expected_dice", "seconds", *(csv_cell(f"{name} (mL)") for name in segments), "problem"]
        )
        for outcome in sorted(outcomes, key=lambda outcome: outcome.name):
            volumes = [(outcome.volumes_ml or {}).get(name) for name in segments]
            figures = [_rounded(outcome.expected_dice), _rounded(outcome.seconds), *map(_rounded, volumes)]
            writer.writerow(
                [
                    csv_cell(outcome.name),
                    outcome.state,
                    *figures,
                    csv_cell(outcome.problem.sentence if outcome.problem else ""),
                ]
            )


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


_PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Segmented cases</title>
<style>
body { font: 15px/1.4 system-ui, "Segoe UI", Arial, sans-serif; color: #222; margin: 2em; }
p.research { background: #fff4d6; padding: .4em .7em; border-radius: 4px; }
ul { list-style: none; padding: 0; display: grid; gap: 1em;
     grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); }
li { border: 1px solid #ddd; border-radius: 4px; padding: .6em; overflow-wrap: anywhere; }
li.failed { background: #fdecea; }
img { width: 100%; display: block; background: #000; }
h2 { font-size: 1em; margin: .3em 0; }
p { margin: .3em 0; }
</style>
</head>
<body>
<h1>Segmented cases</h1>
<p>$summary</p>
<p class="research">$research</p>
<ul>
$cards
</ul>
</body>
</html>
"""
)


def write_page(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a page of pictures: failures first, then the cases in order of their expected Dice, lowest first."""

    def place(outcome: Outcome) -> tuple:
        dice = outcome.expected_dice
        return outcome.state != FAILED, dice is None, dice or 0.0, outcome.name

    failed = sum(outcome.state == FAILED for outcome in outcomes)
    summary = (
        f"{len(outcomes) - failed} cases segmented, {failed} failed. Failures come first, then the cases with the "
        "lowest expected Dice, which is estimated from each case's review list and is not a measurement."
    )
    cards = "\n".join(_card(outcome, path.parent) for outcome in sorted(outcomes, key=place))
    with replacing(path) as temporary:
        page = _PAGE.substitute(summary=summary, research=RESEARCH_ONLY, cards=cards)
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


def _card(outcome: Outcome, folder: Path) -> str:
    name = escape(outcome.name)
    if outcome.state == FAILED:
        return f'<li class="failed"><h2>{name}</h2><p>{escape(outcome.problem.sentence)}</p></li>'
    picture = _picture_file(folder, outcome.name)
    source = quote(picture.relative_to(folder).as_posix())
    image = f'<img src="{source}" alt="Slices of {name}" loading="lazy">' if picture.is_file() else ""
    dice = "" if outcome.expected_dice is None else f"<p>Expected Dice {outcome.expected_dice:.2f}</p>"
    volumes = ", ".join(f"{segment} {volume:.2f} mL" for segment, volume in outcome.volumes_ml.items())
    warnings = "".join(f"<p>{escape(' '.join(text.split()))}</p>" for text in outcome.warnings)
    return f"<li>{image}<h2>{name}</h2>{dice}<p>{escape(volumes)}</p>{warnings}</li>"
