"""What a model outputs: segments with their codes, at the places that its locator searches, and maps.

Segments and places are part of `model.json`, see `conresnet.package`. Which maps a model can give follows from its
networks and its system. A new map needs an entry in `MAPS`, and the network output that it shows. What is computed from
the result instead, such as the uncertainty, is in `conresnet.inference.results`.

Standard library only, so that Slicer's process can use it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from conresnet.errors import UserError
from conresnet.networks import all_arguments, provided_outputs
from conresnet.package.schema import Place, field, plain_name, repeated
from conresnet.systems import declared_system

if TYPE_CHECKING:
    from conresnet.package import ModelDescription

# The axes of a model's arrays.
AXES = ("S", "H", "W")
PIECES = ("all", "largest")
_DIVIDERS = r"[^^~\r\n]*"
# Slicer's selector drops codes that are not in the list that an entry names. The list "3D Slicer General Anatomy" is
# short: it has no hippocampus and no cerebrospinal fluid.
_CATEGORY_CONTEXT = "Segmentation category and type - DICOM master list"
_REGION_CONTEXT = "Anatomic codes - DICOM master list"
_NO_DIVIDERS = "not contain ^, ~ or line breaks, which separate the parts of a terminology entry"


def _segment_name(text: str) -> str | None:
    return None if len(text) <= 200 and text.isprintable() else "must be at most 200 printable characters"


@dataclass(frozen=True)
class Code:
    """One coded concept as DICOM writes it."""

    scheme: str = field("coding scheme; `SCT` is SNOMED CT", pattern=_DIVIDERS, shape=_NO_DIVIDERS)
    value: str = field("code value", pattern=_DIVIDERS, shape=_NO_DIVIDERS)
    meaning: str = field("code meaning in words", pattern=_DIVIDERS, shape=_NO_DIVIDERS)


@dataclass(frozen=True)
class Terminology:
    """A segment's terminology entry, as in Slicer; a modifier refines its type or region."""

    category: Code = field("segmented property category")
    type: Code = field("segmented property type")
    type_modifier: Code | None = field("refines the type, such as Left", default=None)
    region: Code | None = field("anatomic region", default=None, omit=True)
    region_modifier: Code | None = field("refines the region", default=None, omit=True)

    def faults(self) -> Iterator[tuple[str, str]]:
        """A modifier without a type to modify."""
        if self.region_modifier and not self.region:
            yield "region_modifier", "needs a region"

    @property
    def entry(self) -> str:
        """As Slicer writes it: seven parts separated by ~, codes by ^."""
        codes = (self.category, self.type, self.type_modifier, self.region, self.region_modifier)
        texts = [f"{code.scheme}^{code.value}^{code.meaning}" if code else "^^" for code in codes]
        return "~".join([_CATEGORY_CONTEXT, *texts[:3], _REGION_CONTEXT, *texts[3:]])


@dataclass(frozen=True)
class Segment:
    """One output structure."""

    name: str = field("name of the segment, at most 200 printable characters", check=_segment_name)
    label: int = field("value in the label map", low=1, high=255)
    color: tuple[int, int, int] = field("red, green, blue", low=0, high=255)
    terminology: Terminology | None = field("codes, as in Slicer's terminology", default=None)
    includes: tuple[str, ...] = field(
        "for regions: names of regions inside this one, which are painted over it",
        default=(),
        most=255,
        since=2,
        before=(),
    )
    pieces: str = field(
        "`largest`: only the largest connected piece is kept, for a structure that is in one piece",
        choices=PIECES,
        default="all",
        since=4,
        before="all",
    )
    volume_ml: tuple[float, float] | None = field(
        "smallest and largest volume in mL in the labels of the training data set; a result below half the smallest or "
        "above twice the largest gets a warning, unless the user has drawn an ROI",
        default=None,
        low=0,
        high=1e6,
        since=4,
        omit=True,
    )

    def faults(self) -> Iterator[tuple[str, str]]:
        """Volumes in the wrong order."""
        if self.volume_ml and self.volume_ml[0] > self.volume_ml[1]:
            yield "volume_ml", "must name the smaller volume first"

    @property
    def slicer_id(self) -> str:
        """The ID of the segment in Slicer, in a file and in the scene."""
        return f"Segment_{self.label}"

    def slicer_tags(self, algorithm: str) -> dict[str, str]:
        """The tags of the segment in Slicer: its codes, and for DICOM the name and version of the model."""
        # Slicer's DICOM export writes these; without them it declares the segments as drawn by hand.
        name = f"ConResNet {algorithm}".strip()[:64]
        tags = {"DICOM.SegmentAlgorithmType": "AUTOMATIC", "DICOM.SegmentAlgorithmName": name}
        return tags | ({"TerminologyEntry": self.terminology.entry} if self.terminology else {})


