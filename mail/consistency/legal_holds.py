"""Check of the hash chains of legal holds."""

from sqlalchemy import select
from sqlmodel import col

from mail.consistency.checks import CheckRun
from mail.consistency.report import Finding
from mail.storage.held_copies import find_first_broken_position
from models.admin.legal_holds import LegalHold
from models.store.columns import select_columns

SUBJECT = "legal_holds"


async def check_running_legal_hold_chains(check_run: CheckRun) -> list[Finding]:
    """Compute the hash chain of each legal hold again."""
    statement = (
        select(*select_columns(LegalHold))
        .where(col(LegalHold.ended_at).is_(None))
        .order_by(col(LegalHold.id))
    )
    findings = []
    for checked_count, row in enumerate(await check_run.environment.database.read(statement), 1):
        broken_position = await find_first_broken_position(check_run.environment, row)
        if broken_position is not None:
            stored_text = f"broken at {broken_position}"
            findings.append(
                Finding(SUBJECT, "chain", f"legal_holds/{row.id}", "whole", stored_text)
            )
        check_run.checked_counts[SUBJECT] += row.copies
        check_run.report_progress(SUBJECT, checked_count)
    return findings
