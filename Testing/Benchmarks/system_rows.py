"""The rows of ``compare_systems.py``: plans that differ from a given one only in the system, and their runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peer_networks import PEERS, with_peer

from conresnet.errors import UserError
from conresnet.networks import all_arguments, declared_network, network_class
from conresnet.package import AXES, PLANES
from conresnet.package.outputs import Segment
from conresnet.systems import System, declared_system
from conresnet_training.data import DataSet
from conresnet_training.planning.plan import Plan, with_settings
from conresnet_training.planning.planner import labeled_masks
from conresnet_training.planning.systems import SYSTEMS, Frame, cataloged
from conresnet_training.reporting import segment_color
from conresnet_training.runs import PROGRESS_FILE, Progress, read_progress
from conresnet_training.runs.run import PLAN_FILE, Run, open_run, start_run
from conresnet_training.training import steps_of_run

CONRESNET, BASELINE = "conresnet", "conresnet-baseline"
PEER_TITLES = {"dynunet": "DynUNet (MONAI)", "segresnet": "SegResNet (MONAI)", "basicunet": "BasicUNet (MONAI)"}
SIZES = "Table VII"
# The tables of ConResNet's paper: subject, and systems of the catalog shown in addition to the table's own rows.
STUDY = {
    "Table I": ("one network and an ensemble", (CONRESNET,)),
    "Table III": ("residual mapping and attention mapping", (BASELINE, CONRESNET)),
    "Table IV": ("axial, sagittal and coronal residuals", (BASELINE, CONRESNET)),
    "Table V": ("regions and labels", (BASELINE, CONRESNET)),
    "Table VI": ("boundary loss", (BASELINE, CONRESNET)),
    "Fig. 8": ("lambda, the weight of deep supervision", (CONRESNET,)),
    SIZES: ("parameters and multiply-adds", (BASELINE, CONRESNET)),
}
LAMBDAS = (0.0, 0.1, 0.5, 1.0)
"""Values that the paper tried (V-B)."""

ENSEMBLE = 3
"""Number of networks in the ensemble of Table I (IV-C)."""

GROUPS = ("systems", "peers", "study")
_ARGUMENTS = "model.system.networks.0.arguments"


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Args:
        title: text in tables and plots.
        plans: by the folder names of its runs; several runs form an ensemble.
        group: one of ``GROUPS``.
        table: for rows of the study, the key in ``STUDY`` that the row belongs to.
    """

    name: str
    title: str
    plans: dict[str, Plan]
    group: str
    table: str = ""

    @property
    def plan(self) -> Plan:
        """Plan of the first run."""
        return next(iter(self.plans.values()))

    @property
    def is_for_whole_images(self) -> bool:
        """Whether its system is made for large images, so that crops say little about it."""
        return self.name in ("coarse-to-fine", "pyramid")

    def is_in(self, table: str) -> bool:
        """Whether the row belongs to a table of the study."""
        return self.table == table or self.name in STUDY[table][1]


def all_rows(plan: Plan, data_set: DataSet) -> dict[str, Row]:
    """All rows that ``plan`` allows, by name: the catalog's systems, the peers, and ConResNet's study."""
    rows = [Row(name, item.title, {name: _changed(plan, name, data_set)}, "systems") for name, item in SYSTEMS.items()]
    rows += [Row(name, PEER_TITLES[name], {name: with_peer(plan, name)}, "peers") for name in PEERS]
    rows += _study(plan, data_set)
    return {row.name: row for row in rows}


def _changed(plan: Plan, name: str, data_set: DataSet) -> Plan:
    changed = change_system(plan, name)
    arguments = SYSTEMS[name].kind.plan_arguments(lambda: labeled_masks(data_set, plan.targets)).values
    return with_settings(changed, [f"model.system.arguments.{key}={value}" for key, value in arguments.items()])


