"""Read OpenPGP keys of recipients."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlmodel import col

from models.addresses.tables import AddressKind
from models.errors import InvalidInput
from models.store.columns import select_columns
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.submission.sender_authorization import resolve_active_addresses


async def require_recipient_keys(ctx: Context, recipients: Sequence[str]) -> list[str]:
    """Return the armoured OpenPGP keys of all recipients, which must be addresses of accounts here.

    Raises InvalidInput if a recipient has no key.
    """
    address_rows = await resolve_active_addresses(ctx, recipients)
    users = {
        address: row.user_id
        for address, row in address_rows.items()
        if row is not None and row.kind is AddressKind.MAILBOX
    }
    statement = select(*select_columns(User, {"id", "openpgp_public_key"})).where(
        col(User.id).in_(set(users.values()))
    )
    keys = {
        row.id: row.openpgp_public_key
        for row in await ctx.read(statement)
        if row.openpgp_public_key
    }
    without = [address for address in recipients if users.get(address) not in keys]
    if without:
        text = f"No OpenPGP key is known for {', '.join(without[:3])}."
        raise InvalidInput(text, constraint=ValidationConstraint.KEY, path=["encrypt"])
    return [keys[users[address]] for address in recipients]
