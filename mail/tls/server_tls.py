"""TLS of the listeners: contexts, a certificate from files, and TLS over a byte stream."""

import logging
import os
import secrets
import ssl
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from mail.network.byte_stream import PIECE_SIZE, ConnectionClosed, ReadBytes

log = logging.getLogger(__name__)


class CertificateSource(Protocol):
    """The source of the TLS context of a listener."""

    @property
    def is_ready(self) -> bool:
        """True if there is a certificate. Otherwise the listener offers no TLS."""

    def current_or_reloaded_context(self) -> ssl.SSLContext:
        """The context for a new connection. It needs `ready`."""


def new_server_context() -> ssl.SSLContext:
    """A server context with the TLS settings of all listeners, but without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def context_from_pem(chain_pem: str, key_pem: str) -> ssl.SSLContext:
    """A context with this chain and key, both PEM. Raises ssl.SSLError.

    OpenSSL loads certificates only from files. This one is in memory and has no path. Systems
    without such files use a temporary file with a random password on the key.
    """
    context = new_server_context()
    with _temporary_pem_file(chain_pem, key_pem) as (path, password):
        context.load_cert_chain(path, password=password)
    return context


@contextmanager
def _temporary_pem_file(chain_pem: str, key_pem: str) -> Generator[tuple[str, str | None]]:
    """The path of a temporary file with both, and the password of the key or None."""
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        handle = os.memfd_create("certificate", os.MFD_CLOEXEC)
        with os.fdopen(handle, "wb") as file:
            file.write(f"{key_pem.strip()}\n{chain_pem}".encode())
            file.flush()
            yield f"/proc/self/fd/{handle}", None
        return
    password = secrets.token_urlsafe(32)
    encrypted_key = load_pem_private_key(key_pem.encode(), None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode())
    )
    with tempfile.NamedTemporaryFile(prefix="merganser-") as file:  # only this user can read it
        file.write(encrypted_key + chain_pem.encode())
        file.flush()
        yield file.name, password


@dataclass(frozen=True, slots=True)
class _FileStamp:
    """What differs after a file was changed or replaced."""

    modified_ns: int  # modification time in nanoseconds
    size: int
    inode: int


class CertificateFiles:
    """A chain and its key in files, which are loaded again when they change."""

    def __init__(self, chain_file: Path, key_file: Path | None = None) -> None:
        """Load the files. Raises OSError, of which ssl.SSLError is a subclass."""
        self._paths = [chain_file, key_file or chain_file]
        self._loaded_stamps = self._file_stamps()
        self._context = self._load_context()

    @property
    def is_ready(self) -> bool:
        """Always True, since the files were loaded."""
        return True

    def current_or_reloaded_context(self) -> ssl.SSLContext:
        """The context for a new connection. Invalid new files leave the last context in use."""
        try:
            stamps = self._file_stamps()
            if stamps != self._loaded_stamps:
                self._loaded_stamps, self._context = stamps, self._load_context()
                log.info("Certificate reloaded", extra={"file": str(self._paths[0])})
        except OSError as problem:
            reason = problem.strerror or type(problem).__name__
            log.error(
                "Could not read the certificate", extra={"file": str(self._paths[0]), "why": reason}
            )
        return self._context

    def _file_stamps(self) -> list[_FileStamp]:
        file_stats = [file.stat() for file in self._paths]
        return [_FileStamp(stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in file_stats]

    def _load_context(self) -> ssl.SSLContext:
        context = new_server_context()
        context.load_cert_chain(*map(str, self._paths))
        return context


class TlsStream:
    """TLS on the server side of a byte stream."""

    def __init__(
        self,
        context: ssl.SSLContext,
        read_bytes: ReadBytes,
        write: Callable[[bytes], object],
        received: bytes = b"",
    ) -> None:
        self._read = read_bytes
        self._write = write
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._incoming.write(received)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def do_handshake(self) -> str:
        """Run the handshake. Returns version and cipher. Raises ConnectionClosed if it fails."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                if not await self._receive_unless_ended():
                    raise ConnectionClosed from None
            except ssl.SSLError as problem:
                self._flush()  # the alert
                log.info("TLS handshake failed", extra={"why": problem.reason or "unknown"})
                raise ConnectionClosed from None
            else:
                self._flush()
                cipher = self._tls.cipher()
                return f"{self._tls.version()} {cipher[0] if cipher else ''}".strip()

    async def read(self, max_bytes: int = PIECE_SIZE) -> bytes:
        """Read decrypted bytes as soon as there are any. Empty at the end."""
        while True:
            try:
                return self._tls.read(max_bytes)
            except ssl.SSLWantReadError:
                self._flush()
                if not await self._receive_unless_ended():
                    return b""
            except ssl.SSLError:  # an error ends the stream
                return b""

    def write(self, data: bytes) -> None:
        """Encrypt and send bytes. Raises ConnectionResetError if the peer has closed TLS."""
        try:
            self._tls.write(data)
        except ssl.SSLError:  # the peer has closed TLS
            raise ConnectionResetError from None
        self._flush()

    async def _receive_unless_ended(self) -> bool:
        """Read encrypted bytes from the connection. False at its end."""
        data = await self._read(PIECE_SIZE)
        self._incoming.write(data)
        return bool(data)

    def _flush(self) -> None:
        if data := self._outgoing.read():
            self._write(data)
