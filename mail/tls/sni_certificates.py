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

from mail.tls.pem_certificates import wildcard_name
from mail.tls.server_tls import CertificateSource, context_from_pem, new_server_context
from models.runtime.secret_box import DecryptionError

log = logging.getLogger(__name__)

MAX_CONTEXTS = 256  # each takes some tens of kilobytes


@dataclass(frozen=True, slots=True)
class StoredCertificate:
    """A certificate that is stored in the database."""

    id: int
    version: int
    server_name: str
    dns_names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    chain_pem: str = field(repr=False)
    sealed_key: str = field(repr=False)  # encrypted by the secret box


def certificate_rank(certificate: Any, name: str, now: datetime) -> tuple[bool, bool, datetime]:
    """The sort key of a certificate for a name: valid now, stored for the name, valid longest.

    A higher rank is better. `certificate` needs `not_before`, `not_after` and `server_name`.
    """
    return (
        certificate.not_before <= now < certificate.not_after,
        certificate.server_name == name,
        certificate.not_after,
    )


class SniCertificates:
    """The certificate for each server name, and for clients that send none.

    The order is: a certificate stored for the name, one that contains the name (the one valid
    longest first), the certificate file, one for the server's own name, any other.
    """

    def __init__(
        self,
        decrypt_key: Callable[[StoredCertificate], str],
        clock: Callable[[], datetime],
        *,
        own_name: str = "",
        certificate_file: CertificateSource | None = None,
    ) -> None:
        self._decrypt_key = decrypt_key  # returns the key as PEM; raises Sealed
        self._now = clock
        self._own_name = own_name.lower()
        self._certificate_file = certificate_file
        self._by_id: dict[int, StoredCertificate] = {}
        self._by_name: dict[str, list[StoredCertificate]] = {}
        self._contexts: OrderedDict[tuple[int, int], ssl.SSLContext | None] = OrderedDict()
        # without certificate; the callback sets one in each handshake
        self._initial_context = new_server_context()
        self._initial_context.sni_callback = self._set_context_by_server_name

    @property
    def is_ready(self) -> bool:
        """True if there is any certificate."""
        return bool(self._certificate_file or self._by_id)

    def current_or_reloaded_context(self) -> ssl.SSLContext:
        """The context for a new connection."""
        return self._initial_context

    def use_certificate_file(self, certificate_file: CertificateSource | None) -> None:
        """Use another certificate from files, or none. Open connections are not affected."""
        self._certificate_file = certificate_file

    @property
    def version_by_id(self) -> dict[int, int]:
        """The versions of the certificates, by id."""
        return {key: certificate.version for key, certificate in self._by_id.items()}

    def replace_certificates(
        self, removed_ids: Iterable[int], added: Sequence[StoredCertificate]
    ) -> None:
        """Remove and add certificates. Open connections are not affected."""
        remaining = {
            key: value for key, value in self._by_id.items() if key not in set(removed_ids)
        }
        self._by_id = remaining | {certificate.id: certificate for certificate in added}
        by_name: defaultdict[str, list[StoredCertificate]] = defaultdict(list)
        for stored in self._by_id.values():
            for name in {stored.server_name, *stored.dns_names}:
                by_name[name].append(stored)
        self._by_name = dict(by_name)
        versions = self.version_by_id
        for key in list(self._contexts):
            if versions.get(key[0]) != key[1]:
                del self._contexts[key]

    def certificates_for_name(self, name: str) -> list[StoredCertificate]:
        """The certificates for a name, best first."""
        by_id = {certificate.id: certificate for certificate in self._by_name.get(name, ())}
        by_id |= {
            certificate.id: certificate
            for certificate in self._by_name.get(wildcard_name(name), ())
        }
        now = self._now()
        return sorted(
            by_id.values(),
            key=lambda certificate: certificate_rank(certificate, name, now),
            reverse=True,
        )

    def context_for_name_or_default(self, server_name: str | None) -> ssl.SSLContext | None:
        """The context for a server name. None if there is no usable certificate."""
        server_name = (server_name or "").lower().rstrip(".")
        if context := self._first_usable_context(
            self.certificates_for_name(server_name) if server_name else ()
        ):
            return context
        if self._certificate_file is not None:
            return self._certificate_file.current_or_reloaded_context()
        if context := self._first_usable_context(self.certificates_for_name(self._own_name)):
            return context
        now = self._now()
        all_certificates = sorted(
            self._by_id.values(),
            key=lambda certificate: certificate_rank(certificate, "", now),
            reverse=True,
        )
        return self._first_usable_context(all_certificates)

    def _first_usable_context(
        self, certificates: Iterable[StoredCertificate]
    ) -> ssl.SSLContext | None:
        """The context of the first certificate that can be loaded."""
        return next(
            (
                context
                for certificate in certificates
                if (context := self._load_cached_context_or_none(certificate))
            ),
            None,
        )

    def _load_cached_context_or_none(self, certificate: StoredCertificate) -> ssl.SSLContext | None:
        """The context of a certificate. None if it can't be loaded, which is logged."""
        key = (certificate.id, certificate.version)
        if key not in self._contexts:
            context = None
            try:
                context = context_from_pem(certificate.chain_pem, self._decrypt_key(certificate))
            except (DecryptionError, OSError, ValueError) as problem:  # ssl.SSLError is an OSError
                log_fields = {"serverName": certificate.server_name, "why": type(problem).__name__}
                log.error("Certificate can't be used", extra=log_fields)
            self._contexts[key] = context
            if len(self._contexts) > MAX_CONTEXTS:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(key)
        return self._contexts[key]

    def _set_context_by_server_name(
        self,
        handshake: ssl.SSLSocket | ssl.SSLObject,
        server_name: str | None,
        _first: ssl.SSLContext,
    ) -> int | None:
        """The SNI callback: set the context of the handshake, or return a TLS alert."""
        if context := self.context_for_name_or_default(server_name):
            handshake.context = context
            return None
        return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE
