"""One side of a connection during start-up: a transport whose bytes can be awaited, with bounded memory.

Not for joined streams; ``splice`` replaces it then.
"""

from __future__ import annotations

import asyncio
from typing import cast

_KEEP = 64 * 1024
"""Bytes kept before reading is paused."""


class Leg(asyncio.Protocol):
    """``transport`` is set once connected. ``read`` may be awaited by one coroutine at a time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._kept = bytearray()
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The transports of uvloop do not inherit from asyncio's.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._kept += data
        if len(self._kept) > _KEEP:
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._wake()

    def take(self) -> bytes:
        """What was received so far, perhaps nothing. Reading goes on."""
        data = bytes(self._kept)
        self._kept.clear()
        if len(data) > _KEEP and not self.transport.is_closing():
            self.transport.resume_reading()
        return data

    async def read(self) -> bytes:
        """At least one byte, or nothing once the peer has hung up."""
        while not self._kept and not self._ended:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.take()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
