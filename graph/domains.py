"""Mail domains, as the API shows them."""

from datetime import datetime
from typing import ClassVar

import strawberry

from graph.errors import leaf
from graph.rows import Shape, identified
from graph.scalars import ByteSize
from graph.views import Made
from resolvers import domains


@strawberry.type(description="Mail domain.")
class Domain(Shape):
    name: str = leaf("Unicode form.")
    description: str | None = leaf("Text for people.")
    active: bool = leaf("Takes mail.")
    tags: list[str] = leaf("Labels.")
    max_addresses: int = leaf("Aliases allowed, 0 = any number.")
    max_users: int = leaf("Accounts allowed, 0 = any number.")
    max_user_quota: ByteSize = leaf("Highest per user, 0 = unlimited.")
    quota: ByteSize = leaf("For all users together, 0 = unlimited.")
    quota_allocated: ByteSize = leaf("Given out.")
    user_count: int = leaf("Accounts.")
    created_at: datetime = leaf("Creation.")
    updated_at: datetime | None = leaf("Last change.")

    batch = staticmethod(domains.by_ids)
    made: ClassVar[dict[str, Made]] = {"id": identified("Domain")}
