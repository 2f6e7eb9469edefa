"""Measure the CPU time of lists of 10,000 open sessions.

The real endpoint runs in this process, without sockets, over a registry with the sessions of
users. A list that is requested once a second may use 1 % of a core, so 10 ms of CPU.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import orjson
from rich.progress import Progress

from bench.figures.goals import SESSION_LIST_CPU
from bench.figures.measurements import MeasuredValue, percentile
from bench.load.user_rows import insert_users
from bench.scenarios.in_process_request import endpoint_without_rate_limits, send_request
from bench.scenarios.queue_claims import gc_as_in_server
from bench.servers.compared_servers import DatabaseKind, server_settings, start_database
from bench.servers.merganser_process import MerganserServer
from graph.http.graphql_endpoint import GraphqlEndpoint
from merganser.server.environment_factory import open_environment, root_context
from models.runtime.environment import Environment
from models.sessions.live_sessions import SessionPeer, SessionService, SessionTermination
from models.users.roles import Role
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey

TITLE = "operations: session lists"
SESSION_COUNT = 10_000
SESSIONS_PER_USER = 3
WARM_UP_REQUESTS, MEASURED_REQUESTS = 5, 40
PEERS = [SessionPeer(f"192.0.2.{number}", False, "127.0.0.1", 8025) for number in range(256)]
DOCUMENTS = {
    "a page of sessions": """{ sessions(first: 100) { totalCount unresponsiveNodes
      pageInfo { endCursor hasNextPage } nodes { id user { username } service ip proxied
      destinationIp destinationPort node pid connectedAt lastActiveAt subscriptionCount } } }""",
    "a page of sessions of one network": """{ sessions(first: 100, filter:
      {network: "192.0.2.0/25"}) { totalCount nodes { id user { username } service ip } } }""",
    "a page of sessionSummaries": """{ sessionSummaries(first: 100) { unresponsiveNodes
      nodes { user { username } service connectionCount ips pids } } }""",
    "a page of sessionSummaries with totalCount": """{ sessionSummaries(first: 100) { totalCount
      unresponsiveNodes nodes { user { username } service connectionCount ips pids } } }""",
}


@dataclass(slots=True)
class SampleSession:
    """An open session without a connection."""

    session_id: int
    connected_at: datetime
    service: SessionService
    user_id: int | None
    peer: SessionPeer
    idle_seconds: float = 1.0
    subscription_count: int = 1

    def terminate(self, termination: SessionTermination) -> None:
        """Do nothing: no connection can end."""


def add_sample_sessions(environment: Environment, user_ids: Sequence[int], count: int) -> None:
    """Add sessions of users to the registry, most of them WebSockets."""
    services = (SessionService.WEBSOCKET, SessionService.WEBSOCKET, SessionService.SUBMISSION)
    now = environment.now()
    for number in range(count):
        environment.live_sessions.add(
            SampleSession(
                environment.new_id(),
                now - timedelta(milliseconds=number * 7919 % 3_600_000),
                services[number % len(services)],
                user_ids[number // SESSIONS_PER_USER % len(user_ids)],
                PEERS[number % len(PEERS)],
            )
        )


async def measure_session_lists(
    database_kind: DatabaseKind, folder: Path, session_count: int, progress: Progress
) -> list[MeasuredValue]:
    """Return the CPU time of one request of each list, as the median of some requests.

    On PostgreSQL it is the CPU time of the server process, without the database.
    """
    url = start_database(database_kind, folder)
    settings = server_settings(MerganserServer(folder / "data", url))
    task = progress.add_task(TITLE, total=len(DOCUMENTS))
    facts = list[MeasuredValue]()
    async with open_environment(settings, migrate=True) as environment:
        user_ids = await insert_users(environment, max(session_count // SESSIONS_PER_USER, 1))
        add_sample_sessions(environment, user_ids, session_count)
        new_key = NewApiKey("root", Role.ROOT)
        _, secret = await api_key_mutations.create_api_key(root_context(environment), new_key)
        endpoint = endpoint_without_rate_limits(environment)
        with gc_as_in_server():
            for name, document in DOCUMENTS.items():
                seconds = await _cpu_seconds_of_requests(endpoint, document, secret)
                list_name = SESSION_LIST_CPU.format(name, session_count)
                facts.append(MeasuredValue(list_name, percentile(seconds, 0.5) * 1e3, "ms"))
                progress.advance(task)
    progress.remove_task(task)
    return facts


async def _cpu_seconds_of_requests(
    endpoint: GraphqlEndpoint, document: str, api_key: str
) -> list[float]:
    """Return the CPU seconds of this process for each of some equal requests."""
    body = orjson.dumps({"query": document})
    seconds = list[float]()
    for number in range(WARM_UP_REQUESTS + MEASURED_REQUESTS):
        cpu_before = time.process_time()
        response = await send_request(endpoint, body, api_key)
        cpu = time.process_time() - cpu_before
        if b'"errors"' in response:
            raise RuntimeError(f"unexpected response: {response[:2000]!r}")
        if number >= WARM_UP_REQUESTS:
            seconds.append(cpu)
    return seconds
