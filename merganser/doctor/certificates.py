"""Check certificates for expiry and failed renewals."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from sqlalchemy import select
from sqlmodel import col

from mail.tls.pem_certificates import PEM_BLOCK
from merganser.doctor.findings import CheckName, Finding, action_finding, hint_finding, ok_finding
from merganser.errors import CommandError
from merganser.server import environment_factory
from merganser.settings.settings import PREFIX, Settings
from models.certificates import AcmeState, Certificate
from models.store.columns import ColumnRow, select_columns

EXPIRY_WARNING = timedelta(days=14)
MAX_SHOWN = 20
SELECTED_COLUMNS = ("server_name", "not_after", "acme", "acme_state", "acme_error")


async def check_certificates(settings: Settings) -> list[Finding]:
    """Check the certificate file and the stored certificates."""
    now = datetime.now(UTC)
    findings: list[Finding] = []
    if settings.tls_cert is not None:
        findings += _check_certificate_file(settings.tls_cert, now)
    rows = await _load_problem_certificates_if_readable(settings, now)
    for row in rows[:MAX_SHOWN]:
        findings += _check_stored_certificate(row, now)
    return findings


def _check_certificate_file(file: Path, now: datetime) -> list[Finding]:
    """Check the expiry of the certificate file; an unreadable file is a finding."""
    try:
        text = file.read_text(errors="replace")
        blocks = [
            block[0] for block in PEM_BLOCK.finditer(text) if block[1].endswith("CERTIFICATE")
        ]
        expires_at = x509.load_pem_x509_certificate(blocks[0].encode()).not_valid_after_utc
    except (OSError, ValueError, IndexError):
        next_step = f"provide a PEM certificate, or correct {PREFIX}TLS_CERT"
        return action_finding(CheckName.CERTIFICATE, f"{file} can't be read", next_step)
    return _expiry_finding(str(file), expires_at, now, "replace it")


async def _load_problem_certificates_if_readable(
    settings: Settings, now: datetime
) -> Sequence[ColumnRow]:
    """Load certificates that expire soon, are revoked, or that ACME does not order.

    Returns none if the database can't be read, which the check of the database reports.
    """
    statement = (
        select(*select_columns(Certificate, SELECTED_COLUMNS))
        .where(
            (col(Certificate.not_after) < now + EXPIRY_WARNING)
            | col(Certificate.acme_error).is_not(None)
            | col(Certificate.acme_state).in_((AcmeState.TERMS_NOT_AGREED, AcmeState.REVOKED))
        )
        .order_by(col(Certificate.not_after))
        .limit(MAX_SHOWN)
    )
    if not _can_database_exist(settings):
        return []
    async with environment_factory.open_database(settings) as store:
        try:
            with environment_factory.database_errors_as_command_errors(settings):
                return await store.read(statement)
        except CommandError:
            return []  # the check of the database reports why


def _can_database_exist(settings: Settings) -> bool:
    """True if the SQLite file exists, and for PostgreSQL. Opening an SQLite file creates it."""
    url = environment_factory.checked_database_url_without_password(settings)
    return url.get_backend_name() != "sqlite" or Path(url.database or "").exists()


def _check_stored_certificate(certificate_row: Any, now: datetime) -> list[Finding]:
    advice = "replace it with `merganser certificate set`"
    if certificate_row.acme:
        error = f": {certificate_row.acme_error}" if certificate_row.acme_error else ""
        advice = f"ACME state {certificate_row.acme_state}{error}"
    if certificate_row.acme_state == AcmeState.REVOKED:
        return action_finding(
            CheckName.CERTIFICATE,
            f"{certificate_row.server_name} is revoked",
            "run `merganser certificate delete` again",
        )
    if certificate_row.not_after is None:
        return hint_finding(
            CheckName.CERTIFICATE, f"{certificate_row.server_name} has no certificate yet", advice
        )
    if certificate_row.acme and certificate_row.not_after >= now + EXPIRY_WARNING:
        end_date = f"{certificate_row.not_after:%Y-%m-%d}"
        problem = f"{certificate_row.server_name} is valid until {end_date}, and not renewed"
        return hint_finding(CheckName.CERTIFICATE, problem, advice)
    return _expiry_finding(certificate_row.server_name, certificate_row.not_after, now, advice)


def _expiry_finding(name: str, expires_at: datetime, now: datetime, advice: str) -> list[Finding]:
    subject = CheckName.CERTIFICATE
    if expires_at <= now:
        return action_finding(subject, f"{name} expired on {expires_at:%Y-%m-%d}", advice)
    if expires_at < now + EXPIRY_WARNING:
        return action_finding(subject, f"{name} expires on {expires_at:%Y-%m-%d}", advice)
    return ok_finding(subject, f"{name} is valid until {expires_at:%Y-%m-%d}")
