"""Kill a server while it forwards messages and sends vacation replies, and count what arrives.

Half of the messages go to an account with a vacation reply, each from another sender. The other
half go to an address that forwards to this account and to an external address. The external
server counts deliveries, also while the other server is down.
"""

import asyncio
import json
import re
import sqlite3
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope

from bench.crashes.crash_rounds import (
    CrashRound,
    DeliveryLedger,
    PlannedKill,
    SoakMessages,
    deliver_rest_and_stop,
    run_until_killed,
)
from bench.load.sample_account import READER_ADDRESS, create_user
from bench.servers.merganser_process import MerganserServer, run_consistency_check
from bench.servers.ports import HOST, free_port
from mail.outbound import accepted_results
from merganser.server.environment_factory import open_environment, root_context
from merganser.settings.settings import Settings
from resolvers.addresses import mutations as address_mutations
from resolvers.addresses.mutations import NewAddress
from resolvers.autoreply import autoreplies
from resolvers.users.selection import UserSelector

LIST_ADDRESS, EXTERNAL_ADDRESS = "list@bench.example", "far@elsewhere.example"
FAULT_POINTS = ("data", "commit", "reply", "dot", "sent", "outside")
QUEUE_TIMEOUT = 400.0  # seconds; entries of a dead server wait for their lease to end
POLL_SECONDS = 0.2
REPLY, FORWARD = "answer", "onward"
_SENDER_NUMBER = re.compile(r"\bs([0-9]+)(?=@|$)")  # of s<number>@elsewhere.example, also in SRS
_OPEN_DELIVERIES = "SELECT 1 FROM queue_entries WHERE state IN ('PENDING', 'DEFERRED') LIMIT 1"
_UNCONFIRMED_DELIVERIES = """SELECT queue_entries.id, recipient, envelope_from, final_dot_at
    FROM queue_entries JOIN submissions ON submissions.id = submission_id
    WHERE final_dot_at IS NOT NULL AND queue_entries.state IN ('PENDING', 'DEFERRED')"""

OutgoingKey = tuple[str, int]  # kind, and number of the original message


def _key_from_envelope(sender: str, recipient: str) -> OutgoingKey:
    """Return kind and number of an outgoing message by its envelope."""
    match = _SENDER_NUMBER.search(recipient if recipient != EXTERNAL_ADDRESS else sender)
    return FORWARD if recipient == EXTERNAL_ADDRESS else REPLY, int(match[1]) if match else -1


