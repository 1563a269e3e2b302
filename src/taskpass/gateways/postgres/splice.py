"""Joins a client and a target: bytes pass both ways unread, with flow control, until one side ends or we must end it.

Not for understanding what passes. The target's stream is followed by message lengths only (see ``boundary``), so that
the last words to the client are readable.
"""

from __future__ import annotations

import asyncio

from taskpass.gateways.postgres.boundary import Boundary
from taskpass.gateways.postgres.leg import Leg

_WRITE_BUFFER = 256 * 1024
"""Bytes that wait for a slow reader before its counterpart is no longer read."""


LINGER_SECONDS = 0.1
"""How long a client may take to read the last words and hang up itself.

Words and end of stream that arrive together make libpq report "server closed the connection unexpectedly" and drop the
words; a server's own process takes its time to exit, too.
"""


class Splice:
    """``over`` is done when both sides are closed, or the target is and the client was told why."""

    def __init__(self, client: asyncio.Transport, target: asyncio.Transport) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._client = client
        self._target = target
        self._open = 2
        self._repeat = b""
        self._to_client = _TargetStream(self, target, client)

    @classmethod
    def join(cls, client: Leg, target: Leg, *, to_client: bytes, to_target: bytes, greeting: bytes) -> Splice:
        """Takes both legs over. ``to_client`` and ``to_target`` were received before; ``greeting`` is ours."""
        splice = cls(client.transport, target.transport)
        for transport in (client.transport, target.transport):
            transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        client.transport.write(greeting)
        client.transport.set_protocol(_ClientStream(splice, client.transport, target.transport))
        target.transport.set_protocol(splice._to_client)
        splice._to_client.data_received(to_client + target.take())
        target.transport.write(to_target + client.take())
        return splice

    def end_with(self, words: bytes) -> None:
        """Cuts the target; the client hears ``words`` where the message ends that is under way."""
        self._to_client.end_with(words)

    def abort(self) -> None:
        """Ends both sides at once, wherever they are."""
        self._client.abort()
        self._target.abort()

    def side_lost(self) -> None:
        """One side is gone: the other one follows, the client after it was sent what is left."""
        self._open -= 1
        if self.over.done():
            return
        self._client.close()
        self._target.abort()
        if not self._open:
            self.over.set_result(None)

    def last_words(self, rest: bytes, words: bytes) -> None:
        """Sends ``words`` after the ``rest`` of a message, cuts the target, and leaves the client a moment."""
        self._repeat = words
        self._client.write(rest + words)
        self._target.abort()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._client.abort)
        if not self.over.done():
            self.over.set_result(None)

    def heard_after_the_end(self) -> None:
        """The client sends more. Between two statements libpq takes an error for a notice: so it is said once again."""
        if self._repeat and not self._client.is_closing():
            self._client.write(self._repeat)
            self._repeat = b""


class _Stream(asyncio.Protocol):
    """What ``source`` receives is written to ``sink``; a full buffer of ``source`` stops reading from ``sink``."""

    def __init__(self, splice: Splice, source: asyncio.Transport, sink: asyncio.Transport) -> None:
        self._splice = splice
        self._source = source
        self._sink = sink

    def pause_writing(self) -> None:
        if not self._sink.is_closing():
            self._sink.pause_reading()

    def resume_writing(self) -> None:
        if not self._sink.is_closing():
            self._sink.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._splice.side_lost()


class _ClientStream(_Stream):
    def data_received(self, data: bytes) -> None:
        if not self._sink.is_closing():
            self._sink.write(data)
        else:
            self._splice.heard_after_the_end()

    def eof_received(self) -> bool:
        """The client sends no more but may still read: the target hears the same, where the transport can say it."""
        if self._sink.is_closing() or not self._sink.can_write_eof():
            return False
        self._sink.write_eof()
        return True


class _TargetStream(_Stream):
    def __init__(self, splice: Splice, source: asyncio.Transport, sink: asyncio.Transport) -> None:
        super().__init__(splice, source, sink)
        self._boundary = Boundary()
        self._last_words: bytes | None = None

    def data_received(self, data: bytes) -> None:
        if self._sink.is_closing():
            return
        if self._last_words is not None:
            if not self._splice.over.done():
                self._finish(data, self._last_words)
            return
        self._boundary.follow(data)
        self._sink.write(data)

    def end_with(self, words: bytes) -> None:
        if self._last_words is None and not self._sink.is_closing():
            self._last_words = words
            self._finish(b"", words)

    def _finish(self, data: bytes, words: bytes) -> None:
        end = self._boundary.next_in(data)
        if end is None:
            self._boundary.follow(data)
            self._sink.write(data)
            return
        self._splice.last_words(data[:end], words)
