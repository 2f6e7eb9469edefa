"""`python -m bench.soak`: kill the server under load, and see that no mail and no event is lost."""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Annotated, Any, TypeVar

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sqlalchemy import select
from sqlmodel import col

from bench import change_stream_soak
from bench.crashes import forward_soak
from bench.crashes.crash_rounds import (
    CrashRound,
    DeliveryLedger,
    PlannedKill,
    SoakMessages,
    deliver_rest_and_stop,
    run_until_killed,
)
from bench.load.sample_account import RECEIVER_ADDRESS, create_user
from bench.servers.merganser_process import MerganserServer, run_consistency_check, run_with_timeout
from mail.storage import message_open
from merganser.server.environment_factory import open_environment
from merganser.settings.settings import Settings
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.store.columns import select_columns

FAULT_POINTS = ("data", "commit", "reply", "outside")
MIN_PASSES, MAX_PASSES = 5, 40  # passes or messages before the server is killed
RUN_TIMEOUT = 3600.0  # seconds
READ_BATCH_SIZE = 100  # messages
ADDED_LINE_COUNT = 3  # lines that a delivery puts before a message

RoundReporter = Callable[[CrashRound], None]
SoakResult = TypeVar("SoakResult")


@dataclass
class CrashSoakResult:
    """The rounds of a soak, the messages sent, and the differences found."""

    rounds: list[CrashRound] = field(default_factory=list)
    ledger: DeliveryLedger = field(default_factory=DeliveryLedger)
    differences: list[str] = field(default_factory=list)

    @property
    def is_successful(self) -> bool:
        """True if no difference was found."""
        return not self.differences


def plan_kills(fault_points: Sequence[str], rounds: int, seed: int) -> list[PlannedKill]:
    """Plan a kill at each fault point in turn, at a random pass."""
    random = Random(seed)  # noqa: S311 - no secret
    names = (fault_points[number % len(fault_points)] for number in range(rounds))
    return [PlannedKill(name, random.randint(MIN_PASSES, MAX_PASSES)) for name in names]


async def run_crash_soak(
    folder: Path, plan: Sequence[PlannedKill], *, seed: int = 1, report_round: RoundReporter
) -> CrashSoakResult:
    """Run a server in this empty folder, kill it once for each planned kill, and compare its mail.

    The last round ends without a kill, after all messages are delivered.
    """
    result, server, messages = CrashSoakResult(), MerganserServer(folder), SoakMessages(seed)
    async with open_environment(Settings(data=folder), migrate=True) as environment:
        await create_user(environment, RECEIVER_ADDRESS)
    for planned_kill in plan:
        result.rounds.append(await run_until_killed(server, messages, result.ledger, planned_kill))
        report_round(result.rounds[-1])
    result.rounds.append(await deliver_rest_and_stop(server, messages, result.ledger))
    report_round(result.rounds[-1])
    for number, crash_round in enumerate(result.rounds, 1):
        result.differences += _problems_of_round(number, crash_round)
    result.differences += await find_differences(folder, result.ledger)
    result.differences += await run_consistency_check(server)
    return result


def _problems_of_round(number: int, crash_round: CrashRound) -> list[str]:
    inspection = crash_round.inspection
    problems = [
        f"round {number}: {subject} was accepted with 250 and is lost"
        for subject in inspection.lost
    ]
    problems += [f"round {number}: {subject} is stored twice" for subject in inspection.duplicates]
    if not crash_round.ended_as_planned:
        problems.append(f"round {number}: the server exited with {crash_round.exit_code}")
    return problems


async def find_differences(folder: Path, ledger: DeliveryLedger) -> list[str]:
    """Return the differences between the database of a stopped server and the messages sent."""
    async with open_environment(Settings(data=folder)) as environment:
        stored = await _stored_digests(environment)
    copies = Counter(subject for subject, _ in stored)
    differences = [
        f"{subject} has never got a reply"
        for subject in ledger.digests_by_subject.keys() - ledger.accepted
    ]
    differences += [
        f"{subject} was accepted with 250 and is not stored" for subject in ledger.accepted - copies
    ]
    differences += [
        f"{subject} is stored {count} times" for subject, count in copies.items() if count > 1
    ]
    differences += [
        f"{subject} was never sent" for subject in copies.keys() - ledger.digests_by_subject.keys()
    ]
    differences += [
        f"{subject} is stored with other bytes than were sent"
        for subject, digest in stored
        if ledger.digests_by_subject.get(subject, digest) != digest
    ]
    return differences


