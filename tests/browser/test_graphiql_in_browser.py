"""Tests of GraphiQL in a browser against the real server, without access to other hosts."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from email.message import EmailMessage
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Locator, Page, ViewportSize

from merganser.demo.credentials import ADDRESS
from tests.conftest import raw_message
from tests.support.accounts.demo_account import run_demo_server, send_by_lmtp
from tests.support.case_loop import each_case
from tests.support.clients.browser_driver import (
    GraphiQLPage,
    open_browser_profile,
    open_tab,
    picture_folder,
)
from tests.support.clients.plain_http import plain_client
from tests.support.servers.merganser_server import PASSWORD, MerganserProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the loop of the browser
INBOX_QUERY = """query Mine {
viewer { user { mailbox(by: { specialUse: INBOX }) {
path messages(first: 1) { nodes { subject from { address } } }
} } } }"""
# Finds visible elements beyond the window, and boxes with more content than width. Monaco scrolls.
FIND_CUT_ELEMENTS_SCRIPT = """() => {
  const name = (element) => `${element.tagName} ${element.className}`;
  const visible = [...document.body.querySelectorAll('*')].filter((element) =>
    !element.closest('[class*="monaco"], .graphiql-tabs, select')
      && element.checkVisibility({ opacityProperty: true, visibilityProperty: true }));
  const beyond = visible.filter((element) => {
    const { left, right, width } = element.getBoundingClientRect();
    return width > 1 && (left < -1 || right > innerWidth + 1);
  });
  const boxes = visible.filter((element) =>
    element.matches('header, dialog, .graphiql-dialog, .graphiql-plugin, .graphiql-main')
      && element.scrollWidth > element.clientWidth + 1);
  const page = document.documentElement.scrollWidth > innerWidth ? ['the page'] : [];
  return [...page, ...beyond.map(name), ...boxes.map(name)];
}"""
WINDOW_SIZES: list[ViewportSize] = [
    {"width": 390, "height": 844},
    {"width": 1280, "height": 800},
]
MIN_EXPLORER_WIDTH = 250  # CSS pixels; a narrower one breaks the names of types
UNKNOWN_TOKEN = f"mgk_{'haddock':o<43}"
FIELDS_BY_WORDS = {  # for words that people search, a field of the schema with another name
    "vacation": "Mutation.autoreplySet",
    "mfa": "Mutation.totpSetup",
    "block": "Mutation.senderRuleCreate",
    "unread": "Mailbox.unseenCount",
    "alias": "Domain.aliases",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MerganserProcess]:
    with run_demo_server(tmp_path_factory.mktemp("house")) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def profile(browser: Browser, server: MerganserProcess) -> AsyncIterator[BrowserContext]:
    async with open_browser_profile(browser, server.url) as profile:
        yield profile


def assert_no_problems(graphiql_page: GraphiQLPage) -> None:
    """Check that the page caused no error, and no request to another host."""
    assert graphiql_page.problems == []
    assert graphiql_page.foreign_urls == []


@pytest_asyncio.fixture(loop_scope="module")
async def graphiql(
    profile: BrowserContext, server: MerganserProcess
) -> AsyncIterator[GraphiQLPage]:
    """An empty tab for one test."""
    async with open_tab(profile, server.url) as graphiql_page:
        yield graphiql_page
        assert_no_problems(graphiql_page)


# To load GraphiQL takes several seconds of CPU time, so tests share these two pages.
@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def page_of_ada(
    profile: BrowserContext, server: MerganserProcess
) -> AsyncIterator[GraphiQLPage]:
    async with open_tab(profile, server.url) as graphiql_page:
        await graphiql_page.open(server.secrets["ada"])
        await graphiql_page.wait_for_viewer("ada")
        yield graphiql_page


@pytest_asyncio.fixture(loop_scope="module")
async def graphiql_of_ada(page_of_ada: GraphiQLPage) -> AsyncIterator[GraphiQLPage]:
    """A page where ada is signed in; each test replaces the document."""
    yield page_of_ada
    assert_no_problems(page_of_ada)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def page_without_token(
    profile: BrowserContext, server: MerganserProcess
) -> AsyncIterator[GraphiQLPage]:
    async with open_tab(profile, server.url) as graphiql_page:
        await graphiql_page.open()
        yield graphiql_page


@pytest_asyncio.fixture(loop_scope="module")
async def anonymous_graphiql(page_without_token: GraphiQLPage) -> AsyncIterator[GraphiQLPage]:
    """A page where nobody is signed in; each test selects its own example."""
    yield page_without_token
    await page_without_token.sign_out_if_signed_in()
    assert_no_problems(page_without_token)


@asynccontextmanager
async def typed_headers(
    graphiql_page: GraphiQLPage, headers: dict[str, str]
) -> AsyncGenerator[None]:
    """Type headers into the header pane of a shared page; remove them and hide it at the end."""
    await graphiql_page.paste_headers(headers)
    try:
        yield
    finally:
        await graphiql_page.paste_headers({})
        await graphiql_page.page.get_by_label("Hide editor tools").click()


def postcard_message() -> bytes:
    message = EmailMessage()
    message["From"], message["To"] = (
        "Nora Lindqvist <nora@lighthouse.example>",
        f"Demo Duck <{ADDRESS}>",
    )
    message["Subject"], message["Message-ID"] = "The lamp is lit", "<lamp@lighthouse.example>"
    message.set_content("All boats are home, and the kettle is on.\n")
    return message.as_bytes()


async def role_of_credential(server: MerganserProcess, secret: str) -> str | None:
    """Return the role of a credential, or None if the server refuses it."""
    async with plain_client(timeout=120) as client:
        response = await client.post(
            f"{server.url}/graphql",
            json={"query": "{ viewer { role } }"},
            headers={"Authorization": f"Bearer {secret}"},
        )
    data: dict[str, dict[str, str]] = response.json().get("data") or {}
    return data["viewer"]["role"] if data else None


async def test_inbox_is_shown_and_delivery_appears_live(
    graphiql: GraphiQLPage, server: MerganserProcess, tmp_path: Path
) -> None:
    await graphiql.open(server.secrets["demo"])
    await graphiql.wait_for_viewer("demo")
    await graphiql.select_example("Inbox")
    await graphiql.click_run()
    await graphiql.wait_for_text('"mailboxes"')
    inbox = (await graphiql.read_response())["data"]["viewer"]["user"]["mailbox"]["messages"]
    assert len(inbox["nodes"]) == 20
    assert inbox["pageInfo"]["hasNextPage"]

    await graphiql.select_example("Live")
    await graphiql.start_subscription()
    await asyncio.to_thread(
        send_by_lmtp, server, ADDRESS, postcard_message(), "nora@lighthouse.example"
    )
    await graphiql.wait_for_text("MESSAGE_RECEIVED")
    (event,) = (await graphiql.read_response())["data"]["changes"]["events"]
    assert event["message"]["subject"] == "The lamp is lit"
    assert event["message"]["from"]["name"] == "Nora Lindqvist"
    assert event["message"]["mailbox"]["path"] == "INBOX"
    await graphiql.save_screenshot(picture_folder(tmp_path) / "graphiql.png")
    await graphiql.page.set_viewport_size({"width": 390, "height": 844})
    await graphiql.save_screenshot(picture_folder(tmp_path) / "graphiql-phone.png")
    await graphiql.page.set_viewport_size({"width": 1280, "height": 800})
    await graphiql.stop_subscription()


async def test_link_with_token_signs_in_and_removes_token_from_url(
    graphiql_of_ada: GraphiQLPage, server: MerganserProcess
) -> None:
    page = graphiql_of_ada.page
    assert page.url == f"{graphiql_of_ada.base_url}/graphql"
    assert await page.title() == "Merganser · GraphiQL"
    # A second link in the same window signs in as the other user.
    for username in ("bob", "ada"):
        link = f"#token={server.secrets[username]}"
        await page.evaluate("link => { location.hash = link }", link)
        await graphiql_of_ada.wait_for_viewer(username)
        assert page.url == f"{graphiql_of_ada.base_url}/graphql"


async def test_typed_query_shows_its_response(graphiql_of_ada: GraphiQLPage) -> None:
    await graphiql_of_ada.paste_document(INBOX_QUERY)
    await graphiql_of_ada.click_run()
    await graphiql_of_ada.wait_for_text("carol@example.com")
    mailbox = (await graphiql_of_ada.read_response())["data"]["viewer"]["user"]["mailbox"]
    assert mailbox["path"] == "INBOX"


async def test_unknown_field_is_marked_in_editor(graphiql_of_ada: GraphiQLPage) -> None:
    await graphiql_of_ada.paste_document("query { viewer { nonsense } }")
    await graphiql_of_ada.page.locator(".graphiql-query-editor .squiggly-error").first.wait_for()
    assert await graphiql_of_ada.read_problem_markers() == [
        'Cannot query field "nonsense" on type "Viewer".'
    ]


# The completion has no suggestions before its worker has the schema. A request that is still
# loading isn't repeated, because the repetition would cancel it.
SUGGEST_UNTIL_SHOWN = """text => {
  const row = document.querySelector(".suggest-widget.visible .monaco-list-row.focused");
  if (row?.textContent.includes(text)) return true;
  const message = document.querySelector(".suggest-widget.visible.message .message");
  if (message?.textContent.startsWith("Loading")) return false;
  const editor = __MONACO.editor.getEditors().find(editor => editor.hasTextFocus());
  editor?.trigger("test", "hideSuggestWidget");
  editor?.trigger("test", "editor.action.triggerSuggest", {});
  return false;
}"""


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("{ messages(query: ", r'"from:ann has:attachment -in:trash \"exact words\""'),
        ("mutation { domainCreate(input: { quota: ", '"500 GiB"'),
        ("mutation { userCreate(input: { tags: [", '"sales"'),
    ],
)
async def test_completion_inserts_example_value(
    graphiql_of_ada: GraphiQLPage, typed: str, completed: str
) -> None:
    await graphiql_of_ada.paste_document(typed)
    page = graphiql_of_ada.page
    await page.wait_for_function(SUGGEST_UNTIL_SHOWN, arg=completed, polling=2000)
    await page.keyboard.press("Enter")
    await page.wait_for_function(
        "text => __MONACO.editor.getModels().some(model => model.getValue().includes(text))",
        arg=typed + completed,
    )


async def test_explorer_searches_descriptions(graphiql_of_ada: GraphiQLPage) -> None:
    page = graphiql_of_ada.page
    await page.get_by_label("Show Documentation Explorer").click()
    await page.get_by_role("link", name="Subscription", exact=True).wait_for()
    for words, found in FIELDS_BY_WORDS.items():
        await page.locator(".graphiql-doc-explorer-search input").fill(words)
        await page.get_by_role("option", name=found, exact=True).click()
        title = page.locator(".graphiql-doc-explorer-title")
        await title.get_by_text(found.partition(".")[2], exact=True).wait_for()
        await page.get_by_label("Go back to Docs").click()
    await page.get_by_label("Hide Documentation Explorer").click()


async def test_subscription_without_token_shows_unauthenticated(
    anonymous_graphiql: GraphiQLPage,
) -> None:
    await anonymous_graphiql.select_example("Live")
    await anonymous_graphiql.click_run()
    await anonymous_graphiql.wait_for_text("UNAUTHENTICATED")


async def test_subscription_with_unknown_token_is_not_retried(
    anonymous_graphiql: GraphiQLPage,
) -> None:
    sockets: list[str] = []
    anonymous_graphiql.page.on("websocket", lambda socket: sockets.append(socket.url))
    async with typed_headers(anonymous_graphiql, {"Authorization": f"Bearer {UNKNOWN_TOKEN}"}):
        await anonymous_graphiql.paste_document("subscription { changes { cursor } }")
        await anonymous_graphiql.click_run()
        await anonymous_graphiql.wait_for_text("4403")
    assert len(sockets) == 1


async def test_header_pane_overrides_token_bar_for_http_and_websocket_and_is_not_stored(
    graphiql_of_ada: GraphiQLPage, server: MerganserProcess
) -> None:
    graphiql = graphiql_of_ada
    headers = {"authorization": f"Bearer {server.secrets['bob']}", "X-Secret": "mackerel"}
    async with typed_headers(graphiql, headers):
        await graphiql.paste_document("query { viewer { user { username } } }")
        await graphiql.click_run()
        await graphiql.wait_for_text('"bob"')
        await graphiql.paste_document("subscription { changes { events { user { username } } } }")
        await graphiql.start_subscription()
        await asyncio.to_thread(send_by_lmtp, server, "ada@example.org", raw_message("Not for bob"))
        await asyncio.to_thread(send_by_lmtp, server, "bob@example.org", raw_message("For bob"))
        await graphiql.wait_for_text('"events"')
        (event,) = (await graphiql.read_response())["data"]["changes"]["events"]
        assert event["user"]["username"] == "bob"
        stored = await graphiql.read_storage()
        assert stored["local"] == {}
        assert stored["session"]["merganser:token"] == server.secrets["ada"]
        await graphiql.stop_subscription()


async def test_pasted_api_key_survives_reload_and_sign_out_does_not_revoke_it(
    anonymous_graphiql: GraphiQLPage, server: MerganserProcess
) -> None:
    await anonymous_graphiql.enter_token(server.secrets["ada"])
    await anonymous_graphiql.wait_for_viewer("ada")
    await anonymous_graphiql.page.reload()
    await anonymous_graphiql.wait_for_viewer("ada")
    await anonymous_graphiql.page.get_by_role("button", name="Sign out").click()
    await anonymous_graphiql.page.get_by_role("button", name="Sign in").wait_for()
    assert server.secrets["ada"] not in str(await anonymous_graphiql.read_storage())
    assert await role_of_credential(server, server.secrets["ada"]) == "USER"


async def test_unknown_token_is_reported_and_removed_and_schema_is_shown_in_dark_mode(
    browser: Browser, server: MerganserProcess
) -> None:
    async with (
        open_browser_profile(browser, server.url, dark=True) as profile,
        open_tab(profile, server.url) as graphiql,
    ):
        await graphiql.open(UNKNOWN_TOKEN)
        await graphiql.page.get_by_text("The server doesn't know this token.").wait_for()
        assert "haddock" not in str(await graphiql.read_storage())
        await graphiql.page.get_by_label("Show Documentation Explorer").click()
        await graphiql.page.get_by_role("link", name="Subscription", exact=True).click()
        await graphiql.page.get_by_text("changes").first.wait_for()
        refusals = {problem for problem in graphiql.problems if "401" in problem}
        assert refusals  # Chromium reports the refused token
        graphiql.problems[:] = [item for item in graphiql.problems if item not in refusals]
        assert_no_problems(graphiql)


async def test_sign_out_revokes_token_of_password_sign_in(
    anonymous_graphiql: GraphiQLPage, server: MerganserProcess
) -> None:
    page = anonymous_graphiql.page
    await anonymous_graphiql.sign_in("ada", "wrong")
    dialog = page.get_by_role("dialog")
    await dialog.get_by_text("The username or password is wrong.").wait_for()
    await page.keyboard.press("Escape")
    await anonymous_graphiql.sign_in("ada", PASSWORD)
    await anonymous_graphiql.wait_for_viewer("ada")
    token = (await anonymous_graphiql.read_storage())["session"]["merganser:token"]
    assert await role_of_credential(server, token) == "USER"
    async with page.expect_response(
        lambda response: "accessTokenRevoke" in str(response.request.post_data)
    ):
        await page.get_by_role("button", name="Sign out").click()
    await page.get_by_role("button", name="Sign in").wait_for()
    assert token not in str(await anonymous_graphiql.read_storage())
    assert await role_of_credential(server, token) is None


async def test_closed_example_can_be_opened_again(anonymous_graphiql: GraphiQLPage) -> None:
    tab = anonymous_graphiql.page.get_by_role("tab", name="Search")
    await anonymous_graphiql.select_example("Search")
    await tab.wait_for()
    # by keyboard: a click during the animation of a new tab misses its button
    await tab.get_by_label("Close Tab").press("Enter")
    await tab.wait_for(state="hidden")
    await anonymous_graphiql.select_example("Search")
    await tab.wait_for()


async def assert_layout(page: Page, *controls: Locator) -> None:
    """Check that nothing is cut off at the sides, and that each control can be clicked."""
    for control in controls:
        await control.click(trial=True)
    assert await page.evaluate(FIND_CUT_ELEMENTS_SCRIPT) == []


def bar_links(page: Page) -> list[Locator]:
    return [page.get_by_label("Examples"), page.get_by_role("link", name="Documentation")]


def sidebar_buttons(page: Page) -> list[Locator]:
    labels = ("Re-fetch GraphQL schema", "Open short keys dialog", "Open settings dialog")
    return [page.get_by_label(label) for label in labels]


async def test_page_fits_in_window(
    anonymous_graphiql: GraphiQLPage, server: MerganserProcess
) -> None:
    """On a phone and a desktop: signed out, signed in, and with each plugin and dialog."""
    page = anonymous_graphiql.page
    await anonymous_graphiql.select_example("Inbox")
    for case in each_case(WINDOW_SIZES):
        with case as size:
            await page.set_viewport_size(size)
            await assert_page_without_user_fits(page)
    await anonymous_graphiql.enter_token(server.secrets["ada"])
    await anonymous_graphiql.wait_for_viewer("ada")
    for case in each_case(WINDOW_SIZES):
        with case as size:
            await page.set_viewport_size(size)
            await assert_page_with_user_fits(page)


async def assert_page_without_user_fits(page: Page) -> None:
    """Check the page where nobody is signed in, and its dialog for the sign-in."""
    sign_in = page.get_by_role("button", name="Sign in")
    use_token = page.get_by_role("button", name="Use", exact=True)
    token = page.get_by_label("Token or API key")
    run_button = page.locator(".graphiql-execute-button")
    controls = (*bar_links(page), token, use_token, sign_in, run_button, *sidebar_buttons(page))
    await assert_layout(page, *controls)

    await sign_in.click()
    dialog = page.get_by_role("dialog")
    fields = [dialog.get_by_label("Username or address"), dialog.get_by_label("Password")]
    await assert_layout(page, *fields, *await dialog.get_by_role("button").all())
    await page.keyboard.press("Escape")
    await dialog.wait_for(state="hidden")


async def assert_page_with_user_fits(page: Page) -> None:
    """Check the page where a user is signed in, with each plugin and the dialog of settings."""
    run_button = page.locator(".graphiql-execute-button")
    sign_out = page.get_by_role("button", name="Sign out")
    common, sidebar = bar_links(page), sidebar_buttons(page)
    await assert_layout(page, *common, sign_out, run_button, *sidebar)

    await page.get_by_label("Show Documentation Explorer").click()
    subscription = page.get_by_role("link", name="Subscription", exact=True)
    hide_explorer = page.get_by_label("Hide Documentation Explorer")
    await assert_layout(page, *common, sign_out, subscription, hide_explorer, *sidebar)
    explorer = page.locator(".graphiql-doc-explorer")
    assert await explorer.evaluate("element => element.clientWidth") > MIN_EXPLORER_WIDTH
    await subscription.click()
    await page.get_by_text("changes").first.wait_for()
    first_level = page.get_by_role("link", name="Docs")
    await assert_layout(page, first_level, hide_explorer)
    await first_level.click()
    await hide_explorer.click()

    await run_button.click()
    await page.get_by_label("Show History").click()
    entry = page.locator(".graphiql-history-item").first
    hide_history = page.get_by_label("Hide History")
    await assert_layout(page, entry, *await entry.get_by_role("button").all(), hide_history)
    await hide_history.click()
    await assert_layout(page, run_button)

    await page.get_by_label("Open settings dialog").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("button", name="Dark").wait_for()
    await assert_layout(page, *await dialog.get_by_role("button").all())
    await page.keyboard.press("Escape")
    await dialog.wait_for(state="hidden")


@pytest.mark.parametrize("width", [390, 1280])
async def test_documentation_is_searched_and_read(
    graphiql: GraphiQLPage, tmp_path: Path, width: int
) -> None:
    page = graphiql.page
    await page.set_viewport_size({"width": width, "height": 800})
    await page.goto(f"{graphiql.base_url}/docs/")
    await page.get_by_label("Search").fill("undo send")
    await page.keyboard.press("Enter")
    await page.get_by_role("link", name="Undo").first.wait_for()
    assert await page.evaluate(FIND_CUT_ELEMENTS_SCRIPT) == []
    await page.get_by_role("link", name="Reference").first.click()
    await page.get_by_role("link", name="Drafts and sending").click()
    await page.get_by_role("link", name="messageSend", exact=True).click()
    await page.get_by_role("heading", name="messageSend").wait_for()
    if width > 1000:
        await graphiql.save_screenshot(picture_folder(tmp_path) / "documentation.png")
    await page.get_by_role("link", name="GraphiQL").click()
    await page.wait_for_url("**/graphql", wait_until="commit")
