"""List, set, renew and delete certificates for the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlmodel import col

from mail.tls.acme_client import RevocationReason
from mail.tls.pem_certificates import CertificateInput
from merganser.errors import EXIT_USAGE, CommandError
from merganser.server.environment_factory import root_context
from models.certificates import Certificate
from models.errors import RequestError
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from resolvers.certificates import loaders as certificate_loaders
from resolvers.certificates import mutations as certificate_mutations
from resolvers.certificates.certificate_warnings import CertificateWarning
from resolvers.certificates.mutations import CertificateValues
from resolvers.certificates.stored_certificates import next_order_time

SELECTED_COLUMNS = (
    "server_name", "alt_names", "description", "sha256", "spki", "issuer", "not_after", "acme",
    "acme_names", "acme_state", "acme_error", "acme_renew_at", "acme_next_at",
)  # fmt: skip


async def list_certificates(environment: Environment) -> list[dict[str, Any]]:
    """Load all certificates by server name, as JSON values."""
    statement = select(*select_columns(Certificate, SELECTED_COLUMNS)).order_by(
        col(Certificate.server_name)
    )
    return [_certificate_as_json(row) for row in await environment.database.read(statement)]


def _certificate_as_json(certificate_row: ColumnRow) -> dict[str, Any]:
    next_order_at = next_order_time(
        certificate_row.acme_state, certificate_row.acme_renew_at, certificate_row.acme_next_at
    )
    return {
        "server_name": certificate_row.server_name,
        "alt_names": certificate_row.alt_names,
        "description": certificate_row.description,
        "expires_at": certificate_row.not_after and certificate_row.not_after.isoformat(),
        "fingerprint_sha256": certificate_row.sha256,
        "tlsa": certificate_row.spki and f"3 1 1 {certificate_row.spki}",
        "issuer": certificate_row.issuer,
        "acme": certificate_row.acme,
        "acme_names": certificate_row.acme_names,
        "acme_state": certificate_row.acme_state,
        "acme_error": certificate_row.acme_error,
        "acme_next_order_at": next_order_at and next_order_at.isoformat(),
    }


def read_text_file_or_fail_command(file: Path) -> str:
    """Read a text file. Raises CommandError if it can't be read or is not text."""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or "not a text file"
        raise CommandError(f"Cannot read {file}: {reason}.") from None


class CertificateWithNotices(NamedTuple):
    """A stored certificate as JSON values, and the notices for the operator."""

    certificate: dict[str, Any]
    warnings: list[CertificateWarning]


async def set_certificate(
    environment: Environment,
    server_name: str,
    certificate_and_key_files: tuple[Path | None, Path | None],
    *,
    uses_acme: bool,
    alt_names: Sequence[str] | None = None,
) -> CertificateWithNotices:
    """Set the certificate of a server, from PEM files or by ACME.

    Returns it as JSON values, with notices for the operator. Raises CommandError if it is invalid.
    """
    certificate_pem, key_pem = (
        None if file is None else read_text_file_or_fail_command(file)
        for file in certificate_and_key_files
    )
    pem = (
        None
        if certificate_pem is None and key_pem is None
        else CertificateInput(certificate_pem or "", key_pem)
    )
    new_certificate = CertificateValues(
        server_name, pem, uses_acme, acme_names=None if alt_names is None else tuple(alt_names)
    )
    try:
        _, notices = await certificate_mutations.set_certificate(
            root_context(environment), new_certificate
        )
    except RequestError as refusal:
        raise CommandError(refusal.message) from None
    return CertificateWithNotices(await load_certificate(environment, server_name), notices)


async def load_certificate(environment: Environment, server_name: str) -> dict[str, Any]:
    """Load the certificate of a server as JSON values. Raises CommandError if there is none."""
    return _certificate_as_json(
        await _load_certificate_row_or_fail_command(environment, server_name)
    )


async def _load_certificate_row_or_fail_command(
    environment: Environment, server_name: str
) -> ColumnRow:
    row = await certificate_loaders.find_visible_certificate_by_server_name(
        root_context(environment), server_name
    )
    if row is None:
        raise CommandError(
            f"Certificate not found: {server_name}. `merganser certificate list` "
            "lists all certificates."
        )
    return row


async def request_certificate_renewal(environment: Environment, server_name: str) -> dict[str, Any]:
    """Request a renewal by ACME, which a running server does. Raises CommandError."""
    row = await _load_certificate_row_or_fail_command(environment, server_name)
    try:
        await certificate_mutations.schedule_renewals_now(root_context(environment), [row.id])
    except RequestError as refusal:
        raise CommandError(refusal.message) from None
    return await load_certificate(environment, server_name)


async def delete_certificate_and_return_revoked(
    environment: Environment, server_name: str, revocation_reason: str | None = None
) -> bool:
    """Delete the certificate of a server. With a reason it is revoked first.

    Returns True if it was revoked. Raises CommandError if there is none, or it can't be revoked.
    """
    row = await _load_certificate_row_or_fail_command(environment, server_name)
    try:
        return bool(
            await certificate_mutations.delete_certificates_and_return_revoked_ids(
                root_context(environment), [row.id], _parse_revocation_reason(revocation_reason)
            )
        )
    except RequestError as refusal:
        raise CommandError(refusal.message) from None


def _parse_revocation_reason(text: str | None) -> RevocationReason | None:
    """Parse the revocation reason of `--revoke`. Raises CommandError if it is unknown."""
    if text is None:
        return None
    reasons = {
        revocation_reason.lower().replace("_", "-"): revocation_reason
        for revocation_reason in RevocationReason
    }
    if text not in reasons:
        raise CommandError(f"--revoke must be one of {', '.join(reasons)}.", exit_code=EXIT_USAGE)
    return reasons[text]
