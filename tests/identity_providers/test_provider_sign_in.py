"""Sign-in at an identity provider: accounts that are linked, created and refused."""

import asyncio
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from graph.oauth.texts.page_texts import ENGLISH
from models.addresses.tables import Address
from models.auth.security_log import SecurityEvent, SecurityEventAction
from models.identity_providers import IdentityLink
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.users.roles import Role
from models.users.tables import DomainAdmin, User
from resolvers.identity_providers.claims import identity_from_claims
from resolvers.identity_providers.provider_records import ProviderConfig
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.identity_providers.scripted_provider import (
    ProviderEndpoint,
    ScriptedProvider,
)
from tests.support.oauth.oauth_flow import OauthBrowser, TestClient, location_parameters
from tests.support.oauth.provider_flow import (
    CLIENT_SECRET,
    add_provider,
    come_back,
    open_provider,
    provider_url,
    sign_in_at_provider,
    tokens_by_provider,
)


def query_of(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


async def load_links(environment: Environment) -> list[tuple[int, str, str]]:
    columns = (IdentityLink.user_id, IdentityLink.issuer, IdentityLink.subject)
    return [tuple(row) for row in await environment.database.read(select(*map(col, columns)))]


async def load_user(environment: Environment, username_key: str) -> ColumnRow:
    statement = select(col(User.id), col(User.role), col(User.password), col(User.name))
    is_user = col(User.username_key) == username_key
    (row,) = await environment.database.read(statement.where(is_user))
    return row


async def test_user_signs_in_and_is_linked(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, ada: GraphQLClient
) -> None:
    await add_provider(ada.environment, provider.issuer)
    tokens = await tokens_by_provider(browser, webmail, provider)
    assert await browser.is_accepted(tokens["access_token"])
    assert await load_links(ada.environment) == [(ada.user.id, provider.issuer, "ada-1")]
    (request,) = provider.requests_to(ProviderEndpoint.TOKEN)
    assert request.form["redirect_uri"] == "https://mail.example.org/oauth/callback/example.org"
    assert CLIENT_SECRET not in request.form.values()  # it is in the header
    assert request.headers["authorization"].startswith("Basic ")
    events = select(col(SecurityEvent.detail)).where(
        col(SecurityEvent.action) == SecurityEventAction.SIGN_IN_ATTEMPTED
    )
    details = [row.detail for row in await ada.environment.database.read(events)]
    assert details == [{"source": "identity provider", "issuer": provider.issuer, "linked": "true"}]


async def test_request_uses_pkce_nonce_and_state(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, environment: Environment
) -> None:
    await add_provider(environment, provider.issuer)
    url = query_of(await open_provider(browser, webmail))
    again = query_of(await open_provider(browser, webmail))
    assert url["code_challenge_method"] == "S256"
    assert url["response_type"] == "code"
    assert url["login_hint"] == "ada@example.org"
    assert url["scope"] == "openid email offline_access"
    for name in ("code_challenge", "nonce", "state"):
        assert len(url[name]) >= 43
        assert url[name] != again[name]


async def test_linked_account_keeps_its_user_if_its_address_changes(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, ada: GraphQLClient
) -> None:
    await add_provider(ada.environment, provider.issuer)
    await tokens_by_provider(browser, webmail, provider)
    provider.claims["email"] = "renamed@example.org"
    consent = await sign_in_at_provider(browser, webmail, provider)
    assert "ada" in consent.text
    assert len(await load_links(ada.environment)) == 1


UNLINKED_CLAIMS: list[dict[str, object]] = [
    {"email": "bob@example.org"},
    {"email": "ada@other.example"},
    {"email": "ada+x@example.org"},
    {"email": "a.da@example.org"},
    {"email": "ada@example.org", "email_verified": False},
    {"email": "ada@example.org", "email_verified": "false"},
    {"email": "ada@example.org", "email_verified": None},
    {"email": "\u212aada@example.org"},
    {"email": None},
    {"email": ["ada@example.org"]},
    {"email": "ada@example.org\0"},
]


async def test_other_address_is_not_linked(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, ada: GraphQLClient
) -> None:
    await add_provider(ada.environment, provider.issuer)
    for case in each_case(UNLINKED_CLAIMS):
        with case as claims:
            provider.reset()
            provider.claims.update(claims)
            page = await sign_in_at_provider(browser, webmail, provider)
            assert page.status_code == 403
            assert ENGLISH.no_account in page.text
            assert await load_links(ada.environment) == []


async def test_account_is_named_by_the_configured_claim(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, ada: GraphQLClient
) -> None:
    await add_provider(ada.environment, provider.issuer, username_claim="upn")
    provider.claims |= {"upn": "Ada@Example.ORG", "email": "bob@example.org"}
    await tokens_by_provider(browser, webmail, provider)
    assert await load_links(ada.environment) == [(ada.user.id, provider.issuer, "ada-1")]


async def test_second_account_with_the_same_address_is_refused(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, ada: GraphQLClient
) -> None:
    await add_provider(ada.environment, provider.issuer)
    await tokens_by_provider(browser, webmail, provider)
    provider.claims["sub"] = "another-person"
    page = await sign_in_at_provider(browser, webmail, provider)
    assert (page.status_code, ENGLISH.no_account in page.text) == (403, True)


async def test_unknown_user_gets_an_account_without_a_password(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, environment: Environment
) -> None:
    await add_provider(environment, provider.issuer, user_creation_allowed=True)
    provider.claims |= {"sub": "bob-1", "email": "Bob.Smith@example.org", "name": "Bob"}
    tokens = await tokens_by_provider(browser, webmail, provider)
    assert await browser.is_accepted(tokens["access_token"])
    user = await load_user(environment, "bobsmith@example.org")
    assert (user.role, user.password, user.name) == (Role.USER, None, "Bob")


async def test_account_is_not_created_beyond_the_limit_of_the_domain(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, root: GraphQLClient
) -> None:
    await add_provider(root.environment, provider.issuer, user_creation_allowed=True)
    await root(
        'mutation { domainUpdate(input: {domains: [{name: "example.org"}], set: {maxUsers: 1}})'
        " { errors { message } } }"
    )
    provider.claims |= {"sub": "bob-1", "email": "bob@example.org"}
    page = await sign_in_at_provider(browser, webmail, provider)
    assert (page.status_code, ENGLISH.no_account in page.text) == (403, True)


async def test_groups_give_and_take_the_role(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, ada: GraphQLClient
) -> None:
    environment = ada.environment
    await add_provider(environment, provider.issuer, admin_groups=["mail-admins"])
    provider.claims["groups"] = ["staff", "mail-admins"]
    scope = "openid domain_admin"
    tokens = await tokens_by_provider(browser, webmail, provider, scope=scope)
    assert tokens["scope"] == scope
    assert (await load_user(environment, "ada")).role == Role.DOMAIN_ADMIN
    domains = await environment.database.read(select(col(DomainAdmin.domain_id)))
    assert len(domains) == 1
    assert await browser.is_accepted(tokens["access_token"])
    provider.claims["groups"] = ["staff"]
    scope = "openid mail_read domain_admin"
    new_tokens = await tokens_by_provider(browser, webmail, provider, scope=scope)
    assert new_tokens["scope"] == "openid mail_read"
    assert (await load_user(environment, "ada")).role == Role.USER
    assert not await browser.is_accepted(tokens["access_token"])


async def test_role_of_an_administrator_stays_without_the_group(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, ada: GraphQLClient
) -> None:
    await add_provider(ada.environment, provider.issuer, admin_groups=["mail-admins"])
    async with ada.environment.write_session() as session:
        given = update(User).where(col(User.id) == ada.user.id).values(role=Role.DOMAIN_ADMIN)
        await (await session.connection()).execute(given)
    provider.claims["groups"] = []
    await tokens_by_provider(browser, webmail, provider)
    assert (await load_user(ada.environment, "ada")).role == Role.DOMAIN_ADMIN


@pytest.mark.parametrize(
    "columns", [{"role": Role.ADMIN}, {"role": Role.ROOT}, {"allow_local": True}]
)
async def test_administrators_and_local_accounts_do_not_sign_in_at_the_provider(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    ada: GraphQLClient,
    columns: dict[str, object],
) -> None:
    await add_provider(ada.environment, provider.issuer, password_sign_in_allowed=False)
    async with ada.environment.write_session() as session:
        statement = update(User).where(col(User.id) == ada.user.id).values(columns)
        await (await session.connection()).execute(statement)
    page = await sign_in_at_provider(browser, webmail, provider)
    assert (page.status_code, ENGLISH.no_account in page.text) == (403, True)
    consent = await browser.sign_in(await browser.open(webmail), "ada")  # by password
    assert consent.status_code == 200


async def test_suspended_user_is_refused(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, ada: GraphQLClient
) -> None:
    await add_provider(ada.environment, provider.issuer)
    async with ada.environment.write_session() as session:
        statement = update(User).where(col(User.id) == ada.user.id).values(suspended=True)
        await (await session.connection()).execute(statement)
    page = await sign_in_at_provider(browser, webmail, provider)
    assert (page.status_code, ENGLISH.account_ended in page.text) == (403, True)


async def test_address_of_another_user_of_the_domain_is_not_taken_over(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, ada: GraphQLClient
) -> None:
    """An address whose user belongs to another domain does not sign in its user."""
    await add_provider(ada.environment, provider.issuer)
    async with ada.environment.write_session() as session:
        statement = update(User).where(col(User.id) == ada.user.id).values(domain_id=None)
        await (await session.connection()).execute(statement)
    page = await sign_in_at_provider(browser, webmail, provider)
    assert (page.status_code, ENGLISH.no_account in page.text) == (403, True)
    addresses = await ada.environment.database.read(select(col(Address.user_id)))
    assert ada.user.id in {row.user_id for row in addresses}


async def test_password_is_refused_if_the_domain_requires_the_provider(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, ada: GraphQLClient
) -> None:
    await add_provider(ada.environment, provider.issuer, password_sign_in_allowed=False)
    page = await browser.open(webmail)
    url = provider_url(await browser.sign_in(page, "ada"))  # the right password
    assert url.startswith(provider.issuer)
    wrong = await browser.sign_in(page, "ada", "wrong")
    assert (wrong.status_code, ENGLISH.wrong_password in wrong.text) == (403, True)


async def test_addresses_without_a_provider_get_a_hint(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, environment: Environment
) -> None:
    page = await browser.open(webmail)
    assert ENGLISH.sign_in_at_organization not in page.text
    await add_provider(environment, provider.issuer)
    page = await browser.open(webmail)
    assert ENGLISH.sign_in_at_organization in page.text
    for address, text in (
        ("", ENGLISH.enter_address),
        ("ada", ENGLISH.enter_address),
        ("ada@unknown.example", ENGLISH.no_organization),
        ("ada@" + "x" * 300, ENGLISH.no_organization),
        ("ada@exa\0mple.org", ENGLISH.no_organization),
    ):
        again = await browser.send(page, username=address, choice="organization")
        assert (again.status_code, text in again.text) == (400, True), address


async def test_consent_page_after_the_provider_can_be_denied(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, environment: Environment
) -> None:
    await add_provider(environment, provider.issuer)
    consent = await sign_in_at_provider(browser, webmail, provider)
    answer = location_parameters(await browser.send(consent, choice="deny"))
    assert answer["error"] == "access_denied"


async def test_userinfo_says_whether_an_address_is_verified(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, environment: Environment
) -> None:
    await add_provider(environment, provider.issuer)
    provider.id_token_changes["email_verified"] = None
    provider.userinfo_changes["email_verified"] = False
    page = await sign_in_at_provider(browser, webmail, provider)
    assert page.status_code == 403
    provider.userinfo_changes["email_verified"] = "true"
    assert (await sign_in_at_provider(browser, webmail, provider)).status_code == 200


async def test_two_first_sign_ins_link_one_account(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, environment: Environment
) -> None:
    await add_provider(environment, provider.issuer)
    urls = [await provider.sign_in(await open_provider(browser, webmail)) for _ in range(4)]
    # each ID token is of another person
    subjects = iter([f"person-{number}" for number in range(4)])
    make_id_token = provider.id_token

    def id_token(nonce: str | None, access_token: str) -> str:
        provider.claims["sub"] = next(subjects)
        return make_id_token(nonce, access_token)

    provider.id_token = id_token  # type: ignore[method-assign]
    pages = await asyncio.gather(*(come_back(browser, url) for url in urls))
    assert sorted(page.status_code for page in pages) == [200, 403, 403, 403]


async def test_ended_account_is_not_created(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, environment: Environment
) -> None:
    await add_provider(
        environment, provider.issuer, user_creation_allowed=True, active_claim="active"
    )
    provider.claims |= {"sub": "bob-1", "email": "bob@example.org", "active": False}
    page = await sign_in_at_provider(browser, webmail, provider)
    assert (page.status_code, ENGLISH.account_ended in page.text) == (403, True)
    rows = await environment.database.read(select(col(User.username)))
    assert [row.username for row in rows] == ["ada"]


async def test_role_by_group_ends_with_the_provider(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    ada: GraphQLClient,
    root: GraphQLClient,
) -> None:
    await add_provider(ada.environment, provider.issuer, admin_groups=["mail-admins"])
    provider.claims["groups"] = ["mail-admins"]
    await tokens_by_provider(browser, webmail, provider)
    payload = await root(
        'mutation { identityProviderDelete(input: {domains: [{name: "example.org"}]})'
        " { errors { message } } }"
    )
    assert payload["identityProviderDelete"]["errors"] == []
    assert (await load_user(ada.environment, "ada")).role == Role.USER


@pytest.mark.parametrize(
    ("issuer", "claims", "address"),
    [
        ("https://accounts.google.com", {"hd": "example.org"}, "ada@example.org"),
        ("https://accounts.google.com", {}, None),
        ("https://accounts.google.com", {"hd": "other.example"}, None),
        ("https://idp.example.com", {}, "ada@example.org"),
    ],
)
def test_google_account_must_be_of_the_organization(
    issuer: str, claims: dict[str, str], address: str | None
) -> None:
    columns: dict[str, Any] = {
        "issuer": issuer, "username_claim": "email", "groups_claim": "groups",
        "admin_groups": [], "active_claim": None, "domain_name": "example.org",
    }  # fmt: skip
    config = ProviderConfig(SimpleNamespace(**columns))  # type: ignore[arg-type]
    ada = {"sub": "1", "email": "ada@example.org", "email_verified": True, **claims}
    assert identity_from_claims(config, ada).address == address
