"""Certificates of the platform, read and changed by an ADMIN. Private keys are never returned."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, exists, false, func, insert, or_, select, true
from sqlalchemy import update as changing
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.tls import pem_certificates
from mail.tls.acme_client import RevocationReason
from mail.tls.pem_certificates import (
    CertificateInput,
    CertificateWithKey,
    covers_name,
    wildcard_name,
)
from mail.tls.sni_certificates import certificate_rank
from models.certificates import Certificate, CertificateName
from models.errors import (
    Conflict,
    InvalidInput,
    LimitReached,
    ServiceUnavailable,
    require_all_found,
)
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.events.wakeups import CERTIFICATES
from models.runtime.environment import Environment, wake_workers_after_commit
from models.runtime.secret_box import DecryptionError
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role
from models.validation_constraints import ValidationConstraint
from models.warning_codes import WarningCode
from resolvers import pagination
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.certificates import acme_revocation
from resolvers.context import Context
from resolvers.pagination import PageScan, read_by_keys

CURSOR_KIND = "certificates"
MAX_CERTIFICATES = 2000  # each listening process holds all of them
MAX_QUERY_LENGTH = 255  # characters
MAX_DESCRIPTION_LENGTH = 500
RENEWAL_TIME = timedelta(days=30)  # before the certificate expires
RENEWAL_PART = 3  # for one valid less than 90 days this part of its lifetime
NO_CERTIFICATE_TEXT = "A certificate is required, or acme: true"
STATE_TERMS_NOT_AGREED = "waits: the terms of the authority are not agreed to (acme.termsAgreed)"
STATE_WAITING = "waits for its turn"


@dataclass(frozen=True, slots=True)
class CertificateValues:
    """New values of the certificate of a server. Without `sent` the stored one stays."""

    server_name: str
    sent: CertificateInput | None = None
    acme: bool = False
    description: str | None = None
    sets_description: bool = False  # else the description stays
    acme_names: tuple[str, ...] | None = (
        None  # other names in the ACME certificate; None leaves them unchanged
    )


@dataclass(frozen=True, slots=True)
class CertificateWarning:
    """A warning about a stored certificate: code, message and input field."""

    code: WarningCode
    message: str
    field: str = "cert"


def encryption_context(certificate_id: int) -> str:
    """Return the context that the secret box encrypts a certificate's private key for."""
    return f"certificate:{certificate_id}"


def _is_visible_certificate(ctx: Context) -> ColumnElement[bool]:
    return true() if ctx.viewer.role.includes(Role.ADMIN) else false()


def _select_visible(
    ctx: Context, column_names: Collection[str] | None = None
) -> Select[*tuple[Any, ...]]:
    columns = None if column_names is None else {"id", "created_at", *column_names}
    return select(*select_columns(Certificate, columns)).where(_is_visible_certificate(ctx))


async def load_visible_certificates_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load certificates by id, in the given order. None for ids that the viewer can't see."""
    return await read_by_keys(ctx, _select_visible(ctx), col(Certificate.id), ids)


async def find_certificate_by_server_name(ctx: Context, name: str) -> ColumnRow | None:
    """Return the certificate stored for exactly this server name, or None."""
    try:
        server_name = pem_certificates.parse_server_name(name)
    except InvalidInput:
        return None
    rows = await ctx.read(_select_visible(ctx).where(col(Certificate.server_name) == server_name))
    return next(iter(rows), None)


async def load_ids_by_server_name(ctx: Context, names: Sequence[str]) -> dict[str, int]:
    """Load the ids of the certificates stored for exactly these server names, in one statement.

    A name that is invalid or has no certificate is missing in the result.
    """
    server_names: dict[str, str] = {}
    for name in names:
        with suppress(InvalidInput):
            server_names[name] = pem_certificates.parse_server_name(name)
    rows = await ctx.read(
        _select_visible(ctx, {"server_name"}).where(
            col(Certificate.server_name).in_(server_names.values())
        )
    )
    ids = {row.server_name: int(row.id) for row in rows}
    return {name: ids[form] for name, form in server_names.items() if form in ids}