def mirrored_segments(names: Sequence[str], pairs: Iterable[tuple[str, str]]) -> list[int]:
    """For each name, the index of its counterpart in a mirror image, given the pairs that are swapped."""
    others = {one: other for pair in pairs for one, other in (pair, pair[::-1])}
    return [names.index(others.get(name, name)) for name in names]


@dataclass(frozen=True, kw_only=True)
class Output:
    """Segments of the output, in the order of the network's output channels.

    ``labels``: one softmax over the background and the segments. ``regions``: one sigmoid per segment, cut at
    ``threshold`` and painted in ``paint_order``. A voxel in a region also belongs to every region that includes it,
    even where the network disagrees. A region is then the same on its own and when it is put together from the values
    of its parts in a label map.
    """

    kind: str = field(
        "`labels`: softmax over background and segments; `regions`: one sigmoid per segment",
        choices=("labels", "regions"),
    )
    threshold: float = field("for regions", default=0.5, low=0.01, high=0.99)
    segments: tuple[Segment, ...] = field(
        "in the order of the network's outputs, without the background", least=1, most=255
    )
    paint_order: tuple[str, ...] = field(
        "names of all segments; later ones overwrite earlier ones. Default: the order of the segments",
        default=None,
        most=255,
    )
    swapped_segments: tuple[tuple[str, str], ...] | None = field(
        "pairs of segments, such as the left and the right one, that trade places in a mirror image (see "
        "`inference.mirror_axes`)",
        default=None,
        most=127,
        since=4,
        omit=True,
    )

    def resolved(self, place: Place, version: int) -> Output:
        return self if self.paint_order is not None else replace(self, paint_order=self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """The segments' names."""
        return tuple(segment.name for segment in self.segments)

    @property
    def mirrored(self) -> list[int]:
        """For each segment, the index of its counterpart in a mirror image."""
        return mirrored_segments(self.names, self.swapped_segments or ())

    def faults(self) -> Iterator[tuple[str, str]]:
        """Segments that cannot be distinguished, or a paint order or pairs that do not match them."""
        for names in (self.names, [f"label {segment.label}" for segment in self.segments]):
            if reason := repeated(names):
                yield "segments", reason
        if sorted(self.paint_order) != sorted(self.names):
            yield "paint_order", "must name every segment once"
        paired = [name for pair in self.swapped_segments or () for name in pair]
        if len(set(paired)) < len(paired) or not set(paired) <= set(self.names):
            yield "swapped_segments", "must name pairs of different segments, each segment at most once"
        for index, segment in enumerate(self.segments):
            later = self.paint_order[self.paint_order.index(segment.name) + 1 :] if self.kind == "regions" else ()
            if not set(segment.includes) <= set(later):
                yield f"segments[{index}].includes", "must contain only names of regions that are painted later"


@dataclass(frozen=True, kw_only=True)
class LocatedPlace:
    """One place in the body that the locator searches, such as one side."""

    name: str = field("prefix for the name of each segment found there, such as `Left`", check=_segment_name)
    segments: tuple[str, ...] = field("the locator's segments at this place", least=1, unique=True)
    type_modifier: Code | None = field(
        "refines the type of what is found there, such as Left, unless the segment has a modifier of its own",
        default=None,
        omit=True,
    )

    def of(self, segment: Segment, label: int) -> Segment:
        """A segment of the model at this place."""
        terms = segment.terminology
        if terms and self.type_modifier and not terms.type_modifier:
            terms = replace(terms, type_modifier=self.type_modifier)
        name = f"{self.name} {segment.name[:1].lower()}{segment.name[1:]}"
        return replace(segment, name=name, label=label, terminology=terms)


@dataclass(frozen=True, kw_only=True)
class Locator:
    """Another model that finds the ROIs in an image that is larger than the model was trained on.

    It segments the whole image. For each place, an ROI is put around what it finds, with a margin. The model then
    segments each ROI, so each place has segments of its own.
    """

    model: str = field("name of the other model, which segments the first image", check=plain_name)
    margin: float = field("distance in mm from what it finds to the faces of the ROI", low=0, high=100)
    places: tuple[LocatedPlace, ...] = field("where it looks", least=1, most=16)

    def outputs(self, output: Output) -> list[Output]:
        """The output at each place.

        The label values of each place begin after the highest value of the previous place; the first place has the
        model's own.
        """
        step = max(segment.label for segment in output.segments)
        found = []
        for index, place in enumerate(self.places):
            segments = {segment.name: place.of(segment, segment.label + index * step) for segment in output.segments}
            order = tuple(segments[name].name for name in output.paint_order)
            found.append(replace(output, segments=tuple(segments.values()), paint_order=order, swapped_segments=None))
        return found

    def output(self, output: Output) -> Output:
        """The whole output: the model's segments at the first place, then those at the next."""
        places = self.outputs(output)
        return replace(
            places[0],
            segments=tuple(segment for place in places for segment in place.segments),
            paint_order=tuple(name for place in places for name in place.paint_order),
        )


@dataclass(frozen=True)
class MapKind:
    """One kind of map.

    Args:
        title: title in lists.
        description: what it shows, as text for users.
        output: the network's output that it is made from, see `conresnet.networks.blocks`, or one that the system adds
            (`conresnet.systems.System.adds`).
        is_logit: whether that output goes through a sigmoid. (The segmentation is made probabilities in any case.)
        per_segment: whether it has one component per segment; else ``components``.
        components: number of components if not ``per_segment``.
        range: lowest and highest value it can have; None where it depends on the network.
        colors: name of its color table, by which Slicer and matplotlib know the same one.
        from_result: whether it is computed from the result, once that is known, and not window by window.
        follows_residual: whether it has the components of the residual map, see ``map_components``.
    """

    title: str
    description: str
    output: str
    is_logit: bool = False
    per_segment: bool = False
    components: int = 1
    range: tuple[float, float] | None = (0.0, 1.0)
    colors: str = "Inferno"
    from_result: bool = False
    follows_residual: bool = False


def _(text: str) -> str:
    """Mark a text for translation; Slicer's module translates it when it is shown."""
    return text


# The context under which Slicer's translation tools list the texts of this file.
MAPS_CONTEXT = "package.outputs"
MAPS = {
    "probability": MapKind(
        _("Probability"),
        _("Probability of each segment, 0 to 1."),
        "segmentation",
        is_logit=True,
        per_segment=True,
    ),
    "residual": MapKind(
        _("Residual"),
        _(
            "Where each segment is predicted to begin or end between a slice and the previous one, 0 to 1: bright "
            "along its boundary, dark where the model expects no change (context residual, eq. 5)."
        ),
        "residual",
        is_logit=True,
        per_segment=True,
        follows_residual=True,
    ),
    "attention": MapKind(
        _("Attention"),
        _(
            "How much weight the network gives to each voxel, 0 to 1; only differences between voxels are meaningful "
            "(mean over channels of sigmoid(O_res) of the last module, eq. 6)."
        ),
        "attention",
        colors="Viridis",
    ),
    "features": MapKind(
        _("Features"),
        _("Sum over channels of the last module's features, before and after attention (Fig. 6)."),
        "features",
        components=2,
        range=None,
        colors="Viridis",
    ),
    "uncertainty": MapKind(
        _("Uncertainty"),
        _(
            "How unsure the model is, 0 (certain) to 1 (all answers equally likely): predictive entropy of the "
            "probabilities; for overlapping regions, that of the least certain region."
        ),
        "segmentation",
        colors="Magma",
        from_result=True,
    ),
    "disagreement": MapKind(
        _("Disagreement"),
        _(
            "How much the networks of an ensemble disagree, 0 to 1: the mutual information between the prediction and "
            "the choice of network."
        ),
        "members",
        colors="Magma",
    ),
    "result_residual": MapKind(
        _("Residual of the result"),
        _("Where each segment of the result begins or ends between a slice and the previous one, 0 or 1 (eq. 1)."),
        "segmentation",
        per_segment=True,
        from_result=True,
        follows_residual=True,
    ),
    "residual_difference": MapKind(
        _("Residual difference"),
        _(
            "How far apart the predicted residual and the residual of the result are, 0 to 1: bright where the "
            "prediction and the segmentation disagree."
        ),
        "residual",
        per_segment=True,
        from_result=True,
        follows_residual=True,
    ),
}


def provided_maps(description: ModelDescription) -> set[str]:
    """The maps that a model can give, read from its description alone, as Slicer's process has to."""
    system = description.system
    kind = declared_system(system.type)
    networks = kind.shown(system.networks) if kind else system.networks
    outputs = set.intersection(*(provided_outputs(item.type, item.arguments) for item in networks))
    return {name for name, map_kind in MAPS.items() if map_kind.output in {*outputs, *(kind.adds if kind else ())}}


def predicted_maps(names: Iterable[str]) -> tuple[str, ...]:
    """The maps that networks have to make for these: themselves, or the one that a map of the result is made from."""
    needed = ("residual" if MAPS[name].output == "residual" else name for name in names)
    return tuple(dict.fromkeys(name for name in needed if not MAPS[name].from_result))


def slice_axis(description: ModelDescription) -> int:
    """The axis of a model's arrays (0 to 2 for S, H, W) along which slices follow one another in its residual.

    S for a model that predicts none.
    """
    network = description.system.networks[0]
    return AXES.index(all_arguments(network.type, network.arguments).get("residual_axis", "S"))


def residual_plane(description: ModelDescription) -> str:
    """The plane of the slices between which a model predicts residuals; "" where it predicts none."""
    return description.residual_axis if "residual" in provided_maps(description) else ""


def map_components(description: ModelDescription) -> dict[str, int]:
    """How many components each map of a model has: one per segment, or one residual for all segments together.

    Maps of the result's residual are like the predicted one; a model that predicts none has one per segment.
    """
    segments = len(description.output.segments)
    network = description.system.networks[-1]
    shared = all_arguments(network.type, network.arguments).get("residual_outputs") == 1
    counts = {name: segments if kind.per_segment else kind.components for name, kind in MAPS.items()}
    return {name: 1 if shared and MAPS[name].follows_residual else count for name, count in counts.items()}


def check_maps(names: Iterable[str], description: ModelDescription) -> tuple[str, ...]:
    """The requested maps of a model, each once. Raises UserError ``map-unknown`` or ``map-unavailable``."""
    names, provided = tuple(dict.fromkeys(names)), provided_maps(description)
    for name in names:
        if name not in MAPS:
            raise UserError("map-unknown", map=name, known=", ".join(MAPS))
        if name not in provided:
            available = ", ".join(sorted(provided))
            raise UserError("map-unavailable", map=name, model=description.name, available=available)
    return names
