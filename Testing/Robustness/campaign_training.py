"""Damaged data sets, plans and runs given to the training commands, and ``train`` killed at any point."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import robustness
import torch
import yaml
from mutations import NUMBERS, damaged_bytes, damaged_lines
from robustness import Outcome, Trial, campaign

from conresnet_training.runs import FOLD_FILE, PLAN_FILE, PROGRESS_FILE, can_begin_in, read_progress
from conresnet_training.runs.run import PREPARED_FOLDER
from training.broken_runs import assert_same, curve
from training.data_folders import decathlon
from training.tiny_plan import write_tiny_plan

STEPS = 4
# Limit of the address space, because a damaged window or batch size could otherwise use up all memory.
MEMORY = 12 * 2**30
PRELOADED = (
    "conresnet_training.training.trainer",
    "conresnet_training.cli",
    "conresnet_training.evaluation.report",
)
ODD = (
    *(None, True, -1, 0, 1, 3, 255, 256, 2**31, 2**63, -(2**63), 10**30, 1e308, -0.5, float("nan"), float("inf")),
    *("", "x", "x" * 3000, "\x1b[2J", "\ud800", "ö/..\\", "../..", "/", "1e400", [], {}, [[]], [None], {"a": 1}),
    *([1] * 300, [0, 0, 0]),
)


def trial(*command: object, **settings: Any) -> Trial:
    """A trial of a command of the training backend."""
    settings = {"seconds": 1800.0, "memory": MEMORY, "preload": PRELOADED, **settings}
    return Trial(("conresnet_training", *command), **settings)


@functools.cache
def template() -> Path:
    """A folder with a data set, its plan, a run of two of four steps, and the same run finished."""
    folder = Path(tempfile.mkdtemp(prefix="robustness-training-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    decathlon(folder / "set", cases=4)
    settings = (f"training.steps={STEPS}", "training.steps_between_checkpoints=2", "training.weight_average=0.9")
    write_tiny_plan(folder / "set", folder / "plan.yaml", *settings, "training.batch=1")
    move_plan(folder / "plan.yaml", folder / "set")
    for name, options in (("run", ("--max-steps", 2)), ("finished", ())):
        outcome = robustness.run(trial("train", folder / "plan.yaml", "--output", folder / name, *options), folder)
        assert outcome.status == 0, outcome.err
        (folder / "seconds").write_text(str(outcome.seconds), encoding="utf-8")
        move_plan(folder / name / PLAN_FILE, Path("../set"))
    return folder


def move_plan(path: Path, data: Path) -> None:
    """Replace the data set's path in a plan by one relative to the plan, so that both can be copied."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["data"] = data.name if data.is_absolute() else str(data)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def copied(folder: Path, *names: str) -> None:
    """Copy files or folders of the template into a trial's folder."""
    for name in names:
        source = template() / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)


def digest(path: Path) -> str:
    """Checksum of a file, or of the names and contents of all files in a folder."""
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            found.update(f"{file.relative_to(path)}\n".encode(errors="surrogateescape") + file.read_bytes())
    return found.hexdigest()


def unchanged(*paths: Path) -> Callable[[], list[str]]:
    """Return a function that lists the files or folders that were changed or removed since this call."""
    before = {path: digest(path) for path in paths if path.exists()}
    return lambda: [f"{path.name} was changed" for path in before if not path.exists() or digest(path) != before[path]]


def damaged_document(content: Any, random: random.Random) -> Any:
    """JSON or YAML content with one to three values replaced, removed, added or duplicated."""
    content = json.loads(json.dumps(content))
    for _ in range(random.choice((1, 1, 2, 3))):
        parents = list(_containers(content))
        if not parents:
            break
        parent = random.choice(parents)
        key = random.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        match random.randrange(6):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[random.choice(("extra", "", "0", "name", str(key).upper()))] = random.choice(ODD)
            case 1 | 2 if isinstance(parent, list):
                parent.append(parent[key])
            case 3:
                parent[key] = random.choice(NUMBERS)
            case _:
                parent[key] = random.choice(ODD)
    return content


