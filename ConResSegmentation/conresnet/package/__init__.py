"""Model packages, and the description of a model in them, `model.json`: inputs, computation, outputs and origin.

A package contains the weights of a model with everything needed to use them, in a folder or a .zip file: `model.json`,
one `*.safetensors` file per network, `LICENSE.txt`, and where available `metrics.json`, `MODEL_CARD.md` and
`thumbnail.png`. Nothing in it is executed. docs/model-package.md describes the format.

The dataclasses here are its only schema: `parse_description` checks a document against them, docs/model-package.md and
docs/model.schema.json are generated from them (Utilities/update_model_format.py). Importing this takes the standard
library alone, so that Slicer's process can use it.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from conresnet.errors import UserError
from conresnet.networks import wrapped_faults
from conresnet.package.outputs import AXES, Locator, Output
from conresnet.package.schema import Place, Rule, check_value, dump, field, load, load_json, plain_name, repeated
from conresnet.systems import declared_system, system_faults

FORMAT = "conresnet-model"
# Version 2 added the copies of an input, regions that include others, and systems and intensity steps that version 1
# did not have; version 3 added what an ROI means to a model; version 4 added the locator, segments of one piece, their
# usual volumes, and pairs that are swapped in mirror images; version 5 added the coarse look.
FORMAT_VERSION = 5
DESCRIPTION_FILE = "model.json"
CARD_FILE = "MODEL_CARD.md"
WEIGHTS_SUFFIX = ".safetensors"
FILE_SUFFIXES = (WEIGHTS_SUFFIX, ".json", ".md", ".png", ".txt")
MOST_BYTES = 4 * 2**30
MOST_COPIES = 16
ROI_USES = ("limit", "cut")
FOREGROUNDS = ("not_background", "all")
TILINGS = ("fitted", "authors")
BLENDINGS = ("gaussian", "uniform")

# The plane of the slices that follow one another along a direction.
PLANES = {"S": "axial", "I": "axial", "A": "coronal", "P": "coronal", "L": "sagittal", "R": "sagittal"}

_VERSION = r"\d{1,6}(\.\d{1,6}){0,3}([.+-]?[A-Za-z0-9.]{1,30})?"


def _weights_name(name: str) -> str | None:
    if name.endswith(WEIGHTS_SUFFIX):
        return plain_name(name)
    return f'must be a {WEIGHTS_SUFFIX} file, but is "{name[:80]}"'


def _packed_name(name: str) -> str | None:
    if (reason := plain_name(name)) or (name.lower().endswith(FILE_SUFFIXES) and name != DESCRIPTION_FILE):
        return reason
    return f"must be a file of one of these kinds: {', '.join(FILE_SUFFIXES)}"


def _orientation(text: str) -> str | None:
    if sorted(PLANES.get(letter, "?") for letter in text) == ["axial", "coronal", "sagittal"]:
        return None
    return f'must name three axes as in "SAR", but is "{text[:40]}"'


def _not_positive(value: float) -> str | None:
    return None if value > 0 else "must be above 0"


def _not_different(pair: tuple[float, float]) -> str | None:
    return None if pair[0] != pair[1] else "must be two different numbers"


# The intensity steps that use a voxel's neighbors; they come before all others.
FILTERS = ("subtract_gaussian", "equalize")
_PERCENTAGE = (float, Rule(low=0, high=100))
_SCORE = {"over": (str, Rule(choices=("foreground", "all"))), "outside": (str, Rule(choices=("zero", "keep")))}
_PAIR = (tuple[float, float], Rule(check=_not_different))
# The type and the rule of each argument of an intensity step. `conresnet.intensity` describes what the steps do.
_STEPS = {
    "subtract_gaussian": {"sigma_mm": (float, Rule(low=0, high=1000, check=_not_positive))},
    "equalize": {
        # A share of a tile's voxels, and the number of tiles along H and along W.
        "clip_limit": (float, Rule(low=0, high=1, check=_not_positive)),
        "tiles": (int, Rule(low=1, high=64)),
    },
    "clip": {"low": (float, Rule()), "high": (float, Rule())},
    "clip_percentiles": {"low": _PERCENTAGE, "high": _PERCENTAGE},
    "z_score": _SCORE,
    "z_score_slices": _SCORE,
    "rescale": {"from": _PAIR, "to": _PAIR},
    "clip_sparse_tail": {"bins": (str, Rule(choices=("int_max",))), "min_count": (int, Rule(low=1, high=2**53))},
}


def check_steps(steps: Sequence[Mapping[str, Any]], place: Place) -> None:
    """Raise UserError with the place's code for an unknown, invalid or misplaced intensity step."""
    earlier = None
    for index, step in enumerate(steps):
        here = place.inside(f"[{index}]")
        name = check_value(str, step.get("step"), Rule(choices=tuple(_STEPS)), here.inside("step"))
        if set(step) != {"step", *_STEPS[name]}:
            here.refuse(f"must have only these fields: {', '.join(['step', *_STEPS[name]])}")
        for key, (kind, rule) in _STEPS[name].items():
            check_value(kind, step[key], rule, here.inside(key))
        if "low" in step and step["low"] >= step["high"]:
            here.inside("low").refuse("must be below high")
        if name in FILTERS and earlier:
            here.refuse(f"must come before {earlier}; {' and '.join(FILTERS)} come before all other steps")
        earlier = earlier or (None if name in FILTERS else name)


