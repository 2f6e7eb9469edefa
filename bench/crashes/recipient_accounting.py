"""Account for every recipient of a cluster soak."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from bench.crashes.replicated_store import OPEN_STATES, LostCommits


@dataclass
class RecipientAccount:
    """The number of recipients by outcome."""

    accepted: int = 0
    delivered_once: int = 0
    twice_after_kill: int = 0
    twice_after_failover: int = 0
    queued_by_reason: Counter[str] = field(default_factory=Counter)  # by SMTP reply
    unrecorded: int = 0  # delivered once; the standby lacked the submission
    lost: int = 0  # never sent; the standby lacked the submission
    kill_count: int = 0
    takeover_seconds: list[float] = field(default_factory=list)  # seconds from kill to takeover
    lost_commits: LostCommits | None = None  # of the failover, if there was one
    differences: list[str] = field(default_factory=list)
    warnings: Counter[str] = field(default_factory=Counter)  # in the logs of all servers

    @property
    def accounted_count(self) -> int:
        """The number of recipients with an expected outcome."""
        twice = self.twice_after_kill + self.twice_after_failover
        return (
            self.delivered_once
            + twice
            + self.queued_by_reason.total()
            + self.unrecorded
            + self.lost
        )

    def report_lines(self) -> list[str]:
        """Return the account as sentences."""
        slowest = max(self.takeover_seconds, default=0.0)
        lines = [
            f"{self.kill_count} kills: {self.accepted} recipients, {self.delivered_once} "
            "delivered once, "
            f"{self.twice_after_kill} delivered twice because of a kill, "
            f"{self.queued_by_reason.total()} still queued {dict(self.queued_by_reason)}; "
            f"leases taken over in at most {slowest:.1f} s; {len(self.differences)} differences."
        ]
        if (lacked := self.lost_commits) is not None:
            lines.append(
                f"The standby lacked {len(lacked.submissions)} submissions, {len(lacked.results)} "
                f"results, {len(lacked.dots)} marks of a message's end and "
                f"{len(lacked.claims)} claims: {self.lost} recipients lost without a copy, "
                f"{self.unrecorded} delivered once without a record, "
                f"{self.twice_after_failover} delivered twice."
            )
        if self.warnings:
            lines.append(f"Warnings: {dict(self.warnings)}")
        return [*lines, *(f"  {line}" for line in self.differences)]


@dataclass(frozen=True, slots=True)
class SoakEvidence:
    """What clients, the receiving server and the database know."""

    accepted: Collection[str]  # recipients whose message a server has accepted
    copies_by_recipient: Mapping[str, int]  # that have arrived, by recipient
    rows_by_recipient: Mapping[str, Any]  # of the database at the end, by recipient
    kills_by_recipient: Mapping[str, int]  # kills between the end of the message and the result
    lost_commits: LostCommits


def account_for_all(account: RecipientAccount, evidence: SoakEvidence) -> None:
    """Count every recipient in the account. An unexpected outcome becomes a difference."""
    account.accepted = len(evidence.accepted)
    for recipient in sorted(evidence.accepted):
        _account_for_recipient(account, evidence, recipient)
    unknown = set(evidence.copies_by_recipient) - set(evidence.accepted)
    account.differences += [
        f"{one} received a message that no server had accepted" for one in sorted(unknown)
    ]


def _account_for_recipient(
    account: RecipientAccount, evidence: SoakEvidence, recipient: str
) -> None:
    row = evidence.rows_by_recipient.get(recipient)
    copies = evidence.copies_by_recipient.get(recipient, 0)
    by_kill = evidence.kills_by_recipient.get(recipient, 0)
    by_failover = evidence.lost_commits.second_copies[recipient]
    is_open = row is not None and row.state in OPEN_STATES
    if row is None and recipient in evidence.lost_commits.submissions and copies <= 1:
        account.lost += not copies
        account.unrecorded += copies
    elif row is None:
        account.differences.append(
            f"{recipient} was accepted, received {copies} copies, has no row"
        )
    elif row.lease is not None:
        account.differences.append(f"{recipient} is leased by process {row.holder}")
    elif is_open and copies <= by_kill + by_failover and row.last_response:
        account.queued_by_reason[row.last_response] += 1
    elif row.state == "RELAYED" and copies == 1:
        account.delivered_once += 1
    elif row.state == "RELAYED" and 1 < copies <= 1 + by_kill:
        account.twice_after_kill += 1
    elif row.state == "RELAYED" and 1 < copies <= 1 + by_kill + by_failover:
        account.twice_after_failover += 1
    else:
        account.differences.append(
            f"{recipient} received {copies} copies, is {row.state} after {row.attempts} attempts, "
            f"due {row.next_at}, last response {row.last_response!r}"
        )


def count_warnings(log_texts: Sequence[str]) -> Counter[str]:
    """Count the warnings and errors in the logs by text."""
    facts = [orjson.loads(line) for text in log_texts for line in text.splitlines()]
    return Counter(fact["event"] for fact in facts if fact["level"] in {"warning", "error"})
