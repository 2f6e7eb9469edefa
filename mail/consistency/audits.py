"""Check of the hash chains of audits."""

from sqlalchemy import select
from sqlmodel import col

from mail.consistency.checks import Look
from mail.consistency.report import Finding
from mail.storage.audit_copies import broken_at
from models.admin.audits import Audit
from models.store.columns import picked

SUBJECT = "audits"


async def chains(look: Look) -> list[Finding]:
    """Compute the hash chain of each audit again."""
    asked = select(*picked(Audit)).where(col(Audit.ended_at).is_(None)).order_by(col(Audit.id))
    findings = []
    for done, row in enumerate(await look.world.database.read(asked), 1):
        place = await broken_at(look.world, row)
        if place is not None:
            found = f"broken at {place}"
            findings.append(Finding(SUBJECT, "chain", f"audits/{row.id}", "whole", found))
        look.looked[SUBJECT] += row.copies
        look.tell(SUBJECT, done)
    return findings