@dataclass(frozen=True)
class Input:
    """One image: one channel of the network, prepared by ``intensity``, and one more for each of its ``copies``."""

    name: str = field("name of the channel, such as `T1`")
    modality: str = field("such as `MR` or `CT`")
    keywords: tuple[str, ...] = field("words in an image's name that suggest this channel", default=())
    exclude_keywords: tuple[str, ...] = field("words in an image's name that rule this channel out", default=())
    intensity: tuple[dict[str, Any], ...] = field("intensity steps, applied in order (see below)", default=())
    copies: tuple[tuple[dict[str, Any], ...], ...] = field(
        "more channels made from the same image, each with its own steps",
        default=(),
        most=MOST_COPIES,
        since=2,
        before=(),
    )

    @property
    def channels(self) -> tuple[tuple[dict[str, Any], ...], ...]:
        """The intensity steps of each of its channels, in the network's order: its own, then those of its copies."""
        return (self.intensity, *self.copies)

    def resolved(self, place: Place, version: int) -> "Input":
        """This input, unchanged, once its steps are checked."""
        check_steps(self.intensity, place.inside("intensity"))
        for index, steps in enumerate(self.copies):
            check_steps(steps, place.inside(f"copies[{index}]"))
        return self


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The model's space.

    With ``roi`` "cut", the model sees nothing outside the ROI. This suits models trained on crops around their
    structure. With "limit", intensity is measured on the whole image and the network also sees the surroundings of
    the ROI; only the result ends at the ROI. This suits models trained on whole scans.
    """

    orientation: str = field("the directions in which S, H and W increase, such as `SAR`", check=_orientation)
    spacing: tuple[float, float, float] | None = field(
        "voxel size in mm along S, H, W; null: the image's own", default=None, low=0.01, high=100
    )
    foreground: str = field("voxels that are measured and segmented", choices=FOREGROUNDS)
    roi: str = field(
        "`cut`: the model sees only the ROI; `limit`: only the result ends at the ROI",
        choices=ROI_USES,
        since=3,
        before="cut",
    )
    largest_crop: tuple[float, float, float] | None = field(
        "with `cut`: mm along S, H, W of the largest training image; much larger ones lead to a warning",
        default=None,
        low=0.01,
        high=1000,
        omit=True,
        since=4,
    )


@dataclass(frozen=True)
class Network:
    """One network of the system, for `conresnet.networks.build_network`."""

    type: str = field("name of the network")
    arguments: dict[str, Any] = field("arguments of the network")
    weights: str = field("name of its weights file", check=_weights_name)

    def faults(self) -> Iterator[tuple[str, str]]:
        """Arguments that the description needs to understand."""
        if self.arguments.get("residual_axis", "S") not in AXES:
            yield "arguments.residual_axis", f"must be one of {', '.join(AXES)}"
        yield from wrapped_faults("arguments", self.type, self.arguments)


@dataclass(frozen=True)
class System:
    """How networks make a segmentation."""

    type: str = field("name of the system (see below)")
    networks: tuple[Network, ...] = field("its networks, in the system's order", least=1)
    arguments: dict[str, Any] = field("arguments of the system", default=None)

    def resolved(self, place: Place, version: int) -> "System":
        """The same system with all its arguments written out. A known system checks its own; others stay as given."""
        given = self.arguments or {}
        kind = declared_system(self.type)
        if kind is None or kind.Arguments is None:
            return replace(self, arguments=given)
        return replace(self, arguments=dump(load(kind.Arguments, given, place.inside("arguments"), version)))


@dataclass(frozen=True)
class CoarseLook:
    """A first pass over the whole image with larger voxels, which finds the part that needs the model's own."""

    scale: float = field("size of its voxels, relative to the model's own", low=1.1, high=8)
    margin: float = field("mm around everything it finds, on all sides", low=0, high=1000)


