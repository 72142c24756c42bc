"""Images are assigned to channels by the words in their names, in any order of loading."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conresnet.errors import UserError
from conresnet.images.inputs import Candidate, match_channels, score, sort_by_channel, warn_of_names
from conresnet.importing import CHANNELS


@dataclass(frozen=True)
class Channel:
    name: str
    keywords: tuple[str, ...]
    exclude_keywords: tuple[str, ...] = ()


BRATS = tuple(
    Channel(**{key: channel[key] for key in ("name", "keywords", "exclude_keywords")}) for channel in CHANNELS
)
FLAIR, T1, T1C, T2 = BRATS


def matched(inputs: tuple[Channel, ...], names: list[str]) -> list[str | None]:
    found = match_channels(inputs, [Candidate(name) for name in names])
    return [None if place is None else names[place] for place in found]


@pytest.mark.parametrize(
    "names",
    [
        ["flair", "t1", "t1c", "t2"],
        ["BraTS18_X_1_flair", "BraTS18_X_1_t1", "BraTS18_X_1_t1ce", "BraTS18_X_1_t2"],
        ["3: AX FLAIR", "4: AX T1", "7: AX T1 CONTRAST", "5: AX T2"],
        ["sub-01_FLAIR", "sub-01_T1w", "sub-01_T1GD", "sub-01_T2w"],
        ["T2_FLAIR", "MPRAGE", "T1Gd", "T2"],
        [f"BraTS-GLI-00000-000-{word}" for word in ("t2f", "t1n", "t1c", "t2w")],
        ["FLAIR", "T1w", "T1wCE", "T2w"],
        ["T2FLAIR", "T1 pre-contrast", "T1 post-contrast", "T2FSE"],
        ["T2 FLAIR", "T1 without contrast", "T1 with contrast", "T2 TSE"],
        ["sub-01_FLAIR", "sub-01_T1w", "sub-01_ce-gadolinium_T1w", "sub-01_T2w"],
        ["t2_tirm_dark-fluid", "t1_tirm", "t1_km", "t2_tse"],
        ["flair_postop", "t1_postop", "t1ce_postop", "t2_postop"],
        ["AX FLAIR", "AX T1", "AX T1+C", "AX T2"],
        ["FLAIR", "T1 SE", "T1 SE + Gd", "T2 SE"],
        ["ax_FLAIR", "ax_T1_FSPGR", "ax_T1+C_FSPGR", "ax_T2"],
        ["FLAIR", "T1 MPRAGE", "T1 MPRAGE+C", "T2"],
        ["flair", "t1_pre", "t1_post", "t2"],
    ],
)
def test_four_channels_are_found_in_any_order(names: list[str]) -> None:
    for order in permutations(names):
        assert matched(BRATS, list(order)) == names


def test_name_without_matching_words_is_not_assigned() -> None:
    assert matched((T1, T1C), ["scan 7", "post t1c"]) == [None, "post t1c"]


def test_single_input_gets_first_volume_not_excluded() -> None:
    assert matched((T1,), ["head T1c", "IXI034", "other"]) == ["IXI034"]
    assert matched((T1,), ["IXI034", "a T1"]) == ["a T1"]
    assert matched((T1,), []) == [None]


def test_patients_are_not_mixed() -> None:
    candidates = [Candidate("T1", "A"), Candidate("T2", "A"), Candidate("T1", "B"), Candidate("T1c", "B")]
    candidates += [Candidate("FLAIR", "B"), Candidate("T2", "B")]
    assert match_channels(BRATS, candidates) == [4, 2, 3, 5]
    assert match_channels((T1, T1C), candidates[:3]) == [0, None]


def test_names_with_same_prefix_are_grouped() -> None:
    assert matched((T1, T2), ["ann_t1", "bob_t1", "bob_t2"])[1] == "bob_t2"
    assert matched((T1C, T1), ["bob_t1", "ann_t1", "ann_t1c"]) == ["ann_t1c", "ann_t1"]


def test_whole_words_outrank_prefixes_and_excluding_words_outrank_both() -> None:
    assert score(T1, "T1") > score(T1, "T1weighted") > 0
    assert score(T1, "brain") == 0
    assert score(T1, "brain T1ce") is None


@given(names=st.lists(st.text(max_size=12), max_size=6))
def test_no_volume_is_chosen_twice(names: list[str]) -> None:
    chosen = [place for place in match_channels(BRATS, [Candidate(name) for name in names]) if place is not None]
    assert len(set(chosen)) == len(chosen)


def test_files_are_sorted_if_all_names_match_a_channel() -> None:
    names = ["pat2_T1GD.nii.gz", "pat2_T2.nii.gz", "pat2_FLAIR.nii.gz", "pat2_T1.nii.gz"]
    assert [names[place] for place in sort_by_channel(BRATS, names)] == [names[2], names[3], names[0], names[1]]


@pytest.mark.parametrize("names", [["a.nii", "b.nii", "c.nii", "d.nii"], ["a.nii", "t1.nii", "c.nii", "t2.nii"]])
def test_files_keep_given_order_if_no_name_contradicts_it(names: list[str]) -> None:
    assert sort_by_channel(BRATS, names) == [0, 1, 2, 3]


def test_files_whose_names_partly_suggest_another_order_are_refused() -> None:
    with pytest.raises(UserError) as error:
        sort_by_channel(BRATS, ["first.nii", "flair.nii", "t1c.nii", "last.nii"])
    assert error.value.code == "channels-unclear"
    assert error.value.values == {"name": "flair.nii", "given": "T1", "spoken": "FLAIR"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["p_T2.nii.gz", "p_T1.nii.gz"], [("T1", "T2"), ("T2", "T1")]),
        (["scan 3.nii.gz", "p_T1.nii.gz"], [("T2", "T1")]),
        (["p_T1.nii.gz", "p_T2.nii.gz"], []),
        (["scan 3.nii.gz", "T2T1.nii.gz"], []),
        (["T1.nii.gz", "T2_on_T1.nii.gz"], []),
        (["", ""], []),
    ],
)
def test_name_of_another_channel_gets_a_warning(names, expected):
    pair = [Channel("T1", ()), Channel("T2", ())]
    warnings = warn_of_names(pair, names)
    assert len(warnings) == len(expected)
    for warning, (given_as, suggested) in zip(warnings, expected, strict=True):
        assert f"given as {given_as} suggests {suggested};" in warning


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("p_FLAIR.nii.gz", "flair"),
        ("p_t1c.nii", "t1c"),
        ("ses-t2_T1w.nii", ""),
        ("T1_flairlike.nii", ""),
        ("p.nii", ""),
    ],
)
def test_name_that_the_model_excludes_gets_a_warning(name, word):
    warnings = warn_of_names([Channel("T1", ("t1w",), ("t1c", "t2", "flair"))], [name])
    assert bool(warnings) == bool(word) and all(f'"{word}"' in warning for warning in warnings)
