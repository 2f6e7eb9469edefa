"""Tasks and connector runs go on after a full or failed disk: an outage is not their failure."""

import os
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mail.storage.blobs.object_stores import FolderStore
from models.admin.tasks import Task, TaskState
from models.runtime import leases
from models.runtime.environment import Environment
from models.store.outages import DiskFull, StorageUnavailable
from resolvers.admin import tasks
from resolvers.connectors import worker as connector_worker
from tests.conftest import GraphQLClient, deliver_to, raw_message
from tests.support.accounts.user_exports import load_export
from tests.support.accounts.user_operations import execute_mutation
from tests.support.operations.connector_operations import (
    add_connector,
    dovecot_account,
    run_connector,
    shared_dovecot,
)
from tests.support.servers.dovecot_server import DovecotAccount
from tests.support.stores.counter_check import select_rows
from tests.support.stores.other_processes import make_other_process
from tests.support.stores.small_disk import SmallDisk, mount_small_disk

__all__ = ["dovecot_account", "shared_dovecot"]
LARGE_BODY = b64encode(os.urandom(300_000)).decode()


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    """A small disk, with no pauses of workers after an error."""
    monkeypatch.setattr(connector_worker, "PAUSE_AFTER_ERROR", 0.0)
    monkeypatch.setattr(tasks, "RETRY_AFTER_ERROR_SECONDS", 0.0)
    with mount_small_disk(tmp_path / "disk", 4) as disk:
        yield disk


async def test_task_does_not_fail_by_outages(
    ada: GraphQLClient, environment: Environment, disk: SmallDisk
) -> None:
    small = replace(environment, object_store=FolderStore(disk.folder))
    await deliver_to(replace(ada, environment=small), raw_message("Large", body=LARGE_BODY))
    payload = await execute_mutation(ada, "userExport", "userExport { id }")
    disk.fill()
    for _ in range(2 * tasks.MAX_ATTEMPTS):
        with pytest.raises(DiskFull):
            await tasks.run_next_task(small)
        await leases.send_heartbeat_or_register_again(small)
    assert await select_rows(environment, "SELECT state, attempts, lease FROM tasks") == [
        (TaskState.RUNNING, 0, None)
    ]
    disk.remove_ballast()
    assert await tasks.run_next_task(small)
    assert (await load_export(ada, payload["userExport"]["id"]))["state"] == "SUCCEEDED"


async def test_task_does_not_fail_by_restarts_in_an_outage(
    ada: GraphQLClient,
    environment: Environment,
    disk: SmallDisk,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each server, or worker of a server, ends before the pause after the error is over."""
    monkeypatch.setattr(tasks, "RETRY_AFTER_ERROR_SECONDS", 600.0)
    small = replace(environment, object_store=FolderStore(disk.folder))
    await deliver_to(replace(ada, environment=small), raw_message("Large", body=LARGE_BODY))
    payload = await execute_mutation(ada, "userExport", "userExport { id }")
    disk.fill()
    for number in range(tasks.MAX_ATTEMPTS):
        server = make_other_process(small, name=f"server {number}")
        async with leases.keep_process_registered(server):
            with pytest.raises(DiskFull):
                await tasks.run_next_task(server)
            await leases.free_leases_of_stopped_worker(server, Task)
            with pytest.raises(DiskFull):
                await tasks.run_next_task(server)
    disk.remove_ballast()
    assert await tasks.run_next_task(small)
    assert (await load_export(ada, payload["userExport"]["id"]))["state"] == "SUCCEEDED"


async def test_work_continues_after_the_disk_was_read_only(
    ada: GraphQLClient, environment: Environment, dovecot_account: DovecotAccount, disk: SmallDisk
) -> None:
    small = replace(environment, object_store=FolderStore(disk.folder))
    await deliver_to(replace(ada, environment=small), raw_message("Large", body=LARGE_BODY))
    dovecot_account.save_message(raw_message("Other", body=LARGE_BODY[::-1]))
    connector_id = await add_connector(ada, dovecot_account)
    payload = await execute_mutation(ada, "userExport", "userExport { id }")
    with disk.mounted_read_only():
        for _ in range(tasks.MAX_ATTEMPTS + 1):
            with pytest.raises(StorageUnavailable):
                await tasks.run_next_task(small)
            await leases.send_heartbeat_or_register_again(small)
        interrupted = await run_connector(small, connector_id)
        assert (interrupted.state, interrupted.error) == (TaskState.RUNNING, None)
        await leases.send_heartbeat_or_register_again(small)
    assert await tasks.run_next_task(small)
    assert (await load_export(ada, payload["userExport"]["id"]))["state"] == "SUCCEEDED"
    run = await run_connector(small, connector_id)
    assert (run.id, run.state, run.imported_count) == (interrupted.id, TaskState.SUCCEEDED, 1)


async def test_connector_run_continues_after_an_outage(
    ada: GraphQLClient, dovecot_account: DovecotAccount, disk: SmallDisk
) -> None:
    dovecot_account.save_message(raw_message("Large", body=LARGE_BODY))
    small = replace(ada.environment, object_store=FolderStore(disk.folder))
    connector_id = await add_connector(ada, dovecot_account)
    disk.fill()
    interrupted = await run_connector(small, connector_id)
    assert (interrupted.state, interrupted.error) == (TaskState.RUNNING, None)
    await leases.send_heartbeat_or_register_again(small)
    disk.remove_ballast()
    run = await run_connector(small, connector_id)
    assert (run.id, run.state, run.imported_count) == (interrupted.id, TaskState.SUCCEEDED, 1)
