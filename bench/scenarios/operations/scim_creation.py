"""Measure how fast a directory creates 1,000 users by SCIM, one request after the other.

The requests are sent to a server with the default rate limits.
"""

import time
from pathlib import Path

from rich.progress import Progress
from sqlalchemy import select
from sqlmodel import col

from bench.figures.goals import SCIM_CREATION_SECONDS
from bench.figures.measurements import MeasuredValue
from bench.load.http_client import BenchmarkTarget, encode_post_request
from bench.load.sample_account import create_user
from bench.scenarios.sign_ins import open_connections
from bench.servers.compared_servers import DatabaseKind, server_settings, start_database
from bench.servers.merganser_process import MerganserServer, cpu_seconds_precise, run_until_exit
from merganser.server.environment_factory import open_environment, root_context
from merganser.settings.settings import Settings
from models.domains.tables import Domain
from models.users.roles import Role, Scope
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey

TITLE = "operations: SCIM creation"
USER_COUNT = 1000
DOMAIN = "bench.example"
USER_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:User"


async def measure_scim_creation(
    database_kind: DatabaseKind, folder: Path, user_count: int, progress: Progress
) -> list[MeasuredValue]:
    """Return the seconds for all users, and the CPU time of the server for each one.

    Raises RuntimeError if a user is not created.
    """
    url = start_database(database_kind, folder)
    server = MerganserServer(folder / "data", url)
    for name in ("cost_budget_user", "cost_budget_admin"):
        default = Settings.model_fields[name].default
        server.extra_environment[f"MERGANSER_{name.upper()}"] = str(default)
    async with open_environment(server_settings(server), migrate=True) as environment:
        await create_user(environment, f"first@{DOMAIN}")
        (domain,) = await environment.database.read(select(col(Domain.id)))
        new_key = NewApiKey("scim", Role.ADMIN, scopes=[Scope.SCIM], domains=[domain.id])
        _, secret = await api_key_mutations.create_api_key(root_context(environment), new_key)
    task = progress.add_task(TITLE, total=user_count)
    async with (
        run_until_exit(server.start) as pid,
        open_connections(server.http_port, 1) as (connection,),
    ):
        target = BenchmarkTarget(server.http_port, pid, secret)
        started_at, cpu_before = time.perf_counter(), cpu_seconds_precise(pid)
        for number in range(user_count):
            response = await connection.send_request(encode_creation(target, number))
            if not response.startswith(b"HTTP/1.1 201"):
                raise RuntimeError(f"unexpected response: {response[:2000]!r}")
            progress.advance(task)
        seconds = time.perf_counter() - started_at
        cpu = cpu_seconds_precise(pid) - cpu_before
    progress.remove_task(task)
    return [
        MeasuredValue(SCIM_CREATION_SECONDS.format(user_count), seconds, "s"),
        MeasuredValue("… CPU of the server for each user", cpu / user_count * 1e3, "ms"),
    ]


def encode_creation(target: BenchmarkTarget, number: int) -> bytes:
    """Return the request that creates a user, with the attributes that directories send."""
    address = f"given{number}.family{number}@{DOMAIN}"
    body = {
        "schemas": [USER_SCHEMA],
        "userName": address,
        "externalId": f"00u{number:07}",
        "displayName": f"Given{number} Family{number}",
        "name": {"givenName": f"Given{number}", "familyName": f"Family{number}"},
        "emails": [{"value": address, "type": "work", "primary": True}],
        "active": True,
    }
    return encode_post_request(target, "/scim/v2/Users", body)
