"""Tests of GraphiQL in a browser against the real server, without access to other hosts."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from email.message import EmailMessage
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser

from merganser.demo.credentials import ADDRESS
from tests.conftest import raw_message
from tests.support.accounts.demo_account import send, serving
from tests.support.clients.browser_driver import GraphiQL, browse, started_browser
from tests.support.servers.merganser_server import PASSWORD, Server

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the loop of the browser
INBOX_QUERY = """query Mine {
viewer { user { mailbox(by: { specialUse: INBOX }) {
path messages(first: 1) { nodes { subject from { address } } }
} } } }"""
UNKNOWN_TOKEN = f"mgk_{'haddock':o<43}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("house")) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with started_browser() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def graphiql(browser: Browser, server: Server) -> AsyncIterator[GraphiQL]:
    async with browse(browser, server.url) as graphiql_page:
        yield graphiql_page
        assert graphiql_page.problems == []
        assert graphiql_page.foreign == []


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    """The folder for pictures: the environment variable PICTURES, or a temporary folder."""
    return Path(os.environ.get("PICTURES") or tmp_path)


def postcard_message() -> bytes:
    message = EmailMessage()
    message["From"], message["To"] = (
        "Nora Lindqvist <nora@lighthouse.example>",
        f"Demo Duck <{ADDRESS}>",
    )
    message["Subject"], message["Message-ID"] = "The lamp is lit", "<lamp@lighthouse.example>"
    message.set_content("All boats are home, and the kettle is on.\n")
    return message.as_bytes()


async def role_of_credential(server: Server, secret: str) -> str | None:
    """Return the role of a credential, or None if the server refuses it."""
    async with httpx.AsyncClient(timeout=30) as client:
        response = await client.post(
            f"{server.url}/graphql",
            json={"query": "{ viewer { role } }"},
            headers={"Authorization": f"Bearer {secret}"},
        )
    data: dict[str, dict[str, str]] = response.json().get("data") or {}
    return data["viewer"]["role"] if data else None


async def test_inbox_is_shown_and_delivery_appears_live(
    graphiql: GraphiQL, server: Server, picture_folder: Path
) -> None:
    await graphiql.open(server.secrets["demo"])
    await graphiql.signed_in_as("demo")
    await graphiql.example("Inbox")
    await graphiql.run()
    await graphiql.shows('"mailboxes"')
    inbox = (await graphiql.answer())["data"]["viewer"]["user"]["mailbox"]["messages"]
    assert len(inbox["nodes"]) == 20
    assert inbox["pageInfo"]["hasNextPage"]

    await graphiql.example("Live")
    await graphiql.listen()
    await asyncio.to_thread(send, server, ADDRESS, postcard_message(), "nora@lighthouse.example")
    await graphiql.shows("MESSAGE_ADDED")
    (event,) = (await graphiql.answer())["data"]["changes"]["events"]
    assert event["message"]["subject"] == "The lamp is lit"
    assert event["message"]["from"]["name"] == "Nora Lindqvist"
    assert event["message"]["mailbox"]["path"] == "INBOX"
    await graphiql.screenshot(picture_folder / "graphiql.png")
    stop = graphiql.page.get_by_label("Stop query")
    await stop.click()
    await stop.wait_for(state="hidden")


async def test_link_with_token_signs_in_and_removes_token_from_url(
    graphiql: GraphiQL, server: Server
) -> None:
    await graphiql.open(server.secrets["ada"])
    await graphiql.signed_in_as("ada")
    assert graphiql.page.url == f"{graphiql.base}/graphql"
    assert await graphiql.page.title() == "Merganser · GraphiQL"


async def test_second_link_in_same_window_signs_in_as_other_user(
    graphiql: GraphiQL, server: Server
) -> None:
    await graphiql.open(server.secrets["ada"])
    await graphiql.signed_in_as("ada")
    link = f"#token={server.secrets['bob']}"
    await graphiql.page.evaluate("link => { location.hash = link }", link)
    await graphiql.signed_in_as("bob")
    assert graphiql.page.url == f"{graphiql.base}/graphql"


async def test_typed_query_shows_its_response(graphiql: GraphiQL, server: Server) -> None:
    await graphiql.open(server.secrets["ada"])
    await graphiql.signed_in_as("ada")
    await graphiql.write(INBOX_QUERY)
    await graphiql.run()
    await graphiql.shows("carol@example.com")
    mailbox = (await graphiql.answer())["data"]["viewer"]["user"]["mailbox"]
    assert mailbox["path"] == "INBOX"


async def test_unknown_field_is_marked_in_editor(graphiql: GraphiQL, server: Server) -> None:
    await graphiql.open(server.secrets["ada"])
    await graphiql.write("query { viewer { nonsense } }")
    await graphiql.page.locator(".graphiql-query-editor .squiggly-error").first.wait_for()
    assert await graphiql.marks() == ['Cannot query field "nonsense" on type "Viewer".']


async def test_subscription_without_token_shows_unauthenticated(
    graphiql: GraphiQL,
) -> None:
    await graphiql.open()
    await graphiql.example("Live")
    await graphiql.run()
    await graphiql.shows("UNAUTHENTICATED")


async def test_subscription_with_unknown_token_is_not_retried(
    graphiql: GraphiQL,
) -> None:
    sockets: list[str] = []
    graphiql.page.on("websocket", lambda socket: sockets.append(socket.url))
    await graphiql.open()
    await graphiql.headers({"Authorization": f"Bearer {UNKNOWN_TOKEN}"})
    await graphiql.write("subscription { changes { cursor } }")
    await graphiql.run()
    await graphiql.shows("4403")
    assert len(sockets) == 1


async def test_header_pane_overrides_token_bar_for_http_and_websocket(
    graphiql: GraphiQL, server: Server
) -> None:
    await graphiql.open(server.secrets["ada"])
    await graphiql.signed_in_as("ada")
    await graphiql.headers({"authorization": f"Bearer {server.secrets['bob']}"})
    await graphiql.write("query { viewer { user { username } } }")
    await graphiql.run()
    await graphiql.shows('"bob"')
    await graphiql.write("subscription { changes { events { user { username } } } }")
    await graphiql.listen()
    await asyncio.to_thread(send, server, "ada@example.org", raw_message("Not for bob"))
    await asyncio.to_thread(send, server, "bob@example.org", raw_message("For bob"))
    await graphiql.shows('"events"')
    (event,) = (await graphiql.answer())["data"]["changes"]["events"]
    assert event["user"]["username"] == "bob"


async def test_pasted_token_is_used_and_survives_reload(graphiql: GraphiQL, server: Server) -> None:
    await graphiql.open()
    await graphiql.paste(server.secrets["ada"])
    await graphiql.signed_in_as("ada")
    await graphiql.page.reload()
    await graphiql.signed_in_as("ada")


async def test_unknown_token_is_reported_and_removed_and_schema_is_loaded(
    graphiql: GraphiQL,
) -> None:
    await graphiql.open(UNKNOWN_TOKEN)
    await graphiql.page.get_by_text("This token is not known here.").wait_for()
    assert "haddock" not in str(await graphiql.stored())
    await graphiql.page.get_by_label("Show Documentation Explorer").click()
    await graphiql.page.get_by_role("link", name="Subscription", exact=True).wait_for()
    refusals = {problem for problem in graphiql.problems if "401" in problem}
    assert refusals  # Chromium reports the refused token
    graphiql.problems[:] = [item for item in graphiql.problems if item not in refusals]


async def test_nothing_is_stored_beyond_the_browser_session(
    graphiql: GraphiQL, server: Server
) -> None:
    await graphiql.open(server.secrets["ada"])
    await graphiql.signed_in_as("ada")
    await graphiql.headers({"X-Secret": "mackerel"})
    await graphiql.write(INBOX_QUERY)
    await graphiql.run()
    await graphiql.shows("carol@example.com")
    stored = await graphiql.stored()
    assert stored["local"] == {}
    assert stored["session"]["merganser:token"] == server.secrets["ada"]


async def test_sign_out_revokes_token_of_password_sign_in(
    graphiql: GraphiQL, server: Server
) -> None:
    await graphiql.open()
    await graphiql.sign_in("ada", "wrong")
    dialog = graphiql.page.get_by_role("dialog")
    await dialog.get_by_text("user name or password is wrong").wait_for()
    await graphiql.page.keyboard.press("Escape")
    await graphiql.sign_in("ada", PASSWORD)
    await graphiql.signed_in_as("ada")
    token = (await graphiql.stored())["session"]["merganser:token"]
    assert await role_of_credential(server, token) == "USER"
    async with graphiql.page.expect_response(
        lambda response: "tokenRevoke" in str(response.request.post_data)
    ):
        await graphiql.page.get_by_role("button", name="Sign out").click()
    await graphiql.page.get_by_role("button", name="Sign in").wait_for()
    assert token not in str(await graphiql.stored())
    assert await role_of_credential(server, token) is None


async def test_sign_out_does_not_revoke_pasted_api_key(graphiql: GraphiQL, server: Server) -> None:
    await graphiql.open(server.secrets["ada"])
    await graphiql.signed_in_as("ada")
    await graphiql.page.get_by_role("button", name="Sign out").click()
    await graphiql.page.get_by_role("button", name="Sign in").wait_for()
    assert server.secrets["ada"] not in str(await graphiql.stored())
    assert await role_of_credential(server, server.secrets["ada"]) == "USER"


async def test_closed_example_can_be_opened_again(graphiql: GraphiQL) -> None:
    await graphiql.open()
    tab = graphiql.page.get_by_role("tab", name="Search")
    await graphiql.example("Search")
    await graphiql.page.get_by_label("Close Tab").locator("visible=true").click()
    await tab.wait_for(state="hidden")
    await graphiql.example("Search")
    await tab.wait_for()


async def test_documentation_shows_schema_in_dark_mode(browser: Browser, server: Server) -> None:
    async with browse(browser, server.url, dark=True) as graphiql:
        await graphiql.open(server.secrets["ada"])
        await graphiql.page.get_by_label("Show Documentation Explorer").click()
        await graphiql.page.get_by_role("link", name="Subscription", exact=True).click()
        await graphiql.page.get_by_text("changes").first.wait_for()
        assert graphiql.problems == []
