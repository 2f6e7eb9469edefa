"""GraphiQL as a person uses it: in a browser, on the real server, without any other host."""

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
MINE = """query Mine {
viewer { user { mailbox(by: { specialUse: INBOX }) {
path messages(first: 1) { nodes { subject from { address } } }
} } } }"""
UNKNOWN = f"mgk_{'haddock':o<43}"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("house")) as house:
        yield house


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with started_browser() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def graphiql(browser: Browser, house: Server) -> AsyncIterator[GraphiQL]:
    async with browse(browser, house.url) as opened:
        yield opened
        assert opened.problems == []
        assert opened.foreign == []


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where pictures go: a folder of the test, unless PICTURES names another."""
    return Path(os.environ.get("PICTURES") or tmp_path)


def postcard() -> bytes:
    card = EmailMessage()
    card["From"], card["To"] = "Nora Lindqvist <nora@lighthouse.example>", f"Demo Duck <{ADDRESS}>"
    card["Subject"], card["Message-ID"] = "The lamp is lit", "<lamp@lighthouse.example>"
    card.set_content("All boats are home, and the kettle is on.\n")
    return card.as_bytes()


async def role(house: Server, secret: str) -> str | None:
    """The role that a credential gives; None where it is refused."""
    async with httpx.AsyncClient(timeout=30) as client:
        answer = await client.post(
            f"{house.url}/graphql",
            json={"query": "{ viewer { role } }"},
            headers={"Authorization": f"Bearer {secret}"},
        )
    data: dict[str, dict[str, str]] = answer.json().get("data") or {}
    return data["viewer"]["role"] if data else None


async def test_the_inbox_is_read_and_a_delivery_is_seen_as_it_happens(
    graphiql: GraphiQL, house: Server, pictures: Path
) -> None:
    await graphiql.open(house.secrets["demo"])
    await graphiql.signed_in_as("demo")
    await graphiql.example("Inbox")
    await graphiql.run()
    await graphiql.shows('"mailboxes"')
    inbox = (await graphiql.answer())["data"]["viewer"]["user"]["mailbox"]["messages"]
    assert len(inbox["nodes"]) == 20
    assert inbox["pageInfo"]["hasNextPage"]

    await graphiql.example("Live")
    await graphiql.listen()
    await asyncio.to_thread(send, house, ADDRESS, postcard(), "nora@lighthouse.example")
    await graphiql.shows("MESSAGE_ADDED")
    (event,) = (await graphiql.answer())["data"]["changes"]["events"]
    assert event["message"]["subject"] == "The lamp is lit"
    assert event["message"]["from"]["name"] == "Nora Lindqvist"
    assert event["message"]["mailbox"]["path"] == "INBOX"
    await graphiql.screenshot(pictures / "graphiql.png")
    stop = graphiql.page.get_by_label("Stop query")
    await stop.click()
    await stop.wait_for(state="hidden")


async def test_a_link_with_a_token_signs_in_and_leaves_no_token_in_the_address(
    graphiql: GraphiQL, house: Server
) -> None:
    await graphiql.open(house.secrets["ada"])
    await graphiql.signed_in_as("ada")
    assert graphiql.page.url == f"{graphiql.base}/graphql"
    assert await graphiql.page.title() == "Merganser · GraphiQL"


async def test_a_second_link_in_the_same_window_signs_in_anew(
    graphiql: GraphiQL, house: Server
) -> None:
    await graphiql.open(house.secrets["ada"])
    await graphiql.signed_in_as("ada")
    link = f"#token={house.secrets['bob']}"
    await graphiql.page.evaluate("link => { location.hash = link }", link)
    await graphiql.signed_in_as("bob")
    assert graphiql.page.url == f"{graphiql.base}/graphql"


async def test_a_query_that_is_typed_and_run_shows_its_answer(
    graphiql: GraphiQL, house: Server
) -> None:
    await graphiql.open(house.secrets["ada"])
    await graphiql.signed_in_as("ada")
    await graphiql.write(MINE)
    await graphiql.run()
    await graphiql.shows("carol@example.com")
    mailbox = (await graphiql.answer())["data"]["viewer"]["user"]["mailbox"]
    assert mailbox["path"] == "INBOX"


async def test_a_field_that_does_not_exist_is_marked(graphiql: GraphiQL, house: Server) -> None:
    await graphiql.open(house.secrets["ada"])
    await graphiql.write("query { viewer { nonsense } }")
    await graphiql.page.locator(".graphiql-query-editor .squiggly-error").first.wait_for()
    assert await graphiql.marks() == ['Cannot query field "nonsense" on type "Viewer".']


async def test_a_subscription_without_a_token_says_that_one_must_sign_in(
    graphiql: GraphiQL,
) -> None:
    await graphiql.open()
    await graphiql.example("Live")
    await graphiql.run()
    await graphiql.shows("UNAUTHENTICATED")


async def test_a_subscription_with_a_wrong_token_is_refused_without_trying_again(
    graphiql: GraphiQL,
) -> None:
    sockets: list[str] = []
    graphiql.page.on("websocket", lambda socket: sockets.append(socket.url))
    await graphiql.open()
    await graphiql.headers({"Authorization": f"Bearer {UNKNOWN}"})
    await graphiql.write("subscription { changes { cursor } }")
    await graphiql.run()
    await graphiql.shows("4403")
    assert len(sockets) == 1


async def test_the_headers_pane_wins_over_the_bar_on_both_roads(
    graphiql: GraphiQL, house: Server
) -> None:
    await graphiql.open(house.secrets["ada"])
    await graphiql.signed_in_as("ada")
    await graphiql.headers({"authorization": f"Bearer {house.secrets['bob']}"})
    await graphiql.write("query { viewer { user { username } } }")
    await graphiql.run()
    await graphiql.shows('"bob"')
    await graphiql.write("subscription { changes { events { user { username } } } }")
    await graphiql.listen()
    await asyncio.to_thread(send, house, "ada@example.org", raw_message("Not for bob"))
    await asyncio.to_thread(send, house, "bob@example.org", raw_message("For bob"))
    await graphiql.shows('"events"')
    (event,) = (await graphiql.answer())["data"]["changes"]["events"]
    assert event["user"]["username"] == "bob"


async def test_a_token_that_is_pasted_is_used_and_survives_a_reload(
    graphiql: GraphiQL, house: Server
) -> None:
    await graphiql.open()
    await graphiql.paste(house.secrets["ada"])
    await graphiql.signed_in_as("ada")
    await graphiql.page.reload()
    await graphiql.signed_in_as("ada")


async def test_a_wrong_token_is_named_as_such_and_forgotten_and_the_schema_still_comes(
    graphiql: GraphiQL,
) -> None:
    await graphiql.open(UNKNOWN)
    await graphiql.page.get_by_text("This token is not known here.").wait_for()
    assert "haddock" not in str(await graphiql.stored())
    await graphiql.page.get_by_label("Show Documentation Explorer").click()
    await graphiql.page.get_by_role("link", name="Subscription", exact=True).wait_for()
    refusals = {problem for problem in graphiql.problems if "401" in problem}
    assert refusals  # of Chromium, for the token that was shown
    graphiql.problems[:] = [each for each in graphiql.problems if each not in refusals]


async def test_nothing_at_all_is_kept_beyond_the_window(graphiql: GraphiQL, house: Server) -> None:
    await graphiql.open(house.secrets["ada"])
    await graphiql.signed_in_as("ada")
    await graphiql.headers({"X-Secret": "mackerel"})
    await graphiql.write(MINE)
    await graphiql.run()
    await graphiql.shows("carol@example.com")
    stored = await graphiql.stored()
    assert stored["local"] == {}
    assert stored["session"]["merganser:token"] == house.secrets["ada"]


async def test_signing_in_by_password_and_out_again_ends_the_token(
    graphiql: GraphiQL, house: Server
) -> None:
    await graphiql.open()
    await graphiql.sign_in("ada", "wrong")
    dialog = graphiql.page.get_by_role("dialog")
    await dialog.get_by_text("user name or password is wrong").wait_for()
    await graphiql.page.keyboard.press("Escape")
    await graphiql.sign_in("ada", PASSWORD)
    await graphiql.signed_in_as("ada")
    token = (await graphiql.stored())["session"]["merganser:token"]
    assert await role(house, token) == "USER"
    async with graphiql.page.expect_response(
        lambda said: "tokenRevoke" in str(said.request.post_data)
    ):
        await graphiql.page.get_by_role("button", name="Sign out").click()
    await graphiql.page.get_by_role("button", name="Sign in").wait_for()
    assert token not in str(await graphiql.stored())
    assert await role(house, token) is None


async def test_signing_out_does_not_revoke_a_key_that_was_pasted(
    graphiql: GraphiQL, house: Server
) -> None:
    await graphiql.open(house.secrets["ada"])
    await graphiql.signed_in_as("ada")
    await graphiql.page.get_by_role("button", name="Sign out").click()
    await graphiql.page.get_by_role("button", name="Sign in").wait_for()
    assert house.secrets["ada"] not in str(await graphiql.stored())
    assert await role(house, house.secrets["ada"]) == "USER"


async def test_an_example_that_was_closed_can_be_opened_again(graphiql: GraphiQL) -> None:
    await graphiql.open()
    tab = graphiql.page.get_by_role("tab", name="Search")
    await graphiql.example("Search")
    await graphiql.page.get_by_label("Close Tab").locator("visible=true").click()
    await tab.wait_for(state="hidden")
    await graphiql.example("Search")
    await tab.wait_for()


async def test_the_documentation_shows_the_schema_also_in_the_dark(
    browser: Browser, house: Server
) -> None:
    async with browse(browser, house.url, dark=True) as graphiql:
        await graphiql.open(house.secrets["ada"])
        await graphiql.page.get_by_label("Show Documentation Explorer").click()
        await graphiql.page.get_by_role("link", name="Subscription", exact=True).click()
        await graphiql.page.get_by_text("changes").first.wait_for()
        assert graphiql.problems == []
