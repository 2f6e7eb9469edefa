"""GraphQL types of mailbox shares."""

from typing import TYPE_CHECKING, Annotated, Any, Optional

import strawberry

from graph.types.errors import attribute_field
from graph.types.row_mapping import lazy_view_factory, link
from graph.types.scalars import EmailAddress
from models.mailboxes.shares import ShareRight, decode_rights
from resolvers.mailboxes import shares
from resolvers.mailboxes.rights import sorted_rights
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User


@strawberry.type(description="What an account is called, for those who share a folder with it.")
class UserSummary:
    username: str = attribute_field("Lower case.")
    name: str | None = attribute_field("Display name.")
    address: EmailAddress | None = attribute_field("Main address, null for accounts without one.")

    @classmethod
    def from_row_or_none(cls, row: Any) -> Optional["UserSummary"]:
        """Return the names of an account, or None without a row."""
        return row and cls(username=row.username, name=row.name, address=row.address)


@strawberry.type(description="What another account may do in a folder.")
class MailboxShare:
    row: strawberry.Private[Any]
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="With whom it is shared; null where the viewer does not see the account.",
    )
    grantee: UserSummary = link(
        "user_id",
        shares.load_user_names,
        UserSummary.from_row_or_none,
        description="What that account is called.",
    )
    rights: list[ShareRight] = attribute_field("What it may do.")

    @classmethod
    def from_row(cls, row: Any) -> "MailboxShare":
        """Return the share of a row."""
        return cls(row=row, rights=sorted_rights(decode_rights(row.rights)))