@dataclass(frozen=True, slots=True)
class CertificateConditions:
    """A part of the server name or, with `includes_alt_names`, of any name in the certificate."""

    query: str | None = None
    includes_alt_names: bool = False

    def where_clause(self) -> ColumnElement[bool]:
        """Return the WHERE clause. Raises InvalidInput if the query is too long."""
        if not self.query:
            return true()
        if len(self.query) > MAX_QUERY_LENGTH or not self.query.isprintable():
            message = f"at most {MAX_QUERY_LENGTH} printable characters"
            raise InvalidInput(
                message, constraint=ValidationConstraint.LENGTH, path=["filter", "query"]
            )
        part = self.query.strip().lower()
        clause = col(Certificate.server_name).contains(part, autoescape=True)
        if not self.includes_alt_names:
            return clause
        name = col(CertificateName.name)
        is_of_certificate = col(CertificateName.certificate_id) == col(Certificate.id)
        matches = or_(name.contains(part, autoescape=True), name == wildcard_name(part))
        return or_(clause, exists().where(is_of_certificate, matches))


async def read_certificate_page(
    ctx: Context,
    conditions: CertificateConditions,
    page_request: PageRequest,
    columns: Collection[str],
) -> Page[ColumnRow]:
    """Read a page of certificates, the oldest first."""
    sort_key = (col(Certificate.created_at), col(Certificate.id))
    statement = _select_visible(ctx, columns).where(conditions.where_clause())
    return await pagination.read_page(
        ctx, PageScan(statement, page_request, sort_key, is_descending=False)
    )


async def count_certificates(ctx: Context, conditions: CertificateConditions) -> int:
    """Count the certificates that meet the conditions."""
    statement = select(func.count().label("many")).select_from(Certificate)
    (row,) = await ctx.read(
        statement.where(_is_visible_certificate(ctx), conditions.where_clause())
    )
    return int(row.many)


async def set_certificate(
    ctx: Context, new_values: CertificateValues
) -> tuple[int, list[CertificateWarning]]:
    """Store or change the certificate of a server; return its id and warnings.

    Raises InvalidInput with field and rule, Conflict if another transaction changed it,
    LimitReached, or ServiceUnavailable if the stored key can't be decrypted.
    """
    new_values = _validate_values(new_values)
    server_name = new_values.server_name
    row_before = await find_certificate_by_server_name(ctx, server_name)
    checked_certificate = None
    if new_values.sent is not None:
        stored_key = (
            _stored_private_key(ctx.environment, row_before)
            if new_values.sent.key_pem is None
            else None
        )
        checked_certificate = await asyncio.to_thread(
            pem_certificates.validate_certificate, new_values.sent, stored_key
        )
    async with ctx.write_session(PLATFORM) as session:
        row = await find_certificate_by_server_name(ctx, server_name)
        if (row and row.version) != (row_before and row_before.version):
            raise Conflict(
                "Another request changed the certificate at the same time: retry",
                path=["serverName"],
            )
        certificate_id = row.id if row else await _new_id_unless_limit_reached(ctx)
        values = _changed_columns(ctx.environment, new_values, row, checked_certificate) | {
            "server_name": server_name
        }
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
        (row_after,) = await _require_visible_certificates(ctx, [certificate_id])
        await record_certificate_changes(ctx, session, [certificate_id])
        await audit_log.log_changes(
            ctx, session, _audit_log_entry("certificateSet", row, row_after)
        )
    return certificate_id, _certificate_warnings(ctx.environment, server_name, checked_certificate)


def _validate_values(new_values: CertificateValues) -> CertificateValues:
    """Return the values with normalized names. Raises InvalidInput if one is not allowed."""
    normalize_name = (
        pem_certificates.parse_public_name
        if new_values.acme
        else pem_certificates.parse_server_name
    )
    name = normalize_name(new_values.server_name)
    description = new_values.description or ""
    if len(description) > MAX_DESCRIPTION_LENGTH or not description.isprintable():
        message = f"at most {MAX_DESCRIPTION_LENGTH} printable characters"
        raise InvalidInput(message, constraint=ValidationConstraint.LENGTH, path=["description"])
    if new_values.acme_names and not new_values.acme:
        message = "acmeNames requires acme: true"
        raise InvalidInput(message, constraint=ValidationConstraint.ACME_ONLY, path=["acmeNames"])
    other_names = new_values.acme_names and tuple(
        pem_certificates.parse_additional_acme_names(name, new_values.acme_names)
    )
    return replace(new_values, server_name=name, acme_names=other_names)


