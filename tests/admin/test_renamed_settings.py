"""Names of settings: one name for key, variable and option, and errors for old names."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from merganser.errors import EXIT_USAGE, CommandError
from merganser.settings.settings import PREFIX, Settings, read_settings
from models.runtime.renamed_settings import RENAMED_KEYS, RENAMED_VARIABLES
from resolvers.admin.setting_definitions import DEFINITIONS
from tests.conftest import GraphQLClient
from tests.support.operations.platform.setting_operations import (
    expect_refused_setting,
    setting_refs,
)
from tests.support.time_limits import HANG_SECONDS

REPOSITORY = Path(__file__).parents[2]
SETTING_DELETE = """mutation ($settings: [SettingRef!]!) {
  settingDelete(input: {settings: $settings}) {
  errors { path message } } }"""
VARIABLES = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}


def words(name: str) -> list[str]:
    """The words of a key such as deletedMessages.retention."""
    return re.findall(r"[A-Z]?[a-z0-9]+", name)


@pytest.mark.parametrize("key", DEFINITIONS)
def test_stored_key_variable_and_option_have_the_same_words(key: str) -> None:
    name = "_".join(words(key)).lower()
    assert DEFINITIONS[key].option == name
    assert name in Settings.model_fields
    assert f"MERGANSER_{name.upper()}" in VARIABLES


def test_renamed_settings_have_new_names_that_exist_and_old_ones_that_do_not() -> None:
    assert set(RENAMED_VARIABLES.values()) <= VARIABLES
    assert not set(RENAMED_VARIABLES) & VARIABLES
    assert len(set(RENAMED_VARIABLES.values())) == len(RENAMED_VARIABLES)
    assert set(RENAMED_KEYS.values()) <= set(DEFINITIONS)
    assert not set(RENAMED_KEYS) & set(DEFINITIONS)
    assert len(set(RENAMED_KEYS.values())) == len(RENAMED_KEYS)


def test_documentation_lists_every_renamed_setting() -> None:
    with (REPOSITORY / "docs" / "renames.csv").open(newline="") as file:
        rows = [(row["old"], row["new"]) for row in csv.DictReader(file)]
    assert {*RENAMED_VARIABLES.items(), *RENAMED_KEYS.items()} <= set(rows)
    assert len(rows) == len({old for old, _ in rows})


def test_every_renamed_variable_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for old_name in ("MERGANSER_STORE", "MERGANSER_ARCHIVE_FOR"):
        monkeypatch.setenv(old_name, "")
    with pytest.raises(CommandError) as raised:
        read_settings()
    assert raised.value.exit_code == EXIT_USAGE
    assert raised.value.message == (
        "MERGANSER_ARCHIVE_FOR is now MERGANSER_DELETED_MESSAGES_RETENTION. "
        "MERGANSER_STORE is now MERGANSER_DATABASE_URL."
    )


def test_command_with_renamed_variable_names_the_new_one(tmp_path: Path) -> None:
    database = tmp_path / "mail.db"
    completed = subprocess.run(
        [sys.executable, "-m", "merganser", "serve"],
        cwd=REPOSITORY,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY),
            "MERGANSER_DATA": str(tmp_path),
            "MERGANSER_STORE": f"sqlite:///{database}",
        },
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert completed.returncode == EXIT_USAGE
    assert completed.stdout == ""
    assert completed.stderr == "merganser: MERGANSER_STORE is now MERGANSER_DATABASE_URL.\n"
    assert not database.exists()


async def test_renamed_key_is_refused_with_the_new_one(root: GraphQLClient) -> None:
    error = await expect_refused_setting(root, "archive.retention", "P3D")
    message = "archive.retention is now deletedMessages.retention."
    assert (error["path"], error["constraint"]) == (["key"], "UNKNOWN")
    assert error["message"] == message
    payload = (await root(SETTING_DELETE, settings=setting_refs("archive.retention")))[
        "settingDelete"
    ]
    assert [error["message"] for error in payload["errors"]] == [message]
