"""Calls about mail that is held."""

from tests import held
from tests.calls.call import Call, call
from tests.conftest import Client


@call
async def quarantine_release(ada: Client, _root: Client) -> Call:
    given = {"ids": [await held.hold(ada, "Held news")]}
    return Call("quarantineRelease", given, "messages { subject mailbox { path } }")


@call
async def quarantine_delete(ada: Client, _root: Client) -> Call:
    return Call("quarantineDelete", {"ids": [await held.hold(ada, "Held news")]}, "deletedIds")


@call
async def quarantine_notification_set(_ada: Client, _root: Client) -> Call:
    return Call("quarantineNotificationSet", {"frequency": "HOURLY"}, "users { username }")
