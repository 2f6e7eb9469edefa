"""Links to files after a restore of the database."""

import pytest
from sqlalchemy import delete, update
from sqlmodel import col

from graph.types import global_ids
from mail.maintenance import restore_mark
from models.files.tables import FileShare
from models.runtime.environment import Environment
from resolvers.files import shares
from tests.conftest import Client, Clock
from tests.support.operations.file_operations import share_file, store_file


async def rekey(world: Environment, share_id: int, new_id: int) -> None:
    """Give a link the key of another one, which is gone."""
    async with world.write_session() as session:
        connection = await session.connection()
        await connection.execute(delete(FileShare).where(col(FileShare.id) == new_id))
        this = update(FileShare).where(col(FileShare.id) == share_id)
        await connection.execute(this.values(id=new_id))


async def test_a_link_of_a_lost_history_opens_no_other_file(ada: Client, clock: Clock) -> None:
    world = ada.world
    lost = await share_file(ada, await store_file(ada, "Ducks."))
    clock.tick(seconds=1)
    await restore_mark.begin_after_consistent_restore(world)
    later = await share_file(ada, await store_file(ada, "Swans!"))
    key = global_ids.decode("FileShare", lost["id"])
    await rekey(world, global_ids.decode("FileShare", later["id"]), key)
    assert (await ada.http.get(lost["url"])).status_code == 404
    assert (await ada.http.get(f"/share/{shares.create_token(world, key)}")).text == "Swans!"


@pytest.mark.parametrize("restores", [1, 2])
async def test_links_that_were_restored_stay_open(ada: Client, clock: Clock, restores: int) -> None:
    link = await share_file(ada, await store_file(ada, "Ducks."))
    for _ in range(restores):
        clock.tick(seconds=1)
        await restore_mark.begin_after_consistent_restore(ada.world)
    assert (await ada.http.get(link["url"])).text == "Ducks."
    again = shares.create_token(ada.world, global_ids.decode("FileShare", link["id"]))
    assert again not in link["url"]
    assert (await ada.http.get(f"/share/{again}")).text == "Ducks."
    for forged in (again[:-4] + "AAAA", again[:12] + link["url"].rpartition("/")[2][12:]):
        assert (await ada.http.get(f"/share/{forged}")).status_code == 404
