"""`python -m bench.fetch_soak`: kill the server while it copies mail, and compare byte by byte."""

import asyncio
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Annotated, Any, NamedTuple

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress
from sqlalchemy import select

from bench.crashes.crash_rounds import (
    DeliveryLedger,
    PlannedKill,
    SoakMessages,
    count_stored_subjects,
    kill_process_group,
)
from bench.load.sample_account import READER_ADDRESS, create_user
from bench.servers.dovecot_server import PASSWORD, DovecotAccount, run_dovecot
from bench.servers.merganser_process import (
    MerganserServer,
    run_consistency_check,
    run_with_timeout,
    stop_process,
)
from bench.servers.ports import HOST
from mail.storage import message_flags, message_open
from merganser.server.environment_factory import open_environment, root_context
from merganser.settings.settings import Settings
from models.connectors import ConnectorProtocol, ConnectorSecurity
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.store.columns import select_columns
from resolvers.connectors import mutations as connector_mutations

KEEPING_POINTS = ("fetched", "commit", "outside")  # fault points if the source keeps its mail
DELETING_POINTS = (*KEEPING_POINTS, "expunged")
MAX_PASSES = {"fetched": 4, "commit": 100, "outside": 100, "expunged": 2}  # by fault point
FOLDERS = ("INBOX", "Sent", "Work/Deep")
FLAGS_BY_MAILDIR_INFO = {
    "": set[str](),
    "S": {"\\Seen"},
    "FS": {"\\Flagged", "\\Seen"},
    "RS": {"\\Answered", "\\Seen"},
    "DS": {"\\Draft", "\\Seen"},
}
NEW_MESSAGE_COUNT = 150  # before each run of the server
READ_COLUMNS = {
    "id",
    "subject",
    "blob_id",
    "mime_structure",
    "mailbox_id",
    *message_flags.SYSTEM_FLAGS,
    "keywords",
}
READ_BATCH_SIZE = 100  # messages
POLL_INTERVAL = 0.02  # seconds
ROUND_TIMEOUT = 120.0  # seconds
RUN_TIMEOUT = 3600.0  # seconds


class CopiedMessage(NamedTuple):
    """The compared values of a message: unique subject, mailbox, flags and SHA-256."""

    subject: str
    mailbox: str
    flags: frozenset[str]
    digest: str


@dataclass
class SoakSource:
    """The Dovecot account that mail is fetched from, with all messages that it has received."""

    dovecot: DovecotAccount
    generator: SoakMessages
    ledger: DeliveryLedger = field(default_factory=DeliveryLedger)
    received: set[CopiedMessage] = field(default_factory=set)
    subject_by_file: dict[str, str] = field(default_factory=dict)

    def add_messages(self, count: int) -> None:
        """Add messages to each mailbox, with all combinations of flags."""
        kinds = [(mailbox, info) for mailbox in FOLDERS for info in FLAGS_BY_MAILDIR_INFO]
        for nth, (mailbox, info) in enumerate(kinds):
            subjects = [
                self.generator.write_next(self.ledger) for _ in range(nth, count, len(kinds))
            ]
            raws = [self.generator.unanswered.pop(subject) for subject in subjects]
            file_names = self.dovecot.write_to_maildir(raws, mailbox, info)
            self.subject_by_file.update(zip(file_names, subjects, strict=True))
            flags = frozenset(FLAGS_BY_MAILDIR_INFO[info])
            for subject, raw in zip(subjects, raws, strict=True):
                digest = sha256(raw).hexdigest()
                self.received.add(CopiedMessage(subject, mailbox, flags, digest))

    def remaining_subjects(self) -> set[str]:
        """Return the subjects of the messages that the source still has."""
        folders = [
            self.dovecot.maildir_path(mailbox) / part
            for mailbox in FOLDERS
            for part in ("new", "cur")
        ]
        names = (file.name.partition(":")[0] for folder in folders for file in folder.iterdir())
        return {self.subject_by_file[name] for name in names if name in self.subject_by_file}


@dataclass(frozen=True, slots=True)
class FetchRound:
    """The result of one run of the server, from its start until it was killed or stopped."""

    planned_kill: PlannedKill | None
    exit_code: int
    had_orphans: bool
    copied_count: int
    remaining_count: int  # at the source
    lost: Sequence[str]  # subjects
    duplicates: Sequence[str]  # subjects


@dataclass
class FetchSoakResult:
    """The rounds of a soak, and the differences that it found."""

    rounds: list[FetchRound] = field(default_factory=list)
    received_count: int = 0  # by the source
    differences: list[str] = field(default_factory=list)


def plan_kills(fault_points: Sequence[str], count: int, seed: int) -> list[PlannedKill]:
    """Plan a kill at each fault point in turn, at a random pass."""
    random = Random(seed)  # noqa: S311 - no secret
    names = (fault_points[number % len(fault_points)] for number in range(count))
    return [PlannedKill(name, random.randint(1, MAX_PASSES[name])) for name in names]


