"""Segment many cases: ``segment --cases LIST`` one by one, with ``--jobs N`` or ``--scheduler URL`` several at once.

The model stays loaded from case to case. Cases with complete results are not computed again. Dask schedules cases that
are segmented at once, one per worker process here or on a cluster. A case whose worker dies is tried once more
elsewhere; if that worker dies too, the case is reported as failed, and the others continue.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conresnet import __version__
from conresnet.cli import say
from conresnet.cli.cases import (
    DONE,
    FAILED,
    NOT_DONE,
    PICTURES,
    SKIPPED,
    CaseProblem,
    ListedCase,
    Outcome,
    check_summary_replaceable,
    duration,
    picture_file,
    raise_for,
    result_text,
    segment_to_folder,
    shown_progress,
    write_summary,
)
from conresnet.cli.workers import (
    Workers,
    connected,
    device_of_worker,
    in_one_piece,
    is_same_model,
    numbered_by_computer,
    signals_later,
)
from conresnet.errors import UserError
from conresnet.files import OwnedFolder, make_folder, write_error
from conresnet.images.files import check_existence
from conresnet.images.inputs import roi_from_text
from conresnet.package.store import digest_with_locator, read_model
from conresnet.request import SegmentOptions
from conresnet.results import PREFIX, REPORT_FILE, REVIEW_FILE, image_state, result_files, undo_killed_runs
from conresnet.results.review import ALL, read_ranking

if TYPE_CHECKING:
    from distributed import Future

    from conresnet.inference.segmentation import WarmModel
    from conresnet.package import ModelDescription
    from conresnet.package.reader import ModelPackage
    from conresnet.request import Progress

# A worker may have several threads, but a network can process only one case at a time.
_one_at_a_time = threading.RLock()
_IN_WORDS = {1: "one", 2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Job:
    """One case for a worker.

    Args:
        model: path of the package.
        output: folder of all cases; the results of this one go to ``output / case.name``.
        inputs: images that the results must not replace.
        had_results: whether the case had results before any worker started it.
        workers: number of each worker on its computer, by address.
        version, digest: the version of ConResNet and the `digest_with_locator` of the model where the command runs.
    """

    case: ListedCase
    model: Path
    options: SegmentOptions
    output: Path
    overwrite: bool
    inputs: tuple[Path, ...]
    had_results: bool = True
    workers: Mapping[str, int] = field(default_factory=dict)
    version: str = __version__
    digest: str = ""

    @property
    def folder(self) -> Path:
        return self.output / self.case.name


def segment_cohort(
    cases: Sequence[ListedCase],
    package: ModelPackage,
    options: SegmentOptions,
    output: Path,
    *,
    case_list: Path,
    overwrite: bool,
    jobs: int,
    scheduler: str,
) -> None:
    """Segment cases, and write ``cohort.csv`` and ``cohort.html`` to ``output``.

    Args:
        package: the model; on the computers of a scheduler, it must be at the same path.
        case_list: the list that the cases were read from, which must not be replaced.
        jobs: number of processes on this computer; 0 to segment one case after another in this process.
        scheduler: address of a running Dask scheduler, to use its workers instead.

    Raises:
        UserError: as ``check_summary_replaceable``; one whose code begins with ``cohort-``, when finished cases are
            kept; ``cases-failed`` at the end.
    """
    check_summary_replaceable(output, case_list)
    if options.review and (note := read_ranking(package).note):
        # Once, because it is the same for every case.
        say(note, err=True)
    jobs = min(jobs, len(cases))
    threads = options.threads or (max(1, (os.cpu_count() or 1) // jobs) if jobs else None)
    options = replace(options, threads=threads)
    cases = [_absolute(case) for case in cases]
    # A case's results could only replace images in its own folder, to which links may also lead.
    endangered: defaultdict[str, list[Path]] = defaultdict(list)
    for image in (image for case in cases for image in case.images):
        endangered[os.path.dirname(os.path.realpath(image))].append(image)
    model, folder, waiting = package.path.absolute(), output.absolute(), deque()
    digest = digest_with_locator(package)
    for case in cases:
        inputs = (*case.images, *endangered.get(os.path.realpath(folder / case.name), ()))
        waiting.append(Job(case, model, options, folder, overwrite, inputs, digest=digest))
    folders = [output / PICTURES, *(job.folder for job in waiting)]
    outcomes: list[Outcome] = []

    def summarize() -> None:
        # Before the first case has finished, the summary of an earlier run is still the best there is.
        if outcomes:
            done = {outcome.name for outcome in outcomes}
            rest = [Outcome(case.name, NOT_DONE) for case in cases if case.name not in done]
            say(write_summary([*outcomes, *rest], output))

    def report(finished: Iterator[Outcome]) -> None:
        began = time.monotonic()
        for outcome in finished:
            outcomes.append(outcome)
            _print_outcome(outcome, output)
            say(progress_line(outcomes, len(cases), time.monotonic() - began), err=True)

    try:
        with contextlib.ExitStack() as stack:
            place = stack.enter_context(_filled(folders))
            try:
                if not scheduler:
                    report(_without_model(waiting))
                if waiting and (jobs or scheduler):
                    client = stack.enter_context(connected(min(jobs, len(waiting)), scheduler))
                    # Python ignores exceptions in destructors, so a Ctrl-C in that of a Dask object would be lost.
                    check = stack.enter_context(signals_later())
                    report(_segmented(Workers(client, scheduler, model, digest, place, check), waiting))
                elif waiting:
                    report(_segmented_here(waiting, _load_model(package, options)))
            finally:
                in_one_piece(summarize)
    except KeyboardInterrupt:
        segmented = sum(outcome.state in (DONE, SKIPPED) for outcome in outcomes)
        how = "repeat the command without --overwrite" if overwrite else "repeat the command"
        rest = f"Segmented {segmented} of {len(cases)} cases. To continue, {how}."
        say(f"All {len(cases)} cases are segmented." if segmented == len(cases) else rest, err=True)
        raise
    raise_for([outcome.problem for outcome in outcomes if outcome.problem], len(cases))


def progress_line(outcomes: Sequence[Outcome], cases: int, seconds: float) -> str:
    """Text with the number of finished cases and the time remaining for the others.

    Args:
        seconds: since the first of the segmented cases was started. Only these count: others take almost no time.
    """
    segmented = sum(outcome.state == DONE for outcome in outcomes)
    rest = cases - len(outcomes)
    left = f", about {duration(max(1, seconds * rest / segmented))} left" if rest and segmented else ""
    return f"{len(outcomes)} of {cases} cases{left}"


@contextlib.contextmanager
def _filled(folders: Sequence[Path]) -> Iterator[Path]:
    """Create the first of the folders before any work, so that an unwritable path is reported immediately.
    At the end, remove leftovers of killed workers from the folders, and new folders that are empty.

    Yields a new folder in the first one, which only computers that share these folders can see.
    """
    folders = [folder.absolute() for folder in folders]
    made = [path for path in (*folders, *folders[0].parents) if not path.exists()]
    try:
        try:
            make_folder(folders[0])
            owned = OwnedFolder.make(PREFIX, folders[0], needs_lock=False)
        except OSError as error:
            raise write_error(error, folders[0]) from error
    except UserError as error:
        # The user knows the folder, not the hidden one inside it.
        raise error.naming(str(folders[0]), str(folders[0].parent)) from error
    try:
        yield owned.path
    finally:
        owned.remove()
        for folder in folders:
            with contextlib.suppress(UserError):
                undo_killed_runs(folder)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()  # only while it is empty


def _absolute(case: ListedCase) -> ListedCase:
    """The case for workers that were started in another folder."""
    roi = str(Path(case.roi).absolute()) if case.roi.lower().endswith(".json") else case.roi
    return ListedCase(case.name, tuple(image.absolute() for image in case.images), roi)


def _without_model(waiting: deque[Job]) -> Iterator[Outcome]:
    """Take the cases that need no model from the list, and yield their outcomes: those that are already segmented, and
    those that cannot be segmented for a reason that is quick to find.
    """
    for _ in range(len(waiting)):
        job = waiting.popleft()
        try:
            if _examined(job)[-1]:
                yield _read_outcome(job, SKIPPED)
                continue
            check_existence(job.case.images)
        except Exception as error:
            yield Outcome(job.case.name, FAILED, CaseProblem.of(job.case.name, error))
        else:
            waiting.append(job)


def _load_model(package: ModelPackage, options: SegmentOptions) -> float:
    """Load the model, and return the seconds taken."""
    from conresnet.inference.devices import choose_backend

    began = time.monotonic()
    # If the device or the model cannot be used, this is one error instead of one per case.
    choose_backend(options.device, options.precision)
    _warm_model().get(package)
    return time.monotonic() - began


def _segmented_here(waiting: deque[Job], loading: float) -> Iterator[Outcome]:
    """Segment the cases one after another in this process, and yield their outcomes.

    Args:
        loading: seconds taken to load the model, which only the first report counts.
    """
    for job in waiting:
        with shown_progress() as progress:
            outcome = segment_case(job, progress, loading)
        loading = 0.0
        yield outcome


def _segmented(workers: Workers, waiting: deque[Job]) -> Iterator[Outcome]:
    running: dict[str, Job] = {}
    while waiting or running:
        addresses = workers.addresses()
        numbers = numbered_by_computer(addresses)
        # No more cases than workers, because Dask blames a worker's death on every case that was assigned to it.
        while waiting and len(running) < len(addresses):
            job = waiting.popleft()
            job = replace(job, had_results=(job.folder / REPORT_FILE).exists(), workers=numbers)
            running[workers.submit(segment_case, job, f"{job.case.name}-{time.monotonic_ns()}")] = job
        if (future := workers.wait_for_any()) is not None:
            yield _outcome(future, running.pop(future.key))


def _outcome(future: Future, job: Job) -> Outcome:
    from distributed import KilledWorker

    if future.status not in ("finished", "error"):
        raise UserError("cohort-scheduler-lost")
    try:
        outcome, images = future.result(), job.case.images
        if not (outcome.problem and outcome.problem.code == "image-not-found" and all(map(Path.exists, images))):
            return outcome
        reason = UserError("cohort-image-elsewhere", path=", ".join(map(str, images)))
    except KilledWorker as error:
        deaths = error.allowed_failures + 1
        reason = UserError("cohort-case-killed", count=_IN_WORDS.get(deaths, deaths))
    except Exception as error:
        reason = error
    return Outcome(job.case.name, FAILED, CaseProblem.of(job.case.name, reason))


def segment_case(job: Job, progress: Progress | None = None, loading: float = 0.0) -> Outcome:
    """Segment one case, unless its results are already complete. Workers call this.

    Args:
        loading: seconds taken to load the model, for the report.
    """
    name = job.case.name
    try:
        package, options, has_results = _examined(job)
        if has_results:
            if job.had_results:
                return _read_outcome(job, SKIPPED)
            # Its worker was killed before it could report the case.
            job = replace(job, overwrite=True)
        # The page is sorted by the expected Dice, which comes from the review list.
        made = replace(options, device=device_of_worker(options.device, job.workers), review=True)
        try:
            with _one_at_a_time:
                model = _warm_model().get(package)
                how = job.folder, job.overwrite, job.inputs, progress, loading, picture_file(job.output, name)
                segment_to_folder(model, job.case.images, made, *how)
        except UserError as error:
            # Another command with the same list has segmented it in the meantime, or a run that was killed while it
            # replaced results was undone.
            if error.code != "results-exist" or not _has_results(job, options, package.description):
                raise
            return _read_outcome(job, SKIPPED)
        return _read_outcome(job, DONE)
    except Exception as error:
        return Outcome(name, FAILED, CaseProblem.of(name, error))


def _examined(job: Job) -> tuple[ModelPackage, SegmentOptions, bool]:
    """The model and the options of a case, and whether its results are complete and are to be kept.

    Raises UserError for a wrong ROI, as ``_has_results``, or if this is not the version or the model of the command.
    """
    options = replace(job.options, roi=roi_from_text(job.case.roi) if job.case.roi else None)
    package = read_model(job.model, verify=False)
    if job.version != __version__:
        raise UserError("cohort-versions-differ", theirs=__version__, ours=job.version)
    if job.digest and not is_same_model(digest_with_locator(package), job.digest):
        raise UserError("model-changed", model=package.description.title)
    return package, options, not job.overwrite and _has_results(job, options, package.description)


@functools.cache
def _warm_model() -> WarmModel:
    """This worker's model, which stays loaded from case to case."""
    from conresnet.inference.segmentation import WarmModel

    return WarmModel()


