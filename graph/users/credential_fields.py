"""Fields of users for the tokens of sign-ins and the access of OAuth clients."""

from typing import TYPE_CHECKING, Annotated

import strawberry
from strawberry import UNSET

import graph.auth.types
from graph.identity_providers.types import IdentityLink
from graph.oauth.types import OauthGrant, load_grant_page
from graph.types.connections import Connection, PageArguments
from graph.types.fields import Info, field
from graph.types.object_access import OVERSEEN, OWN
from graph.users.mail_fields import UserMailFields
from models.users.roles import AdminPermission, Scope
from resolvers.auth.access_tokens import AccessTokenOrder
from resolvers.identity_providers import loaders as identity_loaders
from resolvers.oauth.grants import OauthGrantOrder

if TYPE_CHECKING:
    from graph.auth.types import AccessToken


@strawberry.type
class UserCredentialFields(UserMailFields):
    """Fields of users for tokens and grants."""

    @field(
        "Valid access tokens of the signed-in user, also those that wait for the second factor. "
        "Empty for other accounts.",
        scope=Scope.READ,
        access=OWN,
    )
    async def access_tokens(
        self,
        info: Info,
        order_by: AccessTokenOrder = AccessTokenOrder.CREATED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Annotated["AccessToken", strawberry.lazy("graph.auth.types")]]:
        page_arguments = PageArguments(first, after, last, before)
        return await graph.auth.types.load_access_token_page(
            info, self.row.id, order_by, page_arguments
        )

    @field(
        "Access that the user has given to OAuth clients (grants).",
        scope=Scope.READ,
        access=OVERSEEN.with_permissions(AdminPermission.APP_PASSWORDS),
    )
    async def oauth_grants(
        self,
        info: Info,
        order_by: OauthGrantOrder = OauthGrantOrder.CREATED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[OauthGrant]:
        page_arguments = PageArguments(first, after, last, before)
        return await load_grant_page(info, self.row.id, order_by, page_arguments)

    @field(
        "Link of the user to the account at an identity provider. Null: the user has never signed "
        "in there, or the caller may not see it.",
        "id",
        access=OVERSEEN,
    )
    async def identity_link(self, info: Info) -> IdentityLink | None:
        row = await info.context.load(identity_loaders.load_visible_links_by_user_id, self.row.id)
        return IdentityLink.from_row_or_none(row)