async def run_fetch_soak(
    folder: Path,
    plan: Sequence[PlannedKill],
    *,
    seed: int = 1,
    delete: bool = False,
    report_round: Callable[[FetchRound], None] = lambda _: None,
) -> FetchSoakResult:
    """Run a server in this empty folder, kill it once for each planned kill, and compare its mail.

    With `delete`, fetched messages are deleted at the source. Other users must be able to enter
    the parent of the folder.
    """
    server = MerganserServer(
        folder / "server", extra_environment={"MERGANSER_CONNECTORS_ALLOW_PRIVATE_NETWORKS": "on"}
    )
    await asyncio.to_thread(folder.chmod, 0o755)  # for the user that Dovecot runs as
    result = FetchSoakResult()
    with run_dovecot(folder / "dovecot") as dovecot:
        source = SoakSource(dovecot, SoakMessages(seed))
        for name in FOLDERS[1:]:
            dovecot.run_doveadm("mailbox create", name)
        dovecot.run_doveadm("mailbox status", "messages", "INBOX")
        connector_id = await _create_connector(server, dovecot, delete=delete)
        # The last two runs are not killed; the last one has no new messages.
        for planned_kill in [*plan, None, None]:
            if planned_kill or not result.rounds or result.rounds[-1].planned_kill:
                source.add_messages(NEW_MESSAGE_COUNT)
            await _start_connector_run(server, connector_id)
            result.rounds.append(await _run_server(server, source, planned_kill))
            report_round(result.rounds[-1])
        result.received_count = len(source.received)
        result.differences = [
            *_find_problems(result, source, delete=delete),
            *await run_consistency_check(server),
        ]
    copied = await read_copied_messages(server.data_folder)
    result.differences += find_differences(source.received, copied)
    return result


async def _create_connector(
    server: MerganserServer, dovecot: DovecotAccount, *, delete: bool
) -> int:
    """Create an account with a connector, and return the connector id."""
    values = {
        "name": "far",
        "protocol": ConnectorProtocol.IMAP,
        "security": ConnectorSecurity.NONE,
        "host": HOST,
        "port": dovecot.ports["imap"],
        "auth_mechanism": "PLAIN",
        "username": dovecot.user,
        "interval": None,
        "source_retention": timedelta(0) if delete else None,
    }
    settings = Settings(data=server.data_folder, connectors_allow_private_networks=True)
    async with open_environment(settings, migrate=True) as environment:
        user = await create_user(environment, READER_ADDRESS)
        return await connector_mutations.create_connector(
            root_context(environment), user.id, values, PASSWORD
        )


async def _start_connector_run(server: MerganserServer, connector_id: int) -> None:
    """Start a run of the connector, or continue its run, when the server starts."""
    async with open_environment(Settings(data=server.data_folder)) as environment:
        await connector_mutations.queue_or_find_runs(
            root_context(environment), [connector_id], is_dry_run=False
        )


async def _run_server(
    server: MerganserServer, source: SoakSource, planned_kill: PlannedKill | None
) -> FetchRound:
    """Run the server until it is killed as planned, or else until the connector run has ended."""
    process = await server.start(fault=planned_kill.fault_setting if planned_kill else "")
    count_before = _count_fetched(server)
    try:
        async with asyncio.timeout(ROUND_TIMEOUT):
            if planned_kill is None:
                while _is_connector_running(server):  # noqa: ASYNC110 - rows have no event
                    await asyncio.sleep(POLL_INTERVAL)
                exit_code = await stop_process(process)
            elif planned_kill.fault_point == "outside":
                while _count_fetched(server) < count_before + planned_kill.count:  # noqa: ASYNC110
                    await asyncio.sleep(POLL_INTERVAL)
                process.kill()
            exit_code = await process.wait()
    finally:
        had_orphans = await kill_process_group(process)
    stored, remaining = count_stored_subjects(server), source.remaining_subjects()
    return FetchRound(
        planned_kill,
        exit_code,
        had_orphans,
        stored.total(),
        len(remaining),
        [
            subject
            for subject in source.ledger.digests_by_subject
            if subject not in remaining and not stored[subject]
        ],
        [subject for subject, copies in stored.items() if copies > 1],
    )


def _count_fetched(server: MerganserServer) -> int:
    return int(_select_value(server, "SELECT count(*) FROM fetched_messages"))


def _is_connector_running(server: MerganserServer) -> bool:
    return bool(_select_value(server, "SELECT count(*) FROM connectors WHERE run_id IS NOT NULL"))


def _select_value(server: MerganserServer, sql: str) -> Any:
    """Return the only value of a query on the database of the server."""
    with closing(
        sqlite3.connect(f"file:{server.data_folder / 'merganser.db'}?mode=ro", uri=True)
    ) as db:
        return db.execute(sql).fetchone()[0]


