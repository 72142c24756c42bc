"""What ``compare_systems.py`` compares: for every row its plans, which differ from a given one in the system alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from peer_networks import PEERS, with_peer

from conresnet.errors import UserError
from conresnet.package.description import AXES, PLANES
from conresnet_training.data import DataSet
from conresnet_training.planning.plan import Plan, with_settings
from conresnet_training.planning.planner import planned_share, segment_color
from conresnet_training.planning.systems import SYSTEMS, change_system

CONRESNET, BASELINE = "conresnet", "conresnet-baseline"
PEER_TITLES = {"dynunet": "DynUNet (MONAI)", "segresnet": "SegResNet (MONAI)", "basicunet": "BasicUNet (MONAI)"}
SIZES = "Table VII"
# Of ConResNet's paper: what each table is on, and which of the catalogue's systems stand in it beside its own rows.
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
"""Those that the paper tried (V-B)."""

ENSEMBLE = 3
"""So many networks answer together in Table I (IV-C)."""

GROUPS = ("systems", "peers", "study")
_ARGUMENTS = "model.system.networks.0.arguments"


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Args:
        title: as it is shown.
        plans: by the names of its runs' folders; several runs answer together, as an ensemble.
        group: one of ``GROUPS``.
        table: of the study, the key of ``STUDY`` that it was made for.
    """

    name: str
    title: str
    plans: dict[str, Plan]
    group: str
    table: str = ""

    @property
    def plan(self) -> Plan:
        """That of its first run."""
        return next(iter(self.plans.values()))

    @property
    def is_for_whole_images(self) -> bool:
        """Whether its system is meant for large images, so that crops tell little of it."""
        system = self.plan.description.system
        return system.type == "coarse_to_fine" or system.networks[0].type == "pyramid"

    def is_in(self, table: str) -> bool:
        """Whether it stands in a table of the study."""
        return self.table == table or self.name in STUDY[table][1]


def all_rows(plan: Plan, data_set: DataSet) -> dict[str, Row]:
    """Every row that can be made of ``plan``, by name: the catalogue's systems, the peers, ConResNet's study."""
    rows = [Row(name, item.title, {name: _changed(plan, name, data_set)}, "systems") for name, item in SYSTEMS.items()]
    rows += [Row(name, PEER_TITLES[name], {name: with_peer(plan, name)}, "peers") for name in PEERS]
    rows += _study(plan, data_set)
    return {row.name: row for row in rows}


def _changed(plan: Plan, name: str, data_set: DataSet) -> Plan:
    changed = change_system(plan, name)
    if SYSTEMS[name].coarse_to_fine:
        share = planned_share(data_set, plan.targets)
        changed = with_settings(changed, [f"model.system.arguments.smallest_component={share}"])
    return changed


def chosen_rows(rows: dict[str, Row], wanted: str) -> list[Row]:
    """Those that a list such as "conresnet,peers" names: rows and ``GROUPS``. The study takes what it is compared with.

    Raises:
        UserError: ``row-unknown``.
    """
    names = [name.strip() for name in wanted.split(",")]
    for name in names:
        if name not in rows and name not in GROUPS:
            sentence = f"There is no row {name}; choose of {', '.join((*GROUPS, *rows))}."
            raise UserError("row-unknown", sentence, row=name)
    if "study" in names:
        names += [CONRESNET, BASELINE]
    return [row for row in rows.values() if row.name in names or row.group in names]


def _study(plan: Plan, data_set: DataSet) -> Iterator[Row]:
    """The rows that ConResNet's paper has beside ConResNet and its baseline."""
    plans = {base: change_system(plan, base) for base in (CONRESNET, BASELINE)}
    ours = plans[CONRESNET]
    training, description = ours.training, ours.description

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
        yield row("Table V", other.model["output"]["kind"], change_system(other, base), base)
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
    """The plan with a sigmoid a segment instead of one softmax, or the reverse (paper V-D).

    Regions become the parts that they are made of, a label for each of the data set's values. The network is not yet
    one for them; ``change_system`` makes it.
    """
    output, targets = plan.model["output"], plan.targets
    if output["kind"] == "labels":
        output = {**output, "kind": "regions"}
    else:
        values = sorted({value for region in targets.values() for value in region})
        targets = {data_set.labels.get(value, f"label {value}"): [value] for value in values}
        segments = [
            {"name": name, "label": value, "color": segment_color(place)}
            for place, (name, [value]) in enumerate(targets.items())
        ]
        output = {**output, "kind": "labels", "segments": segments, "paint_order": list(targets)}
    return plan.model_copy(update={"model": {**plan.model, "output": output}, "targets": targets})
