"""Measure the cost of filters and scripts for deliveries, and the latency beside a large message.

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

from bench.figures.goals import ABOVE, BESIDE, SLOWER
from bench.figures.measurements import Fact, Figure
from bench.load.http_client import Target, once
from bench.load.lmtp_client import connected, delivered
from bench.load.sample_account import make_user
from bench.scenarios import large_message
from bench.servers.compared_servers import Kind, postgres
from bench.servers.merganser_process import Server, broken, running, settled
from merganser.server.environment_factory import opened, owner
from merganser.settings.settings import Settings
from resolvers.auth import api_keys
from resolvers.auth.api_keys import NewKey

NAME = "deliveries with rules, and beside a large one"
PLAIN, FILTERS, SCRIPT = "plain", "20 filters", "a script of 200 lines"
ACCOUNTS = {
    PLAIN: "plain@bench.example",
    FILTERS: "forms@bench.example",
    SCRIPT: "script@bench.example",
}
LETTER = 20_000  # bytes
TOGETHER = 4  # connections
FILTER = """mutation ($input: FilterCreateInput!) {
  filterCreate(input: $input) { errors { message } } }"""
PUT = """mutation ($input: SieveScriptPutInput!) {
  sieveScriptPut(input: $input) { errors { message } } }"""


@dataclass(frozen=True, slots=True)
class Size:
    """The extent of the measurement."""

    rounds: int = 10  # per account
    seconds: float = 1.0
    large: int = 6  # of 50 MiB, in sequence


async def measured(kind: Kind, folder: Path, size: Size, bar: Progress) -> list[Fact]:
    """Measure the slowdown by filters, then memory and latency beside large messages."""
    url = postgres(folder) if kind is Kind.POSTGRES else None
    server = Server(folder / "ruled", url)
    settings = Settings(data=server.folder, store=url) if url else Settings(data=server.folder)
    task = bar.add_task(NAME, total=size.rounds + 2)
    secrets = {}
    async with opened(settings, migrate=True) as world:
        for name, address in ACCOUNTS.items():
            user = await make_user(world, address)
            _, secrets[name] = await api_keys.create_key(
                owner(world), NewKey("bench", user_id=user.id)
            )
    async with running(server.start) as pid:
        targets = {name: Target(server.http, pid, secret) for name, secret in secrets.items()}
        await _ruled(targets)
        lmtp = Target(server.lmtp, pid)
        letters, figures = large_message.small_letters(LETTER), dict[str, list[Figure]]()
        for _ in range(size.rounds):
            for name, address in ACCOUNTS.items():
                figures.setdefault(name, []).append(
                    await delivered(
                        lmtp, letters, address, connections=TOGETHER, seconds=size.seconds
                    )
                )
                await settled(pid)
            bar.advance(task)
        facts = [*_shares(figures), *await _beside(lmtp, size)]
        bar.advance(task, 2)
    bar.remove_task(task)
    if problems := broken(server.folder / "server.log"):
        raise RuntimeError(f"the server logged: {problems[0]}")
    return facts


async def _asked(target: Target, query: str, given: Mapping[str, Any]) -> None:
    answer = await once(target, "/graphql", {"query": query, "variables": {"input": given}})
    (payload,) = answer["data"].values()
    if payload["errors"]:
        raise RuntimeError(f"refused: {payload['errors']}")


async def _ruled(targets: Mapping[str, Target]) -> None:
    """Create 20 filters for one account, one of which matches, and a script for another."""
    for number in range(20):
        action = {"labels": [f"l{number}"]} if number % 2 else {"flag": True, "stop": False}
        await _asked(targets[FILTERS], FILTER, {"query": _query(number), "action": action})
    given = {"name": "bench", "content": script(), "activate": True}
    await _asked(targets[SCRIPT], PUT, given)


def _query(number: int) -> dict[str, Any]:
    """Return a realistic filter query; the last one matches."""
    word = f"project {number}"
    if number == 19:  # noqa: PLR2004 - the last of twenty
        return {"size": 100}
    kinds: list[dict[str, Any]] = [
        {"from": f"person{number}@example.net"},
        {"subject": word, "size": 100_000},
        {"to": f"list{number}@example.net"},
        {"listId": word},
        {"header": {"key": "X-Project", "value": word}},
        {"text": word},
        {"any": [{"subject": word}, {"from": word}], "not": [{"subject": "Re:"}]},
    ]
    return kinds[number % len(kinds)]


def script() -> str:
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


def _shares(figures: Mapping[str, list[Figure]]) -> Iterator[Fact]:
    """Yield how much slower deliveries are than plain ones, round by round."""
    for name in (FILTERS, SCRIPT):
        pairs = list(zip(figures[name], figures[PLAIN], strict=True))
        slower = statistics.median(plain.rate / ruled.rate - 1 for ruled, plain in pairs)
        cpu = statistics.median(ruled.cpu / plain.cpu - 1 for ruled, plain in pairs)
        yield Fact(f"{SLOWER}, {name}", slower * 100, "%")
        yield Fact(f"CPU of a delivery more than plain, {name}", cpu * 100, "%")
    for name, each in figures.items():
        rate = statistics.median(figure.rate for figure in each)
        yield Fact(f"deliveries of 20 KB in a second, {name}", rate, "")


async def _beside(lmtp: Target, size: Size) -> list[Fact]:
    """Measure small messages alone and beside large ones, and the memory of the large ones."""
    command = (
        sys.executable,
        "-m",
        "bench.scenarios.filtered_delivery",
        str(lmtp.port),
        str(size.large),
    )
    rounds = size.rounds, size.seconds
    times, above = await large_message.beside(lmtp, command, ACCOUNTS[PLAIN], rounds)
    return [Fact(BESIDE, times, "times"), Fact(ABOVE, above, "MiB")]


async def _large(port: int, many: int) -> None:
    raw = large_message.large_letter()
    neighbour = await connected(port)
    for number in range(many):
        reply = await neighbour.deliver(ACCOUNTS[SCRIPT], b"X-Number: %d\r\n" % number + raw)
        if not reply.startswith("250"):
            raise RuntimeError(f"not delivered: {reply}")
    await neighbour.close()


if __name__ == "__main__":
    asyncio.run(_large(*map(int, sys.argv[1:3])))