async def _new_id_unless_limit_reached(ctx: Context) -> int:
    """Return the id of a new certificate. Raises LimitReached if there are too many."""
    (row,) = await ctx.read(select(func.count().label("many")).select_from(Certificate))
    if row.many >= MAX_CERTIFICATES:
        message = f"at most {MAX_CERTIFICATES} certificates"
        raise LimitReached(message, limit=MAX_CERTIFICATES, used=row.many, path=["serverName"])
    return ctx.environment.new_id()


def _stored_private_key(environment: Environment, row: ColumnRow | None) -> str | None:
    """Return the stored private key, or None.

    Raises ServiceUnavailable if it can't be decrypted.
    """
    return decrypt_private_key(environment, row) if row and row.private_key else None


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
            "The stored private key can't be decrypted: send a private key", component="vault"
        ) from None


def _changed_columns(
    environment: Environment,
    new_values: CertificateValues,
    row: ColumnRow | None,
    checked_certificate: CertificateWithKey | None,
) -> dict[str, Any]:
    """Return the columns that change, without certificate and key.

    Raises InvalidInput if there is no certificate and ACME is off.
    """
    certificate_in_use: Any = checked_certificate or (row if row and row.chain else None)
    if not certificate_in_use and not new_values.acme:
        raise InvalidInput(
            NO_CERTIFICATE_TEXT, constraint=ValidationConstraint.REQUIRED, path=["cert"]
        )
    names = _acme_names(new_values, row)
    values: dict[str, Any] = {
        "acme": new_values.acme,
        "acme_names": names,
        "updated_at": environment.now(),
    }
    if new_values.sets_description:
        values["description"] = new_values.description or None
    if (
        row
        and certificate_in_use is row
        and row.acme
        and new_values.acme
        and names == row.acme_names
    ):
        return values  # ACME continues unchanged
    values |= {
        "acme_state": None,
        "acme_next_at": None,
        "acme_renew_at": None,
        "acme_failures": 0,
        "lease": None,  # a worker that has leased it stores nothing
        "holder": None,
    }
    names_inside = (
        checked_certificate.dns_names if checked_certificate else row.alt_names if row else ()
    )
    if (
        new_values.acme
        and certificate_in_use
        and all(covers_name(names_inside, name) for name in names)
    ):
        values |= renewal_columns(certificate_in_use.not_before, certificate_in_use.not_after)
    elif new_values.acme:
        terms_agreed = environment.options.acme_terms_agreed
        values |= {
            "acme_state": STATE_WAITING if terms_agreed else STATE_TERMS_NOT_AGREED,
            "acme_next_at": environment.now(),
        }
    return values


def _acme_names(new_values: CertificateValues, row: ColumnRow | None) -> list[str]:
    """Return the names that ACME is to add to the server name."""
    if new_values.acme and new_values.acme_names is None and row:
        return list(row.acme_names)
    return list(new_values.acme_names or ())


def renewal_columns(not_before: datetime, not_after: datetime) -> dict[str, Any]:
    """Return the columns of a valid ACME certificate: state and renewal time."""
    renew_at = not_after - min(RENEWAL_TIME, (not_after - not_before) / RENEWAL_PART)
    state = f"valid, renewed from {renew_at:%Y-%m-%d}"
    return {"acme_state": state, "acme_next_at": renew_at, "acme_renew_at": renew_at}


