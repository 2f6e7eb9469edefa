"""Signed addresses: who has one may fetch the bytes behind it, for a quarter of an hour."""

import base64
import hashlib
import hmac
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlmodel import col

from models.errors import Unauthenticated
from models.runtime.environment import World
from models.store.columns import Picked
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.auth import credential_status
from resolvers.auth.credential_cache import Known
from resolvers.context import Reach, Viewer

VALID = timedelta(minutes=15)  # at least
STEP = 300  # seconds to which the end is rounded up: for so long an address stays the same
METHOD = "GET"  # and so HEAD

_NUMBER = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_OWNER = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)  # 0: a key of the platform
_CREDENTIAL = re.compile(r"([tkav])([1-9][0-9]{0,18})|(b)", re.ASCII)


def sign(world: World, path: str, user_id: int, by: Viewer, *, now: datetime) -> str:
    """The path, with a query that lets whoever has it read there as this user.

    It ends after 15 to 20 minutes, so that the address of a thing changes but every five; and
    at once with the credential it is made by.
    """
    ends, name = math.ceil((now + VALID).timestamp() / STEP) * STEP, by.credential
    signature = _signature(world, path, name, user_id, ends)
    return f"{path}?exp={ends}&user={user_id}&by={name}&sig={signature}"


def verify(world: World, path: str, query: Mapping[str, str]) -> int:
    """Whose address it is. Unauthenticated where it was not made by `sign`, or is over."""
    ends, user_id, name, shown = (query.get(part, "") for part in ("exp", "user", "by", "sig"))
    if not (_NUMBER.fullmatch(ends) and _OWNER.fullmatch(user_id) and _CREDENTIAL.fullmatch(name)):
        raise Unauthenticated
    made = _signature(world, path, name, int(user_id), int(ends))
    if not hmac.compare_digest(made.encode(), shown.encode(errors="surrogatepass")):
        raise Unauthenticated
    if int(ends) <= world.now().timestamp():
        raise Unauthenticated
    return int(user_id)


async def viewer(world: World, path: str, query: Mapping[str, str]) -> Viewer:
    """Who may read by this address: its user, as long as account and credential are open.

    Unauthenticated as `verify` says.
    """
    user_id = verify(world, path, query)
    kind, key = query["by"][0], int(query["by"][1:] or 0)
    asked = select(col(User.auth_version), credential_status.shared_with(col(User.id)))
    owner = asked.where(col(User.id) == user_id, credential_status.open_users())
    rows: Sequence[Picked] = await world.database.read(owner)
    if not rows or (kind == "v" and rows[0].auth_version != key):
        raise Unauthenticated
    if kind in "tka" and await _credential(world, kind, key) is None:
        raise Unauthenticated
    reach, scopes = Reach(shared=bool(rows[0].shared)), frozenset({Scope.MAIL_READ})
    return Viewer(user_id, Role.USER, scopes, read_only=True, reach=reach)


async def caller(world: World, path: str, query: Mapping[str, str]) -> Viewer:
    """Who made this address, with all that their credential may do at this moment.

    For what its maker may have by role, and not as its owner. Unauthenticated as `verify` says.
    """
    verify(world, path, query)
    kind, key = query["by"][0], int(query["by"][1:] or 0)
    if kind == "b":
        return Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER}))
    known = await _credential(world, kind, key) if kind in "tka" else None
    if known is None:
        raise Unauthenticated
    return known.viewer


async def _credential(world: World, kind: str, key: int) -> Known | None:
    if kind == "t":
        return await credential_status.token(world, id=key)
    if kind == "k":
        return await credential_status.key(world, id=key)
    return await credential_status.app_password(world, key)


def absolute(world: World, address: str, base: str) -> str:
    """The address as a URL: behind `public_url`, or where none is set behind `base`.

    `base` is where the request came to, such as https://mail.example.org.
    """
    return (world.options.public_url or base).rstrip("/") + address


def _signature(world: World, path: str, by: str, user_id: int, ends: int) -> str:
    # What has a form of its own stands last: no path can be read as another path and other facts.
    text = f"{METHOD}\n{path}\n{by}\n{user_id}\n{ends}"
    if base := world.incarnation.base:  # a link of a history that a restore ended is refused
        text = f"{base}\n{text}"
    digest = hmac.digest(world.secret, text.encode(errors="surrogatepass"), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
