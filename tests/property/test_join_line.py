"""Join lines parse back; no bytes crash what decodes before anyone is known, or what parses a request."""

from __future__ import annotations

import contextlib
import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from cortex.errors import ProtocolError, UsageError
from cortex.wire.authority import make_key, make_request, requested_key
from cortex.wire.framing import HEADER, FrameDecoder, encode_frame
from cortex.wire.join import Endpoint, JoinLine, parse_endpoint, parse_join_line
from cortex.wire.messages import Join
from cortex.wire.permissions import not_allowed, union_from

HOSTS = st.one_of(
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}\.){0,3}[a-z0-9-]{1,20}", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)
ENDPOINTS = st.builds(Endpoint, HOSTS, st.integers(1, 65535))
HEX = st.sampled_from("0123456789abcdef")
LINES = st.builds(
    JoinLine,
    ENDPOINTS,
    st.text(HEX, min_size=12, max_size=12).map(lambda digits: "t" + digits),
    st.binary(min_size=16, max_size=16),
    st.text(HEX, min_size=64, max_size=64),
)
REQUEST = make_request(make_key())
JOIN = encode_frame(Join("t0123456789ab", REQUEST, b"p" * 32, {"python": "3.11"}))


@given(LINES)
def test_a_line_parses_back(line: JoinLine) -> None:
    assert parse_join_line(line.text()) == line
    assert line.text().isascii()


@given(ENDPOINTS)
def test_an_endpoint_parses_back(endpoint: Endpoint) -> None:
    found = parse_endpoint(str(endpoint))
    assert found == endpoint
    if ":" in endpoint.host:
        assert ipaddress.ip_address(found.host) == ipaddress.ip_address(endpoint.host)


@given(LINES, st.data())
def test_a_damaged_line_is_refused_or_another_line_and_its_secret_is_not_said(
    line: JoinLine, data: st.DataObject
) -> None:
    text = line.text()
    at = data.draw(st.integers(0, len(text) - 1))
    change = data.draw(st.sampled_from(["", " ", "x", "/", ".", ":", "\n", "é"]))
    damaged = text[:at] + change + text[at + data.draw(st.integers(0, 3)) :]
    said = ""
    try:
        parse_join_line(damaged)
    except UsageError as error:
        said = str(error)
    assert line.secret.hex()[:16] not in said
    assert line.secret.hex()[16:] not in said


@given(st.text())
def test_any_text_is_a_line_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert type(parse_join_line(text)) is JoinLine
    with contextlib.suppress(UsageError):
        assert type(parse_endpoint(text)) is Endpoint


def strangers_decoder() -> FrameDecoder[Join]:
    return FrameDecoder(union_from(None), 4096, lambda tag: not_allowed(None, tag))


@given(st.lists(st.binary(max_size=80), max_size=8), st.booleans())
def test_no_bytes_before_authentication_crash_the_decoder(chunks: list[bytes], framed: bool) -> None:
    decoder = strangers_decoder()
    with contextlib.suppress(ProtocolError):
        for chunk in chunks:
            for message in decoder.feed(HEADER.pack(len(chunk)) + chunk if framed else chunk):
                assert type(message) is Join


@given(st.integers(0, len(JOIN) - 1), st.binary(min_size=1, max_size=6), st.integers(0, 6))
def test_no_damage_to_a_join_crashes_the_decoder(at: int, new: bytes, skip: int) -> None:
    decoder = strangers_decoder()
    with contextlib.suppress(ProtocolError):
        for message in decoder.feed(JOIN[:at] + new + JOIN[at + skip :]):
            assert type(message) is Join


@given(st.one_of(st.binary(max_size=400), st.tuples(st.integers(0, len(REQUEST) - 1), st.binary(max_size=4))))
def test_no_request_crashes_its_parser(case: bytes | tuple[int, bytes]) -> None:
    if isinstance(case, tuple):
        at, new = case
        case = REQUEST[:at] + new + REQUEST[at + len(new) :]
    with contextlib.suppress(ProtocolError):
        assert requested_key(case).curve.name == "secp256r1"