def _has_results(job: Job, options: SegmentOptions, description: ModelDescription) -> bool:
    """Whether there are results whose report says what they were made from, as those of version 0.1 do not.

    Raises UserError "results-differ" or "results-out-of-date" if they do not match the request.
    """
    report = _read_report(job)
    kinds = {"model": dict, "channels": dict, "options": dict, "files": list, "sources": dict}
    if not all(isinstance(report.get(name), kind) for name, kind in kinds.items()):
        return False
    if differences := _differences(job, report, options, description):
        raise UserError("results-differ", path=str(job.folder), differences=", ".join(differences))
    if changed := _changed_sources(job, report["sources"], description):
        raise UserError("results-out-of-date", path=str(job.folder), changed=" and ".join(changed))
    return True


def _differences(
    job: Job, report: Mapping[str, Any], options: SegmentOptions, description: ModelDescription
) -> list[str]:
    """How the results in the folder differ from those of this model, these images (by name) and these options."""
    model, paths = report["model"], report["channels"].items()
    images = {item.name: path for item, path in zip(description.inputs, job.case.images, strict=False)}
    found = []
    if (model.get("name"), model.get("version")) != (description.name, description.version):
        found.append(f"made with the model {model.get('name')} {model.get('version')}")
    if {name: Path(str(path)).absolute() for name, path in paths} != images:
        found.append("made from other images")
    before, now = report["options"], options.of_labels()
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    # A list of cases has ROIs in a column instead of an option.
    found += ["the ROI differs" if name == "roi" else f"--{name.replace('_', '-')} differs" for name in changed]
    return found + [
        f"without {name}"
        for name in result_files(options)
        if name not in report["files"] or not (job.folder / name).is_file()
    ]


