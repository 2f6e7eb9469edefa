"""What is let in teaches the spam filter that it is none: behind it, and where that is wanted."""

from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy import select
from sqlmodel import col

from mail.delivery.quarantine import QuarantineReason
from mail.scanners import training_worker
from models.runtime.environment import Environment
from models.spam.training import TrainingMessage
from models.users.roles import AdminPermission
from tests.conftest import Client, Clock, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.key_value_operations import limit
from tests.support.mail_servers.scanner_servers import http as answered
from tests.support.operations.domain_operations import done, told
from tests.support.operations.quarantine_operations import DELETE, RELEASE, TRY, hold, inbox
from tests.support.servers.webhook_receiver import Receiver, receiving

pytestmark = pytest.mark.usefixtures("examined")


@pytest.fixture
async def teacher(world: Environment) -> AsyncIterator[Receiver]:
    """A server that learns as rspamd does."""
    async with receiving() as receiver:
        receiver.answer = answered(b'{"success":true}')
        limit(world, rspamd_learn=f"http://127.0.0.1:{receiver.port}")
        yield receiver


async def lessons(world: Environment) -> list[bool]:
    return [row.spam for row in await world.database.read(select(col(TrainingMessage.spam)))]


async def test_what_is_let_in_is_learned_as_good_mail(ada: Client, teacher: Receiver) -> None:
    raw = raw_message("Bill")
    key = await hold(ada, raw)
    _, errors = await done(ada, TRY, ids=[key], options={"validateOnly": True})
    assert (errors, await lessons(ada.world)) == ([], [])
    _, errors = await done(ada, RELEASE, ids=[key])
    assert errors == []
    assert not teacher.got  # nobody has waited for it
    assert await training_worker.train_batch(ada.world)
    ((path, learned),) = [(each.path, each.raw) for each in teacher.got]
    assert (path, learned.endswith(raw)) == ("/learnham", True)


async def test_not_where_that_is_not_wanted(ada: Client, teacher: Receiver) -> None:
    first, second, third = [await hold(ada, letter) for letter in "abc"]
    _, errors = await done(ada, RELEASE, ids=[first], learnHam=False)
    assert errors == []
    assert (await done(ada, DELETE, ids=[second]))[1] == []
    limit(ada.world, rspamd_learn="")
    assert (await done(ada, RELEASE, ids=[third], learnHam=True))[1] == []
    assert (await lessons(ada.world), await inbox(ada)) == ([], ["c", "a"])
    assert teacher.got == []


async def test_a_filter_that_is_down_holds_up_no_release(
    ada: Client, teacher: Receiver, clock: Clock
) -> None:
    teacher.answer = answered(b"", "503 Busy")
    _, errors = await done(ada, RELEASE, ids=[await hold(ada, "Bill")])
    assert (errors, await inbox(ada)) == ([], ["Bill"])
    assert not await training_worker.train_batch(ada.world)
    assert await lessons(ada.world) == [False]
    teacher.answer = answered(b'{"success":true}')
    clock.tick(minutes=1)
    assert await training_worker.train_batch(ada.world)
    assert (teacher.got[-1].path, await lessons(ada.world)) == ("/learnham", [])


@pytest.mark.usefixtures("teacher")
async def test_nobody_teaches_with_what_is_anothers_nor_with_a_virus(
    ada: Client, bob: Client, http: httpx.AsyncClient
) -> None:
    chief = await make_domain_admin(ada.world, http, "chief", [AdminPermission.QUARANTINE])
    hers, virus = (
        await hold(ada, "Hers"),
        await hold(ada, "Virus", QuarantineReason(0.0, (), "Eicar")),
    )
    _, errors = await done(bob, RELEASE, ids=[hers])
    assert (told(errors)[0], await lessons(ada.world)) == ("NOT_FOUND", [])
    assert (await done(chief, RELEASE, ids=[virus]))[1] == []
    assert await lessons(ada.world) == []
    assert (await done(chief, RELEASE, ids=[hers]))[1] == []
    assert await lessons(ada.world) == [False]
