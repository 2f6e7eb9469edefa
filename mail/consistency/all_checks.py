"""The consistency check: all checks in their order."""

from mail.consistency import (
    audits,
    blob_references,
    blobs,
    garbage_figures,
    journal,
    mailbox_counters,
    queue_entries,
    quota,
    search_index,
    threads,
)
from mail.consistency.checks import Check, Hit, Look, run
from mail.consistency.messages import letters
from mail.consistency.repair import repair as repaired
from mail.consistency.repair import untouched
from mail.consistency.report import Progress, Report
from models.runtime.environment import World


async def verify(
    world: World,
    *,
    repair: bool = False,
    read_blobs: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Compute the counters and references of the database with separate SQL, and compare them.

    Each statement sees one snapshot, so the database can be in use; but for `repair` no other
    process must write. Without `reads_blobs` message layouts are parsed, but no content is
    read: an object counts if its last byte exists. A damaged blob is repaired if another copy
    of its bytes is stored. Values that can't be computed, such as a position of the journal,
    are reported but not repaired.
    """
    look = Look(world, progress)
    hits: list[Hit] = []
    for check in checks(world):
        hits += await run(look, check)
    report = Report(looked=look.looked)
    report.findings = await repaired(world, hits) if repair else untouched(hits)
    report.findings += await blobs.pieces(look, read=read_blobs, repair=repair)
    report.findings += await letters(look, read=read_blobs, repair=repair)
    report.findings += await audits.chains(look)
    for figures in (search_index.figures, garbage_figures.figures, blobs.figures):
        report.figures |= await figures(look)
    return report


def checks(world: World) -> list[Check]:
    """All checks that are a SELECT statement."""
    dialect = world.database.dialect
    return [
        *mailbox_counters.checks(),
        *quota.checks(world.options),
        *journal.checks(dialect),
        *threads.checks(),
        *search_index.checks(dialect),
        *queue_entries.checks(),
        *blob_references.checks(),
    ]
