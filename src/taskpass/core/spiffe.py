"""Names of workloads: ``spiffe://<trust domain>/agent/<tool>/<instance>``, built and parsed strictly.

Rules: SPIFFE-ID standard, sections 2.1 to 2.3 (lower-case trust domain, no user info, port, percent sign, query,
fragment, empty or dot segments). What does not fit is refused and never cleaned: two names must not become one id.
Not a proof of anything: the proof is the kernel's answer about the peer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from taskpass.core.errors import InvalidInput
from taskpass.core.ids import RunId

TOTAL_BYTES = 2048
TRUST_DOMAIN_BYTES = 255

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_TOOL = re.compile(r"[a-z0-9._-]{1,32}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")
_HINT = "an id looks like spiffe://acme.example/agent/claude/run_01j…"


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """A workload's id. ``str`` gives the text; two ids are compared whole, never by prefix."""

    trust_domain: str
    path: tuple[str, ...]

    def __str__(self) -> str:
        return "/".join((f"spiffe://{self.trust_domain}", *self.path))


def trust_domain(text: str) -> str:
    """``text`` if it may name a trust domain, else ``InvalidInput``."""
    if not _TRUST_DOMAIN.fullmatch(text):
        raise InvalidInput("not a valid trust domain", hint="use a-z, 0-9, '.', '-' and '_', at most 255 characters")
    return text


def tool_name(text: str) -> str:
    """``text`` if it may name a tool, else ``InvalidInput``."""
    if not _TOOL.fullmatch(text) or text in (".", ".."):
        raise InvalidInput("not a valid name of a tool", hint="use a-z, 0-9, '.', '-' and '_', at most 32 characters")
    return text


def agent_id(domain: str, tool: str, instance: str) -> SpiffeId:
    """The id of one instance of a tool; raises ``InvalidInput`` if a part does not fit."""
    found = SpiffeId(trust_domain(domain), ("agent", tool_name(tool), _segment(instance)))
    if len(str(found)) > TOTAL_BYTES:
        raise InvalidInput("the SPIFFE id is too long", hint=f"at most {TOTAL_BYTES} bytes")
    return found


def instance(run: RunId | None, uid: int) -> str:
    """The last segment: the run, or outside any run the one unattached instance of a uid."""
    return run if run is not None else f"uid-{uid}"


def parse(text: str) -> SpiffeId:
    """The id in ``text``, which must name a workload (have a path); raises ``InvalidInput`` without echoing it."""
    if len(text.encode(errors="replace")) > TOTAL_BYTES or not text.startswith("spiffe://"):
        raise InvalidInput("not a valid SPIFFE id", hint=_HINT)
    domain, *path = text.removeprefix("spiffe://").split("/")
    if not path:
        raise InvalidInput("this SPIFFE id names a trust domain and not a workload", hint=_HINT)
    return SpiffeId(trust_domain(domain), tuple(_segment(segment) for segment in path))


def _segment(text: str) -> str:
    if not _SEGMENT.fullmatch(text) or text in (".", ".."):
        raise InvalidInput("not a valid segment of a SPIFFE id", hint=_HINT)
    return text