@dataclass
class ExternalServer:
    """The external server that accepts and counts all messages."""

    port: int = field(default_factory=free_port)
    received: Counter[OutgoingKey] = field(default_factory=Counter)

    async def handle_DATA(  # noqa: N802
        self, _server: Any, _session: Any, envelope: Envelope
    ) -> str:
        """Count a message, and accept it."""
        for recipient in envelope.rcpt_tos:
            self.received[_key_from_envelope(envelope.mail_from or "", recipient)] += 1
        return "250 2.0.0 Taken"

    @asynccontextmanager
    async def listen(self) -> AsyncGenerator[None]:
        """Listen while the context is open."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: SMTP(self, hostname="elsewhere.example"), HOST, self.port
        )
        try:
            yield
        finally:
            server.close()
            await server.wait_closed()


class UniqueSenderMessages(SoakMessages):
    """Messages with one sender each."""

    def sender_and_recipient(self, subject: str) -> tuple[str, str]:
        """Return sender and recipient of a message."""
        number = message_number_from_subject(subject)
        return f"s{number}@elsewhere.example", LIST_ADDRESS if number % 2 else READER_ADDRESS


def message_number_from_subject(subject: str) -> int:
    """Return the number of a message by its subject."""
    return int(subject.rpartition("-")[2])


@dataclass
class ForwardSoakResult:
    """The result of a soak with forwards and replies."""

    rounds: list[CrashRound] = field(default_factory=list)
    ledger: DeliveryLedger = field(default_factory=DeliveryLedger)
    # sent when a server died, whose reply it had not written to the database or its file
    unconfirmed: set[tuple[OutgoingKey, str]] = field(default_factory=set)
    received: Counter[OutgoingKey] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)

    @property
    def duplicate_count(self) -> int:
        """The number of surplus copies that arrived."""
        return sum(times - 1 for times in self.received.values())


async def run_forward_soak(
    folder: Path,
    planned_kills: Sequence[PlannedKill],
    *,
    seed: int = 1,
    report_round: Callable[[CrashRound], None],
) -> ForwardSoakResult:
    """Kill a server on this empty folder as planned, and compare the received messages."""
    external_server = ExternalServer()
    verdict = ForwardSoakResult()
    post = UniqueSenderMessages(seed)
    extra_settings = {
        "MERGANSER_NEXT_HOP": f"smtp://{HOST}:{external_server.port}?tls=never",
        "MERGANSER_LIMITS_FORWARDS_PER_DAY": "0",
    }
    server = MerganserServer(folder, extra_environment=extra_settings)
    await _create_account_and_forward(folder)
    async with external_server.listen():
        for planned_kill in planned_kills:
            verdict.rounds.append(
                await run_until_killed(server, post, verdict.ledger, planned_kill)
            )
            report_round(verdict.rounds[-1])
            verdict.unconfirmed.update(_read_unconfirmed(server))

        async def wait_until_queue_is_empty() -> None:
            async with asyncio.timeout(QUEUE_TIMEOUT):
                while _read_rows(server, _OPEN_DELIVERIES):  # noqa: ASYNC110 - rows have no event
                    await asyncio.sleep(POLL_SECONDS)

        verdict.rounds.append(
            await deliver_rest_and_stop(server, post, verdict.ledger, wait_until_queue_is_empty)
        )
        report_round(verdict.rounds[-1])
    verdict.received = external_server.received
    verdict.differences = [*find_differences(verdict), *await run_consistency_check(server)]
    return verdict


async def _create_account_and_forward(folder: Path) -> None:
    async with open_environment(Settings(data=folder), migrate=True) as environment:
        user = await create_user(environment, READER_ADDRESS)
        rule = {"enabled": True, "subject": "Away", "text": "I am away."}
        await autoreplies.set_autoreplies(
            root_context(environment), UserSelector(ids=(user.id,)), rule
        )
        await address_mutations.create_address(
            root_context(environment),
            NewAddress(LIST_ADDRESS, forward_to=[READER_ADDRESS, EXTERNAL_ADDRESS]),
        )


def _read_rows(server: MerganserServer, sql: str) -> list[tuple[Any, ...]]:
    with closing(
        sqlite3.connect(f"file:{server.data_folder / 'merganser.db'}?mode=ro", uri=True)
    ) as db:
        return db.execute(sql).fetchall()


def _read_unconfirmed(server: MerganserServer) -> Iterator[tuple[OutgoingKey, str]]:
    """Yield deliveries with unknown result, and the time of the final dot.

    The next process knows the results in the file of the killed one, so it must not repeat them.
    """
    known_ids = _read_delivery_ids_of_results_file(server)
    for delivery_id, recipient, sender, at in _read_rows(server, _UNCONFIRMED_DELIVERIES):
        if delivery_id not in known_ids:
            yield _key_from_envelope(sender, recipient), at


def _read_delivery_ids_of_results_file(server: MerganserServer) -> set[int]:
    """Return the ids of the deliveries in the file with the replies of external servers."""
    path = server.data_folder / accepted_results.FILE_NAME
    lines = path.read_bytes().splitlines() if path.exists() else []
    return {row[0] for line in lines for row in json.loads(line)[1]}


def find_differences(result: ForwardSoakResult) -> Iterator[str]:
    """Yield the messages that are lost, duplicated or unexpected."""
    for number, soak_round in enumerate(result.rounds, 1):
        yield from (f"round {number}: {mark} is lost" for mark in soak_round.inspection.lost)
        yield from (
            f"round {number}: {mark} is stored twice" for mark in soak_round.inspection.duplicates
        )
        if not soak_round.ended_as_planned:
            yield f"round {number}: the server exited with {soak_round.exit_code}"
    expected = Counter[OutgoingKey]()
    for mark in result.ledger.digests_by_subject:
        number = message_number_from_subject(mark)
        if mark not in result.ledger.accepted:
            yield f"{mark} has never got a reply"
        expected[REPLY, number] += 1
        expected[FORWARD, number] += number % 2
    yield from (
        f"{what} of {number} has not arrived" for what, number in expected - result.received
    )
    yield from (
        f"{what} of {number} arrived without a message"
        for what, number in result.received.keys() - expected
    )
    unsure = Counter(key for key, _ in result.unconfirmed)
    for (what, number), times in (result.received - expected - unsure).items():
        yield f"{what} of {number} arrived {times} times more often than the kills explain"
