"""Whether names of segments speak of a side of the body, which a flip from left to right would turn into the other."""

import re
from collections.abc import Iterator, Sequence

# L and R stand for sides in many lists of labels; then in German, French, Spanish, Italian, Portuguese and Latin.
SIDES = {"left", "right", "l", "r", "lh", "rh", "lt", "rt"}
SIDES |= {"links", "linke", "linker", "linkes", "rechts", "rechte", "rechter", "rechtes"}
SIDES |= {"gauche", "droit", "droite", "izquierdo", "izquierda", "derecho", "derecha"}
SIDES |= {"sinistro", "sinistra", "destro", "destra", "esquerdo", "esquerda", "direito", "direita"}
SIDES |= {"sinister", "sinistrum", "dexter", "dextra", "dextrum"}
# What is exchanged within a word, wherever in it, to find the other of a pair; then what only begins or ends a word.
_WITHIN = (("left", "right"), ("左", "右"))
_LETTERS = {"l": "r", "r": "l"}


def speak_of_sides(names: Sequence[str]) -> bool:
    """Whether a name has a word for a side, or two become one another when left and right are exchanged in a word.

    "LeftLung" and "Kidney_L" have one; "lhippo" speaks of a side where there is an "rhippo" too, as "Liver" never does.
    """
    divided = [_words(name) for name in names]
    if any(SIDES & set(words) for words in divided):
        return True
    known = set(divided)
    return any(other in known for words in divided for other in _exchanged(words))


def _words(name: str) -> tuple[str, ...]:
    """In small letters; CamelCase is divided before a capital that follows a small letter or begins a word."""
    parted = re.sub(r"(?<=[a-zß-ÿ])(?=[A-ZÀ-Þ])|(?<=[A-ZÀ-Þ])(?=[A-ZÀ-Þ][a-zß-ÿ])", " ", name)
    return tuple(re.findall(r"[^\W_]+", parted.lower()))


def _exchanged(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The words with the side of one of them exchanged, in each way that there is."""
    for place, word in enumerate(words):
        others = [word.replace(one, other, 1) for one, other in _WITHIN if one in word]
        if word[0] in _LETTERS:
            others.append(_LETTERS[word[0]] + word[1:])
        if word[-1] in _LETTERS:
            others.append(word[:-1] + _LETTERS[word[-1]])
        yield from ((*words[:place], other, *words[place + 1 :]) for other in others)