@dataclass(frozen=True)
class Inference:
    """The sliding-window pass."""

    window: tuple[int, int, int] = field("voxels along S, H, W", low=1, high=2048)
    overlap: float = field("minimum overlap as a fraction of the window", low=0, high=0.9)
    tiling: str = field(
        "how windows are placed. `fitted`: as few as needed; `authors`: as the paper's authors did",
        choices=TILINGS,
    )
    blending: str = field("weight of a window's voxels where windows overlap", choices=BLENDINGS)
    mirror_axes: tuple[str, ...] = field(
        "axes along which the image is also mirrored; the outputs are averaged. In copies mirrored along one axis or "
        "all three, the pairs in `output.swapped_segments` trade places",
        default=(),
        choices=AXES,
        unique=True,
    )
    coarse_look: CoarseLook | None = field(
        "a first pass over a whole image that finds the part to segment (see below); without it, windows cover all "
        "foreground",
        default=None,
        omit=True,
        since=5,
    )


@dataclass(frozen=True)
class PackedFile:
    """What a file of the package must be."""

    sha256: str = field("SHA-256 checksum", pattern="[0-9a-f]{64}", shape="be 64 hexadecimal digits in lower case")
    bytes: int = field("size", low=0, high=MOST_BYTES)


def packed_file(content: bytes | PathLike) -> PackedFile:
    """Checksum and size of bytes, or of the file at a path, as in a package's description."""
    if isinstance(content, bytes):
        return PackedFile(hashlib.sha256(content).hexdigest(), len(content))
    with open(content, "rb") as file:
        return PackedFile(hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size)


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A whole `model.json`; made by `parse_description`, which has checked it."""

    format: str = field("always `conresnet-model`", choices=(FORMAT,))
    format_version: int = field("version of this format", low=1, high=FORMAT_VERSION)
    name: str = field("name of the folder once installed: letters, digits, `.`, `_`, `-`", check=plain_name)
    title: str = field("title shown to users")
    version: str = field("version of the model, such as 1.0.0", pattern=_VERSION, shape="look like 1.0.0")
    description: str = field("what the model is for", default="")
    license: str = field("license of the weights")
    attribution: str = field("credits for the weights and the training data", default="")
    citations: tuple[str, ...] = field("publications", default=())
    training_data: str = field("what the model was trained on", default="")
    intended_use: str = field("what the model may be used for", default="")
    limitations: str = field("what it cannot do", default="")
    inputs: tuple[Input, ...] = field("the images, in the order in which they are given", least=1, most=64)
    preparation: Preparation = field("the voxel grid and the part of the image that the model uses")
    system: System = field("the networks, and how they are combined")
    inference: Inference = field("the sliding-window pass")
    output: Output = field("the segments")
    locator: Locator | None = field("finds ROIs if the user gives none", default=None, omit=True, since=4)
    files: dict[str, PackedFile] = field("every file except model.json", default=None, keys=_packed_name)

    @property
    def channel_count(self) -> int:
        """The channels that the network takes: each input and its copies."""
        return sum(len(item.channels) for item in self.inputs)

    @property
    def residual_axis(self) -> str:
        """The anatomical plane whose neighboring slices the residual compares: axial, coronal or sagittal."""
        axis = self.system.networks[0].arguments.get("residual_axis", "S")
        return PLANES[self.preparation.orientation[AXES.index(axis)]]

    def resolved(self, place: Place, version: int) -> "ModelDescription":
        return replace(self, format_version=FORMAT_VERSION, files=self.files or {})

    def faults(self) -> Iterator[tuple[str, str]]:
        """Parts that do not fit each other."""
        if reason := repeated([item.name for item in self.inputs]):
            yield "inputs", reason
        yield from system_faults(self)
        yield from _locator_faults(self)
        if self.inference.coarse_look and self.preparation.spacing is None:
            yield "inference.coarse_look", "needs a model with a voxel size (preparation.spacing)"
        for index, network in enumerate(self.system.networks):
            # Only a description that is not written yet may omit its files.
            if self.files and network.weights not in self.files:
                yield f"system.networks[{index}].weights", _unlisted(network)

    @property
    def located_output(self) -> Output:
        """The model's output if the locator finds the ROIs."""
        return self.locator.output(self.output)

    def to_dict(self) -> dict[str, Any]:
        """The description as JSON values; the inverse of `parse_description`."""
        return {**dump(self), "residual_axis": self.residual_axis}

    @property
    def digest(self) -> str:
        """Digest of the whole package, because the description contains the checksums of all other files."""
        return hashlib.sha256(self.to_json().encode("utf-8")).hexdigest()

    def to_json(self) -> str:
        """The text of `model.json`."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def parse_description(
    document: bytes | Mapping[str, Any], source: str = DESCRIPTION_FILE, code: str = "package-description"
) -> ModelDescription:
    """Check a description and return it.

    Reading is strict. Every field is checked for type and range, and an unknown field is refused as a misspelling,
    because the format version rises whenever a field is added; so are repeated keys, NaN and infinite numbers. The
    arguments of networks belong to the networks: here they only need to be finite. Older versions of the format are
    read; they must not have fields that came later.

    Args:
        document: the content of a `model.json`, or the object in it. ``files`` may be empty or missing in an object
            that is yet to be written. The derived ``residual_axis`` may be left out.
        source: the file's name for messages.
        code: error code for a wrong field. The default's message advises getting a fresh copy of the package, which
            does not help if the description is not that of a finished package.

    Raises:
        UserError: ``package-json``, ``package-newer`` or ``code``, with a sentence that names the field.
    """
    is_file = isinstance(document, bytes)
    place = Place(source, code=code)
    content = load_json(document, source) if is_file else document
    if not isinstance(content, Mapping):
        place.refuse("must be an object")
    version = content.get("format_version")
    if content.get("format") == FORMAT and type(version) is int and FORMAT_VERSION < version <= 10**6:
        raise UserError("package-newer", file=source, version=version, ours=FORMAT_VERSION)
    plane = content.get("residual_axis")
    rest = {key: value for key, value in content.items() if key != "residual_axis"}
    # With a version below 1, no field would be known, not even the version.
    is_version = type(version) is int and version > 0
    description = load(ModelDescription, rest, place, version if is_version else FORMAT_VERSION)
    if plane is not None and plane != description.residual_axis:
        derived = f"must be {description.residual_axis}, which follows from the network and the orientation"
        place.inside("residual_axis").refuse(derived)
    if is_file and not description.files:
        place.inside("system.networks[0].weights").refuse(_unlisted(description.system.networks[0]))
    return description


def describe_new(document: Mapping[str, Any]) -> ModelDescription:
    """Check the description of a package before it is written, and return it.

    Raises UserError ``package-setting`` for a wrong field.
    """
    return parse_description(document, code="package-setting")


def _unlisted(network: Network) -> str:
    return f"names {network.weights}, which is not among the files"


def _locator_faults(description: ModelDescription) -> Iterator[tuple[str, str]]:
    """A locator whose places cannot be told apart in one label map."""
    locator, output = description.locator, description.output
    if locator is None:
        return
    if output.kind != "labels":
        yield "locator", "needs segments that exclude each other (output.kind labels)"
    if len(description.inputs) > 1:
        yield "locator", "needs a model of one image"
    if locator.model == description.name:
        yield "locator.model", "must be another model"
    if len(locator.places) * max(segment.label for segment in output.segments) > 255:
        yield "locator.places", "are too many: their label values would exceed 255"
    if reason := repeated([place.name for place in locator.places]):
        yield "locator.places", reason
