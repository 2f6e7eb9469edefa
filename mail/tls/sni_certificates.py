"""The certificates of a process, by the names that clients ask for (RFC 6066, section 3).

OpenSSL asks amid the handshake and waits: so all that may be asked for lies in memory, keys
sealed, and a context is made when a name is first asked for.
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

CONTEXTS = 256  # that are kept: each takes some tens of kilobytes


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate that is stored."""

    id: int
    version: int
    server_name: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    chain: str = field(repr=False)
    key: str = field(repr=False)  # sealed


def rank(of: Any, name: str, now: datetime) -> tuple[bool, bool, datetime]:
    """The higher, the better a certificate is for this name: in time, stored for it, longest valid.

    Of it `not_before`, `not_after` and `server_name` are read.
    """
    return of.not_before <= now < of.not_after, of.server_name == name, of.not_after


class Keyring:
    """What to show to whoever asks for a name, and to those who ask for none.

    A certificate that is stored for the name, else one that has the name in it; of several that
    which is valid longest. Else the one of the file, else that for our own name, else any.
    """

    def __init__(
        self,
        opened: Callable[[Held], str],
        now: Callable[[], datetime],
        *,
        own: str = "",
        file: Certificates | None = None,
    ) -> None:
        self._opened = opened  # the key, as PEM; raises Sealed
        self._now = now
        self._own = own.lower()
        self._file = file
        self._held: dict[int, Held] = {}
        self._named: dict[str, list[Held]] = {}
        self._contexts: OrderedDict[tuple[int, int], ssl.SSLContext | None] = OrderedDict()
        self._first = fresh()  # has no certificate: the callback brings one to each handshake
        self._first.sni_callback = self._asked

    @property
    def ready(self) -> bool:
        """Whether there is any certificate."""
        return bool(self._file or self._held)

    def context(self) -> ssl.SSLContext:
        """For a connection that begins now."""
        return self._first

    @property
    def versions(self) -> dict[int, int]:
        """What is held, by key."""
        return {key: held.version for key, held in self._held.items()}

    def change(self, gone: Iterable[int], come: Sequence[Held]) -> None:
        """Hold others from now on. Connections that are open stay as they are."""
        left = {key: held for key, held in self._held.items() if key not in set(gone)}
        self._held = left | {held.id: held for held in come}
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
        """The certificates for this name, best first."""
        there = {held.id: held for held in self._named.get(name, ())}
        there |= {held.id: held for held in self._named.get(wildcard(name), ())}
        now = self._now()
        return sorted(there.values(), key=lambda held: rank(held, name, now), reverse=True)

    def chosen(self, name: str | None) -> ssl.SSLContext | None:
        """What to show to whoever asks for this name; None where there is nothing."""
        name = (name or "").lower().rstrip(".")
        if context := self._usable(self.found(name) if name else ()):
            return context
        if self._file is not None:
            return self._file.context()
        if context := self._usable(self.found(self._own)):
            return context
        now = self._now()
        others = sorted(self._held.values(), key=lambda held: rank(held, "", now), reverse=True)
        return self._usable(others)

    def _usable(self, found: Iterable[Held]) -> ssl.SSLContext | None:
        """The context of the first that can be used."""
        return next((context for held in found if (context := self._made(held))), None)

    def _made(self, held: Held) -> ssl.SSLContext | None:
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
        """Amid a handshake: which certificate it goes on with."""
        if context := self.chosen(name):
            handshake.context = context
            return None
        return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE
