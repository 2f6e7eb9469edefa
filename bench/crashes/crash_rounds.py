"""Kill a server repeatedly under LMTP load, while the client retries."""

import asyncio
import hashlib
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from bench.load.lmtp_client import ENVELOPE_SENDER, LmtpConnection, connect
from bench.load.message_generator import MessageGenerator
from bench.load.sample_account import RECEIVER_ADDRESS
from bench.servers.merganser_process import MerganserServer, stop_process

CONNECTION_COUNT = 8
MAX_ATTEMPTS = 100  # of one message
RETRY_DELAY = 0.02  # seconds
GROUP_EXIT_TIMEOUT = 3.0  # seconds for the child processes of a dead server to exit
ROUND_TIMEOUT = 120.0  # seconds
MESSAGE_SIZES = (800, 3_000, 20_000)  # bytes, in rotation
ATTACHMENT_SIZES = {  # interval of messages: bytes of an incompressible attachment
    5: 40_000,  # an object of its own in the blob store
    11: 400_000,
    29: 1_500_000,  # received into a file, and read by another process
}
SHARED_ATTACHMENT_INTERVAL = 7  # every seventh message has the same attachment


@dataclass(frozen=True, slots=True)
class PlannedKill:
    """When a round ends: at the n-th passing of a fault point, or by a kill after n messages."""

    fault_point: str
    count: int

    @property
    def fault_setting(self) -> str:
        """The setting for the server; empty if the client kills it."""
        return "" if self.fault_point == "outside" else f"{self.fault_point}:{self.count}"


@dataclass
class DeliveryLedger:
    """The messages sent, and those accepted with 250, by subject."""

    digests_by_subject: dict[str, str] = field(default_factory=dict)  # SHA-256 of the bytes, hex
    accepted: Counter[str] = field(default_factory=Counter)
    unanswered: list[str] = field(default_factory=list)  # oldest first
    attempts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class StoreInspection:
    """What a restarted server had stored before anything was sent again."""

    unanswered_count: int  # messages without a reply
    stored_unanswered_count: int  # of these: only the reply was lost
    lost: Sequence[str]  # accepted messages that are missing
    duplicates: Sequence[str]  # messages stored twice

    @property
    def is_complete(self) -> bool:
        """True if each accepted message is stored once."""
        return not self.lost and not self.duplicates


@dataclass(frozen=True, slots=True)
class CrashRound:
    """One run of the server."""

    inspection: StoreInspection
    accepted_count: int
    exit_code: int  # the server's exit code
    had_orphans: bool  # child processes survived the server and were killed
    planned_kill: PlannedKill | None = None  # None: stopped by SIGTERM

    @property
    def ended_as_planned(self) -> bool:
        """True if the server ended as planned."""
        return self.exit_code == (-signal.SIGKILL if self.planned_kill else 0)


@dataclass
class SoakMessages:
    """The messages of one soak. The same number always gives the same bytes."""

    seed: int
    generator: MessageGenerator = field(init=False)
    shared_attachment: bytes = field(init=False)
    unanswered: dict[str, bytes] = field(default_factory=dict)  # by subject

    def __post_init__(self) -> None:
        self.generator = MessageGenerator(self.seed)
        self.shared_attachment = self._attachment(0, 60_000)

    def sender_and_recipient(self, subject: str) -> tuple[str, str]:
        """Return sender and recipient of a message."""
        return ENVELOPE_SENDER, RECEIVER_ADDRESS

    def _attachment(self, number: int, size: int) -> bytes:
        return Random(f"{self.seed}.{number}").randbytes(size)  # noqa: S311 - no secret

    def write_next(self, ledger: DeliveryLedger) -> str:
        """Generate the next message, and return its subject."""
        number = len(ledger.digests_by_subject)
        attached = b""
        for every, size in ATTACHMENT_SIZES.items():
            if number % every == every - 1:
                attached = self._attachment(number, size)
        if number % SHARED_ATTACHMENT_INTERVAL == SHARED_ATTACHMENT_INTERVAL - 1:
            attached = self.shared_attachment
        mark = f"Soak {self.seed}-{number}"
        size = MESSAGE_SIZES[number % len(MESSAGE_SIZES)]
        raw = self.generator.make_message(number, size=size, subject=mark, attachment=attached)
        raw += b".a line that begins with a dot\r\n..and one with two\r\n"
        self.unanswered[mark] = raw
        ledger.digests_by_subject[mark] = hashlib.sha256(raw).hexdigest()
        return mark


