"""With whom a user writes, as the API shows it."""

from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar

import strawberry

from graph.errors import leaf
from graph.fields import Info
from graph.rows import Shape, identified, listed
from graph.scalars import EmailAddress
from graph.views import Made
from resolvers.addresses import contacts
from resolvers.addresses.contacts import OfUser


@strawberry.type(description="Correspondent, or another user of a domain with globalAddressList.")
class AddressRegisterEntry(Shape):
    name: str | None = leaf("As in the last header that had one.")
    address: EmailAddress = leaf("Address.")
    last_used_at: datetime | None = leaf(
        "Last mail from them, or to them; null = a colleague without any."
    )

    batch = staticmethod(contacts.by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("AddressRegisterEntry")}


async def begun(info: Info, user_id: int, query: str, first: int) -> list[AddressRegisterEntry]:
    """Those of a user whose address or name begins so."""
    text, most = contacts.checked(query, first)
    rows = await info.context.load(contacts.begun, OfUser(user_id, text, most))
    return await listed(info, AddressRegisterEntry, rows)
