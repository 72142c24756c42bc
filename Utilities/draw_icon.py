"""Draw the icons: a stack of slices with the difference of the top two highlighted, or with a rising curve in front.

    python Utilities/draw_icon.py

writes ConResNet.png and the modules' icons, 128 x 128 with a transparent background.
"""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw

SIZE = 128
SCALE = 8  # the icons are drawn this much larger and then reduced, for smooth edges
REPOSITORY = Path(__file__).resolve().parents[1]
TARGETS = ("ConResNet.png", "ConResSegmentation/Resources/Icons/ConResSegmentation.png")
TRAINING_TARGET = "ConResTraining/Resources/Icons/ConResTraining.png"

SLICES = ((92, (32, 66, 104)), (66, (44, 96, 146)), (40, (66, 134, 190)))  # (height of the center, fill), bottom first
EDGE = (228, 240, 250)
ORGAN = (126, 214, 208)
RESIDUAL = (255, 154, 38)
# Center and radii of the organ in each slice, in units of the slice's half width.
ORGANS = ((-0.16, 0.20, 0.48, 0.40), (-0.06, 0.12, 0.60, 0.48), (0.14, -0.06, 0.68, 0.56))


def project(u: float, v: float, height: float) -> tuple[float, float]:
    """Project a point of a slice, u and v in -1..1, into the picture, seen from above at an angle."""
    return (64 + 30 * (u - v)) * SCALE, (height + 17 * (u + v)) * SCALE


def outline(height: float, corner: float = 0.22) -> list[tuple[float, float]]:
    """Outline of a slice: a square with rounded corners."""
    points = []
    for quarter, (cu, cv) in enumerate(((1, 1), (-1, 1), (-1, -1), (1, -1))):
        for step in range(13):
            angle = math.pi / 2 * (quarter + step / 12)
            points.append(
                project(
                    cu * (1 - corner) + corner * math.cos(angle), cv * (1 - corner) + corner * math.sin(angle), height
                )
            )
    return points


def organ(index: int, height: float) -> list[tuple[float, float]]:
    """Outline of the organ of slice ``index``, drawn at ``height``: an indented ellipse that looks like anatomy."""
    center_u, center_v, radius_u, radius_v = ORGANS[index]
    points = []
    for step in range(240):
        angle = 2 * math.pi * step / 240
        wave = 1 + 0.10 * math.cos(2 * angle + 0.6) + 0.08 * math.cos(3 * angle - 0.9)
        u = center_u + radius_u * wave * math.cos(angle)
        v = center_v + radius_v * wave * math.sin(angle)
        points.append(project(u, v, height))
    return points


def mask(points: list[tuple[float, float]]) -> Image.Image:
    """Mask of a polygon's inside, with the values 0 and 255."""
    picture = Image.new("L", (SIZE * SCALE, SIZE * SCALE))
    ImageDraw.Draw(picture).polygon(points, fill=255)
    return picture


def draw() -> Image.Image:
    """Icon of the extension and of its segmentation module."""
    icon = draw_stack()
    pen = ImageDraw.Draw(icon)
    top = SLICES[-1][0]
    here, below = mask(organ(2, top)), mask(organ(1, top))
    icon.paste(ORGAN, mask=ImageChops.multiply(here, below))
    icon.paste(RESIDUAL, mask=ImageChops.difference(here, below))
    contour = organ(2, top)
    pen.line([*contour, contour[0], contour[1]], fill=(255, 255, 255), width=2 * SCALE, joint="curve")
    return icon.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def draw_training() -> Image.Image:
    """Icon of the training module: a learning curve in front of the same slices."""
    icon = draw_stack()
    pen = ImageDraw.Draw(icon)
    steps = [step / 60 for step in range(61)]
    curve = [((14 + 100 * x) * SCALE, (108 - 74 * (1 - math.exp(-3.2 * x))) * SCALE) for x in steps]
    for color, width in ((EDGE, 13), (RESIDUAL, 8)):
        pen.line(curve, fill=color, width=width * SCALE, joint="curve")
        for end in (curve[0], curve[-1]):
            radius = width * SCALE * (0.5 if end is curve[0] else 0.9)
            pen.ellipse((end[0] - radius, end[1] - radius, end[0] + radius, end[1] + radius), fill=color)
    return icon.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def draw_stack() -> Image.Image:
    """The slices with the organ in each, at the size in which the icons are drawn."""
    icon = Image.new("RGBA", (SIZE * SCALE, SIZE * SCALE), (0, 0, 0, 0))
    pen = ImageDraw.Draw(icon)
    for index, (height, color) in enumerate(SLICES):
        frame = outline(height)
        pen.polygon(frame, fill=color)
        pen.polygon(organ(index, height), fill=tuple((a + b) // 2 for a, b in zip(color, ORGAN, strict=True)))
        pen.line([*frame, frame[0], frame[1]], fill=EDGE, width=2 * SCALE, joint="curve")
    return icon


if __name__ == "__main__":
    for target in TARGETS:
        draw().save(REPOSITORY / target, optimize=True)
    draw_training().save(REPOSITORY / TRAINING_TARGET, optimize=True)
