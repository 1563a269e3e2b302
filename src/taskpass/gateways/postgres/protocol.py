"""What an endpoint says to its client until the streams are joined: a state machine without I/O.

The client is attested but not trusted: its packets have strict lengths, it may name only the role and the database of
its lease, and only start-up parameters that cannot change who it is or what it may see. Not for what follows after the
start-up; that is not read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from taskpass.core.ids import RoleName
from taskpass.wire.postgres.login import Broken, Outcome, Ready, Refused
from taskpass.wire.postgres.messages import (
    CancelRequest,
    GssEncRequest,
    Malformed,
    SslRequest,
    Startup,
    authentication,
    backend_key_data,
    error_response,
    negotiate_protocol_version,
    parameter_status,
    ready_for_query,
    take_first_packet,
)

FORWARDED = frozenset(
    {
        "application_name",
        "client_encoding",
        "datestyle",
        "extra_float_digits",
        "idle_in_transaction_session_timeout",
        "intervalstyle",
        "lock_timeout",
        "statement_timeout",
        "timezone",
    }
)
"""Start-up parameters that are passed on, in lower case. All others are refused by name (threat: P13)."""

_SERVES = frozenset({"user", "database"})


@dataclass(frozen=True, slots=True)
class Say:
    """Send ``data`` and go on listening."""

    data: bytes


@dataclass(frozen=True, slots=True)
class HangUp:
    """Send ``data`` and close."""

    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Pass the request on if it names a live session of this very lease, and close without an answer."""

    pid: int
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Connect:
    """Log in to the target with ``parameters``. ``first`` goes to the client before anything else."""

    parameters: dict[str, str]
    first: bytes


Step = Say | HangUp | Cancel | Connect


class ClientStart:
    """One client's start-up. ``feed`` returns what to do, or None while a packet is incomplete."""

    def __init__(self, role: RoleName, database: str) -> None:
        self._role = role
        self._database = database
        self._buffer = bytearray()
        self._encryption_asked: set[type[SslRequest | GssEncRequest]] = set()

    @property
    def rest(self) -> bytes:
        """What the client sent after its StartupMessage: it belongs to the session."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> Step | None:
        self._buffer += data
        try:
            packet = take_first_packet(self._buffer)
        except Malformed as broken:
            return refuse("08P01", broken.message)
        if packet is None:
            return None
        if isinstance(packet, Startup):
            return self._start(packet)
        if self._buffer:
            # What was sent before the answer could be taken for protected later (CVE-2021-23214).
            return HangUp()
        if isinstance(packet, CancelRequest):
            return Cancel(packet.pid, packet.key)
        if type(packet) in self._encryption_asked:
            return HangUp()
        self._encryption_asked.add(type(packet))
        return Say(b"N")

    def _start(self, packet: Startup) -> Step:
        if packet.major != 3:
            return refuse("0A000", "only version 3 of the protocol is spoken here")
        asked = packet.unverified_parameters
        if asked.get("user") != self._role:
            return refuse("28000", f"this endpoint serves the role {self._role} only", hint=f"connect as {self._role}")
        if asked.get("database", self._role) != self._database:
            return refuse(
                "3D000",
                f"this endpoint leads to the database {self._database} only",
                hint=f"connect to {self._database}; for another database ask for access to it",
            )
        options = [name for name in asked if name.startswith("_pq_.")]
        others = {name: value for name, value in asked.items() if name not in _SERVES and name not in options}
        for name in others:
            if name.lower() not in FORWARDED:
                return refuse(
                    "42501",
                    f"the start-up parameter {name[:64]} is not accepted here",
                    hint="leave it out; settings that the role may change can be SET after connecting",
                )
        negotiate = packet.minor > 0 or options
        return Connect(others, negotiate_protocol_version(options) if negotiate else b"")


def refuse(sqlstate: str, words: str, *, hint: str = "") -> HangUp:
    """Ends a start-up with FATAL and our own words."""
    return HangUp(error_response(sqlstate, f"taskpass: {words}", hint=hint))


def welcome(ready: Ready) -> bytes:
    """What the client hears when the target accepted: as if it had logged in itself, with the target's real key."""
    statuses = b"".join(parameter_status(name, value) for name, value in ready.parameters.items())
    key = backend_key_data(ready.pid, ready.key) if ready.key else b""
    return authentication(0) + statuses + key + ready_for_query()


def explain(outcome: Outcome) -> HangUp | None:
    """Why the target's answer is no session, in our words; None if it is one. Its own text is not passed on."""
    if isinstance(outcome, Broken):
        return refuse("08P01", f"the login to the target failed: {outcome.reason}")
    if isinstance(outcome, Refused):
        return _explain_refusal(outcome)
    if not outcome.sasl:
        return refuse(
            "28000",
            "the target lets this role in without a password, so it is not used",
            hint="the operator must demand scram-sha-256 for it in pg_hba.conf",
        )
    return None


def _explain_refusal(refused: Refused) -> HangUp:
    if refused.sqlstate == "53300":
        return refuse(
            "53300",
            "too many connections: a lease allows only a few at a time",
            hint="close connections, or make the client's pool smaller (5 is usual)",
        )
    if refused.sqlstate.startswith("28"):
        return refuse(
            refused.sqlstate,
            "access has ended: the target no longer accepts this lease",
            hint="ask for access again",
        )
    if refused.sqlstate.startswith("57P"):
        return refuse(refused.sqlstate, "the target does not accept connections now", hint="try again")
    return refuse(refused.sqlstate, f"the target refused the connection (SQLSTATE {refused.sqlstate})")
