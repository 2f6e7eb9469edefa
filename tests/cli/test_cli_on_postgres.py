"""Tests of the commands that use most database features, on PostgreSQL."""

import asyncio
from pathlib import Path

import pytest

from models.store.database import Database
from tests.support.clients.command_line import CommandLine, write_mbox
from tests.support.stores import store_fixtures

pytestmark = pytest.mark.skipif(
    "postgres" not in store_fixtures.STORES, reason="STORES has no postgres"
)


@pytest.fixture
def shell(shell_without_store: CommandLine, postgres: str) -> CommandLine:
    async def empty_database() -> None:
        database = Database(postgres)
        await store_fixtures.empty_database(database)
        await database.close()

    asyncio.run(empty_database())
    shell_without_store.set_settings(database_url=postgres)
    return shell_without_store


def test_user_demo_import_and_check_commands_work_on_postgres(
    shell: CommandLine, tmp_path: Path
) -> None:
    assert shell("init").code == 0
    assert shell("user", "add", "ada@example.org", "--no-password").code == 0
    assert shell("demo", "--count", "40").code == 0
    write_mbox(tmp_path / "a.mbox", 70)
    arguments = ("import", tmp_path / "a.mbox", "--user", "ada@example.org")
    assert shell(*arguments).out == "70 messages imported.\n"
    assert "70 already existed" in shell(*arguments).out
    message_counts = {
        row["username"]: row["messages"] for row in shell("user", "list", "--json").json
    }
    empty_accounts = {"demo-admin": 0, "demo-second": 0}
    assert message_counts == {"ada@example.org": 70, "demo": 40, **empty_accounts}
    findings = shell("doctor", "--json").json
    assert {row["verdict"] for row in findings} <= {"ok", "hint"}
    (postgres_finding,) = (row for row in findings if row["subject"] == "PostgreSQL")
    assert "UTF8" in postgres_finding["found"]
    assert shell("check", "--repair").json["whole"]
    assert shell("check").code == 0
