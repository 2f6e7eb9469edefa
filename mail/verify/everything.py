"""All checks in their order."""

from mail.verify import (
    audits,
    blobs,
    counters,
    journal,
    leftovers,
    queue,
    quota,
    references,
    search,
    threads,
)
from mail.verify.checks import Check, Hit, Look, run
from mail.verify.letters import letters
from mail.verify.repair import repair as repaired
from mail.verify.repair import untouched
from mail.verify.report import Progress, Report
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
    for figures in (search.figures, leftovers.figures, blobs.figures):
        report.figures |= await figures(look)
    return report


def checks(world: World) -> list[Check]:
    """All checks that are a select."""
    dialect = world.database.dialect
    return [
        *counters.checks(),
        *quota.checks(world.options),
        *journal.checks(dialect),
        *threads.checks(),
        *search.checks(dialect),
        *queue.checks(),
        *references.checks(),
    ]
