"""From the text of a `model.json` to a checked `ModelDescription`.

Reading is strict. Every field is checked for type and range; an unknown field is refused as a misspelling, since the
format version rises whenever a field is added; so are repeated keys, NaN and numbers without bound. The arguments of
networks belong to the room that computes with them: here they need only be finite. The intensity steps are held to
`conresnet.intensity`. Older versions of the format are read; a field that came later is none of theirs.
"""

import re
from collections.abc import Mapping
from typing import Any

from conresnet.errors import UserError
from conresnet.intensity import check_steps
from conresnet.package.description import (
    AXES,
    BLENDINGS,
    DESCRIPTION_FILE,
    FOREGROUNDS,
    FORMAT,
    FORMAT_VERSION,
    PLANES,
    ROI_USES,
    TILINGS,
    WEIGHTS_SUFFIX,
    Inference,
    Input,
    ModelDescription,
    Network,
    Output,
    PackedFile,
    Preparation,
    Segment,
    System,
)
from conresnet.package.fields import Fields, load_json
from conresnet.package.system_checks import check_networks, parse_system_arguments
from conresnet.package.terminology import Terminology

FILE_SUFFIXES = (WEIGHTS_SUFFIX, ".json", ".md", ".png", ".txt")
MOST_BYTES = 4 * 2**30
MOST_COPIES = 16

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"\d{1,6}(\.\d{1,6}){0,3}([.+-]?[A-Za-z0-9.]{1,30})?")
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def parse_description(document: bytes | Mapping[str, Any], source: str = DESCRIPTION_FILE) -> ModelDescription:
    """Check a description and return it.

    Args:
        document: the content of a `model.json`, or the object it holds. ``files`` may be empty or missing in an object
            that is yet to be written.
        source: the file's name for messages.

    Raises:
        UserError: ``package-json``, ``package-newer`` or ``package-description``, with a sentence that names the field.
    """
    fields = Fields(load_json(document, source) if isinstance(document, bytes) else document, source)
    if fields.value("format") != FORMAT:
        fields.refuse("format", f'must be "{FORMAT}"')
    version = fields.integer("format_version", 1, 10**6)
    if version > FORMAT_VERSION:
        raise UserError(
            "package-newer",
            f"{source} is of the newer format version {version} (ours is {FORMAT_VERSION}); update ConResNet.",
            file=source,
            version=version,
        )
    description = ModelDescription(
        name=_plain_name(fields, "name"),
        title=fields.text("title"),
        version=fields.text("version"),
        description=fields.text("description", ""),
        license=fields.text("license"),
        attribution=fields.text("attribution", ""),
        citations=fields.texts("citations"),
        training_data=fields.text("training_data", ""),
        intended_use=fields.text("intended_use", ""),
        limitations=fields.text("limitations", ""),
        inputs=fields.children("inputs", lambda item: _parse_input(item, version), most=64),
        preparation=_parse_preparation(fields.child("preparation"), version),
        system=_parse_system(fields.child("system")),
        inference=_parse_inference(fields.child("inference")),
        output=_parse_output(fields.child("output"), version),
        files=_parse_files(fields.child("files")) if fields.has("files") else {},
    )
    if not _VERSION.fullmatch(description.version):
        fields.refuse("version", f'must look like 1.0.0, but is "{description.version[:40]}"')
    _refuse_repeats(fields, "inputs", [item.name for item in description.inputs])
    if fields.has("residual_axis") and fields.value("residual_axis") != description.residual_axis:
        fields.refuse("residual_axis", f"must be {description.residual_axis}, as the network and the orientation say")
    check_networks(fields, description)
    # Only an object that is yet to be written may do without its files.
    is_written = isinstance(document, bytes) or description.files
    for index, network in enumerate(description.system.networks):
        if is_written and network.weights not in description.files:
            fields.refuse(f"system.networks[{index}].weights", f"names {network.weights}, which is not among the files")
    fields.finish()
    return description


def _plain_name(fields: Fields, key: str, name: str | None = None) -> str:
    """A name that is a file's or folder's name on every system, and nothing more: no folder, drive or device in it."""
    if name is None:
        name = fields.text(key)
    if not _PLAIN_NAME.fullmatch(name) or name.endswith(".") or _DEVICES.fullmatch(name):
        fields.refuse(key, f'must be a plain name of letters, digits, ".", "_" and "-", but is "{name[:80]}"')
    return name


def _parse_input(fields: Fields, version: int) -> Input:
    item = Input(
        name=fields.text("name"),
        modality=fields.text("modality"),
        keywords=fields.texts("keywords"),
        exclude_keywords=fields.texts("exclude_keywords"),
        intensity=fields.plain_objects("intensity"),
        copies=fields.lists_of_plain_objects("copies", MOST_COPIES) if version >= 2 else (),
    )
    places = ["intensity", *(f"copies[{index}]" for index in range(len(item.copies)))]
    for place, steps in zip(places, item.channels, strict=True):
        try:
            check_steps(steps)
        except UserError as error:
            fields.refuse(place, f"cannot be used ({error.message.rstrip('.')})")
    fields.finish()
    return item


