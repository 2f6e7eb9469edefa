"""Set, renew and delete certificates of the platform as an ADMIN."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sqlalchemy import delete, func, insert, select
from sqlalchemy import update as changing
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.tls import pem_certificates
from mail.tls.acme_client import RevocationReason
from mail.tls.pem_certificates import (
    CertificateInput,
    CertificateWithKey,
    covers_name,
)
from models.certificates import AcmeState, Certificate
from models.errors import (
    Conflict,
    InvalidInput,
    LimitReached,
)
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.events.wakeups import CERTIFICATES
from models.runtime.environment import Environment, wake_workers_after_commit
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.certificates import acme_revocation
from resolvers.certificates.certificate_warnings import CertificateWarning, certificate_warnings
from resolvers.certificates.loaders import (
    find_visible_certificate_by_server_name,
    require_visible_certificates,
)
from resolvers.certificates.stored_certificates import (
    certificate_columns,
    decrypt_private_key,
    renewal_columns,
    replace_certificate_names,
)
from resolvers.context import Context

MAX_CERTIFICATES = 2000  # each listening process holds all of them
MAX_DESCRIPTION_LENGTH = 500
NO_CERTIFICATE_TEXT = "A certificate is required, or `acme: true`."


@dataclass(frozen=True, slots=True)
class CertificateValues:
    """New values of the certificate of a server. Without `sent` the stored one stays."""

    server_name: str
    sent: CertificateInput | None = None
    acme: bool | None = None  # None: unchanged, or false for a new server name
    description: str | None = None
    sets_description: bool = False  # else the description stays
    acme_names: tuple[str, ...] | None = (
        None  # other names in the ACME certificate; None leaves them unchanged
    )


class SetCertificate(NamedTuple):
    """The id of a stored certificate, and warnings about it."""

    id: int
    warnings: list[CertificateWarning]


async def set_certificate(ctx: Context, new_values: CertificateValues) -> SetCertificate:
    """Store or change the certificate of a server; return its id and warnings.

    Raises InvalidInput with field and rule, Conflict if another transaction changed it,
    LimitReached, or ServiceUnavailable if the stored key can't be decrypted.
    """
    server_name = pem_certificates.parse_server_name(new_values.server_name)
    row_before = await find_visible_certificate_by_server_name(ctx, server_name)
    if new_values.acme is None:
        new_values = replace(new_values, acme=bool(row_before and row_before.acme))
    new_values = _validate_certificate_names_and_description(new_values)
    checked_certificate = None
    if new_values.sent is not None:
        stored_key = (
            _decrypt_stored_private_key(ctx.environment, row_before)
            if new_values.sent.key_pem is None
            else None
        )
        checked_certificate = await asyncio.to_thread(
            pem_certificates.validate_certificate, new_values.sent, stored_key
        )
    async with ctx.write_session(PLATFORM) as session:
        row = await find_visible_certificate_by_server_name(ctx, server_name)
        if (row and row.version) != (row_before and row_before.version):
            raise Conflict(
                "Another request changed the certificate at the same time: retry.",
                path=["serverName"],
            )
        certificate_id = row.id if row else await _new_id_or_raise_limit_reached(ctx)
        values = _validated_certificate_settings(
            ctx.environment, new_values, row, checked_certificate
        ) | {"server_name": server_name}
        if checked_certificate:
            values |= certificate_columns(
                ctx.environment, certificate_id, checked_certificate, row.version if row else 0
            )
            values["acme_directory"] = None
        connection = await session.connection()
        if row:
            statement = changing(Certificate).where(col(Certificate.id) == certificate_id)
            await connection.execute(statement.values(**values))
        else:
            values |= {"id": certificate_id, "created_at": ctx.environment.now()}
            await connection.execute(insert(Certificate).values(**_with_defaults(values)))
        if checked_certificate:
            await replace_certificate_names(session, certificate_id, checked_certificate.dns_names)
        (row_after,) = await require_visible_certificates(ctx, [certificate_id])
        event_type = EventType.CERTIFICATE_UPDATED if row else EventType.CERTIFICATE_CREATED
        await record_certificate_changes_and_wake_workers(
            ctx, session, event_type, [certificate_id]
        )
        await audit_log.insert_audit_log_entries(
            ctx, session, _audit_log_entry("certificateSet", row, row_after)
        )
    return SetCertificate(
        certificate_id, certificate_warnings(ctx.environment, server_name, checked_certificate)
    )


def _validate_certificate_names_and_description(new_values: CertificateValues) -> CertificateValues:
    """Return the values with normalized names. Raises InvalidInput if one is not allowed."""
    normalize_name = (
        pem_certificates.parse_public_name
        if new_values.acme
        else pem_certificates.parse_server_name
    )
    name = normalize_name(new_values.server_name)
    description = new_values.description or ""
    if len(description) > MAX_DESCRIPTION_LENGTH or not description.isprintable():
        message = f"The description has at most {MAX_DESCRIPTION_LENGTH} printable characters."
        raise InvalidInput(message, constraint=ValidationConstraint.LENGTH, path=["description"])
    if new_values.acme_names and not new_values.acme:
        message = "`acmeNames` requires ACME: set `acme` to true."
        raise InvalidInput(message, constraint=ValidationConstraint.ACME_ONLY, path=["acmeNames"])
    other_names = new_values.acme_names and tuple(
        pem_certificates.parse_additional_acme_names(name, new_values.acme_names)
    )
    return replace(new_values, server_name=name, acme_names=other_names)


async def _new_id_or_raise_limit_reached(ctx: Context) -> int:
    """Return the id of a new certificate. Raises LimitReached if there are too many."""
    (row,) = await ctx.read(select(func.count().label("many")).select_from(Certificate))
    if row.many >= MAX_CERTIFICATES:
        message = f"At most {MAX_CERTIFICATES} certificates are allowed."
        raise LimitReached(message, limit=MAX_CERTIFICATES, used=row.many, path=["serverName"])
    return ctx.environment.new_id()


def _decrypt_stored_private_key(
    environment: Environment, certificate_row: ColumnRow | None
) -> str | None:
    """Return the stored private key, or None.

    Raises ServiceUnavailable if it can't be decrypted.
    """
    return (
        decrypt_private_key(environment, certificate_row)
        if certificate_row and certificate_row.private_key
        else None
    )


def _validated_certificate_settings(
    environment: Environment,
    new_values: CertificateValues,
    certificate_row: ColumnRow | None,
    checked_certificate: CertificateWithKey | None,
) -> dict[str, Any]:
    """Return the columns that change, without certificate and key.

    Raises InvalidInput if there is no certificate and ACME is off.
    """
    certificate_in_use: Any = checked_certificate or (
        certificate_row if certificate_row and certificate_row.chain else None
    )
    if not certificate_in_use and not new_values.acme:
        raise InvalidInput(
            NO_CERTIFICATE_TEXT, constraint=ValidationConstraint.REQUIRED, path=["cert"]
        )
    names = _additional_acme_names(new_values, certificate_row)
    values: dict[str, Any] = {
        "acme": new_values.acme,
        "acme_names": names,
        "updated_at": environment.now(),
    }
    if new_values.sets_description:
        values["description"] = new_values.description or None
    if (
        certificate_row
        and certificate_in_use is certificate_row
        and certificate_row.acme
        and new_values.acme
        and names == certificate_row.acme_names
    ):
        return values  # ACME continues unchanged
    values |= {
        "acme_state": None,
        "acme_error": None,
        "acme_next_at": None,
        "acme_renew_at": None,
        "acme_failures": 0,
        "lease": None,  # a worker that has leased it stores nothing
        "holder": None,
    }
    names_inside = (
        checked_certificate.dns_names
        if checked_certificate
        else certificate_row.alt_names
        if certificate_row
        else ()
    )
    if (
        new_values.acme
        and certificate_in_use
        and all(covers_name(names_inside, name) for name in [new_values.server_name, *names])
    ):
        values |= renewal_columns(certificate_in_use.not_before, certificate_in_use.not_after)
    elif new_values.acme:
        values |= _due_order_columns(environment)
    return values


def _due_order_columns(environment: Environment) -> dict[str, Any]:
    """Return the columns of a certificate that is to be ordered now."""
    terms_agreed = environment.options.acme_terms_agreed
    return {
        "acme_state": AcmeState.WAITING if terms_agreed else AcmeState.TERMS_NOT_AGREED,
        "acme_error": None,
        "acme_next_at": environment.now(),
    }


def _additional_acme_names(
    new_values: CertificateValues, certificate_row: ColumnRow | None
) -> list[str]:
    """Return the names that ACME is to add to the server name."""
    if new_values.acme and new_values.acme_names is None and certificate_row:
        return list(certificate_row.acme_names)
    return list(new_values.acme_names or ())


def _with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a new row with the defaults of columns that are not given."""
    return {"alt_names": [], "version": 0, **values}


