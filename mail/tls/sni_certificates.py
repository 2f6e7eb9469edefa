"""The certificates of a process, selected by server name indication (RFC 6066, section 3).

OpenSSL asks during the handshake and blocks the event loop. So all certificates are in memory, with
encrypted keys, and a context is created when its certificate is first used.
"""

import logging
import ssl
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mail.tls.pem_certificates import wildcard
from mail.tls.server_tls import Certificates, fresh, loaded
from models.runtime.secret_box import Sealed

log = logging.getLogger(__name__)

CONTEXTS = 256  # each takes some tens of kilobytes


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate that is stored in the database."""

    id: int
    version: int
    server_name: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    chain: str = field(repr=False)
    key: str = field(repr=False)  # encrypted by the secret box


def rank(of: Any, name: str, now: datetime) -> tuple[bool, bool, datetime]:
    """The sort key of a certificate for a name: valid now, stored for the name, valid longest.

    A higher rank is better. `certificate` needs `not_before`, `not_after` and `server_name`.
    """
    return of.not_before <= now < of.not_after, of.server_name == name, of.not_after


class Keyring:
    """The certificate for each server name, and for clients that send none.

    The order is: a certificate stored for the name, one that contains the name (the one valid
    longest first), the certificate file, one for the server's own name, any other.
    """

    def __init__(
        self,
        opened: Callable[[Held], str],
        now: Callable[[], datetime],
        *,
        own: str = "",
        file: Certificates | None = None,
    ) -> None:
        self._opened = opened  # returns the key as PEM; raises Sealed
        self._now = now
        self._own = own.lower()
        self._file = file
        self._held: dict[int, Held] = {}
        self._named: dict[str, list[Held]] = {}
        self._contexts: OrderedDict[tuple[int, int], ssl.SSLContext | None] = OrderedDict()
        self._first = fresh()  # without certificate; the callback sets one in each handshake
        self._first.sni_callback = self._asked

    @property
    def ready(self) -> bool:
        """True if there is any certificate."""
        return bool(self._file or self._held)

    def context(self) -> ssl.SSLContext:
        """The context for a new connection."""
        return self._first

    @property
    def versions(self) -> dict[int, int]:
        """The versions of the certificates, by id."""
        return {key: certificate.version for key, certificate in self._held.items()}

    def change(self, gone: Iterable[int], come: Sequence[Held]) -> None:
        """Remove and add certificates. Open connections are not affected."""
        left = {key: value for key, value in self._held.items() if key not in set(gone)}
        self._held = left | {certificate.id: certificate for certificate in come}
        named: defaultdict[str, list[Held]] = defaultdict(list)
        for held in self._held.values():
            for name in {held.server_name, *held.names}:
                named[name].append(held)
        self._named = dict(named)
        versions = self.versions
        for key in list(self._contexts):
            if versions.get(key[0]) != key[1]:
                del self._contexts[key]

    def found(self, name: str) -> list[Held]:
        """The certificates for a name, best first."""
        there = {certificate.id: certificate for certificate in self._named.get(name, ())}
        there |= {
            certificate.id: certificate for certificate in self._named.get(wildcard(name), ())
        }
        now = self._now()
        return sorted(
            there.values(), key=lambda certificate: rank(certificate, name, now), reverse=True
        )

    def chosen(self, name: str | None) -> ssl.SSLContext | None:
        """The context for a server name. None if there is no usable certificate."""
        name = (name or "").lower().rstrip(".")
        if context := self._usable(self.found(name) if name else ()):
            return context
        if self._file is not None:
            return self._file.context()
        if context := self._usable(self.found(self._own)):
            return context
        now = self._now()
        others = sorted(
            self._held.values(), key=lambda certificate: rank(certificate, "", now), reverse=True
        )
        return self._usable(others)

    def _usable(self, found: Iterable[Held]) -> ssl.SSLContext | None:
        """The context of the first certificate that can be loaded."""
        return next((context for held in found if (context := self._made(held))), None)

    def _made(self, held: Held) -> ssl.SSLContext | None:
        """The context of a certificate. None if it can't be loaded, which is logged."""
        key = (held.id, held.version)
        if key not in self._contexts:
            context = None
            try:
                context = loaded(held.chain, self._opened(held))
            except (Sealed, OSError, ValueError) as problem:  # ssl.SSLError is an OSError
                facts = {"serverName": held.server_name, "why": type(problem).__name__}
                log.error("certificate cannot be used", extra=facts)
            self._contexts[key] = context
            if len(self._contexts) > CONTEXTS:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(key)
        return self._contexts[key]

    def _asked(
        self, handshake: ssl.SSLSocket | ssl.SSLObject, name: str | None, _first: ssl.SSLContext
    ) -> int | None:
        """The SNI callback: set the context of the handshake, or return a TLS alert."""
        if context := self.chosen(name):
            handshake.context = context
            return None
        return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE
