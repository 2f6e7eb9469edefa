"""Responses of a scripted OpenID provider that are too late, too slow or too large."""

import asyncio
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

CHUNK = b" " * 65_536  # white space, which is valid around JSON


@dataclass
class UnfinishedResponse:
    """A response that sends chunks with pauses and then nothing more.

    It ends when the client closes the connection, or when the test ends.
    """

    chunks: list[bytes] = field(default_factory=list)
    pause: float = 0.0  # seconds, before each chunk
    sends_head: bool = True

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.create_task(self._send_chunks(send))
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            sender.cancel()

    async def _send_chunks(self, send: Send) -> None:
        if self.sends_head:
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for chunk in self.chunks:
                await asyncio.sleep(self.pause)
                body: Message = {"type": "http.response.body", "body": chunk, "more_body": True}
                await send(body)


def missing_response() -> UnfinishedResponse:
    """The request is read and never answered."""
    return UnfinishedResponse(sends_head=False)


def slow_response(body: bytes, pause: float = 0.1) -> UnfinishedResponse:
    """One byte after each pause, in seconds."""
    return UnfinishedResponse([bytes([byte]) for byte in body], pause)


def large_response(
    size: int = 10_000_000, *, has_content_length: bool = True
) -> Response | UnfinishedResponse:
    """A body of white space, with Content-Length or without."""
    if has_content_length:
        return Response(b" " * size, media_type="application/json")
    return UnfinishedResponse([CHUNK] * (size // len(CHUNK) + 1))
