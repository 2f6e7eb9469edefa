"""TLS on the streams of a connection, as a server; the certificate is read anew when it changes."""

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
    """What a listener shows to whoever wants TLS."""

    @property
    def ready(self) -> bool:
        """Whether there is anything to show: else there is no TLS."""

    def context(self) -> ssl.SSLContext:
        """For a connection that begins now; only where it is ready."""


def fresh() -> ssl.SSLContext:
    """A context as we want it, without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def loaded(chain: str, key: str) -> ssl.SSLContext:
    """A context with this chain and its key, both PEM; raises ssl.SSLError.

    OpenSSL is reached through files only. This one lies in memory and has no name; where there
    is no such thing, a file that is gone at once, with the key locked by a password of its own.
    """
    context = fresh()
    with _written(chain, key) as (path, password):
        context.load_cert_chain(path, password=password)
    return context


@contextmanager
def _written(chain: str, key: str) -> Generator[tuple[str, str | None]]:
    """A file that holds both, and the password of the key, where it has one."""
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
    with tempfile.NamedTemporaryFile(prefix="merganser-") as file:  # for nobody else to read
        file.write(locked + chain.encode())
        file.flush()
        yield file.name, password


class Certificate:
    """A chain and its key, in files that others may replace while we run."""

    def __init__(self, chain: Path, key: Path | None = None) -> None:
        """Read them; OSError, which ssl.SSLError is too, where that cannot be."""
        self._files = [chain, key or chain]
        self._seen = self._stamps()
        self._context = self._made()

    @property
    def ready(self) -> bool:
        """It was read, so it is."""
        return True

    def context(self) -> ssl.SSLContext:
        """For a connection that begins now. Files that do not fit leave the last ones in force."""
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
        found = [file.stat() for file in self._files]
        return [(each.st_mtime_ns, each.st_size, each.st_ino) for each in found]

    def _made(self) -> ssl.SSLContext:
        context = fresh()
        context.load_cert_chain(*map(str, self._files))
        return context


class Tunnel:
    """What lies between the socket and the conversation once there is TLS."""

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
        """Begin; the version and the cipher. Vanished where the client does not go along."""
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
        """What has come, as soon as anything has; none at the end."""
        while True:
            try:
                return self._tls.read(most)
            except ssl.SSLWantReadError:
                self._flush()
                if not await self._more():
                    return b""
            except ssl.SSLError:  # it has ended, or is broken: nothing behind it is believed
                return b""

    def write(self, raw: bytes) -> None:
        """Send this."""
        try:
            self._tls.write(raw)
        except ssl.SSLError:  # the other side has ended it
            raise ConnectionResetError from None
        self._flush()

    async def _more(self) -> bool:
        raw = await self._read(PIECE)
        self._came.write(raw)
        return bool(raw)

    def _flush(self) -> None:
        if raw := self._goes.read():
            self._write(raw)
