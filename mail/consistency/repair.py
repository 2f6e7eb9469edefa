"""Repairs of values that can be computed again, one user or domain at a time, under its lock."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from mail.consistency.checks import Check, Cure, Hit, broken, differences, write
from mail.consistency.report import Finding
from models.errors import NotFound
from models.events.journal import LONGEST, ChangeKind, Entry
from models.runtime.environment import Turn, World


async def repair(world: World, hits: Sequence[Hit]) -> list[Finding]:
    """Repair what can be repaired; return all findings, with `repaired` if the rule holds now."""
    findings: list[Finding] = []
    groups: defaultdict[tuple[int, int], list[Hit]] = defaultdict(list)
    for nth, hit in enumerate(hits):
        curable = any(finding.repairable for finding in hit.findings)
        groups[(id(hit.check), hit.stream) if curable else (-1, nth)].append(hit)
    for (kind, stream), group in groups.items():
        for start in range(0, len(group), LONGEST):
            part = group[start : start + LONGEST]
            findings += untouched(part) if kind < 0 else await _cured(world, part, stream)
    return findings


def untouched(hits: Sequence[Hit]) -> list[Finding]:
    """All findings of the rows, without repair."""
    return [finding for hit in hits for finding in hit.findings]


async def _cured(world: World, hits: Sequence[Hit], stream: int) -> list[Finding]:
    try:
        return await world.apply(lambda transaction: cured(transaction, hits, stream), stream)
    except NotFound:  # the stream is missing, which is a finding of its own
        return untouched(hits)


def cured(turn: Turn, hits: Sequence[Hit], stream: int) -> list[Finding]:
    """Repair rows of one check and one locked stream; return the findings."""
    check, keys = hits[0].check, [hit.key for hit in hits]
    if check.cure:
        check.cure(turn, check, keys, stream)
    rows = broken(turn, check, keys)
    left = {(row.key, rule) for row in rows for rule in differences(check, row)}
    return [
        replace(finding, repaired=finding.repairable and (hit.key, finding.rule) not in left)
        for hit in hits
        for finding in hit.findings
    ]


def rewriting(kind: ChangeKind | None = None) -> Cure:
    """A repair that sets columns to their expected values, and writes a journal entry."""

    def cure(turn: Turn, check: Check, keys: Sequence[int], stream: int) -> None:
        written = write(turn, check, keys)
        if kind and written:
            turn.record(stream, Entry(kind, written), at=turn.world.now())

    return cure
