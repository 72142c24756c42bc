"""The report of a case: one HTML file with pictures, measurements, the review list and the model card.

The file is self-contained and has no scripts. Names from outside are escaped. It names neither the patient nor a
file: the engine's name for an image, its path or Slicer node, is replaced by the model's channel name. Torch-free, so
that Slicer can make it, too.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import chain
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from conresnet import __version__
from conresnet.files import write_text
from conresnet.images import Volume
from conresnet.messages import printable, sentence
from conresnet.package.outputs import MAPS, Output, residual_plane
from conresnet.package.reader import ModelPackage, figures, read_metrics
from conresnet.results import segment_statistics
from conresnet.results.pictures import HEAT, Scene, png
from conresnet.results.review import ALL, BAD_DICE

LISTED_ROWS = 10
# If a map has one component per segment, only the components of the largest segments.
MOST_COMPONENTS = 8
RESEARCH_ONLY = "For research only. Not a medical device, not for diagnosis or treatment."

_PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.45 system-ui, "Segoe UI", Arial, sans-serif; color: #222; background: #fff; max-width: 960px;
       margin: 2em auto; padding: 0 1.2em; }
h1 { font-size: 1.5em; margin: 0 0 .2em; }
h2 { font-size: 1.12em; margin: 2em 0 .6em; border-bottom: 1px solid #ddd; padding-bottom: .2em; }
h3 { font-size: 1em; margin: 1.2em 0 .3em; }
p { margin: .4em 0; max-width: 75ch; }
p.note, figcaption { color: #555; font-size: .9em; }
p.research { background: #fff4d6; padding: .4em .7em; border-radius: 4px; max-width: none; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92em; }
th, td { padding: .25em .8em .25em 0; border-bottom: 1px solid #eee; text-align: right; vertical-align: top; }
th { font-weight: 600; color: #444; vertical-align: bottom; }
th.text, td.text { text-align: left; }
figure { margin: 0 0 1em; break-inside: avoid; }
figure img { width: 100%; max-width: 912px; display: block; }
img.surfaces { max-width: 600px; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
.scale { display: inline-block; width: 9em; height: .8em; margin: 0 .4em; vertical-align: middle; }
.wide { overflow-x: auto; }
@media print { body { margin: 0; padding: 0; max-width: none; } h2 { break-after: avoid; } }
</style>
</head>
<body>
<h1>$title</h1>
<p>$subtitle</p>
<p class="research">$research</p>
$content
<p class="note" style="margin-top: 2em">ConResNet $version, $how.</p>
</body>
</html>
"""
)


def write_page(*arguments: Any, **options: Any) -> None:
    """Write the page at once; for the arguments and errors see ``write_in_steps``."""
    for _step in write_in_steps(*arguments, **options):
        pass


def write_in_steps(
    path: Path,
    package: ModelPackage,
    labels: Volume,
    channels: Mapping[str, Volume],
    maps: Mapping[str, np.ndarray],
    report: Mapping[str, Any],
    *,
    regions: np.ndarray | None = None,
    output: Output | None = None,
    name: str = "",
    surfaces: bytes | None = None,
) -> Iterator[None]:
    """Write the page, about one picture per step, so that Slicer can handle events between the steps.

    Args:
        path: of the page.
        package: the model.
        labels: [k, j, i] uint8.
        channels: images by the model's names for them; the first one is on the grid of ``labels`` and is drawn.
        maps: [c, k, j, i] by name.
        report: report of the result; "statistics" are measured if missing, and "review" is shown if present.
        regions: [b, k, j, i] uint8 where segments overlap.
        output: the segments of the result; by default the model's.
        name: name of the case; "" for none.
        surfaces: PNG picture of the segments in 3D; rendered by default.

    Raises:
        UserError: "disk-full" or "cannot-write".
    """
    description = package.description
    output = output or description.output
    scene = Scene(next(iter(channels.values())), labels.array, regions, output)
    swatches = {item.name: _swatch(item.color) for item in output.segments}
    statistics = report.get("statistics")
    if statistics is None:
        uncertainty = maps["uncertainty"][0] if "uncertainty" in maps else None
        statistics = segment_statistics(labels.array, labels.grid, output, channels, uncertainty, regions)
    parts = []
    for part in chain(
        [_warnings(report), "<h2>Segments</h2>", _statistics(statistics, swatches)],
        _segments(scene, swatches, surfaces),
        _maps(scene, maps, list(swatches), residual_plane(description)),
        _review(report["review"], swatches) if "review" in report else (),
        _card(package),
    ):
        parts.append(part)
        yield
    title = f"Segmentation of {name}" if name else "Segmentation report"
    model = f"{description.title} (version {description.version})"
    seconds = sum(report.get("seconds", {}).values())
    how = f"{report.get('device', '')} {report.get('precision', '')}, {seconds:.0f} s"
    page = _PAGE.substitute(
        title=escape(title),
        subtitle=escape(f"Made with the model {model}. {description.description}".strip()),
        research=RESEARCH_ONLY,
        content="\n".join(part for part in parts if part),
        version=__version__,
        how=escape(how),
    )
    write_text(path, page)


