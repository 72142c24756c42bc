"""Which image is which channel of a model, as named or from the words in the images' names. Standard library only."""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conresnet.errors import UserError
from conresnet.messages import sentence

_WHOLE_WORD = 1000
_MOST_NAMED = 8
# Radiologists write "T1+C" for what files call "t1gd".
_PLUS_CONTRAST = re.compile(r"\+\s*(?:c|ce|contrast|gd|gad)(?![a-z0-9])")


@dataclass(frozen=True)
class Candidate:
    """An image that may become a channel: its name, and what groups a patient's images, such as a study."""

    name: str
    group: Hashable = None


def match_channels(inputs: Sequence, candidates: Sequence[Candidate]) -> list[int | None]:
    """Choose a candidate for every input of a model.

    All channels come from one group, the one that fills most of them, so that patients are not mixed. An input that no
    name matches stays empty, except that the only input of a model takes the first image that no word excludes.

    Args:
        inputs: with ``name``, ``keywords`` and ``exclude_keywords``, as a model's description has them.
        candidates: the images, preferred ones first.

    Returns:
        for every input the candidate's index in ``candidates``, or None.
    """
    best: list[int | None] = [None] * len(inputs)
    for group in dict.fromkeys(candidate.group for candidate in candidates):
        members = [place for place, candidate in enumerate(candidates) if candidate.group == group]
        found = _match_in_group(inputs, [candidates[place].name for place in members])
        if sum(place is not None for place in found) > sum(place is not None for place in best):
            best = [None if place is None else members[place] for place in found]
    if len(inputs) == 1 and best == [None]:
        best = [next((i for i, c in enumerate(candidates) if score(inputs[0], c.name) is not None), None)]
    return best


def sort_by_channel(inputs: Sequence, names: Sequence[str]) -> list[int]:
    """The indices of images, one for every input, in the order of the inputs.

    Names decide if every input has a name that matches it; otherwise the given order stays. Raises UserError
    "channels-unclear" if a name contradicts it.
    """
    given = list(range(len(names)))
    found = match_channels(inputs, [Candidate(name) for name in names])
    if None not in found:
        return found
    wrong = [place for place, by_name in zip(given, found, strict=True) if by_name not in (None, place)]
    if wrong:
        place, image = wrong[0], found[wrong[0]]
        raise UserError("channels-unclear", name=names[image], given=inputs[image].name, spoken=inputs[place].name)
    return given


def warn_of_names(inputs: Sequence, names: Sequence[str]) -> list[str]:
    """A warning for each image whose name contains a whole word for another channel, or one that its own channel
    excludes (such as "flair" for T1), and no word for its own channel.
    """
    warnings = []
    for own, name in zip(inputs, names, strict=True):
        strengths = [score(item, name) or 0 for item in inputs]
        other = max(range(len(inputs)), key=strengths.__getitem__)
        if strengths[other] >= _WHOLE_WORD > (score(own, name) or 0):
            warnings.append(sentence("warn-channel-name", {"given": own.name, "spoken": inputs[other].name}))
            continue
        words = _words(name)
        excluded = [word for word in own.exclude_keywords if _strength(word, words) >= _WHOLE_WORD]
        if excluded and all(_strength(word, words) < _WHOLE_WORD for word in (own.name, *own.keywords)):
            warnings.append(sentence("warn-excluded-name", {"given": own.name, "word": excluded[0]}))
    return warnings


def by_channel(given: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """Images by channel, in the order of ``names``, the model's channels; upper and lower case do not matter.

    Raises UserError "channel-unknown", "channel-repeated" or "channel-missing".
    """
    found: dict[str, Any] = {}
    for name, image in given.items():
        wanted = str(name).strip().casefold()
        known = next((channel for channel in names if channel.casefold() == wanted), None)
        if known is None:
            raise UserError("channel-unknown", name=name, channels=", ".join(names))
        if known in found:
            raise UserError("channel-repeated", name=known)
        found[known] = image
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError("channel-missing", missing=", ".join(missing))
    return [found[name] for name in names]


def check_channel_count(given: Sequence[str], channels: Sequence[str]) -> None:
    """Raise UserError "wrong-channel-count" for a number of images other than the model's number of channels."""
    if len(given) != len(channels):
        more = [f"and {len(given) - _MOST_NAMED} more"] if len(given) > _MOST_NAMED else []
        values = {"images": ", ".join([*given[:_MOST_NAMED], *more]), "channels": ", ".join(channels)}
        raise UserError("wrong-channel-count", given=len(given), wanted=len(channels), **values)


def score(channel, name: str) -> int | None:
    """How strongly a name suggests an input: 0 not at all, None if it excludes it."""
    words = _words(name)
    if any(_strength(keyword, words) > 0 for keyword in channel.exclude_keywords):
        return None
    return max((_strength(keyword, words) for keyword in (channel.name, *channel.keywords)), default=0)


def _match_in_group(inputs: Sequence, names: Sequence[str]) -> list[int | None]:
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
            return _WHOLE_WORD + len("".join(wanted))
        if part[:last] == wanted[:last] and part[last].startswith(wanted[last]):
            return len("".join(wanted))
    return 0


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", _PLUS_CONTRAST.sub(" t1gd ", text.casefold()))


def _likeness(name: str, taken: Sequence[str]) -> int:
    """How much of its beginning a name shares with those chosen before: of two T1 volumes, the same patient's."""
    return max((_shared_beginning(name, other) for other in taken), default=0)


def _shared_beginning(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
