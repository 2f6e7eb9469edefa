"""GraphQL type of the contacts of a user, and their search."""

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
    """Load the contacts of a user with this text in their address or name.

    Colleagues of the same domain are included if the domain has a global address list. Raises
    Invalid if the text or the limit is out of range.
    """
    search_text, max_count = contacts.checked(query, first)
    rows = await info.context.load(contacts.begun, OfUser(user_id, search_text, max_count))
    return await listed(info, AddressRegisterEntry, rows)
