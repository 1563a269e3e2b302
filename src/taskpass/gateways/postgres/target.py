"""Connects to the target of a lease: TCP or Unix socket, TLS with a verified name, then the login.

Without a CA only a Unix socket or a loopback address is used: there is no fallback to plain text (F49). Not for
choosing the target and not for words to the client.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from typing import cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from taskpass.core.errors import ConfigInvalid, TargetUnavailable, TargetUnfit
from taskpass.gateways.postgres.leg import Leg
from taskpass.wire.postgres.address import Address
from taskpass.wire.postgres.login import Login, Outcome
from taskpass.wire.postgres.messages import ssl_request

CONNECT_SECONDS = 5.0
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
"""A target that vanished is noticed after a minute."""


@dataclass(frozen=True, slots=True)
class Route:
    """A checked way to a target. ``tls`` is None only for an address of this machine."""

    address: Address
    tls: ssl.SSLContext | None


def make_route(address: Address, ca: str | None) -> Route:
    """``ca`` is ``system``, the path of a PEM file, or None. Raises ``TargetUnfit`` or ``ConfigInvalid``.

    Over a Unix socket PostgreSQL has no TLS, so ``ca`` is not used there.
    """
    if address.socket_path is not None:
        return Route(address, None)
    if ca is None:
        if not address.is_local:
            raise TargetUnfit("the target is on another machine and has no CA", hint='set tls = { ca = "system" }')
        return Route(address, None)
    try:
        context = ssl.create_default_context(cafile=None if ca == "system" else ca)
    except (OSError, ssl.SSLError):
        raise ConfigInvalid("the CA file of the target cannot be read", hint="check tls.ca of the resource") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return Route(address, context)


async def connect(route: Route) -> Leg:
    """A connected leg, encrypted where it must be. The caller closes it.

    Raises ``TargetUnavailable`` (no answer within ``CONNECT_SECONDS``) and ``TargetUnfit`` (no TLS, or not its own).
    """
    leg: Leg | None = None
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            leg = await _plain(route)
            if route.tls is not None:
                await _encrypt(leg, route.tls, route.address.host)
            return leg
    except BaseException as error:
        if leg is not None:
            leg.transport.abort()
        if isinstance(error, OSError | TimeoutError):
            raise TargetUnavailable("the target cannot be reached", hint="try again") from None
        raise


async def log_in(leg: Leg, login: Login) -> Outcome:
    """Drives ``login`` until the target has decided."""
    leg.transport.write(login.start())
    while login.outcome is None:
        data = await leg.read()
        if not data:
            login.eof()
        elif answer := login.feed(data):
            leg.transport.write(answer)
    assert login.outcome is not None
    return login.outcome


def channel_binding(leg: Leg) -> bytes | None:
    """The ``tls-server-end-point`` hash of the target's certificate (RFC 5929), or None where there is none."""
    tls: ssl.SSLObject | None = leg.transport.get_extra_info("ssl_object")
    der = tls.getpeercert(binary_form=True) if tls is not None else None
    if der is None:
        return None
    try:
        algorithm = x509.load_der_x509_certificate(der).signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm):
        return None
    if algorithm is None:
        return None
    return hashlib.new("sha256" if algorithm.name in ("md5", "sha1") else algorithm.name, der).digest()


async def _plain(route: Route) -> Leg:
    loop = asyncio.get_running_loop()
    path = route.address.socket_path
    if path is not None:
        connection = await _connected(socket.AF_UNIX, path)
        _, leg = await loop.create_unix_connection(Leg, sock=connection)
        return leg
    _, leg = await loop.create_connection(Leg, sock=await _tcp(route))
    return leg


async def _tcp(route: Route) -> socket.socket:
    """Tries each address of the name in turn."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(route.address.host, route.address.port, type=socket.SOCK_STREAM)
    failure = OSError("no address")
    for family, _, _, _, sockaddr in found:
        if route.tls is None and not ipaddress.ip_address(sockaddr[0]).is_loopback:
            raise TargetUnfit("the target's name leads to another machine and has no CA")
        try:
            connection = await _connected(family, sockaddr)
        except OSError as error:
            failure = error
            continue
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        return connection
    raise failure


async def _connected(family: int, address: object) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        await asyncio.get_running_loop().sock_connect(connection, address)  # pyright: ignore[reportArgumentType]
    except BaseException:
        connection.close()
        raise
    return connection


async def _encrypt(leg: Leg, context: ssl.SSLContext, name: str) -> None:
    leg.transport.write(ssl_request())
    answer = await leg.read()
    if answer != b"S":
        # Bytes after the S came unprotected and would be read as if protected (CVE-2021-23222).
        raise TargetUnfit("the target does not offer TLS", hint="switch ssl on in the target")
    try:
        encrypted = await asyncio.get_running_loop().start_tls(leg.transport, leg, context, server_hostname=name)
    except ssl.SSLError:
        raise TargetUnfit("the target's certificate is not valid for its name", hint="check tls.ca") from None
    leg.transport = cast("asyncio.Transport", encrypted)
