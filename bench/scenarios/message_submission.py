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

from bench.figures.goals import MAIL_MERGE, SUBMISSION_RATE
from bench.figures.measurements import MeasuredValue
from bench.load.http_client import BenchmarkTarget, encode_post_request, measure_load, request_json
from bench.load.sample_account import READER_ADDRESS, create_user
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
from resolvers.users.limit_values import Unlimited

TITLE = "message submission"
TEXT = "All ducks are to be counted before the frost, the geese behind them.\r\n" * 280
REQUEST_SHAPES = {  # messages per request (negative: mail merge) and connections
    "one per request": (1, 16),
    "20 per request": (20, 8),
    MAIL_MERGE: (-50, 4),
}
PROCESS_COUNTS = (1, 2)
PAYLOAD_FIELDS = "{ errors { message } submissions { queueId } }"


async def measure_submission(
    database_kind: DatabaseKind, folder: Path, seconds: float, progress: Progress
) -> list[MeasuredValue]:
    """Return how many messages are submitted per second, and the CPU of each."""
    task = progress.add_task(TITLE, total=len(PROCESS_COUNTS) * (len(REQUEST_SHAPES) + 1))
    facts = []
    for processes in PROCESS_COUNTS:
        own = folder / f"{folder.name}-{processes}"
        url = start_database(database_kind, own)
        serve_options = ("--workers", str(processes)) if processes > 1 else ()
        server = MerganserServer(own, url, serve_arguments=serve_options)
        facts += await _measure_server(server, processes, seconds, lambda: progress.advance(task))
    progress.remove_task(task)
    return facts


async def _measure_server(
    server: MerganserServer, process_count: int, seconds: float, advance: Callable[[], None]
) -> list[MeasuredValue]:
    url = server.database_url
    settings = (
        Settings(data=server.data_folder, database_url=url)
        if url
        else Settings(data=server.data_folder)
    )
    async with open_environment(settings, migrate=True) as environment:
        user = await create_user(
            environment, READER_ADDRESS, recipients_per_day=Unlimited.UNLIMITED
        )
        _, secret = await api_key_mutations.create_api_key(
            root_context(environment), NewApiKey("bench", user_id=user.id)
        )
    facts = []
    async with run_until_exit(server.start) as pid:
        target = BenchmarkTarget(server.http_port, pid, secret)
        await wait_until_idle(pid)
        await _require_success(target)
        advance()
        for shape_name, (many, connections) in REQUEST_SHAPES.items():
            requests: Iterator[bytes] = repeat(
                encode_post_request(target, "/graphql", request_body(many))
            )
            figure = await measure_load(
                target, requests, connection_count=connections, seconds=seconds
            )
            each = abs(many)
            name = shape_name if process_count == 1 else f"{shape_name}, {process_count} processes"
            facts.append(MeasuredValue(SUBMISSION_RATE.format(name), figure.rate * each, ""))
            if process_count == 1:  # of more processes the CPU is not summed up
                facts.append(
                    MeasuredValue(f"CPU per submitted message, {name}", figure.cpu / each, "µs")
                )
            advance()
    if problems := logged_errors(server.data_folder / "server.log"):
        raise RuntimeError(f"the server logged: {problems[0]}")
    return facts


def request_body(message_count: int) -> dict[str, Any]:
    """Return a request for some messages; a negative number means one mail merge."""
    later = (datetime.now(UTC) + timedelta(days=365)).isoformat()  # none is due during the run
    message: dict[str, Any] = {"subject": "Ducks", "text": TEXT, "sendAt": later}
    if message_count < 0:
        people = [{"to": [{"address": f"carol{n}@example.net"}]} for n in range(-message_count)]
        message["mailMerge"], message_count = people, 1
    else:
        message["to"] = [{"address": "carol@example.net"}]
    fields = " ".join(
        f"n{n}: messageSend(input: $input) {PAYLOAD_FIELDS}" for n in range(message_count)
    )
    query = f"mutation ($input: MessageSendInput!) {{ {fields} }}"
    return {"query": query, "variables": {"input": message}}


async def _require_success(target: BenchmarkTarget) -> None:
    """Raise RuntimeError if one of the requests is refused."""
    for many, _ in REQUEST_SHAPES.values():
        answer = await request_json(target, "/graphql", request_body(many))
        if any(one["errors"] or not one["submissions"] for one in answer["data"].values()):
            raise RuntimeError(f"refused: {answer}")
