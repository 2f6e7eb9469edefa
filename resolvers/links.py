"""Signed addresses: who has one may fetch the bytes behind it, for a quarter of an hour."""

import base64
import hashlib
import hmac
import math
import re
from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlmodel import col

from models.errors import Unauthenticated
from models.roles import Role, Scope
from models.users import User
from models.world import World
from resolvers.context import Viewer

VALID = timedelta(minutes=15)  # at least
STEP = 300  # seconds to which the end is rounded up: for so long an address stays the same
METHOD = "GET"  # and so HEAD

_NUMBER = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)


def sign(world: World, path: str, user_id: int, *, now: datetime) -> str:
    """The path, with a query that lets whoever has it read there as this user.

    It ends after 15 to 20 minutes, so that the address of a thing changes but every five.
    """
    ends = math.ceil((now + VALID).timestamp() / STEP) * STEP
    return f"{path}?exp={ends}&user={user_id}&sig={_signature(world, path, user_id, ends)}"


def verify(world: World, path: str, query: Mapping[str, str]) -> int:
    """Whose address it is. Unauthenticated where it was not made by `sign`, or has ended."""
    ends, user_id, shown = (query.get(name, "") for name in ("exp", "user", "sig"))
    if not (_NUMBER.fullmatch(ends) and _NUMBER.fullmatch(user_id)):
        raise Unauthenticated
    made = _signature(world, path, int(user_id), int(ends))
    if not hmac.compare_digest(made.encode(), shown.encode(errors="surrogatepass")):
        raise Unauthenticated
    if int(ends) <= world.now().timestamp():
        raise Unauthenticated
    return int(user_id)


async def viewer(world: World, path: str, query: Mapping[str, str]) -> Viewer:
    """Who may read by this address: its user, as long as the account is open.

    Unauthenticated as `verify` says.
    """
    user_id = verify(world, path, query)
    open_ = select(col(User.id)).where(
        col(User.id) == user_id, ~col(User.disabled), ~col(User.suspended)
    )
    if not await world.database.read(open_):
        raise Unauthenticated
    return Viewer(user_id, Role.USER, frozenset({Scope.MAIL_READ}), read_only=True)


def absolute(world: World, address: str, base: str) -> str:
    """The address as a URL: behind `public_url`, or where none is set behind `base`.

    `base` is where the request came to, such as https://mail.example.org.
    """
    return (world.options.public_url or base).rstrip("/") + address


def _signature(world: World, path: str, user_id: int, ends: int) -> str:
    # Numbers stand last, so that no path can be read as another path and other numbers.
    text = f"{METHOD}\n{path}\n{user_id}\n{ends}"
    digest = hmac.digest(world.secret, text.encode(errors="surrogatepass"), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
