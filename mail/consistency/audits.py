"""Check of the hash chains of audits."""

from sqlalchemy import select
from sqlmodel import col

from mail.consistency.checks import CheckRun
from mail.consistency.report import Finding
from mail.storage.audit_copies import first_broken_position
from models.admin.audits import Audit
from models.store.columns import select_columns

SUBJECT = "audits"


async def check_audit_chains(check_run: CheckRun) -> list[Finding]:
    """Compute the hash chain of each audit again."""
    asked = (
        select(*select_columns(Audit)).where(col(Audit.ended_at).is_(None)).order_by(col(Audit.id))
    )
    findings = []
    for done, row in enumerate(await check_run.environment.database.read(asked), 1):
        place = await first_broken_position(check_run.environment, row)
        if place is not None:
            found = f"broken at {place}"
            findings.append(Finding(SUBJECT, "chain", f"audits/{row.id}", "whole", found))
        check_run.checked_counts[SUBJECT] += row.copies
        check_run.report_progress(SUBJECT, done)
    return findings
