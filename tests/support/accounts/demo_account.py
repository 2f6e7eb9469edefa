"""The demo account: in a server process, and in the store of a test."""

import smtplib
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from sqlmodel import select

from graph.execution.operation_execution import OperationContext
from graph.schema import schema
from merganser.demo.account import ensure_demo_accounts_with_messages
from merganser.demo.credentials import USERNAME, read_account_or_none
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.auth import authentication
from tests.conftest import GraphQLClient, raw_message
from tests.support.servers.merganser_server import MerganserProcess

DEMO_MESSAGE_COUNT = 120


@contextmanager
def run_demo_server(folder: Path) -> Generator[MerganserProcess]:
    """Run `merganser serve` on free ports with its data in `folder`, until the block ends.

    The store contains the demo account, and the users ada and bob with one message each.
    """
    # All tests of a module load GraphiQL from one address, faster than a person does.
    server = MerganserProcess(folder, extra_settings={"COST_BUDGET_ANONYMOUS": "0"})
    result = server.run_command("demo", "--count", str(DEMO_MESSAGE_COUNT))
    assert result.exit_code == 0, result.stderr
    account = read_account_or_none(folder / "var")
    assert account
    assert account.key
    server.secrets[USERNAME] = account.key
    server.create_users("ada", "bob")
    server.start()
    try:
        for name in ("ada", "bob"):
            send_by_lmtp(server, f"{name}@example.org", raw_message(f"Hello {name}"))
        yield server
    finally:
        server.stop()


def send_by_lmtp(
    server: MerganserProcess, to: str, raw: bytes, sender: str = "carol@example.com"
) -> None:
    """Deliver a message by LMTP."""
    with smtplib.LMTP("127.0.0.1", server.lmtp_port) as client:
        client.sendmail(sender, to, raw)


async def make_demo_client(
    environment: Environment, http: httpx.AsyncClient, folder: Path
) -> GraphQLClient:
    """Create the demo account as `merganser demo` does, and return a client of it."""
    accounts = await ensure_demo_accounts_with_messages(
        environment, folder, DEMO_MESSAGE_COUNT // 3, lambda _done, _total: None
    )
    account = accounts.user
    assert account.key
    async with environment.write_session() as session:
        user = (await session.exec(select(User).where(User.username == USERNAME))).one()
    return GraphQLClient(http, environment, user, account.key)


async def subscription_results(client: GraphQLClient, document: str) -> AsyncGenerator[Any]:
    """Yield the results of a subscription of this client."""
    viewer = await authentication.authenticate_request(
        client.environment, {"authorization": f"Bearer {client.secret}"}
    )
    context = OperationContext(client.environment, viewer)
    async for result in await schema.stream(document, context_value=context):
        yield result
