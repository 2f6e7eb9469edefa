"""The accounts that can send as an address."""

from mail.recipients.address_resolution import require_receiving_address_row
from models.addresses.tables import AddressKind
from models.errors import NotFound
from models.runtime.environment import Environment
from models.store.columns import ColumnRow


async def find_user_id_that_sends_as(environment: Environment, address: str) -> int | None:
    """Return the ID of the account that can send as the address, None if there is none."""
    return user_id_that_sends_as(await find_receiving_address_row(environment, address))


async def find_receiving_address_row(environment: Environment, address: str) -> ColumnRow | None:
    """Return the row of the address record that receives mail for an address, None if none does."""
    try:
        return await require_receiving_address_row(environment, address)
    except NotFound:
        return None


def user_id_that_sends_as(address_row: ColumnRow | None) -> int | None:
    """Return the ID of the account that can send as the address of this row."""
    if address_row is None or address_row.kind is not AddressKind.MAILBOX:
        return None
    return address_row.user_id if address_row.send_as else None