def _changed_sources(job: Job, sources: Mapping[str, Any], description: ModelDescription) -> list[str]:
    """The models and the images that are no longer what the results in the folder were made from.

    An image or a locator that was deleted since then does not count, so that results outlive it.
    """
    changed = [] if sources.get("model") == description.digest else [f"the model {description.name}"]
    if description.locator and "locator" in sources:
        with contextlib.suppress(UserError):
            locator = read_model(description.locator.model, verify=False).description
            changed += [] if sources["locator"] == locator.digest else [f"the model {locator.name}"]
    known, images = sources.get("images"), job.case.images
    before = known if isinstance(known, list) and len(known) == len(images) else [""] * len(images)
    return changed + [
        str(image) for image, old in zip(images, before, strict=True) if image_state(image) not in ("", old)
    ]


def _read_report(job: Job) -> dict[str, Any]:
    try:
        report = json.loads((job.folder / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def _read_outcome(job: Job, state: str) -> Outcome:
    report = _read_report(job)
    review, dice = job.folder / REVIEW_FILE, None
    # Cases that were segmented one by one may have none.
    if REVIEW_FILE in report["files"] and review.is_file():
        dice = _expected_dice(review, sum(row["voxels"] for row in report["segments"]))
    seconds = report["seconds"].get("total")
    return Outcome(job.case.name, state, None, report["volumes_ml"], dice, seconds, tuple(report.get("warnings", ())))


def _expected_dice(review: Path, voxels: int) -> float | None:
    """Estimate the Dice of the whole case from its expected wrong voxels, assuming that half of them are missing."""
    with review.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "slice" and row["segment"] == ALL]
    wrong = [float(row["expected_wrong_voxels"]) for row in rows if row["expected_wrong_voxels"]]
    return max(0.0, 1 - sum(wrong) / (2 * voxels)) if wrong and voxels else None


def _print_outcome(outcome: Outcome, output: Path) -> None:
    for warning in outcome.warnings if outcome.state == DONE else ():
        say(f"{outcome.name}: {' '.join(warning.split())}", err=True)
    if outcome.state == FAILED:
        say(f"{outcome.name}: {outcome.problem.sentence}", err=True)
        return
    say(result_text("Wrote" if outcome.state == DONE else "Kept", output / outcome.name, outcome.volumes_ml))
