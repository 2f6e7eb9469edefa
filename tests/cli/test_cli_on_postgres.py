"""Tests of the commands that use most database features, on PostgreSQL."""

import asyncio
import json
import mailbox
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cluster_soak import clock_ahead
from bench.servers.compared_servers import postgres_program_folder
from models.store.database import Database
from tests.support.accounts.account_rows import message_with_subject
from tests.support.clients.command_line import CommandLine, write_mbox
from tests.support.servers.merganser_server import ROOT
from tests.support.servers.program_process import require_program
from tests.support.stores import store_fixtures
from tests.support.time_limits import HANG_SECONDS

HOUR = 3600  # seconds

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
    mailbox.Maildir(tmp_path / "maildir").add_folder("Old").add(b"Subject: old\n\nx\n")
    result = shell("import", tmp_path / "maildir", "--user", "ada@example.org")
    assert result.out == "1 messages imported.\n", result.err
    message_counts = {
        row["username"]: row["messages"] for row in shell("user", "list", "--json").json
    }
    empty_accounts = {"demo-admin": 0, "demo-second": 0}
    assert message_counts == {"ada@example.org": 71, "demo": 40, **empty_accounts}
    findings = shell("doctor", "--json").json
    assert {row["verdict"] for row in findings} <= {"ok", "hint"}
    (postgres_finding,) = (row for row in findings if row["subject"] == "PostgreSQL")
    assert "UTF8" in postgres_finding["found"]
    assert shell("check", "--repair").json["whole"]
    assert shell("check").code == 0


def import_message(shell: CommandLine, folder: Path, subject: str) -> set[Path]:
    """Import a message with an attachment, and return its objects."""
    objects = shell.data / "blobs"
    earlier_files = set(objects.glob("??/*"))
    folder.mkdir()
    raw = message_with_subject(subject, attachment_size=9000)
    (folder / f"{subject}.eml").write_bytes(raw)
    result = shell("import", folder, "--user", "ada@example.org")
    assert result.code == 0, result.err
    return set(objects.glob("??/*")) - earlier_files


def test_lost_objects_are_named_by_message_on_postgres(
    shell: CommandLine, postgres: str, tmp_path: Path
) -> None:
    shell.monkeypatch.setenv("PATH", f"{postgres_program_folder()}:{os.environ['PATH']}")
    target, keys = tmp_path / "backup", tmp_path / "keys"
    assert shell("init").code == 0
    assert shell("user", "add", "ada@example.org", "--no-password").code == 0
    (lost_object,) = import_message(shell, tmp_path / "first", "lost")
    import_message(shell, tmp_path / "second", "kept")
    lost_object.unlink()
    backup = shell("backup", target, "--keys", keys, "--json")
    shell.set_settings(
        data=str(tmp_path / "new"),
        database_url=store_fixtures.create_database(postgres, "restored"),
    )
    restore = shell("restore", target, "--keys", keys, "--json")
    name = f"{lost_object.parent.name}/{lost_object.name}"
    pattern = rf"(messages/\d+) of ada@example\.org \('lost'\): object {re.escape(name)}"
    named_messages = []
    for result in (backup, restore):
        assert result.code == 1, result.err
        assert result.json["missing_objects"] == [name]
        (text,) = result.json["messages_with_missing_objects"]
        named_messages += re.findall(pattern, text)
    checked_messages = [
        row["object"]
        for row in shell("check").json["findings"]
        if row["found"] == f"{name} is missing"
    ]
    assert len(checked_messages) == 1
    assert named_messages == checked_messages * 2


@pytest.mark.usefixtures("shell")
def test_doctor_reports_that_the_clocks_of_server_and_postgres_differ() -> None:
    require_program("faketime")
    process = subprocess.run(
        [sys.executable, "-m", "merganser", "doctor", "--json"],  # a fork can't preload libfaketime
        env={**os.environ, **clock_ahead(HOUR)}, cwd=ROOT, capture_output=True, text=True,
        timeout=HANG_SECONDS, check=False,
    )  # fmt: skip
    assert process.returncode == 1, process.stderr
    (finding,) = (row for row in json.loads(process.stdout) if row["subject"] == "clock")
    assert finding["verdict"] == "action"
    (seconds,) = re.findall(
        r"the clock differs from that of PostgreSQL by \+(\d+\.\d) s", finding["found"]
    )
    assert float(seconds) == pytest.approx(HOUR, abs=HANG_SECONDS)
