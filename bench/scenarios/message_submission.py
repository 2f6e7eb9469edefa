"""Measure messageSend: one message per request, many per request, and mail merge.

Once with a server of one process, and once with two. The messages are scheduled far ahead:
building, storing and queuing with a copy in Sent is measured, without delivery.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import repeat
from pathlib import Path
from typing import Any

from rich.progress import Progress

from bench.figures.goals import BATCHED, HANDED_IN
from bench.figures.measurements import Fact
from bench.load.http_client import Target, loaded, once, post
from bench.load.sample_account import READER, make_user
from bench.servers.compared_servers import Kind, postgres
from bench.servers.merganser_process import Server, broken, running, settled
from merganser.server.environment_factory import opened, owner
from merganser.settings.settings import Settings
from resolvers.auth import api_keys
from resolvers.auth.api_keys import NewKey

NAME = "letters handed in"
TEXT = "All ducks are to be counted before the frost, the geese behind them.\r\n" * 280
WAYS = {  # messages per request (negative: mail merge) and connections
    "one in a request": (1, 16),
    "20 in a request": (20, 8),
    BATCHED: (-50, 4),
}
PROCESSES = (1, 2)
DONE = "{ errors { message } submission { queueId } }"


async def measured(kind: Kind, folder: Path, seconds: float, bar: Progress) -> list[Fact]:
    """Return how many messages are submitted per second, and the CPU of each."""
    task = bar.add_task(NAME, total=len(PROCESSES) * (len(WAYS) + 1))
    facts = []
    for processes in PROCESSES:
        own = folder / f"{folder.name}-{processes}"
        url = postgres(own) if kind is Kind.POSTGRES else None
        words = ("--workers", str(processes)) if processes > 1 else ()
        server = Server(own, url, words=words)
        facts += await _handed_in(server, processes, seconds, lambda: bar.advance(task))
    bar.remove_task(task)
    return facts


async def _handed_in(
    server: Server, processes: int, seconds: float, done: Callable[[], None]
) -> list[Fact]:
    url = server.store
    settings = Settings(data=server.folder, store=url) if url else Settings(data=server.folder)
    async with opened(settings, migrate=True) as world:
        user = await make_user(world, READER, recipients=0)
        _, secret = await api_keys.create_key(owner(world), NewKey("bench", user_id=user.id))
    facts = []
    async with running(server.start) as pid:
        target = Target(server.http, pid, secret)
        await settled(pid)
        await _checked(target)
        done()
        for way, (many, connections) in WAYS.items():
            requests: Iterator[bytes] = repeat(post(target, "/graphql", asked(many)))
            figure = await loaded(target, requests, connections=connections, seconds=seconds)
            each, name = abs(many), way if processes == 1 else f"{way}, {processes} processes"
            facts.append(Fact(HANDED_IN.format(name), figure.rate * each, ""))
            if processes == 1:  # of more processes the CPU is not summed up
                facts.append(Fact(f"CPU of one, {name}", figure.cpu / each, "µs"))
            done()
    if problems := broken(server.folder / "server.log"):
        raise RuntimeError(f"the server logged: {problems[0]}")
    return facts


def asked(many: int) -> dict[str, Any]:
    """Return a request for some messages; a negative number means one mail merge."""
    later = (datetime.now(UTC) + timedelta(days=365)).isoformat()  # none is due during the run
    letter: dict[str, Any] = {"subject": "Ducks", "text": TEXT, "sendTime": later}
    if many < 0:
        people = [{"to": [{"address": f"carol{n}@example.net"}]} for n in range(-many)]
        letter["merge"], many = people, 1
    else:
        letter["to"] = [{"address": "carol@example.net"}]
    fields = " ".join(f"n{n}: messageSend(input: $input) {DONE}" for n in range(many))
    query = f"mutation ($input: MessageSendInput!) {{ {fields} }}"
    return {"query": query, "variables": {"input": letter}}


async def _checked(target: Target) -> None:
    """Raise RuntimeError if one of the requests is refused."""
    for many, _ in WAYS.values():
        answer = await once(target, "/graphql", asked(many))
        if any(one["errors"] or not one["submission"] for one in answer["data"].values()):
            raise RuntimeError(f"refused: {answer}")
