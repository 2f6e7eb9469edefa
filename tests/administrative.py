"""The mutations that write the administrative log, and what they say there.

Each must have its call in tests/calls.py. Whoever adds a mutation for administrators adds it
here; one of a lower role stands here where it may also be done to others.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from graph import ids
from tests.calls import CALLS, Call
from tests.conftest import Client

Prepare = Callable[[Client, Client], Awaitable[Call]]


@dataclass(frozen=True)
class Logged:
    """What an entry says: the type of its target, and names it has before and after."""

    kind: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    prepare: Prepare | None = None  # where the usual call is one of the viewer's own things
    by_root: bool = True
    hidden: tuple[str, ...] = ()  # of those after, the secrets


async def _others_key(ada: Client, root: Client) -> Call:
    made = await (CALLS["apiKeyDelete"])(ada, root)
    return Call(made.name, made.input, made.payload, journaled=False, by_root=True)


async def _key_for_ada(ada: Client, _root: Client) -> Call:
    given = {"name": "reports", "user": {"id": ids.encode("User", ada.user.id)}}
    return Call("apiKeyCreate", given, "apiKey { name }", journaled=False, by_root=True)


LOGGED: dict[str, Logged] = {
    "apiKeyCreate": Logged("ApiKey", after=("name", "role"), prepare=_key_for_ada),
    "apiKeyDelete": Logged("ApiKey", before=("name", "role"), prepare=_others_key),
    "settingDelete": Logged("Setting", before=("submission.maxRecipients",)),
    "settingSet": Logged("Setting", after=("submission.maxRecipients",)),
    "userCreate": Logged("User", after=("username", "address", "password"), hidden=("password",)),
}
# for administrators, but nothing is changed of others
UNLOGGED: dict[str, str] = {}
