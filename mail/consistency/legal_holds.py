"""Check of the hash chains of legal holds."""

from sqlalchemy import select
from sqlmodel import col

from mail.consistency.checks import CheckRun
from mail.consistency.report import Finding
from mail.storage.held_copies import first_broken_position
from models.admin.legal_holds import LegalHold
from models.store.columns import select_columns

SUBJECT = "legal_holds"


async def check_legal_hold_chains(check_run: CheckRun) -> list[Finding]:
    """Compute the hash chain of each legal hold again."""
    asked = (
        select(*select_columns(LegalHold))
        .where(col(LegalHold.ended_at).is_(None))
        .order_by(col(LegalHold.id))
    )
    findings = []
    for done, row in enumerate(await check_run.environment.database.read(asked), 1):
        place = await first_broken_position(check_run.environment, row)
        if place is not None:
            found = f"broken at {place}"
            findings.append(Finding(SUBJECT, "chain", f"legal_holds/{row.id}", "whole", found))
        check_run.checked_counts[SUBJECT] += row.copies
        check_run.report_progress(SUBJECT, done)
    return findings
