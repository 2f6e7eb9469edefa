"""Sign URLs that give read access to the bytes behind them for 15 to 20 minutes."""

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
STEP = 300  # seconds; the end is rounded up, so that the URL changes rarely
METHOD = "GET"  # also valid for HEAD

_NUMBER = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_OWNER = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)  # 0: an API key of the platform
_CREDENTIAL = re.compile(r"([tkav])([1-9][0-9]{0,18})|(b)", re.ASCII)


def sign(world: World, path: str, user_id: int, by: Viewer, *, now: datetime) -> str:
    """Return the path with a query that lets its bearer read it as this user.

    It expires after 15 to 20 minutes, and when the credential of `signer` ends. The query of a
    path changes every five minutes.
    """
    ends, name = math.ceil((now + VALID).timestamp() / STEP) * STEP, by.credential
    signature = _signature(world, path, name, user_id, ends)
    return f"{path}?exp={ends}&user={user_id}&by={name}&sig={signature}"


def verify(world: World, path: str, query: Mapping[str, str]) -> int:
    """Return the user of a signed path.

    Raises Unauthenticated if it is expired or not signed here.
    """
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
    """Return a read-only viewer of the user of a signed path.

    Raises Unauthenticated if the signature, the account or the credential is no longer valid.
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
    """Return the signer of a path as a viewer with the present rights of the credential.

    Use it for what the role of the signer allows. Raises Unauthenticated if the signature or the
    credential is no longer valid.
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
    """Return the URL of a path below the setting `public_url`.

    If that is empty, `request_origin` is used instead. It is the origin of the request, such as
    https://mail.example.org.
    """
    return (world.options.public_url or base).rstrip("/") + address


def _signature(world: World, path: str, by: str, user_id: int, ends: int) -> str:
    # Fields of a fixed form come last, so that no path can contain them.
    text = f"{METHOD}\n{path}\n{by}\n{user_id}\n{ends}"
    if base := world.incarnation.base:  # URLs of another incarnation are refused
        text = f"{base}\n{text}"
    digest = hmac.digest(world.secret, text.encode(errors="surrogatepass"), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
