"""The DNS records that domains should have, compared with the ones they have."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dns.exception
import dns.resolver
from dns.asyncresolver import Resolver
from sqlalchemy import select
from sqlmodel import col

from mail.domains.dns_advice import (
    DnsState,
    DomainDnsFacts,
    PublishedSigningKey,
    RecordAdvice,
    RecordCheck,
    advise_records,
)
from mail.domains.submission_servers import public_https_host_or_empty, public_submission_servers
from mail.network.dns_resolver import create_resolver
from models.domains.dkim_keys import ALL_DOMAINS, DkimKey, DkimKeyState
from models.errors import Forbidden
from models.store.columns import ColumnRow, select_columns
from resolvers.certificates.served_keys import find_served_spki_sha256
from resolvers.context import Context

OPERATION_TIMEOUT = 4.0  # seconds for all queries of one operation
QUERY_TIMEOUT = 1.5  # seconds until a query is repeated
MAX_CONCURRENT_QUERIES = 32
AdviceIdentity = int  # `id()` of a RecordAdvice
NOT_QUERIED = RecordCheck(DnsState.UNKNOWN, problem="Not looked up.")
TIMED_OUT = RecordCheck(DnsState.UNKNOWN, problem="The name server did not respond in time.")
NO_NAME_SERVER = RecordCheck(DnsState.UNKNOWN, problem="No name server is configured.")


@dataclass(frozen=True, slots=True)
class CheckedDnsRecord:
    """A DNS record that should exist, with the comparison to the one found."""

    advice: RecordAdvice
    check: RecordCheck


@dataclass(frozen=True, slots=True)
class DnsRecordsKey:
    """A domain whose records are requested. `checks_dns` compares them with DNS."""

    domain_name: str
    is_backup_mx: bool
    checks_dns: bool

    @classmethod
    def from_row(cls, row: ColumnRow, *, checks_dns: bool) -> "DnsRecordsKey":
        """Return the key for the domain of this row."""
        return cls(row.name, row.backup_mx, checks_dns)


async def compute_expected_records_and_query_dns(
    ctx: Context, record_keys: list[DnsRecordsKey]
) -> list[list[CheckedDnsRecord]]:
    """Return the expected records of domains, in the given order.

    Queries of all domains share one deadline. Raises Forbidden for queries inside a
    transaction, which would stay open as long.
    """
    if ctx.is_writing and any(question.checks_dns for question in record_keys):
        raise Forbidden("An @atomic request can't query DNS.")
    options = ctx.environment.options
    signing_keys_by_domain = await _load_keys_to_publish_by_domain(
        ctx, [record_key.domain_name for record_key in record_keys]
    )
    served_spki = await find_served_spki_sha256(ctx.environment, options.hostname.lower())
    submission_servers, web_host = (
        public_submission_servers(options),
        public_https_host_or_empty(options),
    )
    advices_by_domain = [
        advise_records(
            DomainDnsFacts(
                item.domain_name,
                options.hostname,
                item.is_backup_mx,
                tuple(signing_keys_by_domain[item.domain_name]),
                options.mta_sts_mode,
                served_spki,
                submission_servers,
                web_host,
            )
        )
        for item in record_keys
    ]
    queried = [
        advice
        for key, part in zip(record_keys, advices_by_domain, strict=True)
        for advice in part
        if key.checks_dns and advice.check_published
    ]
    judgements_by_id = (
        await query_dns_and_compare_records(ctx.environment.options.dns_resolver, queried)
        if queried
        else {}
    )
    return [
        [
            CheckedDnsRecord(
                advice,
                judgements_by_id.get(id(advice))
                or (NOT_QUERIED if advice.check_published else _unconfigured_check(advice)),
            )
            for advice in advices
        ]
        for advices in advices_by_domain
    ]


def _unconfigured_check(advice: RecordAdvice) -> RecordCheck:
    """Return the check of a record that has no value, with what to configure."""
    return RecordCheck(DnsState.UNKNOWN, problem=advice.missing_configuration)


async def _load_keys_to_publish_by_domain(
    ctx: Context, domain_names: Sequence[str]
) -> dict[str, list[PublishedSigningKey]]:
    """Load the keys whose records domains should have: their own, else those for all domains.

    Keys for all domains sign until a key of the domain does.
    """
    has_record = col(DkimKey.state).in_([DkimKeyState.ACTIVE, DkimKeyState.PENDING])
    columns = ("domain", "selector", "algorithm", "public", "state")
    statement = select(*select_columns(DkimKey, columns)).where(
        col(DkimKey.domain).in_([*domain_names, ALL_DOMAINS]), has_record
    )
    keys_by_domain: dict[str, list[PublishedSigningKey]] = {}
    for row in await ctx.read(statement.order_by(col(DkimKey.id))):
        is_pending = row.state is DkimKeyState.PENDING
        key = PublishedSigningKey(row.selector, row.algorithm, row.public, is_pending=is_pending)
        keys_by_domain.setdefault(row.domain, []).append(key)
    return {
        name: _keys_to_publish(keys_by_domain.get(name, []), keys_by_domain.get(ALL_DOMAINS, []))
        for name in domain_names
    }


def _keys_to_publish(
    own_keys: list[PublishedSigningKey], keys_for_all: Sequence[PublishedSigningKey]
) -> list[PublishedSigningKey]:
    selectors = {key.selector for key in own_keys}  # a DNS name holds one key
    if all(key.is_pending for key in own_keys):
        return [*own_keys, *(key for key in keys_for_all if key.selector not in selectors)]
    return own_keys


async def query_dns_and_compare_records(
    name_server: str | None, advices: Sequence[RecordAdvice]
) -> dict[AdviceIdentity, RecordCheck]:
    """Query the records of advices and judge them, by the id of the advice.

    Takes at most OPERATION_TIMEOUT seconds.
    """
    try:
        resolver_of_operation = create_resolver(name_server)
    except dns.resolver.NoResolverConfiguration:
        return {id(advice): NO_NAME_SERVER for advice in advices}
    resolver_of_operation.timeout, resolver_of_operation.lifetime = QUERY_TIMEOUT, OPERATION_TIMEOUT
    query_slots = asyncio.Semaphore(MAX_CONCURRENT_QUERIES)
    tasks_by_question: dict[tuple[str, str], asyncio.Task[Sequence[str] | RecordCheck]] = {}

    async def query_in_slot(name: str, kind: str) -> Sequence[str] | RecordCheck:
        async with query_slots:
            return await _query_texts(resolver_of_operation, name, kind)

    for advice in advices:
        key = (advice.name, advice.type)
        if key not in tasks_by_question:
            tasks_by_question[key] = asyncio.create_task(query_in_slot(*key))
    try:
        await asyncio.wait(tasks_by_question.values(), timeout=OPERATION_TIMEOUT)
    finally:
        for task in tasks_by_question.values():
            task.cancel()
        await asyncio.gather(*tasks_by_question.values(), return_exceptions=True)
    return {
        id(advice_asked): _check_of_dns_answer(
            advice_asked, tasks_by_question[advice_asked.name, advice_asked.type]
        )
        for advice_asked in advices
    }


def _check_of_dns_answer(
    advice: RecordAdvice, query_task: "asyncio.Task[Sequence[str] | RecordCheck]"
) -> RecordCheck:
    if query_task.cancelled():
        return TIMED_OUT
    texts = query_task.result()
    if isinstance(texts, RecordCheck):
        return texts
    return advice.check_published(texts) if advice.check_published else _unconfigured_check(advice)


async def _query_texts(
    resolver_of_operation: Resolver, record_name: str, record_type: str
) -> Sequence[str] | RecordCheck:
    """Return the records as text, an empty list if there are none, or a judgement on failure."""
    try:
        answer = await resolver_of_operation.resolve(
            f"{record_name}.", record_type, raise_on_no_answer=False
        )
    except dns.resolver.NXDOMAIN:
        return []
    except dns.exception.Timeout:
        return TIMED_OUT
    except (dns.exception.DNSException, OSError, ValueError) as problem:
        message = f"The name server reports an error: {type(problem).__name__}."
        return RecordCheck(DnsState.UNKNOWN, problem=message)
    return [_record_text(record, record_type) for record in answer.rrset or ()]


def _record_text(record: Any, record_type: str) -> str:
    """Return a record as text. A TXT record is the concatenation of its strings."""
    if record_type == "TXT":
        return b"".join(record.strings).decode(errors="replace")
    return str(record.to_text())
