"""With whom a user writes, as the API shows it."""

from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar

import strawberry

from graph.types.errors import leaf
from graph.types.fields import Info
from graph.types.object_views import Made
from graph.types.row_mapping import Shape, identified, listed
from graph.types.scalars import EmailAddress
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
