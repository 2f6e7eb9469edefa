"""The DNS records that domains should have, compared with the ones they have."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from models.domains.dkim_keys import ALL_DOMAINS, DkimKey, DkimKeyState
from models.domains.dns_record_values import DnsRecordKind, DnsRecordPurpose
from models.errors import Forbidden
from models.store.columns import ColumnRow, select_columns
from resolvers.certificates.served_keys import find_served_spki_sha256
from resolvers.context import Context
from resolvers.domains.dns_queries import (
    DnsAnswers,
    DnsQuestion,
    advise_reverse_records,
    compare_with_answer,
    query_dns_records,
)

NOT_QUERIED = "Not looked up."
NO_DNSSEC = (
    "The name server confirms no DNSSEC for the domain and the host. Without it, the record has no "
    "effect (RFC 7672, section 2.1)."
)
WRONG_STATES = (DnsState.MISSING, DnsState.MISMATCH)


@dataclass(frozen=True, slots=True)
class CheckedDnsRecord:
    """A DNS record that should exist, with the comparison to the one found."""

    advice: RecordAdvice
    check: RecordCheck

    @property
    def is_required(self) -> bool:
        """True if mail doesn't work as it should without the record."""
        return self.advice.optional_reason is None

    @property
    def is_wrong(self) -> bool:
        """True if DNS lacks a required record, or has another one."""
        return self.is_required and self.check.state in WRONG_STATES

    @property
    def is_required_and_checkable(self) -> bool:
        """True if the record is required, and can be compared with DNS: published or not."""
        return self.is_required and self.advice.check_published is not None

    @property
    def is_published(self) -> bool:
        """True if DNS has a record that isn't wrong."""
        return self.check.state is DnsState.OK or (
            self.check.state is DnsState.UNKNOWN and bool(self.check.found)
        )


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
    submission_servers = public_submission_servers(options)
    web_host = public_https_host_or_empty(options)
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
    questions = [
        DnsQuestion(advice.name, advice.type)
        for key, advices in zip(record_keys, advices_by_domain, strict=True)
        for advice in advices
        if key.checks_dns and advice.check_published
    ]
    # With a next hop, receivers look up the PTR record of that server.
    needs_reverse_dns = options.next_hop is None and "." in options.hostname
    host = options.hostname.lower() if needs_reverse_dns else None
    answers = (
        await query_dns_records(options.dns_resolver, questions, reverse_host=host)
        if questions
        else {}
    )
    return [
        _compare_records(advices, answers if key.checks_dns else {}, host)
        for key, advices in zip(record_keys, advices_by_domain, strict=True)
    ]


def _compare_records(
    advices: Sequence[RecordAdvice], answers: DnsAnswers, host: str | None
) -> list[CheckedDnsRecord]:
    """Compare the records of one domain with DNS. Without answers, nothing was looked up."""
    reverse_advices = advise_reverse_records(answers, host) if host else []
    address_count = sum(advice.purpose is DnsRecordPurpose.HOST_ADDRESS for advice in advices)
    return [
        CheckedDnsRecord(_with_dnssec_status(advice, advices, answers), _check(advice, answers))
        for advice in (*advices[:address_count], *reverse_advices, *advices[address_count:])
    ]


def _check(advice: RecordAdvice, answers: DnsAnswers) -> RecordCheck:
    """Compare a record with DNS. A record without a value has the instruction what to do."""
    answer = answers.get(DnsQuestion(advice.name, advice.type))
    if answer is None:
        return RecordCheck(DnsState.UNKNOWN, problem=advice.instruction or NOT_QUERIED)
    check = compare_with_answer(advice, answer)
    if check.state is DnsState.MISSING:
        return replace(check, problem=advice.instruction)
    return check


def _with_dnssec_status(
    advice: RecordAdvice, advices: Sequence[RecordAdvice], answers: DnsAnswers
) -> RecordAdvice:
    """Return the advice. A TLSA record is required if DNSSEC signs it and the MX record."""
    if advice.type is not DnsRecordKind.TLSA:
        return advice
    mx_names = [other.name for other in advices if other.type is DnsRecordKind.MX]
    questions = [
        DnsQuestion(advice.name, advice.type),
        *(DnsQuestion(name, DnsRecordKind.MX) for name in mx_names),
    ]
    found = [answers[question] for question in questions if question in answers]
    if len(found) < len(questions) or any(answer.failure for answer in found):
        return advice
    if all(answer.is_signed for answer in found):
        return replace(advice, optional_reason=None)
    return replace(advice, optional_reason=NO_DNSSEC)


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
