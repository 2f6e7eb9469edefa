"""Mutations of OAuth clients and grants."""

from typing import Any

import strawberry

from graph.oauth.references import OauthClientRef, OauthGrantRef, load_client_id, load_client_ids
from graph.oauth.types import OauthClient
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.idempotent_payloads import SECRET_METADATA
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.object_references import ids_from_refs
from models.oauth.tables import OauthGrantType, OauthScope
from models.users.roles import AdminPermission, Role, Scope
from resolvers.oauth import client_loaders, clients, grants
from resolvers.oauth.clients import NewOauthClient, OauthClientChanges

WRITE_GUARD: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.FULL}
NAME_DESCRIPTION = "Name that users read on the consent page: 1 to 100 printable characters."
REDIRECT_URIS_DESCRIPTION = (
    "Redirect URIs that a request can name, 1 to 20, each of at most 1,000 characters without a "
    "fragment: https URIs, http://127.0.0.1 and http://[::1], or a private-use scheme with a dot "
    "(RFC 8252). A request must name one of them character by character; only the port of a "
    "loopback URI can differ."
)
GRANT_TYPES_DESCRIPTION = (
    "Ways in which the client gets tokens. AUTHORIZATION_CODE is required. Without REFRESH_TOKEN "
    "users must sign in again when an access token has expired."
)
SCOPES_DESCRIPTION = (
    "Scopes that the client can request, at least one. Users give access to the requested ones."
)


@strawberry.input(description="Input of oauthClientCreate.")
class OauthClientCreateInput(Options):
    name: str = attribute_field(NAME_DESCRIPTION)
    redirect_uris: list[str] = attribute_field(REDIRECT_URIS_DESCRIPTION)
    grant_types: list[OauthGrantType] = attribute_field(
        f"{GRANT_TYPES_DESCRIPTION} Default: both.", default_factory=lambda: [*OauthGrantType]
    )
    scopes: list[OauthScope] = attribute_field(
        f"{SCOPES_DESCRIPTION} Default: OPENID, PROFILE and EMAIL.",
        default_factory=lambda: [OauthScope.OPENID, OauthScope.PROFILE, OauthScope.EMAIL],
    )
    has_secret: bool = attribute_field(
        "True creates a client that authenticates with a secret. False creates a public client, "
        "such as a program on a phone or in a browser, which can keep no secret. Default: true.",
        default=True,
    )


@strawberry.input(
    description=(
        "New values of OAuth clients. An absent field leaves the value, and null is refused. At "
        "least one value is required."
    )
)
class OauthClientPatch:
    name: strawberry.Maybe[str] = attribute_field(NAME_DESCRIPTION)
    redirect_uris: strawberry.Maybe[list[str]] = attribute_field(REDIRECT_URIS_DESCRIPTION)
    grant_types: strawberry.Maybe[list[OauthGrantType]] = attribute_field(GRANT_TYPES_DESCRIPTION)
    scopes: strawberry.Maybe[list[OauthScope]] = attribute_field(
        f"{SCOPES_DESCRIPTION} Present access tokens keep a removed scope until they expire, "
        "after 1 hour by default."
    )


@strawberry.input(description="Input of oauthClientUpdate.")
class OauthClientUpdateInput(Options):
    oauth_clients: list[OauthClientRef] = attribute_field(
        "OAuth clients to change: 1 to 1,000 by default."
    )
    set: OauthClientPatch = attribute_field(
        "New values, the same for all clients. At least one value is required."
    )


@strawberry.input(description="Input of oauthClientSecretRotate.")
class OauthClientSecretRotateInput(Options):
    oauth_client: OauthClientRef = attribute_field("OAuth client that gets a new secret.")


@strawberry.input(description="Input of oauthClientDelete.")
class OauthClientDeleteInput(Options):
    oauth_clients: list[OauthClientRef] = attribute_field(
        "OAuth clients to delete: 1 to 1,000 by default."
    )


@strawberry.input(description="Input of oauthGrantRevoke.")
class OauthGrantRevokeInput(Options):
    oauth_grants: list[OauthGrantRef] = attribute_field(
        "OAuth grants to revoke, 1 to 1,000 by default."
    )


@strawberry.type(description="Payload of oauthClientCreate and oauthClientSecretRotate.")
class OauthClientSecretPayload(MutationPayload):
    oauth_client: OauthClient | None = attribute_field(
        "Created or changed OAuth client. Null if the mutation failed.", default=None
    )
    client_secret: str | None = attribute_field(
        "Secret that the client authenticates with. It is returned once. Null: a public client, "
        "the mutation failed, or it was a dry run.",
        default=None,
        metadata=SECRET_METADATA,
    )


