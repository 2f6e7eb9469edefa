"""Sample calls of mutations of OAuth clients, grants and identity providers."""

from typing import Any

from sqlalchemy import insert, select
from sqlmodel import col

from graph.types import global_ids
from models.identity_providers import IdentityLink, IdentityProvider
from models.oauth.tables import OauthGrant
from tests.conftest import GraphQLClient
from tests.support.oauth.oauth_flow import add_client
from tests.support.sample_mutations.mutation_call import MutationCall, register_call

CLIENT_INPUT: dict[str, Any] = {
    "name": "Webmail",
    "redirectUris": ["https://webmail.example.com/callback"],
    "scopes": ["OPENID", "MAIL", "SUBMIT"],
}


async def _create_client(root: GraphQLClient) -> str:
    payload = await MutationCall("oauthClientCreate", CLIENT_INPUT, "oauthClient { id }")(root)
    assert payload["errors"] == []
    return str(payload["oauthClient"]["id"])


@register_call
async def oauth_client_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "oauthClientCreate",
        CLIENT_INPUT,
        "oauthClient { clientId name } clientSecret",
        by_root=True,
    )


@register_call
async def oauth_client_update(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {
        "oauthClients": [{"id": await _create_client(root)}],
        "set": {"name": "Calendar"},
    }
    return MutationCall("oauthClientUpdate", input_fields, "oauthClients { name }", by_root=True)


@register_call
async def oauth_client_secret_rotate(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {"oauthClient": {"id": await _create_client(root)}}
    return MutationCall("oauthClientSecretRotate", input_fields, "clientSecret", by_root=True)


@register_call
async def oauth_client_delete(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {"oauthClients": [{"id": await _create_client(root)}]}
    return MutationCall("oauthClientDelete", input_fields, "deletedIds", by_root=True)


@register_call
async def oauth_grant_revoke(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    client, grant_id = await add_client(ada.environment), ada.environment.new_id()
    async with ada.environment.write_session() as session:
        await (await session.connection()).execute(
            insert(OauthGrant).values(
                id=grant_id,
                user_id=ada.user.id,
                client_id=client.row_id,
                scopes=["mail"],
                created_at=ada.environment.now(),
            )
        )
    input_fields = {"oauthGrants": [{"id": global_ids.encode("OauthGrant", grant_id)}]}
    return MutationCall("oauthGrantRevoke", input_fields, "deletedIds")


DOMAIN = {"name": "example.org"}
PROVIDER_INPUT: dict[str, Any] = {
    "domain": DOMAIN,
    "issuer": "https://login.example.com",
    "clientId": "mail-server",
    "clientSecret": "secret of the mail server",
    "userCreationAllowed": True,
}


async def _set_provider(root: GraphQLClient) -> None:
    payload = await MutationCall("identityProviderSet", PROVIDER_INPUT)(root)
    assert payload["errors"] == []


@register_call
async def identity_provider_set(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "identityProviderSet",
        PROVIDER_INPUT,
        "domain { identityProvider { issuer redirectUri } }",
        by_root=True,
    )


@register_call
async def identity_provider_delete(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await _set_provider(root)
    return MutationCall(
        "identityProviderDelete", {"domains": [DOMAIN]}, "domains { name }", by_root=True
    )


@register_call
async def identity_provider_test(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await _set_provider(root)
    return MutationCall(
        "identityProviderTest",
        {"domain": DOMAIN},
        "succeeded steps { kind succeeded }",
        journaled=False,
        by_root=True,
    )


@register_call
async def identity_link_delete(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await link_user(ada, root)
    input_fields = {"users": {"usernames": [ada.user.username]}}
    return MutationCall("identityLinkDelete", input_fields, "users { username }", by_root=True)


async def link_user(user: GraphQLClient, root: GraphQLClient) -> None:
    """Set the provider of the domain, and link a user to an account of it."""
    await _set_provider(root)
    environment = user.environment
    (provider,) = await environment.database.read(select(col(IdentityProvider.id)))
    now = environment.now()
    link = {
        "id": environment.new_id(), "user_id": user.user.id, "provider_id": provider.id,
        "issuer": PROVIDER_INPUT["issuer"], "client_id": "mail-server", "subject": "ada-1",
        "is_admin_by_group": False, "is_checking": False, "created_at": now,
        "last_sign_in_at": now,
    }  # fmt: skip
    async with environment.write_session() as session:
        await (await session.connection()).execute(insert(IdentityLink).values(link))