def _containers(content: Any):
    if isinstance(content, dict | list) and content:
        yield content
        for item in content.values() if isinstance(content, dict) else content:
            yield from _containers(item)


def damage(path: Path, random: random.Random) -> None:
    """Damage the lines or bytes of a file, or its values if it is YAML or JSON."""
    data = path.read_bytes()
    is_yaml = path.suffix == ".yaml"
    if path.suffix in (".yaml", ".json") and random.random() < 0.6:
        content = damaged_document(yaml.safe_load(data) if is_yaml else json.loads(data), random)
        text = yaml.safe_dump(content, sort_keys=False) if is_yaml else json.dumps(content)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
    elif path.suffix in (".yaml", ".json", ".jsonl", ".txt") and random.random() < 0.6:
        path.write_text(damaged_lines(data.decode(), random), encoding="utf-8", errors="surrogateescape")
    else:
        path.write_bytes(damaged_bytes(data, random))


@campaign("plans", full=60)
def plans(random: random.Random, folder: Path) -> Trial:
    """A damaged plan, run or data set, and a command that reads it."""
    return random.choice((_damaged_plan, _damaged_plan, _odd_setting, _damaged_run, _damaged_run, _damaged_set))(
        random, folder
    )


def _damaged_plan(random: random.Random, folder: Path) -> Trial:
    copied(folder, "set", "plan.yaml")
    damage(folder / "plan.yaml", random)
    return _begin(folder, ())


def _odd_setting(random: random.Random, folder: Path) -> Trial:
    copied(folder, "set", "plan.yaml")
    keys, place = [], yaml.safe_load((folder / "plan.yaml").read_text(encoding="utf-8"))
    while isinstance(place, dict | list) and place and (len(keys) < 2 or random.random() < 0.8):
        keys.append(random.choice(list(place) if isinstance(place, dict) else range(len(place))))
        place = place[keys[-1]]
    value = random.choice((*NUMBERS, *map(repr, ODD))).replace("\x00", "").encode("utf-8", "replace").decode()
    return _begin(folder, ("--set", f"{'.'.join(map(str, keys))}={value}"))


def _begin(folder: Path, settings: tuple[str, ...]) -> Trial:
    same, run = unchanged(folder / "set", folder / "plan.yaml"), folder / "new"

    def check(outcome: Outcome) -> list[str]:
        found = same()
        if outcome.status == 2 and not can_begin_in(run) and not list(run.glob("checkpoints/*.ckpt")):
            found.append("the refused run leaves a folder that cannot be used")
        if outcome.status == 0 and not (run / "checkpoints" / "last.ckpt").is_file():
            found.append("nothing was trained")
        return found

    return trial("train", folder / "plan.yaml", "--output", run, "--max-steps", 1, *settings, check=check)


def _damaged_run(random: random.Random, folder: Path) -> Trial:
    name = random.choice(("run", "finished"))
    copied(folder, "set", name)
    run = folder / name
    shutil.copy(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt")
    files = [PLAN_FILE, FOLD_FILE, "split.json", PROGRESS_FILE, "running.json", "checkpoints/last.ckpt"]
    files += ["checkpoints/best.ckpt", "stop", *(f"{PREPARED_FOLDER}/{file.name}" for file in run.glob("prepared/*"))]
    damaged = {run / random.choice(files) for _ in range(random.choice((1, 1, 2)))}
    for path in damaged:
        path.parent.mkdir(exist_ok=True)
        match random.randrange(6) if path.exists() else 4 + random.randrange(2):
            case 0 | 1 | 2 if path.suffix == ".npy":
                # Their contents are not checked again, only that they are complete.
                path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size)])
            case 0 | 1 | 2:
                damage(path, random)
            case 3:
                path.unlink()
            case 4:
                path.unlink(missing_ok=True)
                path.mkdir()
            case _:
                path.write_bytes(random.choice((b"", b"{}", b"[]", b"null", b"\xff\xfe", b"0", random.randbytes(400))))
    output = folder / "output"
    command = random.choice((("resume",), ("resume",), ("evaluate",), ("export", "--output", output), ("stop",)))
    kept = [path for path in run.glob("checkpoints/*.ckpt") if path.is_file()]
    same = unchanged(folder / "set", *([] if command == ("resume",) else kept), *damaged - {run / "stop"})

    def check(outcome: Outcome) -> list[str]:
        if command == ("resume",):
            # It replaces files that it can restore, and reports this.
            found = [f"{path.name} was lost" for path in kept if not path.exists()]
            return found if outcome.status == 2 or (run / "checkpoints" / "last.ckpt").is_file() else ["no checkpoint"]
        found = same() if command != ("stop",) else []
        if command[0] == "export" and (outcome.status == 0) != (output / "model.json").is_file():
            found.append(f"status {outcome.status}, and a package: {output.exists()}")
        return found

    return trial(command[0], run, *command[1:], check=check)