@strawberry.type(description="Payload of oauthClientUpdate.")
class OauthClientsPayload(MutationPayload):
    oauth_clients: list[OauthClient] = attribute_field(
        "Changed OAuth clients, each once, in the order of the references.", default_factory=list
    )


async def _secret_payload(info: Info, key: int, secret: str | None) -> OauthClientSecretPayload:
    row = await info.context.load(client_loaders.load_visible_clients_by_id, key)
    return OauthClientSecretPayload(
        oauth_client=OauthClient.from_row_or_none(row), client_secret=secret
    )


@strawberry.type
class OauthMutation:
    @mutation(
        "Creates an OAuth client, a program that can sign users in. Its secret is returned once; "
        "a public client (`hasSecret` false) has none. LIMIT_REACHED if the platform has 1,000 "
        "clients, besides those that have registered themselves (RFC 7591).",
        **WRITE_GUARD,
    )
    async def oauth_client_create(
        self, info: Info, input: OauthClientCreateInput
    ) -> OauthClientSecretPayload:
        new_client = NewOauthClient(
            input.name,
            input.redirect_uris,
            [OauthGrantType(value) for value in input.grant_types],
            [OauthScope(value) for value in input.scopes],
            is_public=not input.has_secret,
        )
        created = await clients.create_client(info.context, new_client)
        return await _secret_payload(info, created.row_id, created.secret)

    @mutation(
        "Changes OAuth clients, all or none. Their access tokens stay valid. Their refresh tokens "
        "stay, too, but are refused if the grant type REFRESH_TOKEN is removed. `hasSecret` can't "
        "be changed. LIMIT_REACHED for more than 1,000 references (by default).",
        **WRITE_GUARD,
    )
    async def oauth_client_update(
        self, info: Info, input: OauthClientUpdateInput
    ) -> OauthClientsPayload:
        keys = await load_client_ids(info, input.oauth_clients, "oauthClients")
        patch = input.set
        changes = OauthClientChanges(
            patch.name.value if patch.name else None,
            patch.redirect_uris.value if patch.redirect_uris else None,
            [OauthGrantType(value) for value in patch.grant_types.value]
            if patch.grant_types
            else None,
            [OauthScope(value) for value in patch.scopes.value] if patch.scopes else None,
        )
        await clients.update_clients(info.context, keys, changes)
        rows = await info.context.load_many(
            client_loaders.load_visible_clients_by_id, list(dict.fromkeys(keys))
        )
        return OauthClientsPayload(oauth_clients=[OauthClient.from_row(row) for row in rows if row])

    @mutation(
        "Replaces the secret of an OAuth client. The new secret is returned once. The old secret "
        "is refused at once. Access tokens and refresh tokens of the client stay valid. VALIDATION "
        "for a public client, which has no secret.",
        **WRITE_GUARD,
    )
    async def oauth_client_secret_rotate(
        self, info: Info, input: OauthClientSecretRotateInput
    ) -> OauthClientSecretPayload:
        key = await load_client_id(info, input.oauth_client, "oauthClient")
        secret = await clients.rotate_client_secret(info.context, key)
        return await _secret_payload(info, key, secret)

    @mutation(
        "Deletes OAuth clients, all or none. The access that users have given them ends with all "
        "tokens, within 1 second. Open connections with these tokens are closed. LIMIT_REACHED "
        "for more than 1,000 references (by default).",
        **WRITE_GUARD,
    )
    async def oauth_client_delete(self, info: Info, input: OauthClientDeleteInput) -> DeletePayload:
        keys = await load_client_ids(info, input.oauth_clients, "oauthClients")
        await clients.delete_clients(info.context, keys)
        return DeletePayload.of_keys("OauthClient", keys)

    @mutation(
        "Revokes OAuth grants, which give OAuth clients access to accounts, all or none. The "
        "access tokens and refresh tokens of these grants end within 1 second. Open WebSocket "
        "connections, event streams and submission sessions with these tokens are closed. The "
        "security log of the user has an entry. The user gets a message if somebody else revokes "
        "a grant. The user can give the client access again. LIMIT_REACHED for more than 1,000 "
        "references (by default).",
        scope=Scope.FULL,
        access=MANAGED.with_permissions(AdminPermission.APP_PASSWORDS),
    )
    async def oauth_grant_revoke(self, info: Info, input: OauthGrantRevokeInput) -> DeletePayload:
        keys = ids_from_refs(info, input.oauth_grants, "oauthGrants")
        await grants.revoke_grants(info.context, keys)
        return DeletePayload.of_keys("OauthGrant", keys)
