"""GraphiQL as a person uses it: in a browser, without any other host."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.browser.app import serving
from tests.browser.driver import GraphiQL, browse

PICTURES = Path(os.environ.get("PICTURES", "var/pictures"))
MINE = """query Mine {
viewer { user { mailbox(by: { specialUse: INBOX }) {
path messages(first: 1) { nodes { subject from { address } } }
} } } }"""


@pytest.fixture
async def base() -> AsyncIterator[str]:
    async with serving() as url:
        yield url


@pytest.fixture
async def graphiql(base: str) -> AsyncIterator[GraphiQL]:
    async with browse(base) as opened:
        yield opened
        assert opened.problems == []
        assert opened.foreign == []


async def test_a_link_with_a_token_signs_in_and_leaves_no_token_in_the_address(
    graphiql: GraphiQL,
) -> None:
    await graphiql.open("swordfish")
    await graphiql.signed_in_as("ada")
    assert graphiql.page.url == f"{graphiql.base}/graphql"
    assert await graphiql.page.title() == "Merganser · GraphiQL"


async def test_a_second_link_in_the_same_window_signs_in_anew(graphiql: GraphiQL) -> None:
    await graphiql.open("swordfish")
    await graphiql.signed_in_as("ada")
    await graphiql.page.evaluate("() => { location.hash = '#token=herring' }")
    await graphiql.signed_in_as("bob")
    assert graphiql.page.url == f"{graphiql.base}/graphql"


async def test_a_query_that_is_typed_and_run_shows_its_answer(graphiql: GraphiQL) -> None:
    await graphiql.open("swordfish")
    await graphiql.signed_in_as("ada")
    await graphiql.write(MINE)
    await graphiql.run()
    await graphiql.shows("carol@example.org")
    mailbox = (await graphiql.answer())["data"]["viewer"]["user"]["mailbox"]
    assert mailbox["path"] == "INBOX"
    await graphiql.screenshot(PICTURES / "query.png")


async def test_a_field_that_does_not_exist_is_marked(graphiql: GraphiQL) -> None:
    await graphiql.open("swordfish")
    await graphiql.write("query { viewer { nonsense } }")
    await graphiql.page.locator(".graphiql-query-editor .squiggly-error").first.wait_for()
    assert await graphiql.marks() == ['Cannot query field "nonsense" on type "Viewer".']


async def test_a_subscription_shows_what_happens_and_can_be_stopped(graphiql: GraphiQL) -> None:
    await graphiql.open("swordfish")
    await graphiql.signed_in_as("ada")
    await graphiql.example("Live")
    await graphiql.run()
    await graphiql.shows("MESSAGE_ADDED")
    await graphiql.screenshot(PICTURES / "subscription.png")
    stop = graphiql.page.get_by_label("Stop query")
    await stop.click()
    await stop.wait_for(state="hidden")


async def test_a_subscription_without_a_token_is_refused_without_trying_again(
    graphiql: GraphiQL,
) -> None:
    sockets: list[str] = []
    graphiql.page.on("websocket", lambda socket: sockets.append(socket.url))
    await graphiql.open()
    await graphiql.example("Live")
    await graphiql.run()
    await graphiql.shows("4403")
    assert len(sockets) == 1


async def test_the_headers_pane_wins_over_the_bar_on_both_roads(graphiql: GraphiQL) -> None:
    await graphiql.open("swordfish")
    await graphiql.signed_in_as("ada")
    await graphiql.headers({"authorization": "Bearer herring"})
    await graphiql.write("query { viewer { user { username } } }")
    await graphiql.run()
    await graphiql.shows('"bob"')
    await graphiql.write("subscription { changes { cursor } }")
    await graphiql.run()
    await graphiql.shows("for bob")


async def test_a_token_that_is_pasted_is_used_and_survives_a_reload(graphiql: GraphiQL) -> None:
    await graphiql.open()
    await graphiql.paste("swordfish")
    await graphiql.signed_in_as("ada")
    await graphiql.page.reload()
    await graphiql.signed_in_as("ada")


async def test_a_wrong_token_is_named_as_such_and_forgotten(graphiql: GraphiQL) -> None:
    await graphiql.open("haddock")
    await graphiql.page.get_by_text("This token is not known here.").wait_for()
    assert "haddock" not in str(await graphiql.stored())


async def test_nothing_at_all_is_kept_beyond_the_window(graphiql: GraphiQL) -> None:
    await graphiql.open("swordfish")
    await graphiql.signed_in_as("ada")
    await graphiql.headers({"X-Secret": "mackerel"})
    await graphiql.write(MINE)
    await graphiql.run()
    await graphiql.shows("carol@example.org")
    stored = await graphiql.stored()
    assert stored["local"] == {}
    assert stored["session"]["merganser:token"] == "swordfish"


async def test_signing_in_by_password_and_out_again(graphiql: GraphiQL) -> None:
    await graphiql.open()
    await graphiql.sign_in("ada", "wrong")
    await graphiql.page.get_by_role("dialog").get_by_text("Wrong password.").wait_for()
    await graphiql.screenshot(PICTURES / "sign-in.png")
    await graphiql.page.keyboard.press("Escape")
    await graphiql.sign_in("ada", "secret")
    await graphiql.signed_in_as("ada")
    async with graphiql.page.expect_request(lambda sent: "tokenRevoke" in str(sent.post_data)):
        await graphiql.page.get_by_role("button", name="Sign out").click()
    await graphiql.page.get_by_role("button", name="Sign in").wait_for()
    assert "swordfish" not in str(await graphiql.stored())


async def test_a_second_factor_is_asked_for_when_needed(graphiql: GraphiQL) -> None:
    await graphiql.open()
    await graphiql.sign_in("bob", "secret")
    dialog = graphiql.page.get_by_role("dialog")
    await dialog.get_by_label("Code of the second factor").fill("123456")
    await dialog.get_by_role("button", name="Sign in").click()
    await graphiql.signed_in_as("bob")


async def test_signing_out_does_not_revoke_a_key_that_was_pasted(graphiql: GraphiQL) -> None:
    sent: list[str] = []
    graphiql.page.on("request", lambda request: sent.append(str(request.post_data)))
    await graphiql.open("swordfish")
    await graphiql.signed_in_as("ada")
    await graphiql.page.get_by_role("button", name="Sign out").click()
    await graphiql.page.get_by_role("button", name="Sign in").wait_for()
    assert not [body for body in sent if "tokenRevoke" in body]


async def test_an_example_that_was_closed_can_be_opened_again(graphiql: GraphiQL) -> None:
    await graphiql.open()
    tab = graphiql.page.get_by_role("tab", name="Search")
    await graphiql.example("Search")
    await graphiql.page.get_by_label("Close Tab").locator("visible=true").click()
    await tab.wait_for(state="hidden")
    await graphiql.example("Search")
    await tab.wait_for()


async def test_the_documentation_shows_the_schema_also_in_the_dark(base: str) -> None:
    async with browse(base, dark=True) as graphiql:
        await graphiql.open("swordfish")
        await graphiql.page.get_by_label("Show Documentation Explorer").click()
        await graphiql.page.get_by_role("link", name="Subscription", exact=True).click()
        await graphiql.page.get_by_text("changes").first.wait_for()
        await graphiql.screenshot(PICTURES / "dark.png")
        assert graphiql.problems == []
