"""The lease of the certificate that an ACME worker orders or renews."""

from typing import Any

from sqlalchemy import ColumnElement, and_, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.certificates import AcmeState, Certificate
from models.events import journal
from models.events.event_types import EventType
from models.events.journal import PLATFORM, JournalEntry
from models.runtime import leases
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns


class CertificateLeaseLost(Exception):
    """The certificate was changed or deleted, or another process has leased it."""


async def lease_next_due_certificate(environment: Environment) -> ColumnRow | None:
    """Lease to this process the certificate that is due first, and return its row.

    Returns None if no certificate is due, another process was faster, or the terms of the ACME
    server are not agreed. The lease has no end time: it ends when it is released, or when the
    heartbeat of the process stops.
    """
    if not environment.options.acme_terms_agreed:
        return None
    now, lease = environment.now(), environment.new_id()
    is_unleased = leases.is_unleased(Certificate)
    is_due = (col(Certificate.acme), col(Certificate.acme_next_at) <= now, is_unleased)
    statement = (
        select(col(Certificate.id)).where(*is_due).order_by(col(Certificate.acme_next_at)).limit(1)
    )
    due_certificate = next(iter(await environment.database.read(statement)), None)
    if due_certificate is None:
        return None  # an idle worker writes nothing
    process_id = await leases.ensure_process_registered(environment)
    async with environment.write_session() as session:
        update_statement = update(Certificate).where(
            col(Certificate.id) == due_certificate.id, *is_due
        )
        update_statement = update_statement.where(leases.is_registered(process_id))
        lease_statement = update_statement.values(leases.lease_values(process_id, lease)).returning(
            *select_columns(Certificate)
        )
        return (await (await session.connection()).execute(lease_statement)).first()


def is_leased_certificate_sql(certificate: ColumnRow) -> ColumnElement[bool]:
    """Return the SQL condition for the certificate while its lease is held."""
    return and_(col(Certificate.id) == certificate.id, col(Certificate.lease) == certificate.lease)


async def store_acme_state(
    environment: Environment, certificate: ColumnRow, state: AcmeState
) -> None:
    """Store how far the order is. Raises CertificateLeaseLost if the lease is lost."""
    await require_lease_and_store_values(environment, certificate, {"acme_state": state})


async def require_lease_and_store_values(
    environment: Environment, certificate: ColumnRow, values: dict[str, Any]
) -> None:
    """Store values of a leased certificate and record them.

    Raises CertificateLeaseLost if the lease is lost.
    """
    async with environment.write_session(PLATFORM) as session:
        await update_leased_row_or_raise_lease_lost(environment, session, certificate, values)


async def update_leased_row_or_raise_lease_lost(
    environment: Environment, session: AsyncSession, certificate: ColumnRow, values: dict[str, Any]
) -> None:
    """Store values of a leased certificate in a transaction that locks PLATFORM; record them.

    Raises CertificateLeaseLost if the lease is lost.
    """
    now = environment.now()
    statement = (
        update(Certificate)
        .where(is_leased_certificate_sql(certificate))
        .values(**values, updated_at=now)
    )
    if not (await (await session.connection()).execute(statement)).rowcount:
        raise CertificateLeaseLost
    entry = JournalEntry(EventType.CERTIFICATE_UPDATED, [certificate.id])
    await journal.append_journal_entry(session, PLATFORM, entry, at=now)


async def store_values_and_release_lease(
    environment: Environment, certificate: ColumnRow, values: dict[str, Any]
) -> None:
    """Store values of a leased certificate and release its lease.

    A change that the API shows is recorded, and raises CertificateLeaseLost if the lease is lost.
    Other values are then not stored, without an error.
    """
    values = {**values, "lease": None, "holder": None}
    if any(
        values.get(name, getattr(certificate, name)) != getattr(certificate, name)
        for name in ("acme_state", "acme_renew_at")
    ):
        await require_lease_and_store_values(environment, certificate, values)
        return
    async with environment.write_session() as session:
        statement = (
            update(Certificate).where(is_leased_certificate_sql(certificate)).values(**values)
        )
        await (await session.connection()).execute(statement)


async def release_lease(environment: Environment, certificate: ColumnRow) -> None:
    """Release the lease, so that another process can continue at once."""
    async with environment.write_session() as session:
        statement = (
            update(Certificate)
            .where(is_leased_certificate_sql(certificate))
            .values(lease=None, holder=None)
        )
        await (await session.connection()).execute(statement)
