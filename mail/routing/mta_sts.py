"""MTA-STS policies of other domains (RFC 8461): fetching, parsing and caching.

A cached policy is valid until its end, even if its domain does not answer: an attacker that blocks
the domain must not be able to remove the policy.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

from sqlalchemy import delete, or_, select
from sqlmodel import col

from mail.network.outbound_http import HttpRequestFailed, HttpTarget, NetworkPolicy, get_and_read
from mail.routing.mx_hosts import OutboundSettings, Unroutable, query_dns_or_raise_unroutable
from models.errors import InvalidInput
from models.routing.mta_sts import MtaStsMode, MtaStsPolicy
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import core_table, insert_with_conflict
from models.validation_constraints import ValidationConstraint

MAX_POLICY_BYTES = 64 << 10  # RFC 8461, section 3.3
FETCH_TIMEOUT = 20.0  # seconds
RETRY_INTERVAL = timedelta(minutes=5)  # after a failed fetch
REFRESH_INTERVAL = timedelta(days=1)  # of a valid policy
MAX_POLICY_AGE = 31_557_600  # seconds (RFC 8461, section 3.2)
MAX_PATTERNS = 100  # `mx` patterns of a policy
POLICY_PATH = "/.well-known/mta-sts.txt"

_RECORD = re.compile(r"v=STSv1[ \t]*;[ \t]*(.*)", re.DOTALL)
_ID = re.compile(r"(?:^|;)[ \t]*id[ \t]*=[ \t]*([A-Za-z0-9]{1,32})[ \t]*(?:;|$)")
_PATTERN = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


@dataclass(frozen=True, slots=True)
class FetchedStsPolicy:
    """The MTA-STS policy of another domain. `max_age` is in seconds."""

    mode: MtaStsMode
    mx_patterns: tuple[str, ...]
    max_age: int

    def is_listed(self, host_name: str) -> bool:
        """True if an `mx` pattern of the policy matches the host name."""
        host_name = host_name.lower().rstrip(".")
        return any(
            host_name.partition(".")[2] == pattern[2:]
            if pattern.startswith("*.")
            else host_name == pattern
            for pattern in self.mx_patterns
        )


def parse_policy(policy_text: bytes) -> FetchedStsPolicy:
    """Parse a policy (RFC 8461, section 3.2). Raises InvalidInput."""
    fields: dict[str, list[str]] = {}
    for line in policy_text.decode("utf-8", "replace").splitlines():
        name, separator, value = line.partition(":")
        if separator:
            fields.setdefault(name.strip().lower(), []).append(value.strip())
    if fields.get("version", [""])[0] != "STSv1":
        raise _invalid_policy("the version is not STSv1")
    try:
        mode = MtaStsMode(fields.get("mode", [""])[0])
        max_age = fields.get("max_age", [""])[0]
    except ValueError:
        raise _invalid_policy("the mode is unknown") from None
    if not (max_age.isascii() and max_age.isdecimal() and len(max_age) <= 10):  # noqa: PLR2004 - RFC 8461
        raise _invalid_policy("max_age is not a number")
    patterns = [pattern.lower().rstrip(".") for pattern in fields.get("mx", [])[:MAX_PATTERNS]]
    if not all(_PATTERN.fullmatch(pattern) for pattern in patterns) or (
        mode is not MtaStsMode.NONE and not patterns
    ):
        raise _invalid_policy("the policy has no MX host")
    return FetchedStsPolicy(mode, tuple(patterns), min(int(max_age), MAX_POLICY_AGE))


class PolicyWithTraceText(NamedTuple):
    """The valid policy of a domain, if it has one, with a phrase for the delivery trace."""

    policy: FetchedStsPolicy | None
    trace_text: str


async def load_or_fetch_policy(
    environment: Environment, outbound_settings: OutboundSettings, domain: str
) -> PolicyWithTraceText:
    """The valid policy of a domain, or None, with a phrase for the delivery trace.

    Fetches the policy if its id in DNS has changed or it is older than `REFRESH_INTERVAL`.
    """
    stored_policy = await _load_stored_policy(environment, domain)
    now = environment.now()
    is_valid = stored_policy is not None and now < stored_policy.expires_at
    published_id = await _query_policy_id_or_none(outbound_settings, domain)
    if published_id is None or (
        stored_policy is not None and stored_policy.retry_at and now < stored_policy.retry_at
    ):
        if not is_valid:
            return PolicyWithTraceText(
                None, "no policy" if published_id is None else "policy not available"
            )
        return PolicyWithTraceText(_policy_from_row(stored_policy), "cached policy")
    is_current = (
        stored_policy is not None
        and stored_policy.policy_id == published_id
        and now < stored_policy.fetched_at + REFRESH_INTERVAL
    )
    if is_valid and is_current:
        return PolicyWithTraceText(_policy_from_row(stored_policy), f"policy {published_id}")
    try:
        fetched = await _fetch_policy(outbound_settings, domain)
    except (InvalidInput, HttpRequestFailed) as problem:
        await environment.run_transaction(partial(_store_fetch_failure, domain, published_id, now))
        if is_valid:
            return PolicyWithTraceText(
                _policy_from_row(stored_policy), f"cached policy: {str(problem).removesuffix('.')}"
            )
        return PolicyWithTraceText(None, f"policy not available: {str(problem).removesuffix('.')}")
    await environment.run_transaction(
        partial(_store_policy_and_delete_expired, domain, published_id, fetched, now)
    )
    return PolicyWithTraceText(fetched, f"policy {published_id}, fetched now")


async def _load_stored_policy(environment: Environment, domain: str) -> MtaStsPolicy | None:
    statement = select(*core_table(MtaStsPolicy).c).where(col(MtaStsPolicy.domain) == domain)
    rows = await environment.database.read(statement)
    return MtaStsPolicy(**rows[0]._asdict()) if rows else None


def _policy_from_row(row: MtaStsPolicy | None) -> FetchedStsPolicy | None:
    return FetchedStsPolicy(row.mode, tuple(row.mx), row.max_age) if row else None


async def _query_policy_id_or_none(outbound_settings: OutboundSettings, domain: str) -> str | None:
    """The policy id in DNS. None unless there is exactly one valid record."""
    try:
        answer = await query_dns_or_raise_unroutable(outbound_settings, f"_mta-sts.{domain}", "TXT")
    except Unroutable:
        return None
    record_texts = [
        b"".join(record.strings).decode("ascii", "replace")
        for record in answer.records[:MAX_PATTERNS]
    ]
    records = [hit for text in record_texts if (hit := _RECORD.fullmatch(text.strip()))]
    if len(records) != 1:
        return None
    id_match = _ID.search(records[0][1])
    return id_match[1] if id_match else None


async def _fetch_policy(outbound_settings: OutboundSettings, domain: str) -> FetchedStsPolicy:
    """Fetch and parse the policy of a domain. Raises HttpRequestFailed or InvalidInput."""
    host = f"mta-sts.{domain}"

    async def resolve_host(name: str, _port: int) -> Sequence[str]:
        addresses = list[str]()
        for kind in ("A", "AAAA"):
            try:
                addresses += [
                    str(record.address)
                    for record in (
                        await query_dns_or_raise_unroutable(outbound_settings, name, kind)
                    ).records
                ]
            except Unroutable:
                continue
        return addresses

    network_policy = NetworkPolicy(
        outbound_settings.allows_private_sts_hosts,
        outbound_settings.trusted_context,
        resolve_host,
        FETCH_TIMEOUT,
    )
    status, body = await get_and_read(
        HttpTarget(True, host, outbound_settings.mta_sts_port, POLICY_PATH),
        network_policy,
        MAX_POLICY_BYTES,
    )
    if status != 200:  # noqa: PLR2004 - a redirection is not followed (RFC 8461, section 3.3)
        raise HttpRequestFailed(f"Unexpected status {status}.")
    return parse_policy(body)


def _store_policy_and_delete_expired(
    domain: str,
    policy_id: str,
    fetched: FetchedStsPolicy,
    now: datetime,
    transaction: DatabaseTransaction,
) -> None:
    """Store a fetched policy, and delete expired policies of other domains."""
    values = {
        "policy_id": policy_id,
        "mode": fetched.mode,
        "mx": list(fetched.mx_patterns),
        "max_age": fetched.max_age,
        "fetched_at": now,
        "expires_at": now + timedelta(seconds=fetched.max_age),
        "retry_at": None,
    }
    _upsert_policy(transaction, domain, values, values)
    expired = delete(MtaStsPolicy).where(
        col(MtaStsPolicy.expires_at) < now,
        or_(col(MtaStsPolicy.retry_at).is_(None), col(MtaStsPolicy.retry_at) < now),
        col(MtaStsPolicy.domain) != domain,
    )
    transaction.connection.execute(expired)


def _store_fetch_failure(
    domain: str, policy_id: str, now: datetime, transaction: DatabaseTransaction
) -> None:
    """Store the time of the next fetch. A stored policy keeps its validity."""
    values = {
        "policy_id": policy_id,
        "mode": MtaStsMode.NONE,
        "mx": [],
        "max_age": 0,
        "fetched_at": now,
        "expires_at": now,
        "retry_at": now + RETRY_INTERVAL,
    }
    _upsert_policy(transaction, domain, values, {"retry_at": now + RETRY_INTERVAL})


def _upsert_policy(
    transaction: DatabaseTransaction,
    domain: str,
    values: Mapping[str, object],
    changed_values: Mapping[str, object],
) -> None:
    insertion = insert_with_conflict(transaction.connection.dialect.name, MtaStsPolicy).values(
        id=transaction.environment.new_id(), domain=domain, **values
    )
    transaction.connection.execute(
        insertion.on_conflict_do_update(index_elements=["domain"], set_=changed_values)
    )


def _invalid_policy(problem: str) -> InvalidInput:
    return InvalidInput(problem, constraint=ValidationConstraint.MTA_STS_POLICY, path=["policy"])
