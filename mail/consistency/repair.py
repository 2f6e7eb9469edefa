"""Repairs of values that can be computed again, one user or domain at a time, under its lock."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from mail.consistency.checks import (
    BrokenRow,
    ConsistencyCheck,
    RepairFunction,
    expected_and_found_by_broken_rule,
    reread_broken_rows,
    write_expected_values,
)
from mail.consistency.report import Finding
from models.errors import NotFound
from models.events.event_types import EventType
from models.events.journal import MAX_IDS_PER_ROW, JournalEntry
from models.runtime.environment import DatabaseTransaction, Environment


async def repair_broken_rows(
    environment: Environment, broken_rows: Sequence[BrokenRow]
) -> list[Finding]:
    """Repair what can be repaired; return all findings, with `repaired` if the rule holds now."""
    findings: list[Finding] = []
    groups: defaultdict[tuple[int, int], list[BrokenRow]] = defaultdict(list)
    for nth, hit in enumerate(broken_rows):
        curable = any(finding.repairable for finding in hit.findings)
        groups[(id(hit.check), hit.stream_id) if curable else (-1, nth)].append(hit)
    for (kind, stream), group in groups.items():
        for start in range(0, len(group), MAX_IDS_PER_ROW):
            part = group[start : start + MAX_IDS_PER_ROW]
            findings += (
                findings_of(part)
                if kind < 0
                else await _repair_group_unless_stream_missing(environment, part, stream)
            )
    return findings


def findings_of(broken_rows: Sequence[BrokenRow]) -> list[Finding]:
    """All findings of the rows, without repair."""
    return [finding for hit in broken_rows for finding in hit.findings]


async def _repair_group_unless_stream_missing(
    environment: Environment, broken_rows: Sequence[BrokenRow], stream_id: int
) -> list[Finding]:
    try:
        return await environment.run_transaction(
            lambda transaction: repair_rows_of_locked_stream(transaction, broken_rows, stream_id),
            stream_id,
        )
    except NotFound:  # the stream is missing, which is a finding of its own
        return findings_of(broken_rows)


def repair_rows_of_locked_stream(
    transaction: DatabaseTransaction, broken_rows: Sequence[BrokenRow], stream_id: int
) -> list[Finding]:
    """Repair rows of one check and one locked stream; return the findings."""
    check, keys = broken_rows[0].check, [hit.key for hit in broken_rows]
    if check.repair:
        check.repair(transaction, check, keys, stream_id)
    rows = reread_broken_rows(transaction, check, keys)
    left = {
        (row.key, rule) for row in rows for rule in expected_and_found_by_broken_rule(check, row)
    }
    return [
        replace(finding, repaired=finding.repairable and (hit.key, finding.rule) not in left)
        for hit in broken_rows
        for finding in hit.findings
    ]


def expected_values_repair(event_type: EventType | None = None) -> RepairFunction:
    """A repair that sets columns to their expected values, and writes a journal entry."""

    def repair_columns(
        transaction: DatabaseTransaction, check: ConsistencyCheck, keys: Sequence[int], stream: int
    ) -> None:
        repaired_keys = write_expected_values(transaction, check, keys)
        if event_type and repaired_keys:
            transaction.record_entry(
                stream, JournalEntry(event_type, repaired_keys), at=transaction.environment.now()
            )

    return repair_columns
