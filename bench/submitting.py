"""Letters that are handed in by messageSend: one in a request, many in one, and merged.

They are to go out in an hour: what is measured is building, storing and queuing them, with a
copy in Sent, and nothing is on its way meanwhile.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import repeat
from pathlib import Path
from typing import Any

from rich.progress import Progress

from bench.goals import HANDED_IN
from bench.house import READER, make_user
from bench.load import Target, loaded, once, post
from bench.measure import Fact
from bench.server import Server, broken, running, settled
from bench.sides import Kind, postgres
from merganser.building import opened, owner
from merganser.settings import Settings
from resolvers import apikeys
from resolvers.apikeys import NewKey

NAME = "letters handed in"
TEXT = "All ducks are to be counted before the frost, the geese behind them.\r\n" * 280
WAYS = {  # letters of a request, connections
    "one in a request": (1, 16),
    "20 in a request": (20, 8),
    "50 of a mail merge in a request": (-50, 4),
}
DONE = "{ errors { message } submission { queueId } }"


async def measured(kind: Kind, folder: Path, seconds: float, bar: Progress) -> list[Fact]:
    """How many are handed in in a second, and what CPU each takes."""
    url = postgres(folder) if kind is Kind.POSTGRES else None
    server = Server(folder / "submitting", url)
    settings = Settings(data=server.folder, store=url) if url else Settings(data=server.folder)
    task = bar.add_task(NAME, total=len(WAYS) + 1)
    async with opened(settings, migrate=True) as world:
        user = await make_user(world, READER, recipients=0)
        _, secret = await apikeys.create_key(owner(world), NewKey("bench", user_id=user.id))
    facts = []
    async with running(server.start) as pid:
        target = Target(server.http, pid, secret)
        await settled(pid)
        await _checked(target)
        bar.advance(task)
        for name, (many, connections) in WAYS.items():
            requests: Iterator[bytes] = repeat(post(target, "/graphql", asked(many)))
            figure = await loaded(target, requests, connections=connections, seconds=seconds)
            each = abs(many)
            facts.append(Fact(HANDED_IN.format(name), figure.rate * each, ""))
            facts.append(Fact(f"CPU of one, {name}", figure.cpu / each, "µs"))
            bar.advance(task)
    bar.remove_task(task)
    if problems := broken(server.folder / "server.log"):
        raise RuntimeError(f"the server logged: {problems[0]}")
    return facts


def asked(many: int) -> dict[str, Any]:
    """A request for so many letters; fewer than none are of one mail merge."""
    later = (datetime.now(UTC) + timedelta(days=365)).isoformat()  # none leaves meanwhile
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
    """See that what is measured succeeds. RuntimeError."""
    for many, _ in WAYS.values():
        answer = await once(target, "/graphql", asked(many))
        if any(one["errors"] or not one["submission"] for one in answer["data"].values()):
            raise RuntimeError(f"refused: {answer}")