def _parse_preparation(fields: Fields, version: int) -> Preparation:
    orientation = fields.text("orientation")
    if sorted(PLANES.get(letter, "?") for letter in orientation) != ["axial", "coronal", "sagittal"]:
        fields.refuse("orientation", f'must name three axes as in "SAR", but is "{orientation[:40]}"')
    has_spacing = fields.has("spacing")
    preparation = Preparation(
        orientation=orientation,
        spacing=fields.numbers("spacing", 3, 0.01, 100) if has_spacing else None,
        foreground=fields.choice("foreground", FOREGROUNDS),
        roi=fields.choice("roi", ROI_USES) if version >= 3 else "cut",
    )
    fields.finish()
    return preparation


def _parse_network(fields: Fields) -> Network:
    network = Network(
        type=fields.text("type"),
        arguments=fields.plain_object("arguments"),
        weights=_plain_name(fields, "weights"),
    )
    if not network.weights.endswith(WEIGHTS_SUFFIX):
        fields.refuse("weights", f'must be a {WEIGHTS_SUFFIX} file, but is "{network.weights}"')
    if network.arguments.get("residual_axis", "S") not in AXES:
        fields.refuse("arguments.residual_axis", f"must be one of {', '.join(AXES)}")
    fields.finish()
    return network


def _parse_system(fields: Fields) -> System:
    kind = fields.text("type")
    system = System(
        type=kind,
        networks=fields.children("networks", _parse_network, most=100),
        arguments=parse_system_arguments(fields, kind),
    )
    fields.finish()
    return system


def _parse_inference(fields: Fields) -> Inference:
    inference = Inference(
        window=fields.integers("window", 3, 1, 2048),
        overlap=fields.number("overlap", 0, 0.9),
        tiling=fields.choice("tiling", TILINGS),
        blending=fields.choice("blending", BLENDINGS),
        mirror_axes=fields.texts("mirror_axes"),
    )
    if not set(inference.mirror_axes) <= set(AXES):
        fields.refuse("mirror_axes", f"must hold nothing but {', '.join(AXES)}")
    _refuse_repeats(fields, "mirror_axes", list(inference.mirror_axes))
    fields.finish()
    return inference


def _parse_segment(fields: Fields, version: int) -> Segment:
    segment = Segment(
        name=fields.text("name"),
        label=fields.integer("label", 1, 255),
        color=fields.integers("color", 3, 0, 255),
        terminology=Terminology.parse(fields.child("terminology")) if fields.has("terminology") else None,
        includes=fields.texts("includes", most=255) if version >= 2 else (),
    )
    if len(segment.name) > 200 or not segment.name.isprintable():
        fields.refuse("name", "must be at most 200 printable characters")
    fields.finish()
    return segment


def _parse_output(fields: Fields, version: int) -> Output:
    kind = fields.choice("kind", ("labels", "regions"))
    segments = fields.children("segments", lambda item: _parse_segment(item, version), most=255)
    names = [segment.name for segment in segments]
    _refuse_repeats(fields, "segments", names)
    _refuse_repeats(fields, "segments", [f"label {segment.label}" for segment in segments])
    output = Output(
        kind=kind,
        threshold=fields.number("threshold", 0.01, 0.99) if fields.has("threshold") else 0.5,
        segments=segments,
        paint_order=fields.texts("paint_order", most=255) if fields.has("paint_order") else tuple(names),
    )
    if sorted(output.paint_order) != sorted(names):
        fields.refuse("paint_order", "must name every segment once")
    for index, segment in enumerate(segments):
        painted_later = output.paint_order[output.paint_order.index(segment.name) + 1 :] if kind == "regions" else ()
        if not set(segment.includes) <= set(painted_later):
            fields.refuse(f"segments[{index}].includes", "must hold names of regions that are painted later, no others")
    fields.finish()
    return output


def _parse_files(fields: Fields) -> dict[str, PackedFile]:
    files = {}
    for name in fields.names():
        if not _plain_name(fields, name, name).lower().endswith(FILE_SUFFIXES) or name == DESCRIPTION_FILE:
            fields.refuse(name, f"must be a file of the kinds {', '.join(FILE_SUFFIXES)}")
        entry = fields.child(name)
        sha256 = entry.text("sha256")
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            entry.refuse("sha256", "must be 64 hexadecimal digits in lower case")
        files[name] = PackedFile(sha256, entry.integer("bytes", 0, MOST_BYTES))
        entry.finish()
    _refuse_repeats(fields, "", list(files))
    return files


def _refuse_repeats(fields: Fields, key: str, names: list[str]) -> None:
    """Two names that differ in case alone are the same file on some systems, and the same structure to a reader."""
    seen = set()
    for name in names:
        if name.casefold() in seen:
            fields.refuse(key, f'holds "{name[:80]}" twice')
        seen.add(name.casefold())
