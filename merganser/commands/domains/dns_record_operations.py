"""Compare the DNS records that a domain needs with DNS, once or until it has all of them."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from merganser.commands.domains.domain_lookup import load_domain
from merganser.server.environment_factory import root_context
from models.runtime.environment import Environment
from resolvers.domains import dns_records
from resolvers.domains.dns_records import CheckedDnsRecord, DnsRecordsKey

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between two queries; each pause doubles


async def load_expected_dns_records(
    environment: Environment, domain_name: str, *, queries_dns: bool
) -> list[CheckedDnsRecord]:
    """Load the DNS records that a domain needs. With `queries_dns` each has what DNS has now.

    Raises CommandError if there is no such domain.
    """
    ctx = root_context(environment)
    row = await load_domain(ctx, domain_name)
    (records,) = await dns_records.compute_expected_records_and_query_dns(
        ctx, [DnsRecordsKey.from_row(row, checks_dns=queries_dns)]
    )
    return records


async def wait_for_dns_records(
    environment: Environment,
    domain_name: str,
    longest_wait: timedelta,
    report_progress: Callable[[str], None],
) -> list[CheckedDnsRecord]:
    """Query DNS until it has all required records, or the time is over; return the last result.

    Raises CommandError if there is no such domain.
    """
    deadline, pause = time.monotonic() + longest_wait.total_seconds(), FIRST_PAUSE
    while True:
        records = await load_expected_dns_records(environment, domain_name, queries_dns=True)
        remaining_time = deadline - time.monotonic()
        if not unpublished_records(records) or remaining_time <= 0:
            return records
        next_pause = min(pause, remaining_time)
        report_progress(progress_text(records, next_pause))
        await asyncio.sleep(next_pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def unpublished_records(records: Sequence[CheckedDnsRecord]) -> list[CheckedDnsRecord]:
    """The required records that DNS doesn't have."""
    return [
        record for record in records if record.is_required_and_checkable and not record.is_published
    ]


def progress_text(records: Sequence[CheckedDnsRecord], next_pause: float) -> str:
    """Tell which records DNS doesn't have, and when it is queried again."""
    missing_records = unpublished_records(records)
    count = sum(record.is_required_and_checkable for record in records)
    return (
        f"Waiting for {len(missing_records)} of {count} records: "
        f"{record_names(missing_records)}. Next query in {next_pause:.0f} s."
    )


def record_names(records: Sequence[CheckedDnsRecord]) -> str:
    """The type and name of each record."""
    return ", ".join(f"{record.advice.type} {record.advice.name}" for record in records)


def dns_record_as_json(record: CheckedDnsRecord) -> dict[str, Any]:
    """Return a DNS record as JSON values."""
    return {
        "type": record.advice.type,
        "name": record.advice.name,
        "value": record.advice.value,
        "purpose": record.advice.purpose,
        "state": record.check.state.value,
        "found": list(record.check.found),
        "problem": record.check.problem,
        "optional_reason": record.advice.optional_reason,
    }