async def run_until_killed(
    server: MerganserServer,
    messages: SoakMessages,
    ledger: DeliveryLedger,
    planned_kill: PlannedKill,
) -> CrashRound:
    """Load a server until it is killed.

    Unanswered messages wait in the ledger for the next round.
    """
    process = await server.start(fault=planned_kill.fault_setting)
    try:
        inspection, before = _inspect_store(server, ledger), ledger.accepted.total()
        last = before + planned_kill.count if planned_kill.fault_point == "outside" else None
        load = RoundLoad(messages, ledger, process, last)
        async with asyncio.timeout(ROUND_TIMEOUT):
            await asyncio.gather(
                *(
                    _deliver_until_disconnect(server.lmtp_port, load)
                    for _ in range(CONNECTION_COUNT)
                )
            )
            code = await process.wait()
    finally:
        orphans = await kill_process_group(process)
    return CrashRound(inspection, ledger.accepted.total() - before, code, orphans, planned_kill)


async def deliver_rest_and_stop(
    server: MerganserServer,
    messages: SoakMessages,
    ledger: DeliveryLedger,
    wait_until_idle: Callable[[], Awaitable[None]] | None = None,
) -> CrashRound:
    """Deliver the rest to a server that is not killed, and stop it by SIGTERM.

    If `wait_until_idle` is given, it is awaited before the stop.
    """
    process = await server.start()
    try:
        inspection, before = _inspect_store(server, ledger), ledger.accepted.total()
        load = RoundLoad(messages, ledger, process)
        lmtp_connection = await connect(server.lmtp_port)
        async with asyncio.timeout(ROUND_TIMEOUT):
            while ledger.unanswered:
                await _deliver_message(lmtp_connection, load, ledger.unanswered.pop(0))
        await lmtp_connection.close()
        if wait_until_idle:
            await wait_until_idle()
        code = await stop_process(process)
    finally:
        orphans = await kill_process_group(process)
    return CrashRound(inspection, ledger.accepted.total() - before, code, orphans)


@dataclass(frozen=True, slots=True)
class RoundLoad:
    """What the connections of a round share."""

    messages: SoakMessages
    ledger: DeliveryLedger
    process: asyncio.subprocess.Process
    kill_after_accepted: int | None = None  # number over all rounds


async def _deliver_until_disconnect(port: int, load: RoundLoad) -> None:
    """Deliver over one connection until it breaks."""
    waiting = load.ledger.unanswered
    with suppress(OSError):
        lmtp_connection = await connect(port)
        try:
            while True:
                mark = waiting.pop(0) if waiting else load.messages.write_next(load.ledger)
                await _deliver_message(lmtp_connection, load, mark)
        finally:
            await lmtp_connection.close()


async def _deliver_message(connection: LmtpConnection, load: RoundLoad, subject: str) -> None:
    """Deliver a message. Without the reply 250 it waits to be sent again.

    Raises RuntimeError after too many attempts.
    """
    ledger, is_accepted = load.ledger, False
    ledger.attempts[subject] += 1
    if ledger.attempts[subject] > MAX_ATTEMPTS:
        raise RuntimeError(f"{subject} was refused too many times")
    try:
        sender, to = load.messages.sender_and_recipient(subject)
        reply = await connection.deliver(to, load.messages.unanswered[subject], sender)
        is_accepted = reply.startswith("250")
        if not is_accepted:
            await asyncio.sleep(RETRY_DELAY)
    finally:
        if not is_accepted:
            ledger.unanswered.append(subject)
    if is_accepted:
        ledger.accepted[subject] += 1
        del load.messages.unanswered[subject]
        if (
            load.kill_after_accepted is not None
            and ledger.accepted.total() == load.kill_after_accepted
        ):
            load.process.kill()


def _inspect_store(server: MerganserServer, ledger: DeliveryLedger) -> StoreInspection:
    """Compare the database of a server with the ledger."""
    copies_by_subject = count_stored_subjects(server)
    return StoreInspection(
        unanswered_count=len(ledger.unanswered),
        stored_unanswered_count=sum(copies_by_subject[mark] > 0 for mark in ledger.unanswered),
        lost=[mark for mark in ledger.accepted if not copies_by_subject[mark]],
        duplicates=[mark for mark, times in copies_by_subject.items() if times > 1],
    )


def count_stored_subjects(server: MerganserServer) -> Counter[str]:
    """Count the stored messages by subject, read from the database file."""
    db = sqlite3.connect(f"file:{server.data_folder / 'merganser.db'}?mode=ro", uri=True)
    try:
        return Counter(subject for (subject,) in db.execute("SELECT subject FROM messages"))
    finally:
        db.close()


async def kill_process_group(process: asyncio.subprocess.Process) -> bool:
    """Kill a server and its process group. Returns True if child processes survived."""
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
    for _ in range(int(GROUP_EXIT_TIMEOUT / 0.1)):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return False
        await asyncio.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    return True