async def record_certificate_changes_and_wake_workers(
    ctx: Context, session: AsyncSession, event_type: EventType, ids: Sequence[int]
) -> None:
    """Record an event of certificates, and wake the listeners and the ACME worker."""
    await ctx.record_change(session, PLATFORM, event_type, list(ids))
    wake_workers_after_commit(session, CERTIFICATES)


async def delete_certificates_and_return_revoked_ids(
    ctx: Context, ids: Sequence[int], revocation_reason: RevocationReason | None = None
) -> list[int]:
    """Delete certificates, all or none; return the ids of revoked ones. Connections stay open.

    With a reason they are revoked first. Nothing is deleted if the authority does not revoke
    one, or if a certificate was replaced during the revocation; those that were revoked have the
    state REVOKED then. Raises NotFound, Conflict, InvalidInput or ServiceUnavailable.
    """
    revoked_rows: list[ColumnRow] = []
    if revocation_reason:
        revoked_rows = acme_revocation.require_issued_by_acme_and_select_unexpired(
            ctx, await require_visible_certificates(ctx, ids)
        )
    if revocation_reason and not ctx.is_dry_run:
        await acme_revocation.revoke_certificates(ctx, revoked_rows, revocation_reason)
    revoked_versions = {row.id: row.version for row in revoked_rows}
    async with ctx.write_session(PLATFORM) as session:
        rows = await require_visible_certificates(ctx, ids)
        for index, row in enumerate(rows):
            if revoked_versions.get(row.id, row.version) != row.version:
                message = (
                    "Another request replaced or revoked the certificate at the same time: retry."
                )
                raise Conflict(message, path=["ids"], index=index)
        connection = await session.connection()
        await connection.execute(delete(Certificate).where(col(Certificate.id).in_(ids)))
        await record_certificate_changes_and_wake_workers(
            ctx, session, EventType.CERTIFICATE_DELETED, [row.id for row in rows]
        )
        entries = (_audit_log_entry("certificateDelete", row, None) for row in rows)
        await audit_log.insert_audit_log_entries(ctx, session, *entries)
    return list(revoked_versions)


