"""Ways to damage bytes and text, for all campaigns. All randomness comes from the argument ``random``."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

#: Numbers that often cause errors, as strings.
NUMBERS = (
    *("0", "-1", "1", "2", "7", "255", "256", "32767", "-32768", "65535", "65536", "2147483647", "2147483648"),
    *("-2147483649", "4294967296", "9223372036854775807", "9223372036854775808", "1e308", "1e-300", "nan", "inf"),
    *("0.0", "-0.0", "1,5", "0x10", "", "none", "true", "٣", "1" * 400, "%s%s%n", "../../etc/passwd", "\x00"),
)
_FORMS = ("<b", "<h", "<i", "<q", "<f", "<d", ">h", ">i", ">f")
_VALUES = (0, -1, 1, 2, 3, 7, 127, -128, 255, 2**15 - 1, -(2**15), 2**16, 2**31 - 1, -(2**31), 2**40, 2**63 - 1)
_FLOATS = (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), float("-inf"), 352.0, -352.0, 1e9)


def damaged_bytes(data: bytes, random: random.Random, header: int | None = None) -> bytes:
    """The bytes with one to four changes, most of them in the first ``header`` bytes."""
    content = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        reach = min(len(content), header or len(content)) if random.random() < 0.8 else len(content)
        if reach:
            random.choice(_CHANGES)(content, random, reach)
    return bytes(content)


def _flip(content: bytearray, random: random.Random, reach: int) -> None:
    content[random.randrange(reach)] ^= 1 << random.randrange(8)


def _value(content: bytearray, random: random.Random, reach: int) -> None:
    form = random.choice(_FORMS)
    size = struct.calcsize(form)
    if reach < size:
        return
    place = random.randrange(0, reach - size + 1)
    # Header fields are mostly aligned to their size.
    place -= place % size
    if form[1] in "fd":
        value = random.choice(_FLOATS)
        if form[1] == "f" and abs(value) > 3e38 and value not in (float("inf"), float("-inf")):
            value = 1e30
    else:
        limit = 1 << (8 * size - 1)
        value = (random.choice(_VALUES) + limit) % (2 * limit) - limit
    struct.pack_into(form, content, place, value)


def _cut(content: bytearray, random: random.Random, reach: int) -> None:
    del content[random.randrange(len(content)) if random.random() < 0.7 else random.randrange(reach) :]


def _remove(content: bytearray, random: random.Random, reach: int) -> None:
    place = random.randrange(reach)
    del content[place : place + random.choice((1, 2, 4, 16, 100))]


def _insert(content: bytearray, random: random.Random, reach: int) -> None:
    place = random.randrange(reach)
    content[place:place] = random.choice((bytes(1), bytes(7), b"\xff" * 16, random.randbytes(5), b"\r\n"))


def _repeat(content: bytearray, random: random.Random, reach: int) -> None:
    place = random.randrange(reach)
    content[place:place] = content[place : place + random.choice((1, 8, 64, 1000))]


_CHANGES: tuple[Callable, ...] = (_flip, _flip, _value, _value, _value, _cut, _remove, _insert, _repeat)


def damaged_lines(text: str, random: random.Random) -> str:
    """Lines "name: value" or "name = value" with one to three changes."""
    lines = text.split("\n")
    for _ in range(random.choice((1, 1, 2, 3))):
        place = random.randrange(len(lines))
        match random.randrange(7):
            case 0:
                del lines[place]
                lines = lines or [""]
            case 1:
                lines.insert(random.randrange(len(lines)), lines[place])
            case 2:
                other = random.randrange(len(lines))
                lines[place], lines[other] = lines[other], lines[place]
            case 3:
                words = lines[place].split(" ")
                words[random.randrange(len(words))] = random.choice(NUMBERS)
                lines[place] = " ".join(words)
            case 4:
                words = lines[place].split(" ")
                del words[random.randrange(len(words))]
                lines[place] = " ".join(words)
            case 5:
                lines[place] = lines[place].replace("1", random.choice(NUMBERS), 1)
            case _:
                lines[place] += random.choice((" " + random.choice(NUMBERS), "\t", "\x00", "é", " = ", ":"))
    return "\n".join(lines)
