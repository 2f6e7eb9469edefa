"""Account for every recipient of a cluster soak."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from bench.crashes.replicated_store import OPEN_STATES, LostCommits


@dataclass
class Account:
    """The number of recipients by outcome."""

    answered: int = 0
    once: int = 0
    twice_after_kill: int = 0
    twice_after_failover: int = 0
    queued: Counter[str] = field(default_factory=Counter)  # by SMTP reply
    unrecorded: int = 0  # delivered once; the standby lacked the submission
    lost: int = 0  # never sent; the standby lacked the submission
    kills: int = 0
    taken_over: list[float] = field(default_factory=list)  # seconds from kill to takeover
    lost_commits: LostCommits | None = None  # of the failover, if there was one
    differences: list[str] = field(default_factory=list)
    warnings: Counter[str] = field(default_factory=Counter)  # in the logs of all servers

    @property
    def accounted(self) -> int:
        """The number of recipients with an expected outcome."""
        twice = self.twice_after_kill + self.twice_after_failover
        return self.once + twice + self.queued.total() + self.unrecorded + self.lost

    def lines(self) -> list[str]:
        """Return the account as sentences."""
        slowest = max(self.taken_over, default=0.0)
        told = [
            f"{self.kills} kills: {self.answered} recipients, {self.once} delivered once, "
            f"{self.twice_after_kill} twice in the window of a kill, "
            f"{self.queued.total()} still queued {dict(self.queued)}; "
            f"leases taken over in at most {slowest:.1f} s; {len(self.differences)} differences."
        ]
        if (gone := self.lost_commits) is not None:
            told.append(
                f"The standby lacked {len(gone.submissions)} submissions, {len(gone.results)} "
                f"results, {len(gone.dots)} marks before the end of a message and "
                f"{len(gone.claims)} claims: {self.lost} recipients lost without a copy, "
                f"{self.unrecorded} delivered once without a record, "
                f"{self.twice_after_failover} delivered twice."
            )
        if self.warnings:
            told.append(f"Warnings: {dict(self.warnings)}")
        return [*told, *(f"  {line}" for line in self.differences)]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What clients, the receiving server and the database know."""

    answered: Collection[str]  # recipients whose message a server has accepted
    copies: Mapping[str, int]  # that have arrived, by recipient
    rows: Mapping[str, Any]  # of the store at the end, by recipient
    window: Mapping[str, int]  # kills between the end of the message and the result
    lost: LostCommits


def close_account(account: Account, evidence: Evidence) -> None:
    """Count every recipient in the account. An unexpected outcome becomes a difference."""
    account.answered = len(evidence.answered)
    for recipient in sorted(evidence.answered):
        _sort_in(account, evidence, recipient)
    unknown = set(evidence.copies) - set(evidence.answered)
    account.differences += [f"{one} came, and no server had accepted it" for one in sorted(unknown)]


def _sort_in(account: Account, evidence: Evidence, recipient: str) -> None:
    row, copies = evidence.rows.get(recipient), evidence.copies.get(recipient, 0)
    by_kill = evidence.window.get(recipient, 0)
    by_failover = evidence.lost.second_copies[recipient]
    is_open = row is not None and row.state in OPEN_STATES
    if row is None and recipient in evidence.lost.submissions and copies <= 1:
        account.lost += not copies
        account.unrecorded += copies
    elif row is None:
        account.differences.append(f"{recipient} was accepted, came {copies} times, has no row")
    elif row.lease is not None:
        account.differences.append(f"{recipient} is leased by process {row.holder}")
    elif is_open and copies <= by_kill + by_failover and row.last_response:
        account.queued[row.last_response] += 1
    elif row.state == "RELAYED" and copies == 1:
        account.once += 1
    elif row.state == "RELAYED" and 1 < copies <= 1 + by_kill:
        account.twice_after_kill += 1
    elif row.state == "RELAYED" and 1 < copies <= 1 + by_kill + by_failover:
        account.twice_after_failover += 1
    else:
        account.differences.append(
            f"{recipient} came {copies} times, is {row.state} after {row.attempts} attempts, "
            f"due {row.next_at}, last answer {row.last_response!r}"
        )


def count_warnings(logs: Sequence[str]) -> Counter[str]:
    """Count the warnings and errors in the logs by text."""
    facts = [orjson.loads(line) for text in logs for line in text.splitlines()]
    return Counter(fact["event"] for fact in facts if fact["level"] in {"warning", "error"})
