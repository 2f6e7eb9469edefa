"""`python -m bench`: measure a real server and the baseline server, in turn, in one run."""

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
from bench.figures.goals import GOAL_CONNECTIONS, INBOX_PAGE
from bench.figures.measurements import ComparedFigure, LoadFigure, MeasuredValue
from bench.figures.report import BenchmarkResults
from bench.load import lmtp_client
from bench.load.documents import Workload, build_workloads
from bench.load.http_client import BenchmarkTarget, measure_load
from bench.load.message_generator import MessageGenerator
from bench.load.sample_account import RECEIVER_ADDRESS
from bench.scenarios import (
    change_catch_up,
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
from bench.scenarios.operations import (
    ban_refusal,
    code_exchange,
    dashboard,
    delivery_log,
    log_entries,
    scim_creation,
    scim_lists,
    session_list,
    session_termination,
)
from bench.servers.compared_servers import (
    ComparedServers,
    DatabaseKind,
    SampleSize,
    start_compared_servers,
)
from bench.servers.merganser_process import (
    cpu_seconds,
    logged_errors,
    run_with_timeout,
    wait_until_idle,
)

DELIVERY, LIVE = "delivery of 20 KB by LMTP", "live updates and memory"
IN_PROCESS, HALF_OPEN, SIGN_INS = "inside the process", "half-open connections", "sign-ins"
DELIVERED_SIZE = 20_000  # bytes of a message in the delivery benchmark
RUN_TIMEOUT = 3600.0  # seconds
MISSED_CHANGE_COUNT = 30_000  # that a client reads page by page
LARGE_EVENT_SIZE = 24_000  # bytes of a message whose events slow subscribers get
SMALL_EVENT_SIZE = 2_000  # bytes of a message that only causes an event


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. SQLite takes about half an hour, a quick run some minutes."""

    sample: SampleSize = field(default_factory=SampleSize)
    page_number: int = 100  # of the inbox
    run_seconds: float = 3.0
    min_responses: int = 30  # of each run, which takes longer if necessary
    connection_counts: tuple[int, ...] = (1, 16, 64)
    lmtp_connection_counts: tuple[int, ...] = (1, 8, 32)
    event_count: int = 200
    subscriber_count: int = 1000
    stalled_message_count: int = 300  # messages delivered while subscribers don't read
    user_count: int = user_lists.USER_COUNT
    searched_message_counts: tuple[int, ...] = text_search.MESSAGE_COUNTS
    client_message_counts: tuple[int, ...] = clients.MESSAGE_COUNTS
    mailbox_size: large_mailboxes.LargeMailboxSize = field(
        default_factory=large_mailboxes.LargeMailboxSize
    )
    latency_size: change_latency.LatencySize = field(default_factory=change_latency.LatencySize)
    missed_change_count: int = 1_000_000  # of one account
    journal_rounds: int = 200  # of deliveries with and without the journal
    filter_size: filtered_delivery.FilteredDeliverySize = field(
        default_factory=filtered_delivery.FilteredDeliverySize
    )
    fetched_message_count: int = connector_fetch.MESSAGE_COUNT
    waiting_recipient_count: int = queue_claims.RECIPIENT_COUNT
    outbound_message_count: int = outbound_delivery.MESSAGE_COUNT
    token_rounds: int = many_tokens.ROUNDS  # requests of each access token
    socket_count: int = session_termination.SOCKET_COUNT
    session_count: int = session_list.SESSION_COUNT
    log_entry_count: int = log_entries.ENTRY_COUNT
    delivery_log_rounds: int = delivery_log.ROUNDS
    code_exchange_count: int = code_exchange.EXCHANGE_COUNT
    scim_creation_count: int = scim_creation.USER_COUNT
    refusal_size: ban_refusal.RefusalSize = field(default_factory=ban_refusal.RefusalSize)


QUICK_PLAN = Plan(
    sample=SampleSize(2000),
    page_number=20,
    run_seconds=0.4,
    min_responses=5,
    connection_counts=(1, 16),
    lmtp_connection_counts=(1, 8),
    event_count=20,
    subscriber_count=100,
    stalled_message_count=50,
    user_count=5000,
    searched_message_counts=(2000,),
    client_message_counts=(2000, 10_000),
    mailbox_size=large_mailboxes.LargeMailboxSize(2000, 50, 500),
    latency_size=change_latency.LatencySize(40, 20, 200, 2.0, 200),
    missed_change_count=20_000,
    journal_rounds=20,
    filter_size=filtered_delivery.FilteredDeliverySize(2, 0.3, 1),
    fetched_message_count=1000,
    waiting_recipient_count=2000,
    outbound_message_count=500,
    token_rounds=1,
    socket_count=100,
    session_count=2000,
    log_entry_count=20_000,
    delivery_log_rounds=4,
    code_exchange_count=100,
    scim_creation_count=200,
    refusal_size=ban_refusal.RefusalSize(200, 1.0, 1),
)
SECOND_DATABASE_PLAN = Plan(  # smaller sizes
    sample=SampleSize(5000),
    page_number=50,
    run_seconds=2.0,
    min_responses=20,
    connection_counts=(1, 16),
    lmtp_connection_counts=(1, 8),
    event_count=100,
    subscriber_count=500,
    stalled_message_count=150,
)


def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure little, in some minutes.")
    ] = False,
    store: Annotated[DatabaseKind | None, typer.Option(help="Database. Default: both.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures into this file.")] = None,
    only: Annotated[
        str, typer.Option(help="Measure only scenarios with this text in the name.")
    ] = "",
) -> None:
    """Compare Merganser with a hand-written baseline server and plain Strawberry."""
    all_results: list[BenchmarkResults] = []
    kinds = [store] if store else [DatabaseKind.SQLITE] if quick else list(DatabaseKind)
    for kind in kinds:
        plan = QUICK_PLAN if quick else SECOND_DATABASE_PLAN if all_results else Plan()
        results = BenchmarkResults(kind.value, plan.sample.message_count)
        all_results.append(results)
        try:
            uvloop.run(run_with_timeout(_measure_all(plan, results, only), RUN_TIMEOUT))
        finally:  # figures that were measured before an error are valid
            report.print_report(results)
            if json:
                report.write_json_report(all_results, json)


async def _measure_all(plan: Plan, results: BenchmarkResults, only: str) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="merganser-bench-") as folder,
        Progress(console=Console(stderr=True), transient=True) as bar,
    ):
        async with start_compared_servers(
            plan.sample, DatabaseKind(results.store), Path(folder), bar
        ) as servers:
            try:
                await _measure_compared(plan, servers, results, only, bar)
            finally:
                results.errors = logged_errors(servers.log_file)
    await _measure_uncompared(plan, results, only)


async def _measure_uncompared(plan: Plan, results: BenchmarkResults, only: str) -> None:
    """Measure scenarios that have their own servers and databases, without a baseline."""
    kind, seconds = DatabaseKind(results.store), plan.run_seconds
    if only in user_lists.TITLE:
        with tempfile.TemporaryDirectory(prefix="merganser-crowd-") as folder:
            results.lines += await user_lists.measure_user_lists(
                kind, Path(folder), user_count=plan.user_count, seconds=seconds
            )
    for many in plan.searched_message_counts if only in text_search.TITLE else ():
        with tempfile.TemporaryDirectory(prefix="merganser-searches-") as folder:
            results.lines += await text_search.measure_searches(
                kind, Path(folder), message_count=many, seconds=seconds
            )
    if only in clients.TITLE:
        with tempfile.TemporaryDirectory(prefix="merganser-clients-") as folder:
            results.lines += await clients.measure_client_documents(
                kind, Path(folder), message_counts=plan.client_message_counts, seconds=seconds
            )
    if only in large_mailboxes.TITLE:
        with tempfile.TemporaryDirectory(prefix="merganser-folders-") as folder:
            lines, facts = await large_mailboxes.measure_large_mailboxes(
                kind, Path(folder), size=plan.mailbox_size, seconds=seconds
            )
            results.lines += lines
            results.facts += facts
    await _measure_changes(plan, results, only)


async def _measure_changes(plan: Plan, results: BenchmarkResults, only: str) -> None:
    """Measure change streams, the journal, the queue and other scenarios with their own server."""
    scenarios = {
        change_latency.TITLE: partial(change_latency.measure_latency, size=plan.latency_size),
        change_catch_up.TITLE: partial(
            change_catch_up.measure_catch_up, change_count=plan.missed_change_count
        ),
        connector_fetch.TITLE: partial(
            connector_fetch.measure_fetch, message_count=plan.fetched_message_count
        ),
        many_tokens.TITLE: partial(many_tokens.measure_many_tokens, rounds=plan.token_rounds),
        queue_claims.TITLE: partial(
            queue_claims.measure_claims, recipient_count=plan.waiting_recipient_count
        ),
        outbound_delivery.TITLE: partial(
            outbound_delivery.measure_outbound_delivery, message_count=plan.outbound_message_count
        ),
        message_submission.TITLE: partial(
            message_submission.measure_submission, seconds=plan.run_seconds
        ),
        journal_cost.TITLE: partial(journal_cost.measure_journal_cost, rounds=plan.journal_rounds),
        filtered_delivery.TITLE: partial(
            filtered_delivery.measure_filtered_delivery, size=plan.filter_size
        ),
        large_message.TITLE: partial(
            large_message.measure_large_messages,
            message_count=plan.filter_size.large_message_count,
            rounds_and_seconds=(
                plan.filter_size.rounds,
                plan.filter_size.round_seconds,
            ),
        ),
        session_termination.TITLE: partial(
            session_termination.measure_session_termination, socket_count=plan.socket_count
        ),
        session_list.TITLE: partial(
            session_list.measure_session_lists, session_count=plan.session_count
        ),
        log_entries.TITLE: partial(
            log_entries.measure_log_entries, entry_count=plan.log_entry_count
        ),
        delivery_log.TITLE: partial(
            delivery_log.measure_delivery_log, rounds=plan.delivery_log_rounds
        ),
        scim_lists.TITLE: partial(scim_lists.measure_scim_lists, user_count=plan.user_count),
        scim_creation.TITLE: partial(
            scim_creation.measure_scim_creation, user_count=plan.scim_creation_count
        ),
        code_exchange.TITLE: partial(
            code_exchange.measure_code_exchange, exchange_count=plan.code_exchange_count
        ),
        ban_refusal.TITLE: partial(ban_refusal.measure_ban_refusal, size=plan.refusal_size),
        dashboard.TITLE: partial(dashboard.measure_dashboard, seconds=plan.run_seconds),
    }
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for name, measure in scenarios.items():
            if only in name:
                with tempfile.TemporaryDirectory(prefix="merganser-live-") as folder:
                    results.facts += await measure(
                        DatabaseKind(results.store), Path(folder), progress=bar
                    )


async def _measure_compared(
    plan: Plan, servers: ComparedServers, results: BenchmarkResults, only: str, bar: Progress
) -> None:
    if only in LIVE:  # first, because a process keeps the memory that it has once needed
        results.facts += await _measure_live(plan, servers, bar)
    if only in DELIVERY:
        await _measure_deliveries(plan, servers, results, bar)
    workloads = await build_workloads(servers, plan.page_number)
    for workload in workloads:
        if only in workload.name:
            await _measure_requests(plan, servers, workload, results, bar)
    if only in IN_PROCESS:
        results.facts += await servers.measure_in_process()
    page = next(workload for workload in workloads if workload.name == INBOX_PAGE)
    if only in SIGN_INS:
        results.facts += await sign_ins.measure_sign_ins(
            servers.merganser, servers.process_environment, page.merganser, plan.run_seconds
        )
    if only in HALF_OPEN:
        results.facts += await half_open_connections.measure_half_open_effect(
            servers.merganser, page.merganser, plan.run_seconds
        )


async def _measure_requests(
    plan: Plan,
    servers: ComparedServers,
    workload: Workload,
    results: BenchmarkResults,
    bar: Progress,
) -> None:
    task = bar.add_task(workload.name, total=len(plan.connection_counts))
    for connections in plan.connection_counts:

        async def measure_target(
            target: BenchmarkTarget, requests: Iterator[bytes], many: int = connections
        ) -> LoadFigure:
            return await measure_load(
                target,
                requests,
                connection_count=many,
                seconds=plan.run_seconds,
                min_responses=plan.min_responses,
            )

        baseline_figure = await measure_target(servers.baseline, workload.baseline)
        merganser_figure = await measure_target(servers.merganser, workload.merganser)
        strawberry_figure = None
        if workload.strawberry and connections == GOAL_CONNECTIONS:
            strawberry_figure = await measure_target(servers.strawberry, workload.strawberry)
        results.lines.append(
            ComparedFigure(workload.name, merganser_figure, baseline_figure, strawberry_figure)
        )
        await wait_until_idle(servers.merganser.pid)
        bar.advance(task)
    bar.remove_task(task)


async def _measure_deliveries(
    plan: Plan, servers: ComparedServers, results: BenchmarkResults, bar: Progress
) -> None:
    messages = _generate_messages(DELIVERED_SIZE)
    task = bar.add_task(DELIVERY, total=len(plan.lmtp_connection_counts))
    for connections in plan.lmtp_connection_counts:
        baseline_figure, merganser_figure = [
            await lmtp_client.measure_deliveries(
                target,
                messages,
                RECEIVER_ADDRESS,
                connection_count=connections,
                seconds=plan.run_seconds,
            )
            for target in (servers.baseline_lmtp, servers.lmtp)
        ]
        before = cpu_seconds(servers.merganser.pid)
        await wait_until_idle(servers.merganser.pid)
        cpu_after_response = (
            (cpu_seconds(servers.merganser.pid) - before) * 1e6 / max(merganser_figure.count, 1)
        )
        results.lines.append(
            ComparedFigure(
                DELIVERY,
                replace(merganser_figure, cpu_after_response=cpu_after_response),
                baseline_figure,
            )
        )
        bar.advance(task)
    bar.remove_task(task)


async def _measure_live(plan: Plan, servers: ComparedServers, bar: Progress) -> list[MeasuredValue]:
    task = bar.add_task(LIVE, total=4)
    lmtp_connection = await lmtp_client.connect(servers.lmtp.port)
    messages = _generate_messages(SMALL_EVENT_SIZE)
    target = replace(servers.merganser, bearer_token=servers.account.receiver_api_key)
    facts = await live_subscriptions.measure_subscribers(
        target, lmtp_connection, messages, RECEIVER_ADDRESS, plan.subscriber_count
    )
    bar.advance(task)
    facts += await live_subscriptions.measure_latency(
        target, lmtp_connection, messages, RECEIVER_ADDRESS, plan.event_count
    )
    bar.advance(task)
    facts += await live_subscriptions.measure_slow_subscribers(
        target,
        lmtp_connection,
        _generate_messages(LARGE_EVENT_SIZE),
        RECEIVER_ADDRESS,
        plan.stalled_message_count,
    )
    bar.advance(task)
    facts += await live_subscriptions.measure_catch_up(servers.merganser, MISSED_CHANGE_COUNT)
    await lmtp_connection.close()
    bar.remove_task(task)
    return facts


def _generate_messages(size: int) -> Iterator[bytes]:
    writer = MessageGenerator(seed=size)
    return (writer.make_message(number, size=size) for number in itertools.count())


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(bench)
    app()