def _damaged_set(random: random.Random, folder: Path) -> Trial:
    copied(folder, "set")
    data = folder / "set"
    if random.random() < 0.3:
        (data / "dataset.json").unlink()
        description = {
            "name": "Boxes",
            "label_maps": "labelsTr/*.nii.gz",
            "segments": {"Left near": [1], "Right far": [2]},
            **{"surroundings": [7], "inside": [], "alike": [[1, 2]], "contrasts": {"T1": {"1": [0.5, 0.1]}}},
            "images": [{"image": "imagesTr/case_0.nii.gz", "label": "labelsTr/case_0.nii.gz"}],
        }
        (data / "label_maps.json").write_text(json.dumps(description), encoding="utf-8")
    if random.random() < 0.3:
        names = [f"case_{number}" for number in range(4)]
        folds = [{"train": names[2:], "val": names[:2]}, {"train": names[:2], "val": names[2:]}]
        (data / "splits_final.json").write_text(json.dumps(folds), encoding="utf-8")
    damage(random.choice(sorted(data.glob("*.json"))), random)
    for file in random.sample(sorted(data.rglob("*.nii.gz")), random.choice((0, 0, 1, 2))):
        file.write_bytes(damaged_bytes(file.read_bytes(), random)) if random.random() < 0.6 else file.unlink()
    same, output = unchanged(data), folder / "output"

    def check(outcome: Outcome) -> list[str]:
        is_made = (output / "check.html").is_file() if command == "check" else output.is_file()
        return same() + ([] if is_made or outcome.status == 2 else ["nothing was written"])

    command = random.choice(("check", "plan"))
    return trial(command, data, "--output", output, check=check)


@campaign("kills", full=30)
def kills(random: random.Random, folder: Path) -> Trial:
    """``train`` and then ``resume`` killed at any point; the run must end like one that was never killed."""
    copied(folder, "set", "plan.yaml")
    run, whole = folder / "run ü", float((template() / "seconds").read_text(encoding="utf-8"))
    train = ("train", folder / "plan.yaml", "--output", run)

    def check(outcome: Outcome) -> list[str]:
        outcomes = [outcome]
        for kill_after in (whole * random.random(), None):
            has_started = not can_begin_in(run)
            next_one = ("resume", run) if has_started else train
            outcomes.append(robustness.run(trial(*next_one, kill_after=kill_after), folder))
        if outcomes[-1].status != 0:
            return [f"statuses {[one.status for one in outcomes]}: {outcomes[-1].lines[-1:]}"]
        return differences(run)

    return trial(*train, check=check, kill_after=whole * random.random())


def differences(run: Path) -> list[str]:
    """Differences between a run and one that was never killed."""
    found, whole = [], template() / "finished"
    for name in ("last", "best"):
        both = [torch.load(one / "checkpoints" / f"{name}.ckpt", weights_only=True) for one in (run, whole)]
        try:
            assert_same(*both)
        except AssertionError as error:
            found.append(f"{name}.ckpt differs in {error}")
    if curve(run) != curve(whole) or read_progress(run / PROGRESS_FILE).state != "finished":
        found.append("the curves differ")
    ours = {path.name for path in whole.iterdir()}
    left = [path.name for path in run.iterdir() if path.name not in ours] + [path.name for path in run.rglob(".part-*")]
    return found + [f"left behind: {name}" for name in left]
