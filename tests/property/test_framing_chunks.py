"""Any cutting of the same bytes gives the same messages, then the same error."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cortex.errors import ProtocolError
from cortex.wire import messages
from cortex.wire.framing import HEADER, FrameDecoder, encode_frame

MESSAGES = st.one_of(
    st.builds(messages.CancelJob, st.text(max_size=40)),
    st.builds(messages.JobReceived, st.text(max_size=40)),
    st.builds(messages.ClientHello, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)),
)
TAIL = st.one_of(
    st.just(b""),
    st.binary(max_size=30).map(lambda body: HEADER.pack(len(body)) + body),  # (almost) never a message
    st.just(HEADER.pack(5000)),
)


def decode(chunks: list[bytes], raise_after: int) -> tuple[list[object], str]:
    """The messages and the error; the limit grows from 60 to 4000 after message `raise_after`."""
    decoder: FrameDecoder[messages.ToServer] = FrameDecoder(messages.ToServer, 60)
    got: list[object] = []
    try:
        for chunk in chunks:
            for message in decoder.feed(chunk):
                got.append(message)
                if len(got) == raise_after:
                    decoder.set_limit(4000)
    except ProtocolError as error:
        return got, error.message
    return got, "" if decoder.at_boundary else "open"


@given(st.lists(MESSAGES, max_size=8), TAIL, st.lists(st.integers(0, 2000), max_size=12), st.integers(0, 3))
def test_chunking_does_not_matter(
    sent: list[messages.Message], tail: bytes, cuts: list[int], raise_after: int
) -> None:
    data = b"".join(encode_frame(m) for m in sent) + tail
    whole = decode([data], raise_after)
    edges = [0, *sorted(c for c in cuts if c < len(data)), len(data)]
    assert decode([data[a:b] for a, b in itertools.pairwise(edges)], raise_after) == whole
    assert decode([data[i : i + 1] for i in range(len(data))], raise_after) == whole
    got, error = whole
    assert got == sent[: len(got)]
    assert len(got) == len(sent) or error  # nothing is left out without a word
