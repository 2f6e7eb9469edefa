"""Tests of GraphiQL's sign-in with a second factor: codes and security keys."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator

from resolvers.auth.second_factors import totp
from tests.support.clients.browser_driver import (
    GraphiQLPage,
    open_browser_profile,
    open_tab,
)
from tests.support.clients.security_keys import plug_in_security_key, register_security_key
from tests.support.oauth.pages_in_browser import run_oauth_server
from tests.support.servers.merganser_server import PASSWORD, MerganserProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the loop of the browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MerganserProcess]:
    names = ("ada", "bob", "kim", "eve", "tom")
    with run_oauth_server(tmp_path_factory.mktemp("graphiql"), *names) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def page(browser: Browser, server: MerganserProcess) -> AsyncIterator[GraphiQLPage]:
    url = server.extra_settings["PUBLIC_URL"]
    async with (
        open_browser_profile(browser, url) as profile,
        open_tab(profile, url) as graphiql_page,
    ):
        await graphiql_page.open()
        yield graphiql_page


@pytest_asyncio.fixture(loop_scope="module")
async def graphiql(page: GraphiQLPage) -> AsyncIterator[GraphiQLPage]:
    """The page where nobody is signed in; the tests share it, because it is slow to load."""
    yield page
    await page.sign_out_if_signed_in()
    assert page.foreign_urls == []


async def enable_totp(server: MerganserProcess, username: str) -> tuple[str, str]:
    """Turn TOTP on. Returns a code and a recovery code, both unused."""
    async with server.open_client(username) as client:
        secret_text = (await client.run_mutation("totpSetup", {}, "secret"))["secret"]
        secret, step = totp.decode_secret(secret_text), totp.step_at(datetime.now(UTC))
        payload = await client.run_mutation(
            "totpEnable", {"token": totp.code_at(secret, step - 1)}, "recoveryCodes"
        )
    return totp.code_at(secret, step), payload["recoveryCodes"][0]


def factor_dialog(graphiql: GraphiQLPage) -> Locator:
    return graphiql.page.get_by_role("dialog", name="Second factor")


async def stored_token(graphiql: GraphiQLPage) -> str | None:
    return (await graphiql.read_storage())["session"].get("merganser:token")


async def test_code_completes_sign_in(graphiql: GraphiQLPage, server: MerganserProcess) -> None:
    code, _ = await enable_totp(server, "ada")
    await graphiql.sign_in("ada", PASSWORD)
    dialog = factor_dialog(graphiql)
    field = dialog.get_by_label("Code of your authenticator")
    await field.fill("000000" if code != "000000" else "111111")
    await dialog.get_by_role("button", name="Sign in").click()
    await dialog.get_by_role("alert").get_by_text("The second factor is wrong.").wait_for()
    assert await stored_token(graphiql) is None
    assert await dialog.get_by_role("button", name="Use security key").count() == 0
    await field.fill(code)
    await dialog.get_by_role("button", name="Sign in").click()
    await graphiql.wait_for_viewer("ada")
    await dialog.wait_for(state="hidden")
    await graphiql.paste_document("query { viewer { role user { username } } }")
    await graphiql.click_run()
    await graphiql.wait_for_text('"USER"')


async def test_recovery_code_completes_sign_in(
    graphiql: GraphiQLPage, server: MerganserProcess
) -> None:
    _, recovery_code = await enable_totp(server, "bob")
    await graphiql.sign_in("bob", PASSWORD)
    dialog = factor_dialog(graphiql)
    await dialog.get_by_label("or a recovery code").fill(recovery_code)
    await graphiql.page.keyboard.press("Enter")
    await graphiql.wait_for_viewer("bob")


async def test_security_key_completes_sign_in(
    graphiql: GraphiQLPage, server: MerganserProcess
) -> None:
    await plug_in_security_key(graphiql.page)
    await register_security_key(graphiql.page, server, "kim")
    await graphiql.sign_in("kim", PASSWORD)
    await factor_dialog(graphiql).get_by_role("button", name="Use security key").click()
    await graphiql.wait_for_viewer("kim")


async def test_cancelled_sign_in_keeps_no_token(
    graphiql: GraphiQLPage, server: MerganserProcess
) -> None:
    await enable_totp(server, "eve")
    await graphiql.sign_in("eve", PASSWORD)
    dialog = factor_dialog(graphiql)
    async with graphiql.page.expect_response(
        lambda response: "accessTokenRevoke" in str(response.request.post_data)
    ) as revocation:
        await dialog.get_by_role("button", name="Cancel").click()
    answer = await (await revocation.value).json()
    assert answer["data"]["accessTokenRevoke"]["revokedCount"] == 1
    await dialog.wait_for(state="hidden")
    assert await stored_token(graphiql) is None
    await graphiql.page.get_by_role("button", name="Sign in").wait_for()


async def test_pasted_token_without_its_second_factor_is_reported(
    graphiql: GraphiQLPage, server: MerganserProcess
) -> None:
    await enable_totp(server, "tom")
    async with server.open_client() as client:
        sign_in = {"username": "tom", "password": PASSWORD}
        token = (await client.run_mutation("authenticate", sign_in, "token"))["token"]
    await graphiql.enter_token(token)
    await graphiql.page.get_by_text("The sign-in of this token lacks its second factor.").wait_for()
    assert await stored_token(graphiql) is None
    await graphiql.paste_headers({"Authorization": f"Bearer {token}"})
    await graphiql.paste_document("query { user { id } }")
    await graphiql.click_run()
    await graphiql.wait_for_text("SECOND_FACTOR_REQUIRED")
