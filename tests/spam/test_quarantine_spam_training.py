"""A released message is sent to the spam filter as ham in the background, if configured."""

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
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.key_value_operations import change_options
from tests.support.mail_servers.scanner_servers import http_response as answered
from tests.support.operations.domain_operations import error_summary, run_mutation
from tests.support.operations.quarantine_operations import (
    QUARANTINE_DELETE,
    QUARANTINE_RELEASE,
    QUARANTINE_RELEASE_ERRORS,
    list_inbox_subjects,
    quarantine_message,
)
from tests.support.servers.webhook_receiver import WebhookReceiver, run_webhook_receiver

pytestmark = pytest.mark.usefixtures("verify_consistency")


@pytest.fixture
async def learning_server(environment: Environment) -> AsyncIterator[WebhookReceiver]:
    """A server that learns like Rspamd."""
    async with run_webhook_receiver() as receiver:
        receiver.response = answered(b'{"success":true}')
        change_options(environment, rspamd_learn_url=f"http://127.0.0.1:{receiver.port}")
        yield receiver


async def pending_training(environment: Environment) -> list[bool]:
    return [row.spam for row in await environment.database.read(select(col(TrainingMessage.spam)))]


async def test_released_message_is_learned_as_ham(
    ada: GraphQLClient, learning_server: WebhookReceiver
) -> None:
    raw = raw_message("Bill")
    item_id = await quarantine_message(ada, raw)
    _, errors = await run_mutation(
        ada,
        QUARANTINE_RELEASE_ERRORS,
        quarantineItems=[{"id": item_id}],
        options={"validateOnly": True},
    )
    assert (errors, await pending_training(ada.environment)) == ([], [])
    _, errors = await run_mutation(ada, QUARANTINE_RELEASE, quarantineItems=[{"id": item_id}])
    assert errors == []
    assert not learning_server.requests  # the release did not wait for the training
    assert await training_worker.try_train_with_next_messages(ada.environment)
    ((path, body),) = [(request.path, request.raw) for request in learning_server.requests]
    assert (path, body.endswith(raw)) == ("/learnham", True)


async def test_no_training_if_disabled_or_deleted(
    ada: GraphQLClient, learning_server: WebhookReceiver
) -> None:
    first_id, second_id, third_id = [await quarantine_message(ada, subject) for subject in "abc"]
    _, errors = await run_mutation(
        ada, QUARANTINE_RELEASE, quarantineItems=[{"id": first_id}], learnHam=False
    )
    assert errors == []
    assert (await run_mutation(ada, QUARANTINE_DELETE, quarantineItems=[{"id": second_id}]))[
        1
    ] == []
    change_options(ada.environment, rspamd_learn_url="")
    assert (
        await run_mutation(
            ada, QUARANTINE_RELEASE, quarantineItems=[{"id": third_id}], learnHam=True
        )
    )[1] == []
    assert (await pending_training(ada.environment), await list_inbox_subjects(ada)) == (
        [],
        ["c", "a"],
    )
    assert learning_server.requests == []


async def test_release_succeeds_if_spam_filter_is_unavailable(
    ada: GraphQLClient, learning_server: WebhookReceiver, clock: ManualClock
) -> None:
    learning_server.response = answered(b"", "503 Busy")
    _, errors = await run_mutation(
        ada, QUARANTINE_RELEASE, quarantineItems=[{"id": await quarantine_message(ada, "Bill")}]
    )
    assert (errors, await list_inbox_subjects(ada)) == ([], ["Bill"])
    assert not await training_worker.try_train_with_next_messages(ada.environment)
    assert await pending_training(ada.environment) == [False]
    learning_server.response = answered(b'{"success":true}')
    clock.tick(minutes=1)
    assert await training_worker.try_train_with_next_messages(ada.environment)
    assert (learning_server.requests[-1].path, await pending_training(ada.environment)) == (
        "/learnham",
        [],
    )


@pytest.mark.usefixtures("learning_server")
async def test_no_training_without_access_or_with_a_virus(
    ada: GraphQLClient, bob: GraphQLClient, http: httpx.AsyncClient
) -> None:
    domain_admin = await make_domain_admin(
        ada.environment, http, "chief", [AdminPermission.QUARANTINE]
    )
    item_id = await quarantine_message(ada, "Hers")
    virus_id = await quarantine_message(ada, "Virus", QuarantineReason(0.0, (), "Eicar"))
    _, errors = await run_mutation(bob, QUARANTINE_RELEASE, quarantineItems=[{"id": item_id}])
    assert (error_summary(errors)[0], await pending_training(ada.environment)) == ("NOT_FOUND", [])
    assert (
        await run_mutation(domain_admin, QUARANTINE_RELEASE, quarantineItems=[{"id": virus_id}])
    )[1] == []
    assert await pending_training(ada.environment) == []
    assert (
        await run_mutation(domain_admin, QUARANTINE_RELEASE, quarantineItems=[{"id": item_id}])
    )[1] == []
    assert await pending_training(ada.environment) == [False]
