"""Measure the CPU time of the exchange of an authorization code for tokens.

Each request has the secret of a client and the verifier of PKCE. The response has an access token,
a refresh token and a signed ID token.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from rich.progress import Progress
from sqlalchemy import select
from sqlmodel import col

from bench.figures.goals import CODE_EXCHANGE_CPU
from bench.figures.measurements import MeasuredValue, percentile
from bench.load.sample_account import create_user
from bench.load.user_rows import insert_rows
from bench.scenarios.sign_ins import open_connections
from bench.servers.compared_servers import DatabaseKind, server_settings, start_database
from bench.servers.merganser_process import (
    MerganserServer,
    cpu_seconds_precise,
    run_until_exit,
    wait_until_idle,
)
from bench.servers.ports import HOST
from merganser.server.environment_factory import open_environment, root_context
from models.base64url import encode_base64url
from models.oauth.tables import (
    OauthAuthorizationCode,
    OauthClient,
    OauthGrant,
    OauthGrantType,
    OauthScope,
)
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.auth.credential_status import generate_secret, secret_digest
from resolvers.oauth.clients import NewOauthClient, create_client
from resolvers.oauth.token_rows import CODE_PREFIX

TITLE = "operations: exchange of OAuth codes"
EXCHANGE_COUNT, WARM_UP_COUNT = 400, 40
USER_COUNT = 20
REDIRECT_URI = "https://webmail.bench.example/callback"
VERIFIER = "v" * 43
SCOPES = [OauthScope.OPENID, OauthScope.EMAIL, OauthScope.MAIL]


@dataclass(frozen=True, slots=True)
class ClientWithCodes:
    """The credentials of a client, and codes that were made for it."""

    client_id: str
    client_secret: str
    codes: Sequence[str]

    def exchange_request(self, port: int, code: str) -> bytes:
        """Return the HTTP request that exchanges a code."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": REDIRECT_URI,
            "code_verifier": VERIFIER,
            "client_id": self.client_id,
            "client_secret": self.client_secret,
        }
        body = urlencode(form).encode()
        head = (
            f"POST /oauth/token HTTP/1.1\r\nHost: {HOST}:{port}\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


async def measure_code_exchange(
    database_kind: DatabaseKind, folder: Path, exchange_count: int, progress: Progress
) -> list[MeasuredValue]:
    """Return the median CPU time of the server, without the database on PostgreSQL.

    Raises RuntimeError if a request returns no tokens.
    """
    url = start_database(database_kind, folder)
    server = MerganserServer(folder / "data", url)
    server.extra_environment = {
        "MERGANSER_PUBLIC_URL": f"http://{HOST}:{server.http_port}",
        "MERGANSER_COST_BUDGET_ANONYMOUS": "0",
    }
    async with open_environment(server_settings(server), migrate=True) as environment:
        client = await insert_client_with_codes(environment, WARM_UP_COUNT + exchange_count)
    seconds = list[float]()
    task = progress.add_task(TITLE, total=len(client.codes))
    async with (
        run_until_exit(server.start) as pid,
        open_connections(server.http_port, 1) as (connection,),
    ):
        await wait_until_idle(pid)
        for code in client.codes:
            before = cpu_seconds_precise(pid)
            response = await connection.send_request(
                client.exchange_request(server.http_port, code)
            )
            seconds.append(cpu_seconds_precise(pid) - before)
            if not response.startswith(b"HTTP/1.1 200") or b'"id_token"' not in response:
                raise RuntimeError(f"unexpected response: {response[:2000]!r}")
            progress.advance(task)
    progress.remove_task(task)
    median = percentile(seconds[WARM_UP_COUNT:], 0.5)
    return [MeasuredValue(CODE_EXCHANGE_CPU, median * 1e3, "ms")]


async def insert_client_with_codes(environment: Environment, code_count: int) -> ClientWithCodes:
    """Create a client, users who have given it access, and a code for each exchange."""
    new_client = NewOauthClient("Webmail", [REDIRECT_URI], list(OauthGrantType), SCOPES)
    created = await create_client(root_context(environment), new_client)
    (client,) = await environment.database.read(select(col(OauthClient.client_id)))
    users = [
        await create_user(environment, f"oauth{number}@bench.example")
        for number in range(USER_COUNT)
    ]
    grant_ids = [environment.new_id() for _ in users]
    now = environment.now()
    grant_rows = (
        {
            "id": grant_id,
            "user_id": user.id,
            "client_id": created.row_id,
            "scopes": SCOPES,
            "created_at": now,
        }
        for grant_id, user in zip(grant_ids, users, strict=True)
    )
    await insert_rows(environment, OauthGrant, grant_rows)
    codes = [generate_secret(environment, CODE_PREFIX) for _ in range(code_count)]
    code_rows = (
        _code_row(environment, code, users[number % USER_COUNT], grant_ids[number % USER_COUNT])
        for number, code in enumerate(codes)
    )
    await insert_rows(environment, OauthAuthorizationCode, code_rows)
    return ClientWithCodes(client.client_id, created.secret or "", codes)


def _code_row(environment: Environment, code: str, user: User, grant_id: int) -> dict[str, Any]:
    now = environment.now()
    return {
        "id": environment.new_id(),
        "digest": secret_digest(code),
        "page_digest": secret_digest(f"page {code}"),
        "grant_id": grant_id,
        "scopes": SCOPES,
        "redirect_uri": REDIRECT_URI,
        "code_challenge": encode_base64url(hashlib.sha256(VERIFIER.encode()).digest()),
        "nonce": "n" * 43,
        "auth_version": user.auth_version,
        "signed_in_at": now,
        "created_at": now,
        "expires_at": now + timedelta(days=1),
    }
