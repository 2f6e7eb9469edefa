"""TLS of the listeners: contexts, a certificate from files, and TLS over a byte stream."""

import logging
import os
import secrets
import ssl
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from mail.network.byte_stream import PIECE, Read, Vanished

log = logging.getLogger(__name__)


class Certificates(Protocol):
    """The source of the TLS context of a listener."""

    @property
    def ready(self) -> bool:
        """True if there is a certificate. Otherwise the listener offers no TLS."""

    def context(self) -> ssl.SSLContext:
        """The context for a new connection. It needs `ready`."""


def fresh() -> ssl.SSLContext:
    """A server context with the TLS settings of all listeners, but without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def loaded(chain: str, key: str) -> ssl.SSLContext:
    """A context with this chain and key, both PEM. Raises ssl.SSLError.

    OpenSSL loads certificates only from files. This one is in memory and has no path. Systems
    without such files use a temporary file with a random password on the key.
    """
    context = fresh()
    with _written(chain, key) as (path, password):
        context.load_cert_chain(path, password=password)
    return context


@contextmanager
def _written(chain: str, key: str) -> Generator[tuple[str, str | None]]:
    """The path of a temporary file with both, and the password of the key or None."""
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        handle = os.memfd_create("certificate", os.MFD_CLOEXEC)
        with os.fdopen(handle, "wb") as file:
            file.write(f"{key.strip()}\n{chain}".encode())
            file.flush()
            yield f"/proc/self/fd/{handle}", None
        return
    password = secrets.token_urlsafe(32)
    locked = load_pem_private_key(key.encode(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode())
    )
    with tempfile.NamedTemporaryFile(prefix="merganser-") as file:  # only this user can read it
        file.write(locked + chain.encode())
        file.flush()
        yield file.name, password


class Certificate:
    """A chain and its key in files, which are loaded again when they change."""

    def __init__(self, chain: Path, key: Path | None = None) -> None:
        """Load the files. Raises OSError, of which ssl.SSLError is a subclass."""
        self._files = [chain, key or chain]
        self._seen = self._stamps()
        self._context = self._made()

    @property
    def ready(self) -> bool:
        """Always True, since the files were loaded."""
        return True

    def context(self) -> ssl.SSLContext:
        """The context for a new connection. Invalid new files leave the last context in use."""
        try:
            stamps = self._stamps()
            if stamps != self._seen:
                self._seen, self._context = stamps, self._made()
                log.info("certificate read anew", extra={"file": str(self._files[0])})
        except OSError as problem:
            reason = problem.strerror or type(problem).__name__
            log.error("certificate not read", extra={"file": str(self._files[0]), "why": reason})
        return self._context

    def _stamps(self) -> list[tuple[int, int, int]]:
        """Modification time in nanoseconds, size and inode of each file."""
        found = [file.stat() for file in self._files]
        return [(stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in found]

    def _made(self) -> ssl.SSLContext:
        context = fresh()
        context.load_cert_chain(*map(str, self._files))
        return context


class Tunnel:
    """TLS on the server side of a byte stream."""

    def __init__(
        self,
        context: ssl.SSLContext,
        read: Read,
        write: Callable[[bytes], object],
        came: bytes = b"",
    ) -> None:
        self._read = read
        self._write = write
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._came.write(came)
        self._tls = context.wrap_bio(self._came, self._goes, server_side=True)

    async def shake_hands(self) -> str:
        """Run the handshake. Returns version and cipher. Raises Vanished if it fails."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                if not await self._more():
                    raise Vanished from None
            except ssl.SSLError as problem:
                self._flush()  # the alert
                log.info("no TLS", extra={"why": problem.reason or "unknown"})
                raise Vanished from None
            else:
                self._flush()
                cipher = self._tls.cipher()
                return f"{self._tls.version()} {cipher[0] if cipher else ''}".strip()

    async def read(self, most: int = PIECE) -> bytes:
        """Read decrypted bytes as soon as there are any. Empty at the end."""
        while True:
            try:
                return self._tls.read(most)
            except ssl.SSLWantReadError:
                self._flush()
                if not await self._more():
                    return b""
            except ssl.SSLError:  # an error ends the stream
                return b""

    def write(self, raw: bytes) -> None:
        """Encrypt and send bytes. Raises ConnectionResetError if the peer has closed TLS."""
        try:
            self._tls.write(raw)
        except ssl.SSLError:  # the peer has closed TLS
            raise ConnectionResetError from None
        self._flush()

    async def _more(self) -> bool:
        """Read encrypted bytes from the connection. False at its end."""
        raw = await self._read(PIECE)
        self._came.write(raw)
        return bool(raw)

    def _flush(self) -> None:
        if raw := self._goes.read():
            self._write(raw)