def _figure(picture: bytes, alt: str, caption: str, kind: str = "") -> str:
    """A picture in the page; ``caption`` is HTML."""
    uri = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    text = f"<figcaption>{caption}</figcaption>"
    return f'<figure><img class="{kind}" src="{uri}" alt="{escape(alt)}">{text}</figure>'


def _swatch(color: Sequence[int]) -> str:
    return '<span class="swatch" style="background:#{:02x}{:02x}{:02x}"></span>'.format(*color)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """Cells are HTML; the first ``texts`` columns are text, the others numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="text"' if place < texts else "" for place in range(len(cells))]
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<tr>{line(header, "th")}</tr>\n{body}\n</table></div>'


def _number(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _warnings(report: Mapping[str, Any]) -> str:
    warnings = [_anonymous(str(text), report.get("channels", {})) for text in report.get("warnings", ())]
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    return f"<h2>Warnings</h2>\n<ul>{items}</ul>"


def _anonymous(text: str, channels: Mapping[str, str]) -> str:
    """A sentence that names images by their channels instead of files or nodes."""
    shown: dict[str, str] = {}
    # The channels of one file are called "file (channel)", but warnings about the file name the file alone.
    files = [called.removesuffix(f" ({channel})") for channel, called in channels.items()]
    for (channel, called), file in zip(channels.items(), files, strict=True):
        image = "the image" if files.count(file) > 1 else f"the {channel} image"
        # A folder name such as "axial" may be a word in the sentence; a file name has a period.
        name = Path(file).name if "." in Path(file).name else ""
        for term, replacement in ((called, f"the {channel} image"), (file, image), (name, image)):
            for form in (term, printable(term)):
                if len(form) > 1:
                    shown.setdefault(form, replacement)
    if not shown:
        return text
    # All at once and the longest first, so that nothing is replaced within a longer name or within a replacement.
    terms = "|".join(re.escape(term) for term in sorted(shown, key=len, reverse=True))
    text = re.sub(rf"(?<!\w)(?:{terms})(?!\w)", lambda match: shown[match[0]], text)
    return text[:1].upper() + text[1:]


def _statistics(rows: Sequence[Mapping[str, Any]], swatches: Mapping[str, str]) -> str:
    channels = list(rows[0]["mean_intensity"])
    header = ["Segment", "Volume (mL)", "Voxels", "Surface area (cm<sup>2</sup>)"]
    header += [f"Mean {escape(channel)}" for channel in channels] + ["Mean uncertainty"]
    cells = [
        [
            swatches[row["segment"]] + escape(row["segment"]),
            _number(row["volume_ml"], 3),
            str(row["voxels"]),
            _number(row["surface_cm2"], 2),
            *(_number(row["mean_intensity"][channel], 2) for channel in channels),
            _number(row["mean_uncertainty"], 3),
        ]
        for row in rows
    ]
    return _table(header, cells, texts=1)


def _segments(scene: Scene, swatches: Mapping[str, str], surfaces: bytes | None) -> Iterator[str]:
    if not scene.labels.any():
        return
    caption = "The 3D view in Slicer when the report was written."
    if surfaces is None:
        surfaces = png(scene.surfaces())
        caption = "The segments in 3D, seen from the left, front and above, and from the right, behind and above."
    yield _figure(surfaces, "Surfaces of the segments", caption, "surfaces")
    yield "<h2>Slices</h2>"
    yield (
        '<p class="note">For each segment, the axial, coronal and sagittal slices that contain the most of it, seen '
        "from the patient's feet, front and left. The outlines show all segments.</p>"
    )
    for index, (name, swatch) in enumerate(swatches.items()):
        if scene.boxes[index]:
            picture = png(scene.slices(scene.place(index)))
            yield _figure(picture, f"Slices of {name}", swatch + escape(name))
        else:
            yield f"<p>{swatch}{escape(name)}: not found in this image.</p>"


def _maps(scene: Scene, maps: Mapping[str, np.ndarray], names: Sequence[str], plane: str) -> Iterator[str]:
    if not maps:
        return
    colors = ", ".join("#{:02x}{:02x}{:02x}".format(*np.rint(color).astype(int)) for color in HEAT)
    yield "<h2>Maps</h2>"
    for kind, array in sorted(maps.items(), key=lambda item: list(MAPS).index(item[0])):
        about = MAPS[kind]
        planes = f" Slices are {plane}." if about.follows_residual and plane else ""
        yield f"<h3>{about.title}</h3>\n<p>{escape(about.description)}{planes}</p>"
        values = scene.cut(array)
        per_segment = about.per_segment and len(values) == len(names)
        places = enumerate(scene.boxes if per_segment else [None] * len(values))
        sizes = [np.count_nonzero(scene.mask(index)) if box and per_segment else 0 for index, box in places]
        chosen = sorted(sorted(range(len(values)), key=lambda index: -sizes[index])[:MOST_COMPONENTS])
        if len(chosen) < len(values):
            yield f'<p class="note">Shown for the {len(chosen)} largest of {len(values)} segments.</p>'
        for component in chosen:
            one = values[component]
            low, high = about.range or (0.0, 1.0)
            if kind in ("attention", "features"):
                # Only differences are meaningful: the scale depends on the network.
                some = one[::2, ::2, ::2].astype(np.float32)
                low, high = (float(x) for x in np.percentile(some, (1, 99)))
            title = names[component] if per_segment else about.title if len(values) == 1 else f"{component + 1}"
            bar = f'<span class="scale" style="background:linear-gradient(90deg, {colors})"></span>'
            scale = f"{_end(low)}{bar}{_end(high)}"
            picture = png(scene.slices(scene.place(component if per_segment else None), one, (low, high)))
            yield _figure(picture, f"{about.title}: {title}", f"{escape(title)} &nbsp; {scale}")


def _end(value: float) -> str:
    """The number at an end of a color scale. Features may exceed 100, which ``.2g`` would write with an exponent."""
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"


def _review(review: Mapping[str, Any], swatches: Mapping[str, str]) -> Iterator[str]:
    rows = review["rows"]
    yield "<h2>Places worth checking</h2>"
    yield (
        "<p>Slices and uncertain spots, most expected wrong voxels first. The expected numbers come from "
        "a regression on cases with reference labels; they are not a measurement of this case.</p>"
    )
    found = review.get("figures")
    if found and found.get("auroc") is not None:
        values = {"dice": BAD_DICE, "auroc": found["auroc"], "area": found["auroc_area"]}
        yield f'<p class="note">In {found["cases"]} held-out cases: {sentence("review-auroc", values)}</p>'
    if review.get("note"):
        yield f"<p><strong>{escape(review['note'])}</strong></p>"
    if not rows:
        yield "<p>Nothing was found, so there is nothing to check.</p>"
    kinds = {
        "Slices, all segments together": [row for row in rows if row["kind"] == "slice" and row["segment"] == ALL],
        "Uncertain spots": [row for row in rows if row["kind"] == "spot"],
    }
    header = ["Rank", "Segment", "Reason", "Slice", "R, A, S (mm)", "Expected wrong voxels", "Expected Dice"]
    if rows:
        yield (
            f'<p class="note">Ranks are those in the full list of {len(rows)} places, which also has each segment in '
            "each slice (review.csv).</p>"
        )
    for heading, chosen in kinds.items():
        cells = [
            [
                str(row["rank"]),
                swatches.get(row["segment"], "") + escape(row["segment"]),
                escape(row["reason"]),
                str(row["slice"]),
                ", ".join(f"{row[axis]:.1f}" for axis in "ras"),
                _number(row["expected_wrong_voxels"], 1),
                _number(row["expected_dice"], 2),
            ]
            for row in chosen[:LISTED_ROWS]
        ]
        if cells:
            yield f"<h3>{heading}</h3>"
            yield _table(header, cells, texts=3)


def _card(package: ModelPackage) -> Iterator[str]:
    description = package.description
    yield f"<h2>About the model {escape(description.title)}</h2>"
    texts = {
        "Intended use": description.intended_use,
        "Limits": description.limitations,
        "Training data": description.training_data,
        "License": " ".join(f"{text.rstrip('.')}." for text in (description.license, description.attribution) if text),
    }
    for heading, text in texts.items():
        if text:
            yield f"<p><strong>{heading}.</strong> {escape(text)}</p>"
    measured = [[escape(str(name)), escape(_shown(value))] for name, value in figures(read_metrics(package))]
    if measured:
        yield "<h3>Evaluation</h3>"
        yield _table(["Measure", "Value"], measured, texts=2)
    if description.citations:
        items = "".join(f"<li>{escape(text)}</li>" for text in description.citations)
        yield f"<h3>Please cite</h3>\n<ul>{items}</ul>"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return " to ".join(map(_shown, value)) if isinstance(value, list | tuple) else str(value)
