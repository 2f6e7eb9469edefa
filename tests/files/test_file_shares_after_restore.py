"""Shares of files after a restore of the database."""

import pytest
from sqlalchemy import delete, update
from sqlmodel import col

from graph.types import global_ids
from mail.maintenance import restore_mark
from models.files.tables import FileShare
from models.runtime.environment import Environment
from resolvers.files import shares
from tests.conftest import GraphQLClient, ManualClock
from tests.support.operations.file_operations import share_file, store_file


async def change_share_id(environment: Environment, share_id: int, new_id: int) -> None:
    """Give a share another id. A share with that id is deleted."""
    async with environment.write_session() as session:
        connection = await session.connection()
        await connection.execute(delete(FileShare).where(col(FileShare.id) == new_id))
        row_update = update(FileShare).where(col(FileShare.id) == share_id)
        await connection.execute(row_update.values(id=new_id))


async def test_share_url_lost_by_restore_opens_no_other_file(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    environment = ada.environment
    lost_share = await share_file(ada, await store_file(ada, "Ducks."))
    clock.tick(seconds=1)
    await restore_mark.begin_incarnation_after_consistent_restore(environment)
    new_share = await share_file(ada, await store_file(ada, "Swans!"))
    share_id = global_ids.decode("FileShare", lost_share["id"])
    await change_share_id(environment, global_ids.decode("FileShare", new_share["id"]), share_id)
    assert (await ada.http.get(lost_share["url"])).status_code == 404
    assert (
        await ada.http.get(f"/share/{shares.create_share_token(environment, share_id)}")
    ).text == "Swans!"


@pytest.mark.parametrize("restores", [1, 2])
async def test_restored_share_url_stays_valid(
    ada: GraphQLClient, clock: ManualClock, restores: int
) -> None:
    share = await share_file(ada, await store_file(ada, "Ducks."))
    for _ in range(restores):
        clock.tick(seconds=1)
        await restore_mark.begin_incarnation_after_consistent_restore(ada.environment)
    assert (await ada.http.get(share["url"])).text == "Ducks."
    new_token = shares.create_share_token(
        ada.environment, global_ids.decode("FileShare", share["id"])
    )
    assert new_token not in share["url"]
    assert (await ada.http.get(f"/share/{new_token}")).text == "Ducks."
    for forged_token in (
        new_token[:-4] + "AAAA",
        new_token[:12] + share["url"].rpartition("/")[2][12:],
    ):
        assert (await ada.http.get(f"/share/{forged_token}")).status_code == 404
