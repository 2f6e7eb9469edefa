"""What accepts mail, as the API shows it."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry

from graph.domains import Domain
from graph.errors import leaf
from graph.rows import Shape, identified, link, shaped
from graph.views import Made, same
from models.addresses import AddressKind
from resolvers import addresses, domains, users

if TYPE_CHECKING:
    from graph.users import User

strawberry.enum(AddressKind, description="What happens to mail for an address.")


@strawberry.type(description="What accepts mail.")
class Address(Shape):
    address: str = leaf("Unicode form, may hold *.")
    local_part: str = leaf("Left of @.")
    kind: AddressKind = leaf("What happens to its mail.")
    name: str | None = leaf("Identity name.")
    user: Annotated["User", strawberry.lazy("graph.users")] | None = link(
        "user_id",
        users.by_ids,
        shaped("graph.users", "User"),
        description="Owner of a MAILBOX address.",
    )
    domain: Domain | None = link(
        "domain_id",
        domains.by_ids,
        Domain.maybe,
        description="Domain record; null = holds in all domains.",
    )
    main: bool = leaf("Default of its user.")
    active: bool = leaf("False = refuses mail.")
    send_as: bool = leaf("Offered as sender to the users it delivers to.")
    is_wildcard: bool = leaf("Holds *.")
    is_catch_all: bool = leaf("*@domain.")
    expires_at: datetime | None = leaf("End of a temporary address.")
    tags: list[str] = leaf("Labels.")
    public_comment: str | None = leaf("Shown to users.")
    created_at: datetime = leaf("Creation.")
    updated_at: datetime | None = leaf("Last change.")

    batch = staticmethod(addresses.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("Address"),
        "address": Made(("shown",), same),
        "local_part": Made(("shown",), lambda shown: shown.rpartition("@")[0]),
        "is_wildcard": Made(("local",), lambda local: "*" in local),
        "is_catch_all": Made(("local",), lambda local: local == "*"),
    }
