"""GraphQL clients and deliveries on the store of an environment, without a server process."""

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from graph.app import create_app
from mail.smtp.lmtp import start_lmtp_listener
from models.runtime.environment import Environment
from tests.support.mail_servers.lmtp_client import connect_lmtp
from tests.support.mail_servers.lmtp_transactions import deliver_message

CLOSE_SECONDS = 1


@dataclass(frozen=True)
class StoreClient:
    """A GraphQL client that signs in with an API key."""

    http: httpx.AsyncClient
    secret: str

    async def execute(self, document: str, **variables: Any) -> Any:
        """Execute a document and return its data. Fails on GraphQL errors."""
        response = await self.http.post(
            "/graphql",
            json={"query": document, "variables": variables},
            headers={"Authorization": f"Bearer {self.secret}"},
        )
        result = response.json()
        assert "errors" not in result, (document, result["errors"])
        return result["data"]

    async def mutate(self, name: str, fields: str = "__typename", /, **input_values: Any) -> Any:
        """Run a mutation and return its payload. Fails on errors in the payload."""
        input_type = f"{name[0].upper()}{name[1:]}Input"
        document = (
            f"mutation ($input: {input_type}!) {{ {name}(input: $input) "
            f"{{ {fields} errors {{ code message path }} }} }}"
        )
        payload = (await self.execute(document, input=input_values))[name]
        errors = payload.pop("errors")
        assert errors == [], (name, errors)
        return payload


@contextlib.asynccontextmanager
async def open_store_http(
    environment: Environment, spool_folder: Path
) -> AsyncGenerator[httpx.AsyncClient]:
    """Yield an HTTP client of the GraphQL endpoint on this store. The spool folder must exist."""
    app = create_app(environment, spool_folder=spool_folder)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://store") as http:
        yield http
    await app.end_subscriptions()


async def deliver_by_lmtp(
    environment: Environment, spool_folder: Path, raw: bytes, *recipients: str
) -> list[str]:
    """Deliver a message by LMTP and return the reply for each recipient."""
    listener = await start_lmtp_listener(environment, "127.0.0.1", 0, spool_folder=spool_folder)
    try:
        client = await connect_lmtp(listener.port)
        try:
            return await deliver_message(client, raw, *recipients, sender="carol@example.com")
        finally:
            await client.close()
    finally:
        await listener.close(CLOSE_SECONDS)
