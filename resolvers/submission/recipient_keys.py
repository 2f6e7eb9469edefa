"""Read OpenPGP keys of recipients."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlmodel import col

from models.addresses.tables import AddressKind
from models.errors import Invalid
from models.store.columns import picked
from models.users.tables import User
from resolvers.context import Context
from resolvers.submission.sender_authorization import resolved


async def of(ctx: Context, recipients: Sequence[str]) -> list[str]:
    """Return the armoured OpenPGP keys of all recipients, which must be addresses of accounts here.

    Raises Invalid if a recipient has no key.
    """
    rows = await resolved(ctx, recipients)
    users = {
        address: row.user_id
        for address, row in rows.items()
        if row is not None and row.kind is AddressKind.MAILBOX
    }
    asked = select(*picked(User, {"id", "pub_key"})).where(col(User.id).in_(set(users.values())))
    keys = {row.id: row.pub_key for row in await ctx.read(asked) if row.pub_key}
    without = [address for address in recipients if users.get(address) not in keys]
    if without:
        text = f"no key is known of {', '.join(without[:3])}"
        raise Invalid(text, constraint="key", path=["encrypt"])
    return [keys[users[address]] for address in recipients]
