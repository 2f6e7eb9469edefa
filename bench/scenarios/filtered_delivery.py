"""Measure the cost of filters and scripts for deliveries, and the latency during a large message.

`python -m bench.scenarios.filtered_delivery PORT COUNT` delivers large messages in a process of
its own, so that the measuring process does not wait for it.
"""

import asyncio
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from bench.figures.goals import DELIVERY_SLOWDOWN, MEMORY_OF_LARGE, P99_DURING_LARGE
from bench.figures.measurements import LoadFigure, MeasuredValue
from bench.load.http_client import BenchmarkTarget, request_json
from bench.load.lmtp_client import connect, measure_deliveries
from bench.load.sample_account import create_user
from bench.scenarios import large_message
from bench.servers.compared_servers import DatabaseKind, start_database
from bench.servers.merganser_process import (
    MerganserServer,
    logged_errors,
    run_until_exit,
    wait_until_idle,
)
from merganser.server.environment_factory import open_environment, root_context
from merganser.settings.settings import Settings
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey

TITLE = "deliveries with filters, and during large messages"
WITHOUT_RULES, FILTERS, SCRIPT = "without filters", "20 filters", "Sieve script of 200 lines"
ADDRESSES = {
    WITHOUT_RULES: "plain@bench.example",
    FILTERS: "forms@bench.example",
    SCRIPT: "script@bench.example",
}
MESSAGE_SIZE = 20_000  # bytes
CONNECTION_COUNT = 4  # connections
FILTER_MUTATION = """mutation ($input: FilterCreateInput!) {
  filterCreate(input: $input) { errors { message } } }"""
SCRIPT_MUTATION = """mutation ($input: SieveScriptSetInput!) {
  sieveScriptSet(input: $input) { errors { message } } }"""


@dataclass(frozen=True, slots=True)
class FilteredDeliverySize:
    """The extent of the measurement."""

    rounds: int = 10  # per account
    round_seconds: float = 1.0
    large_message_count: int = 6  # of 50 MiB, in sequence


async def measure_filtered_delivery(
    database_kind: DatabaseKind, folder: Path, size: FilteredDeliverySize, progress: Progress
) -> list[MeasuredValue]:
    """Measure the slowdown by filters, then memory and latency during large messages."""
    url = start_database(database_kind, folder)
    server = MerganserServer(folder / "ruled", url)
    settings = (
        Settings(data=server.data_folder, database_url=url)
        if url
        else Settings(data=server.data_folder)
    )
    task = progress.add_task(TITLE, total=size.rounds + 2)
    secrets = {}
    async with open_environment(settings, migrate=True) as environment:
        for name, address in ADDRESSES.items():
            user = await create_user(environment, address)
            _, secrets[name] = await api_key_mutations.create_api_key(
                root_context(environment), NewApiKey("bench", user_id=user.id)
            )
    async with run_until_exit(server.start) as pid:
        targets = {
            name: BenchmarkTarget(server.http_port, pid, secret) for name, secret in secrets.items()
        }
        await _create_filters_and_script(targets)
        lmtp = BenchmarkTarget(server.lmtp_port, pid)
        messages = large_message.small_messages(MESSAGE_SIZE)
        figures = dict[str, list[LoadFigure]]()
        for _ in range(size.rounds):
            for name, address in ADDRESSES.items():
                figures.setdefault(name, []).append(
                    await measure_deliveries(
                        lmtp,
                        messages,
                        address,
                        connection_count=CONNECTION_COUNT,
                        seconds=size.round_seconds,
                    )
                )
                await wait_until_idle(pid)
            progress.advance(task)
        facts = [*_slowdown_values(figures), *await _measure_during_large(lmtp, size)]
        progress.advance(task, 2)
    progress.remove_task(task)
    if problems := logged_errors(server.data_folder / "server.log"):
        raise RuntimeError(f"the server logged: {problems[0]}")
    return facts


async def _send_mutation(
    target: BenchmarkTarget, query: str, mutation_input: Mapping[str, Any]
) -> None:
    answer = await request_json(
        target, "/graphql", {"query": query, "variables": {"input": mutation_input}}
    )
    (payload,) = answer["data"].values()
    if payload["errors"]:
        raise RuntimeError(f"refused: {payload['errors']}")