def certificate_columns(
    environment: Environment,
    certificate_id: int,
    checked_certificate: CertificateWithKey,
    version: int,
) -> dict[str, Any]:
    """Return the columns of a certificate chain and its encrypted private key."""
    return {
        "alt_names": list(checked_certificate.dns_names),
        "chain": checked_certificate.chain_pem,
        "private_key": environment.secret_box.encrypt(
            checked_certificate.key_pem, encryption_context(certificate_id)
        ),
        "version": version + 1,
        "sha1": checked_certificate.sha1,
        "sha256": checked_certificate.sha256,
        "spki": checked_certificate.spki_sha256,
        "issuer": checked_certificate.issuer,
        "not_before": checked_certificate.not_before,
        "not_after": checked_certificate.not_after,
    }


def _with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a new row with the defaults of columns that are not given."""
    return {"alt_names": [], "version": 0, **values}


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


async def record_certificate_changes(
    ctx: Context, session: AsyncSession, ids: Sequence[int]
) -> None:
    """Record changed certificates, and wake the listeners and the ACME worker."""
    await ctx.record_change(session, PLATFORM, EventType.CERTIFICATE_CHANGED, list(ids))
    wake_workers_after_commit(session, CERTIFICATES)


def _certificate_warnings(
    environment: Environment, server_name: str, checked_certificate: CertificateWithKey | None
) -> list[CertificateWarning]:
    if checked_certificate is None:
        return []
    now, warnings = environment.now(), []
    if not covers_name(checked_certificate.dns_names, server_name):
        message = f"{server_name} does not stand in the certificate: most clients will refuse it"
        warnings.append(
            CertificateWarning(WarningCode.NAME_NOT_IN_CERTIFICATE, message, "serverName")
        )
    if checked_certificate.not_after <= now:
        warnings.append(
            CertificateWarning(
                WarningCode.CERTIFICATE_EXPIRED,
                f"it ended on {checked_certificate.not_after:%Y-%m-%d}",
            )
        )
    if checked_certificate.not_before > now:
        message = f"it begins on {checked_certificate.not_before:%Y-%m-%d}"
        warnings.append(CertificateWarning(WarningCode.CERTIFICATE_NOT_YET_VALID, message))
    if not checked_certificate.is_for_servers:
        warnings.append(
            CertificateWarning(WarningCode.NOT_FOR_SERVERS, "it says that it is not for servers")
        )
    if checked_certificate.unused_count:
        message = (
            f"{checked_certificate.unused_count} certificates are no part of its chain, and were "
            "left out"
        )
        warnings.append(CertificateWarning(WarningCode.CERTIFICATES_LEFT_OUT, message, "ca"))
    return warnings


async def delete_certificates(
    ctx: Context, ids: Sequence[int], revocation_reason: RevocationReason | None = None
) -> list[int]:
    """Delete certificates, all or none; return the ids of revoked ones. Connections stay open.

    With a reason they are revoked first. Nothing is deleted if the authority does not revoke
    one, or if a certificate was replaced during the revocation. Raises NotFound, Conflict,
    InvalidInput or ServiceUnavailable.
    """
    revoked_rows: list[ColumnRow] = []
    if revocation_reason:
        revoked_rows = acme_revocation.check_and_select_revocable(
            ctx, await _require_visible_certificates(ctx, ids)
        )
    if revocation_reason and not ctx.is_dry_run:
        await acme_revocation.revoke_certificates(ctx, revoked_rows, revocation_reason)
    revoked_versions = {row.id: row.version for row in revoked_rows}
    async with ctx.write_session(PLATFORM) as session:
        rows = await _require_visible_certificates(ctx, ids)
        for index, row in enumerate(rows):
            if revoked_versions.get(row.id, row.version) != row.version:
                message = "The certificate was revoked and replaced at the same time: retry"
                raise Conflict(message, path=["ids"], index=index)
        connection = await session.connection()
        await connection.execute(delete(Certificate).where(col(Certificate.id).in_(ids)))
        await record_certificate_changes(ctx, session, [row.id for row in rows])
        values_after = {row.id: {"revoked": revocation_reason} for row in revoked_rows}
        entries = (
            replace(
                _audit_log_entry("certificateDelete", row, None), after=values_after.get(row.id)
            )
            for row in rows
        )
        await audit_log.log_changes(ctx, session, *entries)
    return list(revoked_versions)


async def schedule_renewals_now(ctx: Context, ids: Sequence[int]) -> None:
    """Order these certificates again now, all or none, even after failed orders.

    Raises NotFound, or Conflict if one is not managed by ACME.
    """
    async with ctx.write_session(PLATFORM) as session:
        rows = await _require_visible_certificates(ctx, ids)
        for index, row in enumerate(rows):
            if not row.acme:
                message = "ACME does not renew this certificate: replace it by certificateSet"
                raise Conflict(message, path=["ids"], index=index)
        terms_agreed = ctx.environment.options.acme_terms_agreed
        state = {
            "acme_state": STATE_WAITING if terms_agreed else STATE_TERMS_NOT_AGREED,
            "acme_next_at": ctx.environment.now(),
        }
        values = {
            **state,
            "acme_renew_at": None,
            "acme_failures": 0,
            "updated_at": ctx.environment.now(),
        }
        statement = changing(Certificate).where(col(Certificate.id).in_(ids))
        await (await session.connection()).execute(statement.values(**values))
        await record_certificate_changes(ctx, session, [row.id for row in rows])
        await audit_log.log_changes(
            ctx,
            session,
            *(
                NewAuditLogEntry(
                    "certificateRenew", "Certificate", r.id, after={"serverName": r.server_name}
                )
                for r in rows
            ),
        )


async def _require_visible_certificates(ctx: Context, ids: Sequence[int]) -> list[ColumnRow]:
    """Load certificates, each once.

    Raises NotFound if one is not visible and InvalidInput if none is given.
    """
    rows = {row.id: row for row in await load_visible_certificates_by_id(ctx, list(ids)) if row}
    require_all_found(ids, rows)
    if not rows:
        raise InvalidInput(
            "At least one reference is required",
            constraint=ValidationConstraint.REQUIRED,
            path=["ids"],
        )
    return list(rows.values())


def _audit_log_values(certificate: ColumnRow | None) -> dict[str, Any]:
    """Return the values of a certificate for the admin log."""
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
    values_before, values_after, certificate_id = (
        _audit_log_values(row_before),
        _audit_log_values(row_after),
        row.id if row else None,
    )
    if row_before and row_after:
        changed_names = [name for name in values_after if values_before[name] != values_after[name]]
        values_before, values_after = (
            {name: facts[name] for name in changed_names} for facts in (values_before, values_after)
        )
    return NewAuditLogEntry(
        mutation, "Certificate", certificate_id, None, values_before or None, values_after or None
    )


async def find_served_spki_sha256(environment: Environment, host_name: str) -> str | None:
    """Return the SHA-256 of the public key that TLS clients of this host see; None without TLS.

    Chosen as in `mail/tls/sni_certificates.py`: stored for the host, or with its name in it,
    else the certificate file.
    """
    ids_with_name = select(col(CertificateName.certificate_id)).where(
        col(CertificateName.name).in_([host_name, wildcard_name(host_name)])
    )
    statement = select(
        *select_columns(Certificate, ("server_name", "spki", "not_before", "not_after"))
    ).where(col(Certificate.chain).is_not(None))
    matches_host = or_(
        col(Certificate.server_name) == host_name, col(Certificate.id).in_(ids_with_name)
    )
    now = environment.now()

    def rank_for_host(row: ColumnRow) -> Any:
        return certificate_rank(row, host_name, now)

    if rows := await environment.database.read(statement.where(matches_host)):
        return str(max(rows, key=rank_for_host).spki)
    if (certificate_file := environment.options.tls_cert) and (
        spki_of_file := await asyncio.to_thread(_spki_of_file, certificate_file)
    ):
        return spki_of_file
    rows = await environment.database.read(statement)
    return str(max(rows, key=rank_for_host).spki) if rows else None


def _spki_of_file(certificate_file: Path) -> str | None:
    try:
        return pem_certificates.first_spki_sha256(certificate_file.read_text(errors="replace"))
    except OSError:
        return None