async def _stored_digests(environment: Environment) -> list[tuple[str, str]]:
    """Return the subject of each message and the SHA-256 of the bytes that were sent."""
    statement = select(*select_columns(Message, {"id", "subject", "blob_id", "mime_structure"}))
    rows = await environment.database.read(statement.order_by(col(Message.id)))
    stored = []
    for start in range(0, len(rows), READ_BATCH_SIZE):
        for message in await message_open.open_messages_and_log_damage(
            environment, rows[start : start + READ_BATCH_SIZE]
        ):
            raw = b"".join([chunk async for chunk in message.stream_raw()])
            sent_bytes = raw.split(b"\r\n", ADDED_LINE_COUNT)[-1]
            stored.append((message.row.subject, hashlib.sha256(sent_bytes).hexdigest()))
    return stored


def main(
    rounds: Annotated[int, typer.Option(min=0, help="Number of kills during deliveries.")] = 20,
    sent: Annotated[
        int, typer.Option(min=0, help="Number of kills while it forwards and replies.")
    ] = 50,
    seed: Annotated[
        int, typer.Option(help="Seed of the messages and of the times of the kills.")
    ] = 1,
    changes: Annotated[
        int,
        typer.Option(min=0, help="Number of changes that are compared, on all databases together."),
    ] = 100_000,
) -> None:
    """Kill the server under load. Exit with 1 if mail or events are lost, duplicated or damaged."""
    is_successful = _soak_deliveries(rounds, seed) if rounds else True
    is_successful = (_soak_forwards(sent, seed) if sent else True) and is_successful
    is_successful = (
        change_stream_soak.prove_all_setups(changes, seed) if changes else True
    ) and is_successful
    if not is_successful:
        raise typer.Exit(1)


def _soak_deliveries(rounds: int, seed: int) -> bool:
    """Kill the server under LMTP load and print the result. True if each message is stored once."""
    result = _run_in_temporary_folder(run_crash_soak, plan_kills(FAULT_POINTS, rounds, seed), seed)
    _print_result(result)
    return result.is_successful


def _soak_forwards(rounds: int, seed: int) -> bool:
    """Kill the server while it forwards and replies. Prints the result; True if it is correct."""
    result = _run_in_temporary_folder(
        forward_soak.run_forward_soak, plan_kills(forward_soak.FAULT_POINTS, rounds, seed), seed
    )
    console = Console(highlight=False, width=120)
    console.print(
        f"{len(result.rounds) - 1} kills, {len(result.ledger.accepted)} messages accepted with "
        f"250, {result.received.total()} forwards and replies sent, {result.duplicate_count} of "
        f"them duplicates; {len(result.unconfirmed)} had no recorded result at a kill; "
        f"{len(result.differences)} differences."
    )
    for line in result.differences:
        console.print(f"  {line}", markup=False)
    return not result.differences


def _run_in_temporary_folder(
    run_soak: Callable[..., Awaitable[SoakResult]], plan: Sequence[PlannedKill], seed: int
) -> SoakResult:
    """Run a soak in a temporary folder and show its progress."""
    results: list[SoakResult] = []

    async def work() -> None:
        with (
            tempfile.TemporaryDirectory(prefix="merganser-soak-") as folder,
            Progress(console=Console(stderr=True), transient=True) as bar,
        ):
            task = bar.add_task("Killing the server", total=len(plan) + 1)

            def report_round(_round: CrashRound) -> None:
                bar.advance(task)

            results.append(await run_soak(Path(folder), plan, seed=seed, report_round=report_round))

    uvloop.run(run_with_timeout(work(), RUN_TIMEOUT))
    return results[0]


def _print_result(result: CrashSoakResult) -> None:
    console, table = Console(highlight=False, width=120), Table(box=None, padding=(0, 2, 0, 0))
    for name in ("round", "kill", "accepted with 250", "without reply", "… stored", "orphans"):
        table.add_column(name, justify="right")
    for number, crash_round in enumerate(result.rounds, 1):
        planned, inspection = crash_round.planned_kill, crash_round.inspection
        end = f"{planned.fault_point}:{planned.count}" if planned else "SIGTERM"
        cells: tuple[Any, ...] = (
            number,
            end,
            crash_round.accepted_count,
            inspection.unanswered_count,
            inspection.stored_unanswered_count,
        )
        table.add_row(*map(str, cells), "yes" if crash_round.had_orphans else "")
    console.print(table)
    ledger = result.ledger
    resent_count = sum(attempts > 1 for attempts in ledger.attempts.values())
    console.print(
        f"{len(ledger.digests_by_subject)} messages sent, {resent_count} of them more than once, "
        f"{len(ledger.accepted)} accepted with 250; {len(result.differences)} differences."
    )
    for line in result.differences:
        console.print(f"  {line}", markup=False)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
