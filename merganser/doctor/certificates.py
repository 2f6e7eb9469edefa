"""Check certificates for expiry and failed renewals."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from sqlalchemy import select
from sqlmodel import col

from mail.tls.pem_certificates import BLOCK
from merganser.doctor.findings import Finding, action, hint, ok
from merganser.errors import Trouble
from merganser.server import environment_factory
from merganser.settings.settings import PREFIX, Settings
from models.certificates import Certificate
from models.store.columns import picked

SOON = timedelta(days=14)
SHOWN = 20
COLUMNS = ("server_name", "not_after", "acme", "acme_failures", "acme_state")


async def certified(settings: Settings) -> list[Finding]:
    """Check the certificate file and the stored certificates."""
    now = datetime.now(UTC)
    found: list[Finding] = []
    if settings.tls_cert is not None:
        found += _file(settings.tls_cert, now)
    rows = await _stored(settings, now)
    for row in rows[:SHOWN]:
        found += _one(row, now)
    return found


def _file(file: Path, now: datetime) -> list[Finding]:
    """Check the expiry of the certificate file; an unreadable file is a finding."""
    subject = f"{PREFIX}TLS_CERT"
    try:
        text = file.read_text(errors="replace")
        blocks = [each[0] for each in BLOCK.finditer(text) if each[1].endswith("CERTIFICATE")]
        ends = x509.load_pem_x509_certificate(blocks[0].encode()).not_valid_after_utc
    except (OSError, ValueError, IndexError):
        return action(subject, f"{file} cannot be read", "put a certificate there, PEM")
    return _ending(subject, str(file), ends, now, "put another in its place")


async def _stored(settings: Settings, now: datetime) -> Sequence[Any]:
    """Load certificates that expire soon or failed to renew.

    Returns none if the database can't be read, which the check of the database reports.
    """
    statement = (
        select(*picked(Certificate, COLUMNS))
        .where((col(Certificate.not_after) < now + SOON) | (col(Certificate.acme_failures) > 0))
        .order_by(col(Certificate.not_after))
        .limit(SHOWN)
    )
    if not _there(settings):
        return []
    async with environment_factory.database(settings) as store:
        try:
            with environment_factory.reached(settings):
                return await store.read(statement)
        except Trouble:
            return []  # the check of the database reports why


def _there(settings: Settings) -> bool:
    """True if the SQLite file exists, and for PostgreSQL. Opening an SQLite file creates it."""
    url = environment_factory.url_of(settings)
    return url.get_backend_name() != "sqlite" or Path(url.database or "").exists()


def _one(row: Any, now: datetime) -> list[Finding]:
    subject, todo = "certificate", "send another by certificateSet"
    if row.acme:
        todo = f"see why it is not renewed: {row.acme_state}"
    if row.not_after is None:
        return hint(subject, f"{row.server_name} has none yet", todo)
    return _ending(subject, row.server_name, row.not_after, now, todo)


def _ending(subject: str, what: str, ends: datetime, now: datetime, todo: str) -> list[Finding]:
    if ends <= now:
        return action(subject, f"{what} ended on {ends:%Y-%m-%d}", todo)
    if ends < now + SOON:
        return action(subject, f"{what} ends on {ends:%Y-%m-%d}", todo)
    return ok(subject, f"{what} is valid until {ends:%Y-%m-%d}")
