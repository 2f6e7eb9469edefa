"""Query many DNS records at once, within one deadline."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.resolver
from dns.asyncresolver import Resolver

from mail.domains.dns_advice import DnsState, RecordAdvice, RecordCheck, reverse_record_advice
from mail.network.dns_resolver import create_resolver
from models.domains.dns_record_values import DnsRecordKind

OPERATION_TIMEOUT = 4.0  # seconds for all queries of one operation
QUERY_TIMEOUT = 1.5  # seconds until a query is repeated
MAX_CONCURRENT_QUERIES = 32
MAX_REVERSE_RECORDS = 10  # addresses of the host whose PTR records are queried
TIMED_OUT = RecordCheck(DnsState.UNKNOWN, problem="The name server did not respond in time.")
NO_NAME_SERVER = RecordCheck(DnsState.UNKNOWN, problem="No name server is configured.")


class DnsQuestion(NamedTuple):
    """The name and type of DNS records."""

    name: str
    kind: DnsRecordKind


@dataclass(frozen=True, slots=True)
class DnsAnswer:
    """The records that DNS has, as text, or the reason why they are unknown."""

    texts: Sequence[str] = ()
    is_signed: bool = False  # the name server has validated the answer by DNSSEC
    failure: RecordCheck | None = None


DnsAnswers = Mapping[DnsQuestion, DnsAnswer]


async def query_dns_records(
    name_server: str | None, questions: Iterable[DnsQuestion], *, reverse_host: str | None = None
) -> DnsAnswers:
    """Query DNS for all questions, in at most OPERATION_TIMEOUT seconds.

    With `reverse_host`, also queries the PTR records of its public addresses.
    """
    try:
        resolver = create_resolver(name_server)
    except dns.resolver.NoResolverConfiguration:
        return {question: DnsAnswer(failure=NO_NAME_SERVER) for question in questions}
    resolver.timeout, resolver.lifetime = QUERY_TIMEOUT, OPERATION_TIMEOUT
    resolver.flags = dns.flags.RD | dns.flags.AD  # asks for the result of DNSSEC (RFC 6840)
    queries = _RunningQueries(resolver)
    for question in questions:
        queries.start(question)
    reverse_queries = asyncio.create_task(_start_reverse_queries(queries, reverse_host))
    try:
        with suppress(TimeoutError):  # the result of an unanswered question is TIMED_OUT
            async with asyncio.timeout(OPERATION_TIMEOUT):
                await reverse_queries
                await asyncio.wait(queries.task_by_question.values())
    finally:
        tasks = [reverse_queries, *queries.task_by_question.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {
        question: DnsAnswer(failure=TIMED_OUT) if task.cancelled() else task.result()
        for question, task in queries.task_by_question.items()
    }


def compare_with_answer(advice: RecordAdvice, answer: DnsAnswer) -> RecordCheck:
    """Compare a record with what DNS has. A record that isn't checked is UNKNOWN."""
    if advice.check_published is None:
        return RecordCheck(DnsState.UNKNOWN, problem=advice.instruction)
    return answer.failure or advice.check_published(answer.texts)


def advise_reverse_records(answers: DnsAnswers, host: str) -> list[RecordAdvice]:
    """The PTR records of the public addresses that DNS has for the host."""
    return [reverse_record_advice(address, host) for address in _public_addresses(answers, host)]


def _address_questions(host: str) -> list[DnsQuestion]:
    return [DnsQuestion(host, kind) for kind in (DnsRecordKind.A, DnsRecordKind.AAAA)]


def _public_addresses(answers: DnsAnswers, host: str) -> list[str]:
    addresses = [
        text
        for question in _address_questions(host)
        if question in answers
        for text in answers[question].texts
        if ip_address(text).is_global
    ]
    return addresses[:MAX_REVERSE_RECORDS]


class _RunningQueries:
    """The queries of one operation. Each question is sent once."""

    def __init__(self, resolver: Resolver) -> None:
        self.task_by_question: dict[DnsQuestion, asyncio.Task[DnsAnswer]] = {}
        self._resolver = resolver
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_QUERIES)

    def start(self, question: DnsQuestion) -> "asyncio.Task[DnsAnswer]":
        """Send a query unless it is sent already, and return its task."""
        if question not in self.task_by_question:
            self.task_by_question[question] = asyncio.create_task(self._query(question))
        return self.task_by_question[question]

    async def _query(self, question: DnsQuestion) -> DnsAnswer:
        async with self._slots:
            return await _query_once(self._resolver, question)


async def _start_reverse_queries(queries: _RunningQueries, host: str | None) -> None:
    """Query the addresses of the host, then start the queries of their PTR records."""
    if host is None:
        return
    answers = {question: await queries.start(question) for question in _address_questions(host)}
    for advice in advise_reverse_records(answers, host):
        queries.start(DnsQuestion(advice.name, advice.type))


async def _query_once(resolver: Resolver, question: DnsQuestion) -> DnsAnswer:
    """Query the records of one question. The answer has no texts if there are no records."""
    try:
        answer = await resolver.resolve(
            f"{question.name}.", question.kind, raise_on_no_answer=False
        )
    except dns.resolver.NXDOMAIN as no_name:
        responses: Mapping[dns.name.Name, dns.message.Message] = no_name.kwargs["responses"]
        return DnsAnswer(is_signed=all(map(_is_signed, responses.values())))
    except dns.exception.Timeout:
        return DnsAnswer(failure=TIMED_OUT)
    except (dns.exception.DNSException, OSError, ValueError) as problem:
        message = f"The name server reports an error: {type(problem).__name__}."
        return DnsAnswer(failure=RecordCheck(DnsState.UNKNOWN, problem=message))
    texts = [_record_text(record, question.kind) for record in answer.rrset or ()]
    return DnsAnswer(texts, is_signed=_is_signed(answer.response))


def _is_signed(response: dns.message.Message) -> bool:
    return bool(response.flags & dns.flags.AD)


def _record_text(record: Any, kind: DnsRecordKind) -> str:
    """Return a record as text. A TXT record is the concatenation of its strings."""
    if kind is DnsRecordKind.TXT:
        return b"".join(record.strings).decode(errors="replace")
    return str(record.to_text())
