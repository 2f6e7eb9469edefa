"""npm openid-client against a running server: examples/oauth/sign-in.ts."""

import asyncio
import json
import os
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from html import unescape
from typing import Any

from tests.conftest import GraphQLClient
from tests.support.clients import npm_programs
from tests.support.clients.plain_http import plain_client
from tests.support.oauth.oauth_flow import (
    PASSWORD,
    STATE_FIELD,
    add_client,
    set_password,
    set_public_url,
)
from tests.support.servers.live_server import LiveServer

STEP_TIMEOUT = 60.0  # seconds on a busy machine
LOOPBACK_URI = "http://127.0.0.1/callback"


@asynccontextmanager
async def run_sign_in(**variables: str) -> AsyncGenerator[asyncio.StreamReader]:
    """Run the program, and yield its output; it must end by itself with exit code 0."""
    npm_programs.require_installed()
    process = await asyncio.create_subprocess_exec(
        npm_programs.node_path(),
        str(npm_programs.EXAMPLES / "oauth" / "sign-in.ts"),
        cwd=npm_programs.EXAMPLES,
        env={"PATH": os.environ["PATH"], "NO_COLOR": "1", **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert process.stdout
        yield process.stdout
        async with asyncio.timeout(STEP_TIMEOUT):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def read_step(output: asyncio.StreamReader, name: str) -> Any:
    """The values of the next step of the program, which must have this name."""
    async with asyncio.timeout(STEP_TIMEOUT):
        line = await output.readline()
    assert line.startswith(b"{"), line + await output.read()
    values = json.loads(line)
    assert values.pop("step") == name
    return values


async def sign_in_in_browser(url: str, origin: str) -> None:
    """Sign in and allow access, and follow the redirect to the program."""
    async with plain_client(base_url=origin, headers={"Origin": origin}) as http:
        page = await http.get(url)
        for fields in ({"username": "ada", "password": PASSWORD}, {"choice": "allow"}):
            match = STATE_FIELD.search(page.text)
            assert match is not None, page.text
            form = {"state": unescape(match[1]), **fields}
            page = await http.post("/oauth/authorize", data=form)
        assert (await http.get(page.headers["location"])).is_success


async def test_client_with_a_secret_signs_in_refreshes_introspects_and_revokes(
    ada: GraphQLClient, live_server: LiveServer
) -> None:
    origin = f"http://127.0.0.1:{live_server.port}"
    set_public_url(ada.environment, origin)
    await set_password(ada.environment, ada.user.id)
    client = await add_client(ada.environment, redirect_uris=[LOOPBACK_URI])
    secret = client.secret or ""
    async with run_sign_in(
        ISSUER=origin,
        CLIENT_ID=client.client_id,
        CLIENT_SECRET=secret,
        PROMPT="login consent",
        MAX_AGE="300",
    ) as output:
        await sign_in_in_browser((await read_step(output, "open"))["url"], origin)
        signed_in = await read_step(output, "signed in")
        claims = signed_in["claims"]
        assert (claims["iss"], claims["email"]) == (origin, "ada@example.org")
        assert signed_in["scope"] == "openid profile email mail_read"
        userinfo = await read_step(output, "userinfo")
        assert (userinfo["sub"], userinfo["preferred_username"]) == (claims["sub"], "ada")
        assert (await read_step(output, "refreshed"))["isNew"]
        introspection = await read_step(output, "introspection")
        assert (introspection["active"], introspection["client_id"]) == (True, client.client_id)
        assert (await read_step(output, "revoked"))["error"] == "invalid_grant"


async def test_client_registers_itself_and_signs_in(
    ada: GraphQLClient, live_server: LiveServer
) -> None:
    origin = f"http://127.0.0.1:{live_server.port}"
    set_public_url(ada.environment, origin, oauth_registration=True)
    await set_password(ada.environment, ada.user.id)
    async with run_sign_in(ISSUER=origin, SCOPE="openid") as output:
        await sign_in_in_browser((await read_step(output, "open"))["url"], origin)
        signed_in = await read_step(output, "signed in")
        assert signed_in["scope"] == "openid"
        assert re.fullmatch(r"[\w-]{22}", signed_in["claims"]["aud"])
        assert await read_step(output, "userinfo") == {"sub": signed_in["claims"]["sub"]}
        assert (await read_step(output, "refreshed"))["isNew"]
        assert (await read_step(output, "revoked"))["error"] == "invalid_grant"