async def _create_filters_and_script(targets: Mapping[str, BenchmarkTarget]) -> None:
    """Create 20 filters for one account, one of which matches, and a script for another."""
    for number in range(20):
        action = {"keywords": [f"l{number}"]} if number % 2 else {"flag": True, "stop": False}
        await _send_mutation(
            targets[FILTERS], FILTER_MUTATION, {"query": _filter_query(number), "action": action}
        )
    parameters = {"name": "bench", "content": make_script(), "activate": True}
    await _send_mutation(targets[SCRIPT], SCRIPT_MUTATION, parameters)


def _filter_query(number: int) -> dict[str, Any]:
    """Return a realistic filter query; the last one matches."""
    searched_text = f"project {number}"
    if number == 19:  # noqa: PLR2004 - the last of twenty
        return {"larger": 100}
    kinds: list[dict[str, Any]] = [
        {"from": f"person{number}@example.net"},
        {"subject": searched_text, "larger": 100_000},
        {"toOrCc": f"list{number}@example.net"},
        {"listId": searched_text},
        {"header": {"name": "X-Project", "value": searched_text}},
        {"text": searched_text},
        {"any": [{"subject": searched_text}, {"from": searched_text}], "not": [{"subject": "Re:"}]},
    ]
    return kinds[number % len(kinds)]


def make_script() -> str:
    """Return a Sieve script of 200 lines of which only the last rule matches."""
    lines = ['require ["fileinto", "imap4flags", "body", "envelope"];', ""]
    tests = (
        'header :contains "Subject" ["project {0}", "task {0}"]',
        'address :is :domain "From" "example{0}.net"',
        'anyof (header :contains "List-Id" "list{0}", exists "X-List-{0}")',
        'envelope :all "from" "person{0}@example.net"',
        'header :matches "Subject" "*[*{0}]*"',
        "not size :over 10",
        'body :contains "a word that nobody writes {0}"',
    )
    for number in range(49):
        test = tests[number % len(tests)].format(number)
        lines += [f"if {test} {{", f'    addflag "n{number}";', '    fileinto "INBOX"; stop;', "}"]
    return "\r\n".join([*lines, "keep;", 'addflag "last";'][:200])


def _slowdown_values(figures: Mapping[str, list[LoadFigure]]) -> Iterator[MeasuredValue]:
    """Yield how much slower deliveries are than without filters, round by round."""
    for name in (FILTERS, SCRIPT):
        pairs = list(zip(figures[name], figures[WITHOUT_RULES], strict=True))
        slower = statistics.median(
            unfiltered.rate / filtered.rate - 1 for filtered, unfiltered in pairs
        )
        cpu = statistics.median(filtered.cpu / unfiltered.cpu - 1 for filtered, unfiltered in pairs)
        yield MeasuredValue(f"{DELIVERY_SLOWDOWN}, {name}", slower * 100, "%")
        yield MeasuredValue(f"additional CPU of a delivery, {name}", cpu * 100, "%")
    for name, figure in figures.items():
        rate = statistics.median(figure.rate for figure in figure)
        yield MeasuredValue(f"deliveries of 20 KB per second, {name}", rate, "")


async def _measure_during_large(
    lmtp: BenchmarkTarget, size: FilteredDeliverySize
) -> list[MeasuredValue]:
    """Measure small messages alone and during large ones, and the memory of the large ones."""
    command = (
        sys.executable,
        "-m",
        "bench.scenarios.filtered_delivery",
        str(lmtp.port),
        str(size.large_message_count),
    )
    rounds = size.rounds, size.round_seconds
    times, above = await large_message.measure_during_large(
        lmtp, command, ADDRESSES[WITHOUT_RULES], rounds
    )
    return [
        MeasuredValue(P99_DURING_LARGE, times, "times"),
        MeasuredValue(MEMORY_OF_LARGE, above, "MiB"),
    ]


async def _deliver_large_messages(lmtp_port: int, message_count: int) -> None:
    raw = large_message.large_message()
    connection = await connect(lmtp_port)
    for number in range(message_count):
        reply = await connection.deliver(ADDRESSES[SCRIPT], b"X-Number: %d\r\n" % number + raw)
        if not reply.startswith("250"):
            raise RuntimeError(f"not delivered: {reply}")
    await connection.close()


if __name__ == "__main__":
    asyncio.run(_deliver_large_messages(*map(int, sys.argv[1:3])))
