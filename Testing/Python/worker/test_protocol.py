"""Lines of the protocol, however they are split on arrival."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conresnet.worker import LineSplitter, ProtocolError, decode, encode

texts = st.text(max_size=20)
messages = st.dictionaries(texts, st.none() | st.booleans() | st.integers() | texts | st.lists(texts), max_size=5)


@given(st.lists(messages, max_size=4), st.lists(st.integers(0, 200), max_size=12))
def test_messages_may_be_split_anywhere(sent: list[dict], cuts: list[int]) -> None:
    data = b"".join(map(encode, sent))
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    splitter = LineSplitter()
    pieces = [data[start:stop] for start, stop in itertools.pairwise(places)]
    assert [decode(line) for piece in pieces for line in splitter.feed(piece)] == sent


def test_utf8_characters_may_be_split_between_chunks() -> None:
    data = '{"name":"Grüße 脑"}\r\n'.encode()
    splitter = LineSplitter()
    lines = [line for n in range(len(data)) for line in splitter.feed(data[n : n + 1])]
    assert [decode(line) for line in lines] == [{"name": "Grüße 脑"}]


def test_undecodable_file_name_is_preserved() -> None:
    name = b"image-\xff.nii".decode("utf-8", errors="surrogateescape")
    assert decode(encode({"npy": name})) == {"npy": name}


def test_message_is_a_single_line() -> None:
    line = encode({"text": "one\ntwo\r\u2028three"})
    assert line.count(b"\n") == 1 and line.endswith(b"\n") and line.isascii()


@pytest.mark.parametrize("line", [b"garbage", b"[1]", b"5", b'"text"', b'{"a":', b"\xff\xfe", b"[" * 100_000])
def test_invalid_message_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(line)
