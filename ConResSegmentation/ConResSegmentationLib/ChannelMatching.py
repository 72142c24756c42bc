"""Which volume is which channel of a model, told by the words in the volumes' names. Pure Python."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A volume that may become a channel: its name, and what holds a patient's volumes together, such as a study."""

    name: str
    group: Hashable = None


def matchChannels(inputs: Sequence, candidates: Sequence[Candidate]) -> list[int | None]:
    """Choose a candidate for every input of a model.

    All channels come from one group, the one that fills most of them, so that patients are not mixed. An input that no
    name speaks for stays empty, except that the only input of a model takes the first volume that no word speaks
    against.

    Args:
        inputs: with ``name``, ``keywords`` and ``exclude_keywords``, as a model's description has them.
        candidates: the volumes, preferred ones first.

    Returns:
        for every input the candidate's place in ``candidates``, or None.
    """
    best: list[int | None] = [None] * len(inputs)
    for group in dict.fromkeys(candidate.group for candidate in candidates):
        members = [place for place, candidate in enumerate(candidates) if candidate.group == group]
        found = _matchInGroup(inputs, [candidates[place].name for place in members])
        if sum(place is not None for place in found) > sum(place is not None for place in best):
            best = [None if place is None else members[place] for place in found]
    if len(inputs) == 1 and best == [None]:
        best = [next((i for i, c in enumerate(candidates) if score(inputs[0], c.name) is not None), None)]
    return best


def score(channel, name: str) -> int | None:
    """How strongly a name speaks for an input: 0 not at all, None when it speaks against it."""
    words = _words(name)
    if any(_strength(keyword, words) > 0 for keyword in channel.exclude_keywords):
        return None
    return max((_strength(keyword, words) for keyword in (channel.name, *channel.keywords)), default=0)


def _matchInGroup(inputs: Sequence, names: Sequence[str]) -> list[int | None]:
    found: list[int | None] = [None] * len(inputs)
    free = set(range(len(names)))
    while True:
        taken = [names[place] for place in found if place is not None]
        ranked = [
            (strength, _likeness(names[place], taken), -place, channel)
            for channel, place in ((c, p) for c in range(len(inputs)) if found[c] is None for p in free)
            if (strength := score(inputs[channel], names[place]))
        ]
        if not ranked:
            return found
        _, _, place, channel = max(ranked)
        found[channel] = -place
        free.remove(-place)


def _strength(keyword: str, words: list[str]) -> int:
    """A whole word counts more than the beginning of one ("t1" in "t1w"), a long keyword more than a short one."""
    wanted = _words(keyword)
    if not wanted:
        return 0
    last = len(wanted) - 1
    for start in range(len(words) - last):
        part = words[start : start + last + 1]
        if part == wanted:
            return 1000 + len("".join(wanted))
        if part[:last] == wanted[:last] and part[last].startswith(wanted[last]):
            return len("".join(wanted))
    return 0


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def _likeness(name: str, taken: Sequence[str]) -> int:
    """How much of its beginning a name shares with those chosen before: of two T1 volumes, the same patient's."""
    return max((_sharedBeginning(name, other) for other in taken), default=0)


def _sharedBeginning(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
