"""All checks in their order."""

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
    """Compute again what the store says of itself, with SQL of its own, and compare.

    Each statement sees one moment, so a store may be in use meanwhile; but for `repair` let
    nobody else write. Without `read_blobs` skeletons are opened, yet no piece is read: an
    object counts when its last byte is there. A damaged blob is repaired if another copy of its
    bytes is stored. What has no copy and cannot be computed, such as a number of the journal, is
    found but not repaired.
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
    """All checks that are a select."""
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