def change_system(plan: Plan, name: str) -> Plan:
    """The same plan for another system: the same data, targets, steps and augmentation.

    The window keeps its voxels, the networks their base width. What the plan says of the images is changed only by a
    system that sees them differently.

    Args:
        plan: of a system that takes the images as the data alone decide, such as ConResNet.
        name: a key of ``conresnet_training.planning.systems.SYSTEMS``.

    Raises:
        UserError: ``plan-system-unknown``; ``system-unchangeable`` where the plan's own system has changed what is said
            of the images; ``spacing-unknown``, see ``conresnet.networks.pyramid.Pyramid.plan_images``.
    """
    entry = cataloged(name)
    model = plan.document()["model"]
    system = model["system"]
    first = system["networks"][0]
    has_changed = declared_system(system["type"]).plan_images.__func__ is not System.plan_images.__func__
    if has_changed or any(item["copies"] for item in model["inputs"]) or _changes_images(first):
        sentence = f"The plan {model['title']} prepares the images for its own system; change a plan of ConResNet."
        raise UserError("system-unchangeable", sentence)
    arguments = all_arguments(first["type"], first["arguments"])
    entry.prepare(model)
    axis = arguments.get("residual_axis", "S")
    frame = Frame.of(model, arguments.get("base_width", 32), axis, plan.training.batch)
    model["system"] = entry.describe(entry.build(frame), entry.kind.plan_arguments(None).values)
    return type(plan).model_validate({**plan.document(), "model": model})


def _changes_images(network: Mapping[str, Any]) -> bool:
    """Whether a network, or the one that it wraps, changes what a plan says of the images."""
    wraps = declared_network(network["type"]).wraps
    if wraps:
        return _changes_images(network["arguments"][wraps])
    return hasattr(network_class(network["type"]), "plan_images")


def chosen_rows(rows: dict[str, Row], wanted: str) -> list[Row]:
    """The rows named in a list such as "conresnet,peers" of rows and ``GROUPS``. The study includes its references.

    Raises:
        UserError: ``row-unknown``.
    """
    names = [name.strip() for name in wanted.split(",")]
    for name in names:
        if name not in rows and name not in GROUPS:
            sentence = f"Unknown row {name}; choose from {', '.join((*GROUPS, *rows))}."
            raise UserError("row-unknown", sentence, row=name)
    if "study" in names:
        names += [CONRESNET, BASELINE]
    return [row for row in rows.values() if row.name in names or row.group in names]


def _study(plan: Plan, data_set: DataSet) -> Iterator[Row]:
    """The rows of ConResNet's paper, except ConResNet and its baseline."""
    plans = {base: change_system(plan, base) for base in (CONRESNET, BASELINE)}
    ours = plans[CONRESNET]
    training, description = ours.training, ours.model

    def row(table: str, what: str, changed: Plan, base: str = CONRESNET) -> Row:
        name = f"{base}-{what.replace(' ', '-')}"
        return Row(name, f"{SYSTEMS[base].title}, {what}", {name: changed}, "study", table)

    def option(table: str, what: str, setting: str, base: str = CONRESNET) -> Row:
        return row(table, what, with_settings(plans[base], [setting]), base)

    yield option("Table III", "mapping alone", f"{_ARGUMENTS}.attention_mapping=false")
    own = description.system.networks[0].arguments["residual_axis"]
    for axis, letter in zip(AXES, description.preparation.orientation, strict=True):
        if axis != own:
            yield option("Table IV", PLANES[letter], f"{_ARGUMENTS}.residual_axis={axis}")
    other = of_other_kind(plan, data_set)
    for base in plans:
        yield row("Table V", other.model.output.kind, change_system(other, base), base)
    for base in plans:
        yield option("Table VI", "boundary loss", "training.boundary=true", base)
    for weight in LAMBDAS:
        if weight != training.deep_supervision:
            yield option("Fig. 8", f"lambda {weight:g}", f"training.deep_supervision={weight}")
    further = [training.seed + place for place in range(1, ENSEMBLE)]
    members = {f"{CONRESNET}-seed-{seed}": with_settings(ours, [f"training.seed={seed}"]) for seed in further}
    title = f"{SYSTEMS[CONRESNET].title}, ensemble of {ENSEMBLE}"
    yield Row(f"{CONRESNET}-ensemble", title, {CONRESNET: ours, **members}, "study", "Table I")


