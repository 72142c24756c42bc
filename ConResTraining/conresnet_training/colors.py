"""Colors of segments and labels. Each is far in hue from those before, however many there are."""

import colorsys

# Slicer-like ones.
FIRST = ([111, 184, 210], [216, 101, 79], [128, 174, 128], [241, 214, 145], [177, 122, 101], [192, 104, 88])
# Its multiples spread evenly over the hues, whatever their number.
GOLDEN_RATIO = 0.618034


def segment_color(place: int) -> list[int]:
    """Red, green and blue, 0 to 255, of the segment at a place."""
    if place < len(FIRST):
        return list(FIRST[place])
    return [round(255 * part) for part in colorsys.hsv_to_rgb(place * GOLDEN_RATIO % 1, 0.55, 0.85)]


def bright_colors(count: int) -> list[tuple[float, float, float]]:
    """Red, green and blue, 0 to 1, of so many labels whose outlines must stand out in gray pictures."""
    return [colorsys.hsv_to_rgb((0.03 + place * GOLDEN_RATIO) % 1, 0.8, 0.9) for place in range(count)]
