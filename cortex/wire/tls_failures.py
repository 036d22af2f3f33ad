"""What a failed handshake means to a person. Pure: the TLS libraries' words in, an error out.

OpenSSL names its reasons alike in both libraries that we use, apart from case and ``_`` for spaces.
"""

from __future__ import annotations

from typing import Final

from cortex.errors import NotTrusted

_JOIN_AGAIN = "join the cluster again, with a new line from: cortex token create"
_COMPARE = "compare the clocks of both machines"
_CLOCKS = "compare the clocks of both machines; else " + _JOIN_AGAIN

_MEANINGS: Final = (
    # the other end's alerts: what it thinks of us
    ("alert certificate expired", "{who} says that our certificate has expired", _CLOCKS),
    ("alert certificate required", "{who} takes no one without a certificate", _JOIN_AGAIN),
    ("alert unknown ca", "{who} does not know the authority that signed our certificate", _JOIN_AGAIN),
    ("alert decrypt error", "{who} does not know the authority that signed our certificate", _JOIN_AGAIN),
    ("alert bad certificate", "{who} does not take our certificate", _JOIN_AGAIN),
    ("alert unsupported certificate", "{who} does not take a certificate of our role", _JOIN_AGAIN),
    ("alert certificate unknown", "{who} does not take our certificate", _JOIN_AGAIN),
    ("alert handshake failure", "{who} refused the handshake", "is it a cortex server of this version?"),
    ("alert protocol version", "{who} does not speak TLS 1.3", "is it a cortex server?"),
    # what we think of it
    (
        "certificate has expired",
        "the certificate of {who} has expired",
        _COMPARE,
    ),
    ("not yet valid", "the certificate of {who} is not valid yet", _COMPARE),
    ("hostname mismatch", "{who} has the certificate of another process", "is the address right?"),
    (
        "certificate verify failed",
        "{who} has no valid certificate of our cluster",
        "is the address right, and the clock? If they are, somebody may be between you and the server",
    ),
    ("wrong version number", "{who} does not speak TLS", "is the address right?"),
    ("unsupported protocol", "{who} does not speak TLS 1.3", "is it a cortex server?"),
)


def explain(said: str, who: str) -> NotTrusted:
    """The error for a handshake with `who` (such as ``the server at HOST:PORT``) that failed, from what
    the TLS library `said`."""
    plain = said.lower().replace("_", " ")
    for sign, message, cure in _MEANINGS:
        if sign in plain:
            return NotTrusted(message.format(who=who), cure=cure, details={"TLS says": said})
    return NotTrusted(f"the TLS connection with {who} failed", details={"TLS says": said})