def of_other_kind(plan: Plan, data_set: DataSet) -> Plan:
    """The plan with one sigmoid per segment instead of a softmax, or the reverse (paper V-D).

    Regions become the labels they consist of, one for each value of the data set. The network does not match them yet;
    ``change_system`` replaces it.
    """
    output, targets = plan.model.output, plan.targets
    if output.kind == "labels":
        output = replace(output, kind="regions")
    else:
        values = sorted({value for region in targets.values() for value in region})
        targets = {data_set.labels.get(value, f"label {value}"): [value] for value in values}
        segments = tuple(
            Segment(name, value, tuple(segment_color(place)), None)
            for place, (name, [value]) in enumerate(targets.items())
        )
        output = replace(output, kind="labels", segments=segments, paint_order=tuple(targets))
    return plan.model_copy(update={"model": replace(plan.model, output=output), "targets": targets})


LAST_QUARTER = 0.75


def runs_of(row: Row, output: Path, folds: Sequence[int]) -> list[Run]:
    """The runs of a row, each in ``OUTPUT/<name>/fold_<k>``; missing ones are created.

    Raises:
        UserError: ``plan-differs`` if a run was started with a plan that trains something else, or ``fold-unknown``.
    """
    return [_run(plan, output / name / f"fold_{fold}", fold) for name, plan in row.plans.items() for fold in folds]


def started_runs_of(row: Row, output: Path) -> list[Run]:
    """The existing runs of the row, in any fold."""
    folders = [(plan, folder) for name, plan in row.plans.items() for folder in sorted((output / name).glob("fold_*"))]
    return [_run(plan, folder, int(folder.name.removeprefix("fold_"))) for plan, folder in folders]


def _run(plan: Plan, folder: Path, fold: int) -> Run:
    if not (folder / PLAN_FILE).exists():
        return start_run(plan, folder, fold)
    run = open_run(folder, plan.data)
    if run.fold != fold or what_trains(run.plan) != what_trains(plan):
        sentence = f"{folder} was started with another plan; choose a new folder for this plan, or move that one away."
        raise UserError("plan-differs", sentence, path=str(folder))
    return run


def what_trains(plan: Plan) -> dict[str, Any]:
    """Everything a plan's result depends on, which excludes the location of the data and the model's name and texts.

    Network arguments that a plan omits are filled in with their defaults.
    """
    description = plan.model
    networks = [_with_defaults(network.type, network.arguments) for network in description.system.networks]
    return {
        "targets": plan.targets,
        "training": plan.training.model_dump(exclude={"workers"}),
        "augmentation": plan.augmentation.model_dump(),
        "synthesis": plan.synthesis and plan.synthesis.model_dump(),
        "inputs": description.inputs,
        "preparation": description.preparation,
        "inference": description.inference,
        "output": description.output,
        "system": (description.system.type, description.system.arguments, networks),
    }


def _with_defaults(kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(network_class(kind)).parameters.values()
    defaults = {item.name: item.default for item in parameters if item.default is not item.empty}
    return {"type": kind, **defaults, **arguments}


def is_trained(run: Run) -> bool:
    """Whether the run is finished."""
    return _progress(run).state == "finished"


def late_rise(run: Run) -> float | None:
    """Rise of the validation Dice in the last quarter of the run's last stage; None without an earlier validation.

    A network that is trained in stages starts anew in each stage.
    """
    progress, steps = _progress(run), run.plan.training.steps
    first = steps_of_run(run.plan) - steps
    dice = {event["step"] - first: event["dice"] for event in progress.validations if event["step"] > first}
    before = [step for step in dice if step <= LAST_QUARTER * steps]
    return dice[max(dice)] - dice[max(before)] if before else None


def _progress(run: Run) -> Progress:
    return read_progress(run.folder / PROGRESS_FILE)
