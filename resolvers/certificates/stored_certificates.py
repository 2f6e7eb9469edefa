"""Columns of a stored certificate: its chain, its encrypted private key and its renewal time."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, insert
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.tls.pem_certificates import (
    CertificateWithKey,
)
from models.certificates import AcmeState, CertificateName
from models.errors import (
    ServiceUnavailable,
)
from models.runtime.environment import Environment
from models.runtime.secret_box import DecryptionError

RENEWAL_TIME = timedelta(days=30)  # before the certificate expires
RENEWAL_PART = 3  # for one valid less than 90 days this part of its lifetime


def encryption_context(certificate_id: int) -> str:
    """Return the context that the secret box encrypts a certificate's private key for."""
    return f"certificate:{certificate_id}"


def decrypt_private_key(environment: Environment, certificate: Any) -> str:
    """Return the private key of a stored certificate in PEM.

    Raises ServiceUnavailable if the secret box has not the key to decrypt it.
    """
    try:
        return environment.secret_box.decrypt(
            certificate.private_key, encryption_context(certificate.id)
        )
    except DecryptionError:
        raise ServiceUnavailable(
            "The stored private key can't be decrypted: send the private key again.",
            component="vault",
        ) from None


def default_renewal_time(not_before: datetime, not_after: datetime) -> datetime:
    """Return when a certificate is renewed if its authority publishes no time."""
    return not_after - min(RENEWAL_TIME, (not_after - not_before) / RENEWAL_PART)


def renewal_columns(not_before: datetime, not_after: datetime) -> dict[str, Any]:
    """Return the columns of a valid ACME certificate: state and renewal time."""
    renew_at = default_renewal_time(not_before, not_after)
    return {
        "acme_state": AcmeState.VALID,
        "acme_error": None,
        "acme_next_at": renew_at,
        "acme_renew_at": renew_at,
    }


def next_order_time(
    state: AcmeState | None, renew_at: datetime | None, next_step_at: datetime | None
) -> datetime | None:
    """Return when ACME orders a certificate next. None if that is not planned, or in progress."""
    if state in (AcmeState.VALID, AcmeState.REVOKED):
        return renew_at
    return next_step_at if state in (AcmeState.WAITING, AcmeState.FAILED) else None


def certificate_columns(
    environment: Environment,
    certificate_id: int,
    checked_certificate: CertificateWithKey,
    previous_version: int,
) -> dict[str, Any]:
    """Return the columns of a certificate chain and its encrypted private key."""
    return {
        "alt_names": list(checked_certificate.dns_names),
        "chain": checked_certificate.chain_pem,
        "private_key": environment.secret_box.encrypt(
            checked_certificate.key_pem, encryption_context(certificate_id)
        ),
        "version": previous_version + 1,
        "sha1": checked_certificate.sha1,
        "sha256": checked_certificate.sha256,
        "spki": checked_certificate.spki_sha256,
        "issuer": checked_certificate.issuer,
        "not_before": checked_certificate.not_before,
        "not_after": checked_certificate.not_after,
    }


async def replace_certificate_names(
    session: AsyncSession, certificate_id: int, names: Sequence[str]
) -> None:
    """Replace the searchable names of a certificate."""
    connection = await session.connection()
    is_of_certificate = col(CertificateName.certificate_id) == certificate_id
    await connection.execute(delete(CertificateName).where(is_of_certificate))
    rows = [{"certificate_id": certificate_id, "name": name} for name in names]
    if rows:
        await connection.execute(insert(CertificateName), rows)