def _find_problems(result: FetchSoakResult, source: SoakSource, *, delete: bool) -> Iterator[str]:
    """Yield the problems of single rounds, and of the source at the end."""
    for number, fetch_round in enumerate(result.rounds, 1):
        yield from (
            f"round {number}: {one} is neither at the source nor stored" for one in fetch_round.lost
        )
        yield from (
            f"round {number}: {duplicate} is stored twice" for duplicate in fetch_round.duplicates
        )
        if fetch_round.exit_code != (-9 if fetch_round.planned_kill else 0):
            yield f"round {number}: the server exited with {fetch_round.exit_code}"
    remaining, subjects = source.remaining_subjects(), source.ledger.digests_by_subject.keys()
    if delete:
        yield from (f"{subject} is still at the source" for subject in remaining)
    else:
        yield from (f"{subject} is missing at the source" for subject in subjects - remaining)


async def read_copied_messages(folder: Path) -> list[CopiedMessage]:
    """Read all messages of a stopped server, with the digest of the bytes that a reader gets."""
    copied = list[CopiedMessage]()
    async with open_environment(Settings(data=folder)) as environment:
        mailboxes = await environment.database.read(
            select(*select_columns(Mailbox, {"id", "path"}))
        )
        paths = {mailbox.id: mailbox.path for mailbox in mailboxes}
        rows = await environment.database.read(select(*select_columns(Message, READ_COLUMNS)))
        for start in range(0, len(rows), READ_BATCH_SIZE):
            for message in await message_open.open_messages_and_log_damage(
                environment, rows[start : start + READ_BATCH_SIZE]
            ):
                row, digest = message.row, sha256()
                async for chunk in message.stream_raw():
                    digest.update(chunk)
                flags = frozenset(message_flags.imap_flags(row))
                path = paths.get(row.mailbox_id, "")
                copied.append(CopiedMessage(row.subject, path, flags, digest.hexdigest()))
    return copied


def find_differences(received: set[CopiedMessage], copied: Sequence[CopiedMessage]) -> list[str]:
    """Return the differences between the messages of the source and the stored copies."""
    copies = Counter(message.subject for message in copied)
    source_subjects = {message.subject for message in received}
    differences = [f"{subject} is missing" for subject in sorted(source_subjects - copies.keys())]
    differences += [
        f"{subject} is stored {count} times" for subject, count in copies.items() if count > 1
    ]
    differences += [
        f"{subject} was not at the source" for subject in sorted(copies.keys() - source_subjects)
    ]
    source_values = {subject: values for subject, *values in received}
    for subject, *values in copied:
        compared = zip(
            ("mailbox", "flags", "bytes"), values, source_values.get(subject, values), strict=True
        )
        differences += [
            f"{subject} is stored with other {name}"
            for name, copied_value, source_value in compared
            if copied_value != source_value
        ]
    return differences


def main(
    kills: Annotated[int, typer.Option(min=1, help="Number of kills.")] = 20,
    seed: Annotated[
        int, typer.Option(help="Seed of the messages and of the times of the kills.")
    ] = 1,
) -> None:
    """Kill the server while a connector fetches mail, with and without deletion at the source."""
    results = [_run_and_print(kills, seed, delete=delete) for delete in (False, True)]
    if not all(results):
        raise typer.Exit(1)


def _run_and_print(kills: int, seed: int, *, delete: bool) -> bool:
    """Run a soak in a temporary folder and print its result. True if there is no difference."""
    console, results = Console(highlight=False, width=120), list[FetchSoakResult]()
    plan = plan_kills(DELETING_POINTS if delete else KEEPING_POINTS, kills, seed)

    async def work() -> None:
        with (
            tempfile.TemporaryDirectory(prefix="merganser-fetchsoak-") as folder,
            Progress(console=Console(stderr=True), transient=True) as bar,
        ):
            task = bar.add_task("Killing the server", total=len(plan) + 2)
            results.append(
                await run_fetch_soak(
                    Path(folder),
                    plan,
                    seed=seed,
                    delete=delete,
                    report_round=lambda _: bar.advance(task),
                )
            )

    uvloop.run(run_with_timeout(work(), RUN_TIMEOUT))
    (result,) = results
    for fetch_round in result.rounds:
        planned = fetch_round.planned_kill
        end = f"{planned.fault_point}:{planned.count}" if planned else "SIGTERM"
        console.print(
            f"{end:14} {fetch_round.copied_count:6} fetched, "
            f"{fetch_round.remaining_count:6} left at the source"
        )
    console.print(
        f"Fetched messages are {'deleted' if delete else 'kept'} at the source: "
        f"{kills} kills, {result.received_count} messages; "
        f"{len(result.differences)} differences."
    )
    for line in result.differences:
        console.print(f"  {line}", markup=False)
    return not result.differences


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
