"""`python -m bench`: measure a real server and the floor, in turn, in one run."""

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress

from bench import clients
from bench.figures import report
from bench.figures.goals import AT, PAGE
from bench.figures.measurements import Fact, Figure, Line
from bench.figures.report import Results
from bench.load import lmtp_client
from bench.load.documents import Work, works
from bench.load.http_client import Target, loaded
from bench.load.message_generator import Writer
from bench.load.sample_account import TAKER
from bench.scenarios import change_catch_up as behind
from bench.scenarios import (
    change_latency,
    connector_fetch,
    filtered_delivery,
    half_open_connections,
    journal_cost,
    large_mailboxes,
    large_message,
    live_subscriptions,
    many_tokens,
    message_submission,
    outbound_delivery,
    queue_claims,
    sign_ins,
    text_search,
    user_lists,
)
from bench.servers.compared_servers import Kind, Sides, Size, sides
from bench.servers.merganser_process import bounded, broken, cpu, settled

DELIVERY, LIVE = "delivery of 20 KB, LMTP", "live and memory"
INSIDE, HALF_OPEN, LOGINS = "inside the process", "half-open connections", "logins"
LETTER = 20_000  # bytes of a letter that is delivered under load
LONGEST = 2400.0  # seconds of a whole run
BEHIND = 30_000  # changes that somebody has missed
LARGE = 24_000  # bytes of one that is told of whole, to those who do not read
SMALL = 2_000  # bytes of one that is only to be heard of


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. SQLite takes about twenty minutes, a quick run two."""

    size: Size = field(default_factory=Size)
    page: int = 100
    seconds: float = 3.0  # of each run
    least: int = 30  # requests of each run, however long they take
    connections: tuple[int, ...] = (1, 16, 64)
    neighbours: tuple[int, ...] = (1, 8, 32)
    events: int = 200
    subscribers: int = 1000
    unread: int = 300
    accounts: int = user_lists.MANY
    searched: tuple[int, ...] = text_search.MANY  # messages
    clients: tuple[int, ...] = clients.MANY  # messages of accounts
    boxes: large_mailboxes.Size = field(default_factory=large_mailboxes.Size)
    followed: change_latency.Size = field(default_factory=change_latency.Size)
    behind: int = 1_000_000  # changes of one account
    rounds: int = 200  # of deliveries with and without the journal
    rules: filtered_delivery.Size = field(default_factory=filtered_delivery.Size)
    fetched: int = connector_fetch.MESSAGES
    waiting: int = queue_claims.MANY
    sent: int = outbound_delivery.MESSAGES
    asked: int = many_tokens.ROUNDS  # requests of each user who asks now and then


FEW = large_mailboxes.Size(2000, 50, 500)
SOME = change_latency.Size(40, 20, 200, 2.0, 200)
QUICK = Plan(
    Size(2000), 20, 0.4, 5, (1, 16), (1, 8), 20, 100, 50, 5000, (2000,), (2000, 10_000), FEW, SOME,
    20_000, 20, filtered_delivery.Size(2, 0.3, 1), 1000, 2000, 500, 1,
)  # fmt: skip
SECOND = Plan(Size(5000), 50, 2.0, 20, (1, 16), (1, 8), 100, 500, 150)  # what differs by the store


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run of a minute.")] = False,
    store: Annotated[Kind | None, typer.Option(help="Where rows lie; else on both.")] = None,
    json: Annotated[Path | None, typer.Option(help="Keep the figures in this file.")] = None,
    only: Annotated[str, typer.Option(help="Only what has this in its name.")] = "",
) -> None:
    """Measure requests, deliveries, events and memory beside a hand-written floor."""
    done: list[Results] = []
    kinds = [store] if store else [Kind.SQLITE] if quick else list(Kind)
    for kind in kinds:
        plan = QUICK if quick else SECOND if done else Plan()
        results = Results(kind.value, plan.size.messages)
        done.append(results)
        try:
            uvloop.run(bounded(_measured(plan, results, only), LONGEST))
        finally:  # what was measured before something broke is true all the same
            report.shown(results)
            if json:
                report.written(done, json)


async def _measured(plan: Plan, results: Results, only: str) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="merganser-bench-") as folder,
        Progress(console=Console(stderr=True), transient=True) as bar,
    ):
        async with sides(plan.size, Kind(results.store), Path(folder), bar) as both:
            try:
                await _all(plan, both, results, only, bar)
            finally:
                results.errors = broken(both.log)
    await _alone(plan, results, only)


async def _alone(plan: Plan, results: Results, only: str) -> None:
    """What has servers and stores of its own, without a floor."""
    kind, seconds = Kind(results.store), plan.seconds
    if only in user_lists.NAME:
        with tempfile.TemporaryDirectory(prefix="merganser-crowd-") as folder:
            results.lines += await user_lists.measured(
                kind, Path(folder), many=plan.accounts, seconds=seconds
            )
    for many in plan.searched if only in text_search.NAME else ():
        with tempfile.TemporaryDirectory(prefix="merganser-searches-") as folder:
            results.lines += await text_search.measured(
                kind, Path(folder), many=many, seconds=seconds
            )
    if only in clients.NAME:
        with tempfile.TemporaryDirectory(prefix="merganser-clients-") as folder:
            results.lines += await clients.measured(
                kind, Path(folder), many=plan.clients, seconds=seconds
            )
    if only in large_mailboxes.NAME:
        with tempfile.TemporaryDirectory(prefix="merganser-folders-") as folder:
            lines, facts = await large_mailboxes.measured(
                kind, Path(folder), size=plan.boxes, seconds=seconds
            )
            results.lines += lines
            results.facts += facts
    await _followed(plan, results, only)


async def _followed(plan: Plan, results: Results, only: str) -> None:
    """Many accounts that are followed, a long journal, and what writing it takes."""
    works = {
        change_latency.NAME: partial(change_latency.measured, size=plan.followed),
        behind.NAME: partial(behind.measured, many=plan.behind),
        connector_fetch.NAME: partial(connector_fetch.measured, many=plan.fetched),
        many_tokens.NAME: partial(many_tokens.measured, rounds=plan.asked),
        queue_claims.NAME: partial(queue_claims.measured, many=plan.waiting),
        outbound_delivery.NAME: partial(outbound_delivery.measured, many=plan.sent),
        message_submission.NAME: partial(message_submission.measured, seconds=plan.seconds),
        journal_cost.NAME: partial(journal_cost.measured, rounds=plan.rounds),
        filtered_delivery.NAME: partial(filtered_delivery.measured, size=plan.rules),
        large_message.NAME: partial(
            large_message.measured,
            many=plan.rules.large,
            seconds=(plan.rules.rounds, plan.rules.seconds),
        ),
    }
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for name, work in works.items():
            if only in name:
                with tempfile.TemporaryDirectory(prefix="merganser-live-") as folder:
                    results.facts += await work(Kind(results.store), Path(folder), bar=bar)


async def _all(plan: Plan, both: Sides, results: Results, only: str, bar: Progress) -> None:
    if only in LIVE:  # first: memory that was needed once stays with the process
        results.facts += await _live(plan, both, bar)
    if only in DELIVERY:
        await _deliveries(plan, both, results, bar)
    found = await works(both, plan.page)
    for work in found:
        if only in work.name:
            await _requests(plan, both, work, results, bar)
    if only in INSIDE:
        results.facts += await both.inside()
    page = next(work for work in found if work.name == PAGE)
    if only in LOGINS:
        results.facts += await sign_ins.measured(both.ours, both.env, page.ours, plan.seconds)
    if only in HALF_OPEN:
        results.facts += await half_open_connections.noticed(both.ours, page.ours, plan.seconds)


async def _requests(plan: Plan, both: Sides, work: Work, results: Results, bar: Progress) -> None:
    task = bar.add_task(work.name, total=len(plan.connections))
    for connections in plan.connections:

        async def measured(
            target: Target, requests: Iterator[bytes], many: int = connections
        ) -> Figure:
            return await loaded(
                target, requests, connections=many, seconds=plan.seconds, least=plan.least
            )

        floor = await measured(both.floor, work.floor)
        ours = await measured(both.ours, work.ours)
        plain = None
        if work.plain and connections == AT:
            plain = await measured(both.plain, work.plain)
        results.lines.append(Line(work.name, ours, floor, plain))
        await settled(both.ours.pid)
        bar.advance(task)
    bar.remove_task(task)


async def _deliveries(plan: Plan, both: Sides, results: Results, bar: Progress) -> None:
    letters = _letters(LETTER)
    task = bar.add_task(DELIVERY, total=len(plan.neighbours))
    for connections in plan.neighbours:
        floor, ours = [
            await lmtp_client.delivered(
                target, letters, TAKER, connections=connections, seconds=plan.seconds
            )
            for target in (both.floor_lmtp, both.lmtp)
        ]
        before = cpu(both.ours.pid)
        await settled(both.ours.pid)
        behind = (cpu(both.ours.pid) - before) * 1e6 / max(ours.count, 1)
        results.lines.append(Line(DELIVERY, replace(ours, cpu_behind=behind), floor))
        bar.advance(task)
    bar.remove_task(task)


async def _live(plan: Plan, both: Sides, bar: Progress) -> list[Fact]:
    task = bar.add_task("subscribers", total=4)
    neighbour, letters = await lmtp_client.connected(both.lmtp.port), _letters(SMALL)
    target = replace(both.ours, secret=both.house.taker_secret)
    facts = await live_subscriptions.crowd(target, neighbour, letters, TAKER, plan.subscribers)
    bar.advance(task)
    facts += await live_subscriptions.latency(target, neighbour, letters, TAKER, plan.events)
    bar.advance(task)
    facts += await live_subscriptions.slow(target, neighbour, _letters(LARGE), TAKER, plan.unread)
    bar.advance(task)
    facts += await live_subscriptions.caught_up(both.ours, BEHIND)
    await neighbour.close()
    bar.remove_task(task)
    return facts


def _letters(size: int) -> Iterator[bytes]:
    writer = Writer(seed=size)
    return (writer.letter(number, size=size) for number in itertools.count())


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(bench)
    app()
