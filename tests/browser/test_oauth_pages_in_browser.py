"""Tests of the OAuth pages in a browser: sign-in, second factor, consent and errors."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Error, Page

from graph.oauth.texts.languages import TEXTS_BY_LANGUAGE
from resolvers.auth.second_factors import totp
from tests.support.clients.browser_driver import (
    picture_folder,
    start_browser_without_cookies,
)
from tests.support.oauth.pages_in_browser import (
    PICTURE_PROFILE,
    OauthApplication,
    OauthPage,
    create_client,
    new_oauth_page,
    open_profile,
    run_application,
    run_oauth_server,
)
from tests.support.servers.live_server import wait_until
from tests.support.servers.merganser_server import MerganserProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the loop of the browser
WITH_AND_WITHOUT_SCRIPTS = pytest.mark.parametrize(
    "profile", [{}, {"java_script_enabled": False}], ids=["scripts", "no scripts"]
)
BROWSER_ERROR = "chrome-error://chromewebdata/"  # URL of the page that Chromium shows instead
PAGE_EXPIRED = "This page was already used, or it has expired."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MerganserProcess]:
    with run_oauth_server(tmp_path_factory.mktemp("oauth"), "ada", "bob", "tom", "kim") as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def application(server: MerganserProcess) -> AsyncIterator[OauthApplication]:
    async with run_application(server) as application:
        yield application


@dataclass
class TotpUser:
    """The second factors of a user. Each code can be used once."""

    secret: bytes
    recovery_codes: list[str]
    last_step: int

    def next_code(self) -> str:
        """The code of now, or of the next time step if that was used."""
        self.last_step = max(self.last_step + 1, totp.step_at(datetime.now(UTC)))
        return totp.code_at(self.secret, self.last_step)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tom(server: MerganserProcess) -> TotpUser:
    """A user with TOTP."""
    async with server.open_client("tom") as client:
        setup = await client.run_mutation("totpSetup", {}, "secret")
        user = TotpUser(
            totp.decode_secret(setup["secret"]), [], totp.step_at(datetime.now(UTC)) - 2
        )
        user.last_step += 1
        code = totp.code_at(user.secret, user.last_step)
        payload = await client.run_mutation("totpEnable", {"token": code}, "recoveryCodes")
    user.recovery_codes += payload["recoveryCodes"]
    return user


@asynccontextmanager
async def open_tab(
    browser: Browser, application: OauthApplication, **profile: Any
) -> AsyncGenerator[OauthPage]:
    """Open a tab in a new browser profile. Its pages must break no policy."""
    async with open_profile(browser, **profile) as context:
        tab = await new_oauth_page(context, application)
        yield tab
        assert tab.faults == []


@WITH_AND_WITHOUT_SCRIPTS
async def test_user_signs_in_and_allows_access(
    browser: Browser, application: OauthApplication, profile: dict[str, Any]
) -> None:
    async with open_tab(browser, application, **profile) as tab:
        await tab.open(login_hint="bob")
        await tab.wait_for_title("Sign in")
        assert await tab.page.get_by_label("Username or email address").input_value() == "bob"
        await tab.sign_in("ada", "wrong")
        await tab.wait_for_alert("The username or the password is wrong.")
        await tab.sign_in("ada")
        await tab.wait_for_title("Allow access?")
        assert await tab.page.get_by_role("listitem").all_inner_texts() == [
            "Know who you are",
            "See your email address",
            "Read your mail",
            "Send mail in your name",
        ]
        tokens = await tab.allow_and_get_tokens()
        assert tokens["scope"] == "openid email mail_read submit"


@WITH_AND_WITHOUT_SCRIPTS
async def test_program_asks_its_user_to_sign_in_again(
    browser: Browser, application: OauthApplication, profile: dict[str, Any]
) -> None:
    async with open_tab(browser, application, **profile) as tab:
        await tab.open(scope="openid email")
        await tab.sign_in("ada")
        tokens = await tab.allow_and_get_tokens()
        for username in ("ada", "bob"):
            await tab.open(prompt="login consent", id_token_hint=tokens["id_token"])
            field = tab.page.get_by_label("Username or email address")
            assert (await field.input_value()).startswith("ada@")
            await tab.sign_in(username)
            if username == "ada":
                assert (await tab.allow_and_get_tokens())["access_token"]
        assert (await tab.wait_for_callback())["error"] == "login_required"


@WITH_AND_WITHOUT_SCRIPTS
async def test_user_denies_access_or_uses_another_account(
    browser: Browser, application: OauthApplication, profile: dict[str, Any]
) -> None:
    async with open_tab(browser, application, **profile) as tab:
        await tab.open()
        await tab.sign_in("ada")
        await tab.page.get_by_text("You are signed in as ada.").wait_for()
        await tab.press("Use another account")
        await tab.sign_in("bob")
        await tab.page.get_by_text("You are signed in as bob.").wait_for()
        await tab.press("Deny")
        assert (await tab.wait_for_callback())["error"] == "access_denied"


@WITH_AND_WITHOUT_SCRIPTS
async def test_user_signs_in_with_totp_or_recovery_code(
    browser: Browser, application: OauthApplication, tom: TotpUser, profile: dict[str, Any]
) -> None:
    async with open_tab(browser, application, **profile) as tab:
        for code in (tom.next_code(), tom.recovery_codes.pop()):
            await tab.open()
            await tab.sign_in("tom")
            await tab.wait_for_title("Second factor")
            await tab.enter_code("000000")
            await tab.wait_for_alert("The code is wrong.")
            await tab.enter_code(code)
            assert (await tab.allow_and_get_tokens())["access_token"]


async def test_user_signs_in_with_a_security_key(
    browser: Browser, application: OauthApplication
) -> None:
    async with open_tab(browser, application) as tab:
        await tab.open()
        await tab.add_authenticator()
        await tab.register_security_key("kim")
        await tab.sign_in("kim")
        await tab.wait_for_title("Second factor")
        await tab.press("Use a security key")
        assert (await tab.allow_and_get_tokens())["access_token"]
    async with open_tab(browser, application, java_script_enabled=False) as tab:
        await tab.open()
        await tab.sign_in("kim")
        await tab.wait_for_title("Second factor")
        assert not await tab.page.locator("#key").is_visible()
        # Chromium does not show it while a test has turned scripts off
        note = await tab.page.locator("noscript").text_content()
        assert "A security key requires JavaScript." in (note or "")


@WITH_AND_WITHOUT_SCRIPTS
async def test_two_tabs_work_at_the_same_time(
    browser: Browser, application: OauthApplication, profile: dict[str, Any]
) -> None:
    async with open_profile(browser, **profile) as context:
        tabs = [await new_oauth_page(context, application) for _ in range(2)]
        for number, tab in enumerate(tabs):
            await tab.open(state=f"tab {number}")
        for tab in reversed(tabs):
            await tab.sign_in("ada")
        for tab in tabs:
            assert (await tab.allow_and_get_tokens())["access_token"]


@WITH_AND_WITHOUT_SCRIPTS
async def test_request_by_post_keeps_the_pages_of_other_tabs(
    browser: Browser, application: OauthApplication, profile: dict[str, Any]
) -> None:
    async with open_profile(browser, **profile) as context:
        first = await new_oauth_page(context, application)
        await first.open()
        second = await new_oauth_page(context, application)
        await second.page.goto(application.post_url)
        await second.press("Sign in by POST")
        for tab in (first, second):
            await tab.sign_in("ada")
            assert (await tab.allow_and_get_tokens())["access_token"]


@WITH_AND_WITHOUT_SCRIPTS
async def test_page_gives_no_second_access_after_the_back_button(
    browser: Browser, application: OauthApplication, profile: dict[str, Any]
) -> None:
    async with open_tab(browser, application, **profile) as tab:
        await tab.open()
        await tab.sign_in("ada")
        await tab.allow_and_get_tokens()
        with pytest.raises(Error, match="ERR_CACHE_MISS"):  # the page is not stored
            await tab.page.go_back()
        await wait_until(lambda: tab.page.url == BROWSER_ERROR)
        await tab.page.wait_for_load_state()  # before, Chromium refuses to reload the page
        await tab.page.reload()  # sends the form with the password again
        await tab.press("Allow")
        await tab.wait_for_alert(PAGE_EXPIRED)
        await tab.wait_for_title("This does not work")


async def test_browser_without_cookies_gets_an_explanation(
    application: OauthApplication, tmp_path: Path
) -> None:
    async with start_browser_without_cookies(tmp_path) as context:
        tab = await new_oauth_page(context, application)
        await tab.open()
        await tab.sign_in("ada")
        await tab.wait_for_alert("Your browser sent no cookie.")
        assert tab.faults == []


async def assert_not_shown_in_frame(page: Page, application: OauthApplication, url: str) -> None:
    """Open a page of another origin that shows this one in a frame: the browser refuses it."""
    await page.goto(application.frame_url(url))
    (frame,) = page.main_frame.child_frames
    await wait_until(lambda: frame.url == BROWSER_ERROR)
    assert await frame.locator("form, [role=alert]").count() == 0


@WITH_AND_WITHOUT_SCRIPTS
async def test_pages_are_not_shown_in_a_frame_of_another_origin(
    browser: Browser, application: OauthApplication, profile: dict[str, Any]
) -> None:
    """Neither the page for the sign-in, nor that of an error."""
    async with open_profile(browser, **profile) as context:
        page = await context.new_page()
        await assert_not_shown_in_frame(page, application, application.authorization_url())
        wrong_url = application.authorization_url(client_id="unknown")
        await assert_not_shown_in_frame(page, application, wrong_url)


@WITH_AND_WITHOUT_SCRIPTS
async def test_wrong_request_is_explained(
    browser: Browser, application: OauthApplication, profile: dict[str, Any]
) -> None:
    async with open_tab(browser, application, **profile) as tab:
        await tab.open(client_id="unknown")
        await tab.wait_for_title("This does not work")
        await tab.wait_for_alert("The application is not known here")


async def test_pages_are_in_the_language_of_the_browser(
    browser: Browser, application: OauthApplication
) -> None:
    async with open_tab(browser, application, locale="de-AT") as tab:
        await tab.open()
        await tab.wait_for_title(TEXTS_BY_LANGUAGE["de"].sign_in_title)
        assert await tab.page.locator("html").get_attribute("lang") == "de"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_fit_in_a_narrow_window(
    browser: Browser, application: OauthApplication, tom: TotpUser, scheme: str
) -> None:
    profile = {"viewport": {"width": 320, "height": 600}, "color_scheme": scheme}
    async with open_tab(browser, application, **profile) as tab:
        for action in (
            partial(tab.open),
            partial(tab.sign_in, "tom"),
            partial(tab.enter_code, tom.recovery_codes.pop()),
            partial(tab.open, client_id="unknown"),
        ):
            await action()
            await tab.page.get_by_role("heading").wait_for()
            width = await tab.page.evaluate("document.documentElement.scrollWidth")
            assert width <= 320


async def test_pages_have_pictures_in_the_docs(
    browser: Browser,
    application: OauthApplication,
    server: MerganserProcess,
    tom: TotpUser,
    tmp_path: Path,
) -> None:
    folder = picture_folder(tmp_path) / "operating"
    client = await create_client(server, redirect_uri="https://webmail.example.com/callback")
    async with open_tab(browser, replace(application, client=client), **PICTURE_PROFILE) as tab:
        await tab.open(scope="openid email mail_read")
        await tab.save_picture(folder / "oauth-sign-in.png")
        await tab.sign_in("tom")
        await tab.save_picture(folder / "oauth-second-factor.png")
        await tab.enter_code(tom.recovery_codes.pop())
        await tab.save_picture(folder / "oauth-consent.png")
