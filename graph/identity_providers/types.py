"""GraphQL types of identity providers and of the accounts that they are linked to."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

import strawberry

from graph.types.errors import attribute_field
from graph.types.fields import Auth, Info, field
from graph.types.object_views import DerivedField, View
from models.users.roles import Role
from resolvers.domains.loaders import load_visible_domains_by_id
from resolvers.identity_providers.provider_records import callback_url, logout_url

ADMIN_GUARD: dict[str, Any] = {"role": Role.DOMAIN_ADMIN}


@strawberry.type(
    description="OpenID Connect provider at which the users of a domain sign in.",
    directives=[Auth(**ADMIN_GUARD)],
)
class IdentityProvider(View):
    issuer: str = attribute_field(
        "Issuer of the provider: the value that `iss` must have. The server reads the metadata "
        "below this URL."
    )
    client_id: str = attribute_field("Identifier of this server as a client of the provider.")
    has_client_secret: bool = attribute_field(
        "True if the server authenticates to the provider with a client secret, which is never "
        "returned."
    )
    scopes: list[str] = attribute_field(
        "OAuth scopes that a sign-in requests from the provider. At most 20."
    )
    username_claim: str = attribute_field(
        "Claim of the provider that names the account: its main address or another address in the "
        "domain. A value without @ is a local part."
    )
    groups_claim: str = attribute_field(
        "Claim of the provider with the groups of a user, which is read only if `adminGroups` has "
        "a group."
    )
    admin_groups: list[str] = attribute_field(
        "Groups of the provider whose members get the role DOMAIN_ADMIN for the domain. At most "
        "100."
    )
    active_claim: str | None = attribute_field(
        "Claim of the provider that suspends an account and ends its access if its value is false. "
        "Null: none."
    )
    user_creation_allowed: bool = attribute_field(
        "True: a user of the provider without an account gets one without a password, within the "
        "limits of the domain."
    )
    password_sign_in_allowed: bool = attribute_field(
        "True: users of the domain can also sign in with the password of the account. If it is "
        "false, application passwords still work, and accounts with `allowLocal` or the role ADMIN "
        "or ROOT still use their passwords."
    )
    created_at: datetime = attribute_field(
        "Time when identityProviderSet created the provider of the domain. A replacement keeps "
        "this time, a deletion does not."
    )
    updated_at: datetime | None = attribute_field(
        "Time when identityProviderSet last replaced the values. Null: never."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "scopes": DerivedField(("scopes",), list),
        "admin_groups": DerivedField(("admin_groups",), list),
    }

    @field(
        "Redirect URI to register at the provider. Null: the setting MERGANSER_PUBLIC_URL is "
        "missing.",
        "domain_id",
    )
    async def redirect_uri(self, info: Info) -> str | None:
        return await self._url_for_domain(info, callback_url)

    @field(
        "URL for back-channel logout to register at the provider. Null: the setting "
        "MERGANSER_PUBLIC_URL is missing.",
        "domain_id",
    )
    async def backchannel_logout_uri(self, info: Info) -> str | None:
        return await self._url_for_domain(info, logout_url)

    async def _url_for_domain(self, info: Info, make_url: Any) -> str | None:
        public_url = info.context.environment.options.public_url
        domain = await info.context.load(load_visible_domains_by_id, self.row.domain_id)
        return make_url(public_url, domain.name) if public_url and domain else None


@strawberry.type(description="Account at an identity provider that a user is linked to.")
class IdentityLink(View):
    issuer: str = attribute_field("Issuer of the identity provider (`iss`).")
    subject: str = attribute_field("Identifier of the account at the identity provider (`sub`).")
    created_at: datetime = attribute_field(
        "Time of the first sign-in of the user at the identity provider of the domain, since the "
        "user was last unlinked."
    )
    last_sign_in_at: datetime = attribute_field(
        "Time of the last sign-in of the user at the identity provider."
    )
    access_ended_at: datetime | None = attribute_field(
        "Time when the identity provider ended the access of the account. The password of the "
        "account is then refused until the next sign-in at the provider, unless `allowLocal` is "
        "true. Null: it has not ended."
    )
