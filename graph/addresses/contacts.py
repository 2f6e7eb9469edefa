"""GraphQL type of the contacts of a user, and their search."""

from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar

import strawberry

from graph.types.errors import attribute_field
from graph.types.fields import Info
from graph.types.object_views import DerivedField
from graph.types.row_mapping import NodeView, global_id_field, objects_from_rows_with_links
from graph.types.scalars import EmailAddress
from resolvers.addresses import contacts
from resolvers.addresses.contacts import ContactSearch


@strawberry.type(
    description="Suggested recipient: a correspondent of the user, or another user of a domain "
    "with `globalAddressList`."
)
class ContactSuggestion(NodeView):
    name: str | None = attribute_field(
        "Display name. Of a correspondent: as in the last message that had one. Of another user "
        "of the domain: that of the main address or account. Null: none."
    )
    address: EmailAddress = attribute_field("Email address of the contact.")
    last_used_at: datetime | None = attribute_field(
        "Time of the last message from or to the contact, apart from Junk, mailing lists and "
        "automatic mail. Null: the suggestion comes from the address list of the domain, "
        "whether messages were exchanged or not."
    )

    load_batch = staticmethod(contacts.load_visible_contacts_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("ContactSuggestion")
    }


async def search_contacts(
    info: Info, user_id: int, query: str, limit: int
) -> list[ContactSuggestion]:
    """Load the contacts of a user with this text in their address or name.

    Colleagues of the same domain are included if the domain has a global address list. Raises
    InvalidInput if the text or the limit is out of range.
    """
    search_text, max_count = contacts.validated_query_and_limit(query, limit)
    rows = await info.context.load(
        contacts.load_contacts_and_colleagues_by_search,
        ContactSearch(user_id, search_text, max_count),
    )
    return await objects_from_rows_with_links(info, ContactSuggestion, rows)