async def schedule_renewals_now(ctx: Context, ids: Sequence[int]) -> None:
    """Order these certificates again now, all or none, even after failed orders.

    Raises NotFound, or Conflict if one is not managed by ACME.
    """
    async with ctx.write_session(PLATFORM) as session:
        rows = await require_visible_certificates(ctx, ids)
        for index, row in enumerate(rows):
            if not row.acme:
                message = "ACME does not renew this certificate: replace it by certificateSet."
                raise Conflict(message, path=["ids"], index=index)
        values = {
            **_due_order_columns(ctx.environment),
            "acme_renew_at": None,
            "acme_failures": 0,
            "updated_at": ctx.environment.now(),
        }
        statement = changing(Certificate).where(col(Certificate.id).in_(ids))
        await (await session.connection()).execute(statement.values(**values))
        await record_certificate_changes_and_wake_workers(
            ctx, session, EventType.CERTIFICATE_UPDATED, [row.id for row in rows]
        )
        await audit_log.insert_audit_log_entries(
            ctx,
            session,
            *(
                NewAuditLogEntry(
                    "certificateRenew", "Certificate", r.id, after={"serverName": r.server_name}
                )
                for r in rows
            ),
        )


def _audit_log_values(certificate: ColumnRow | None) -> dict[str, Any]:
    """Return the values of a certificate for the audit log."""
    if certificate is None:
        return {}
    expires = certificate.not_after and certificate.not_after.isoformat()
    return {
        "serverName": certificate.server_name,
        "description": certificate.description,
        "acme": certificate.acme,
        "acmeNames": certificate.acme_names,
        "fingerprintSha256": certificate.sha256,
        "expires": expires,
    }


def _audit_log_entry(
    mutation: str, row_before: ColumnRow | None, row_after: ColumnRow | None
) -> NewAuditLogEntry:
    row = row_after or row_before
    values_before = _audit_log_values(row_before)
    values_after = _audit_log_values(row_after)
    certificate_id = row.id if row else None
    if row_before and row_after:
        changed_names = [name for name in values_after if values_before[name] != values_after[name]]
        values_before, values_after = (
            {name: facts[name] for name in changed_names} for facts in (values_before, values_after)
        )
    return NewAuditLogEntry(
        mutation, "Certificate", certificate_id, None, values_before or None, values_after or None
    )
