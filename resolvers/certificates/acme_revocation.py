"""Revoke certificates at their ACME authority (RFC 8555, section 7.6)."""

import asyncio
import logging
from collections.abc import Sequence

from sqlalchemy import update
from sqlmodel import col

from mail.tls import acme_client, acme_connection
from mail.tls.acme_client import AcmeError, RevocationReason
from models.certificates import AcmeState, Certificate
from models.errors import Conflict, InvalidInput, RequestError, ServiceUnavailable
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.certificates import acme_accounts
from resolvers.context import Context

log = logging.getLogger(__name__)

MAX_REVOCATIONS = 20  # per call, since a client waits for the authority
REVOCATION_TIMEOUT = 30.0  # seconds per certificate


def require_issued_by_acme_and_select_unexpired(
    ctx: Context, certificates: Sequence[ColumnRow]
) -> list[ColumnRow]:
    """Return the certificates that can be revoked: issued and not expired.

    Raises InvalidInput if there are too many, and Conflict if ACME did not issue one or its
    terms are not agreed to.
    """
    if len(certificates) > MAX_REVOCATIONS:
        message = f"At most {MAX_REVOCATIONS} certificates can be revoked at once."
        raise InvalidInput(message, constraint=ValidationConstraint.MAX, path=["ids"])
    if not ctx.environment.options.acme_terms_agreed:
        message = "The terms of the ACME server are not accepted: set acme.termsAgreed."
        raise Conflict(message, path=["revoke"])
    for index, row in enumerate(certificates):
        if row.chain and not row.acme_directory:
            message = "ACME can't revoke the certificate, since ACME did not issue it."
            raise Conflict(message, path=["ids"], index=index)
    return [row for row in certificates if row.chain and row.not_after > ctx.environment.now()]


async def revoke_certificates(
    ctx: Context, certificates: Sequence[ColumnRow], reason: RevocationReason
) -> None:
    """Revoke certificates, one after another.

    Each is stored as revoked at once, so its state is right if a later step fails. Raises
    InvalidInput if the authority refuses the reason, and ServiceUnavailable if it does not revoke
    one.
    """
    for index, row in enumerate(certificates):
        log_values = {"serverName": row.server_name, "reason": reason}
        try:
            async with asyncio.timeout(REVOCATION_TIMEOUT):
                await _revoke_certificate(ctx.environment, row, reason)
        except (AcmeError, TimeoutError) as problem:
            failure = (
                problem
                if isinstance(problem, AcmeError)
                else AcmeError("The ACME server did not respond in time.")
            )
            log.warning("Certificate not revoked", extra={**log_values, "why": str(failure)})
            raise _revocation_error(row, failure, certificates[:index]) from None
        log.info("Certificate revoked", extra=log_values)
        await _store_and_log_revoked_state(ctx, row, reason)


async def _revoke_certificate(
    environment: Environment, certificate: ColumnRow, reason: RevocationReason
) -> None:
    """Revoke a certificate with the account that ordered it. Raises AcmeError."""
    account = await acme_accounts.load_or_create_account(environment, certificate.acme_directory)
    if account.url is None:
        raise AcmeError("The ACME server no longer knows the account.")
    server = acme_accounts.acme_server(environment, certificate.acme_directory)
    async with acme_connection.connect_acme(server, account.private_key) as client:
        await asyncio.to_thread(client.register_or_use_account, account.url, "")
        await asyncio.to_thread(client.revoke, certificate.chain, reason)


def _revocation_error(
    certificate: ColumnRow, failure: AcmeError, revoked: Sequence[ColumnRow]
) -> RequestError:
    message = (
        f"{certificate.server_name} was not revoked, and no certificate was deleted: {failure}"
    )
    if revoked:
        message += f" Already revoked: {', '.join(row.server_name for row in revoked)}."
    if failure.code == acme_client.UNREASONABLE:
        return InvalidInput(
            message, constraint=ValidationConstraint.REVOCATION_REASON, path=["revoke"]
        )
    return ServiceUnavailable(message, component="acme")


async def _store_and_log_revoked_state(
    ctx: Context, certificate: ColumnRow, reason: RevocationReason
) -> None:
    """Store and log that it is revoked, in a transaction that a later failure does not undo.

    A certificate that has replaced it in the meantime keeps its state.
    """
    async with ctx.environment.write_session(PLATFORM) as session:
        is_revoked_certificate = (
            col(Certificate.id) == certificate.id,
            col(Certificate.version) == certificate.version,
        )
        values = {
            "acme_state": AcmeState.REVOKED,
            "acme_error": None,
            "updated_at": ctx.environment.now(),
        }
        statement = update(Certificate).where(*is_revoked_certificate).values(values)
        if (await (await session.connection()).execute(statement)).rowcount:
            await ctx.record_change(
                session, PLATFORM, EventType.CERTIFICATE_UPDATED, [certificate.id]
            )
        entry = NewAuditLogEntry(
            "certificateDelete", "Certificate", certificate.id, after={"revoked": reason}
        )
        await audit_log.insert_audit_log_entries(ctx, session, entry)
