"""GraphQL types of mailbox shares."""

from typing import TYPE_CHECKING, Annotated, Any, Optional

import strawberry

from graph.types.errors import leaf
from graph.types.row_mapping import link, shaped
from graph.types.scalars import EmailAddress
from models.mailboxes.shares import ShareRight, rights_of
from resolvers.mailboxes import shares
from resolvers.mailboxes.rights import ordered
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User


@strawberry.type(description="What an account is called, for those who share a folder with it.")
class AccountName:
    username: str = leaf("Lower case.")
    name: str | None = leaf("Display name.")
    address: EmailAddress | None = leaf("Main address, null for accounts without one.")

    @classmethod
    def maybe(cls, row: Any) -> Optional["AccountName"]:
        """Return the names of an account, or None without a row."""
        return row and cls(username=row.username, name=row.name, address=row.address)


@strawberry.type(description="What another account may do in a folder.")
class MailboxShare:
    row: strawberry.Private[Any]
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.by_ids,
        shaped("graph.users.types", "User"),
        description="With whom it is shared; null where the viewer does not see the account.",
    )
    grantee: AccountName = link(
        "user_id", shares.names, AccountName.maybe, description="What that account is called."
    )
    rights: list[ShareRight] = leaf("What it may do.")

    @classmethod
    def of(cls, row: Any) -> "MailboxShare":
        """Return the share of a row."""
        return cls(row=row, rights=ordered(rights_of(row.rights)))
