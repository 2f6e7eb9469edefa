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


@strawberry.type(
    description=(
        "Names of the user who owns a mailbox, or whom it is shared with. They are visible even if "
        "the account is not."
    )
)
class UserSummary:
    username: str = attribute_field("Username of the account, in lower case.")
    name: str | None = attribute_field("Display name of the account. Null if it has none.")
    address: EmailAddress | None = attribute_field(
        "Main address of the account. Null if it has none."
    )

    @classmethod
    def from_row_or_none(cls, row: Any) -> Optional["UserSummary"]:
        """Return the names of an account, or None without a row."""
        return row and cls(username=row.username, name=row.name, address=row.address)


@strawberry.type(description="Rights of another user on a shared mailbox (RFC 4314).")
class MailboxShare:
    row: strawberry.Private[Any]
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User who has the rights. Null if the caller can't see that account: see "
        "`grantee`.",
    )
    grantee: UserSummary = link(
        "user_id",
        shares.load_user_names,
        UserSummary.from_row_or_none,
        description="Names of the user who has the rights.",
    )
    rights: list[ShareRight] = attribute_field(
        "Rights that the user `grantee` has on the mailbox. The owner, users with the right ADMIN "
        "and administrators can have given them. Never empty: each right includes LOOKUP."
    )

    @classmethod
    def from_row(cls, row: Any) -> "MailboxShare":
        """Return the share of a row."""
        return cls(row=row, rights=sorted_rights(decode_rights(row.rights)))
