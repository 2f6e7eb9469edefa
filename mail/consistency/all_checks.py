"""The consistency check: all checks in their order."""

from collections.abc import Sequence
from functools import cache

from mail.consistency import (
    blob_references,
    blobs,
    garbage_figures,
    journal,
    legal_holds,
    mailbox_counters,
    queue_entries,
    quota,
    search_index,
    threads,
)
from mail.consistency.checks import BrokenRow, CheckRun, ConsistencyCheck, find_broken_rows
from mail.consistency.message_sort_keys import check_sort_keys
from mail.consistency.messages import check_messages
from mail.consistency.repair import findings_of, repair_broken_rows
from mail.consistency.report import ConsistencyReport, ReportProgress
from models.runtime.environment import Environment
from models.runtime.options import Options


async def check_consistency(
    environment: Environment,
    *,
    repair: bool = False,
    reads_blobs: bool = True,
    progress: ReportProgress | None = None,
) -> ConsistencyReport:
    """Compute the counters and references of the database with separate SQL, and compare them.

    Each statement sees one snapshot, so the database can be in use; but for `repair` no other
    process must write. Without `reads_blobs` message layouts are parsed, but no content is
    read: an object counts if its last byte exists. A damaged blob is repaired if another copy
    of its bytes is stored. Values that can't be computed, such as a position of the journal,
    are reported but not repaired.
    """
    look = CheckRun(environment, progress)
    broken_rows: list[BrokenRow] = []
    for check in statement_checks(environment):
        broken_rows += await find_broken_rows(look, check)
    report = ConsistencyReport(checked_counts=look.checked_counts)
    report.findings = (
        await repair_broken_rows(environment, broken_rows) if repair else findings_of(broken_rows)
    )
    report.findings += await blobs.check_uploads_and_check_or_restore_blobs(
        look, reads_content=reads_blobs, repair=repair
    )
    report.findings += await check_messages(look, rebuilds_messages=reads_blobs, repair=repair)
    report.findings += await check_sort_keys(look, repair=repair)
    report.findings += await legal_holds.check_running_legal_hold_chains(look)
    for figures in (
        search_index.count_index_rows,
        garbage_figures.count_expired_rows,
        blobs.count_garbage_blobs_and_objects,
    ):
        report.figures |= await figures(look)
    return report


def statement_checks(environment: Environment) -> Sequence[ConsistencyCheck]:
    """All checks that are a SELECT statement."""
    return _statement_checks(environment.database.dialect, environment.options)


@cache  # building the statements takes longer than executing them on a small database
def _statement_checks(dialect: str, options: Options) -> Sequence[ConsistencyCheck]:
    return (
        *mailbox_counters.mailbox_checks(),
        *quota.user_and_domain_checks(options),
        *journal.journal_checks(dialect),
        *threads.thread_checks(),
        *search_index.index_checks(dialect),
        *queue_entries.queue_checks(),
        *blob_references.missing_reference_checks(),
    )
