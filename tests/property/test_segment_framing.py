"""Any cutting of a sender's bytes gives the same answers and segments; no bytes make the decoder crash."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cortex.errors import ErrorReport, ProtocolError
from cortex.wire.framing import HEADER, encode_frame
from cortex.wire.messages import FromSegmentServer, SegmentHeader, SegmentRefused
from cortex.wire.segment_framing import SegmentDecoder

Answer = tuple[FromSegmentServer, bytes]
REFUSED = st.builds(
    SegmentRefused, st.integers(0, 2**40), st.builds(ErrorReport, st.text(max_size=9), st.text(max_size=40))
).map(lambda message: (message, b""))
SERVED = st.builds(
    lambda request, rows, raw: (SegmentHeader(request, len(raw), rows), raw),
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.binary(max_size=300),
)
TAIL = st.one_of(
    st.just(b""),
    st.binary(max_size=30).map(lambda body: HEADER.pack(len(body)) + body),
    st.just(HEADER.pack(5000)),
    st.just(encode_frame(SegmentHeader(7, 100, 1)) + b"cut short"),
)


def decode(chunks: list[bytes]) -> tuple[list[Answer], str]:
    """The answers with their bytes, and how it ended."""
    decoder = SegmentDecoder(4000)
    got: list[tuple[FromSegmentServer, bytearray]] = []
    try:
        for chunk in chunks:
            for item in decoder.feed(chunk):
                if isinstance(item, bytes):
                    assert item
                    got[-1][1].extend(item)
                else:
                    got.append((item, bytearray()))
    except ProtocolError as error:
        return [(message, bytes(raw)) for message, raw in got], error.message
    return [(message, bytes(raw)) for message, raw in got], "" if decoder.at_boundary else "open"


def every_cutting_gives(data: bytes, cuts: list[int]) -> tuple[list[Answer], str]:
    whole = decode([data])
    edges = [0, *sorted(c for c in cuts if c < len(data)), len(data)]
    assert decode([data[a:b] for a, b in itertools.pairwise(edges)]) == whole
    assert decode([data[i : i + 1] for i in range(len(data))]) == whole
    return whole


@given(st.lists(st.one_of(SERVED, REFUSED), max_size=6), TAIL, st.lists(st.integers(0, 2000), max_size=12))
def test_chunking_does_not_matter(sent: list[Answer], tail: bytes, cuts: list[int]) -> None:
    data = b"".join(encode_frame(message) + raw for message, raw in sent) + tail
    got, end = every_cutting_gives(data, cuts)
    assert got[: len(sent)] == sent
    assert end or len(got) >= len(sent)  # nothing is left out without a word


@given(st.lists(st.one_of(st.binary(max_size=40), SERVED.map(lambda s: encode_frame(s[0])))), st.data())
def test_any_bytes_are_answers_or_a_typed_error(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = data.draw(st.lists(st.integers(0, max(len(stream), 1)), max_size=6))
    got, end = every_cutting_gives(stream, cuts)
    assert end or sum(len(encode_frame(message)) + len(raw) for message, raw in got) == len(stream)
    if stream:
        at = data.draw(st.integers(0, len(stream) - 1))
        every_cutting_gives(stream[:at] + bytes([stream[at] ^ 0x81]) + stream[at + 1 :], cuts)
