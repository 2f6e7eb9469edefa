"""Tests of `merganser backup` and `merganser restore`."""

import json
import os
import re
import shutil
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from mail.backup.errors import BackupError
from mail.backup.postgres_copy import libpq_environment, require_program
from mail.backup.work_folder import locked_work_folder
from merganser.commands.backup.backup_command import require_target_outside
from merganser.errors import CommandError
from merganser.server.store import store_lock
from merganser.settings.settings import Settings
from models.events.incarnation import MARK_OBJECT_NAME
from tests.support.clients.backup_commands import (
    back_up,
    change_last_byte,
    full_shell,
    import_messages,
    new_shell,
    stored_objects,
    use_settings_of,
)
from tests.support.clients.command_line import CommandLine
from tests.support.clients.terminal_commands import run_on_terminal

__all__ = ["full_shell"]
MESSAGES_QUERY = "SELECT id, user_id, sha256, subject, seen FROM messages ORDER BY id"
TWO_DAYS = 2 * 24 * 3600.0


def test_restored_store_has_the_same_messages(full_shell: CommandLine, tmp_path: Path) -> None:
    report = back_up(full_shell, tmp_path / "backup", "--keys", tmp_path / "keys", "--verify")
    objects = stored_objects(full_shell.data / "blobs")
    assert report["objects"] == report["copied_objects"] == len(objects) > 0
    messages = full_shell.read_rows(MESSAGES_QUERY)
    restored = new_shell(full_shell, tmp_path / "new")
    result = restored("restore", tmp_path / "backup", "--keys", tmp_path / "keys", "--json")
    assert result.code == 0, result.err + result.out
    assert result.json["check"]["findings"] == []
    assert result.json["restored_objects"] == len(objects)
    assert restored.read_rows(MESSAGES_QUERY) == messages
    restored_objects = stored_objects(restored.data / "blobs")
    assert [path.name for path in restored_objects] == [path.name for path in objects]
    assert (restored.data / "vault").read_bytes() == (full_shell.data / "vault").read_bytes()
    assert (restored.data / "secret").read_bytes() == (full_shell.data / "secret").read_bytes()


def test_restore_begins_one_new_incarnation(full_shell: CommandLine, tmp_path: Path) -> None:
    back_up(full_shell, tmp_path / "backup", "--keys", tmp_path / "keys")
    restored = new_shell(full_shell, tmp_path / "new")
    result = restored("restore", tmp_path / "backup", "--keys", tmp_path / "keys")
    assert result.code == 0, result.err + result.out
    rows = restored.read_rows("SELECT number, reason FROM store_incarnation")
    assert rows == [(1, "merganser restore")]
    assert (restored.data / "blobs" / MARK_OBJECT_NAME).exists()


def test_backup_and_restored_files_are_private(full_shell: CommandLine, tmp_path: Path) -> None:
    back_up(full_shell, tmp_path / "backup", "--keys", tmp_path / "keys")
    restored = new_shell(full_shell, tmp_path / "new")
    restored("restore", tmp_path / "backup", "--keys", tmp_path / "keys")
    for folder in ("backup", "keys", "new"):
        paths = [tmp_path / folder, *(tmp_path / folder).rglob("*")]
        assert [path for path in paths if path.stat().st_mode & 0o077] == []


def test_next_backup_copies_only_new_objects(full_shell: CommandLine, tmp_path: Path) -> None:
    first = back_up(full_shell, tmp_path / "backup")
    assert back_up(full_shell, tmp_path / "backup")["copied_objects"] == 0
    import_messages(full_shell, tmp_path, "three")
    third = back_up(full_shell, tmp_path / "backup")
    assert third["copied_objects"] == 1
    assert third["objects"] == len(stored_objects(full_shell.data / "blobs"))
    assert len(stored_objects(tmp_path / "backup" / "objects")) == third["objects"]
    restored = new_shell(full_shell, tmp_path / "new")
    shutil.copy(full_shell.data / "vault", tmp_path / "vault")
    restored.data.mkdir(mode=0o700)
    shutil.copy(tmp_path / "vault", restored.data / "vault")
    result = restored("restore", tmp_path / "backup", "--id", str(first["id"]))
    assert result.code == 0, result.err + result.out
    subjects = [row[3] for row in restored.read_rows(MESSAGES_QUERY)]
    assert sorted(subjects) == ["one", "two"]


def test_lost_objects_are_named_by_message(full_shell: CommandLine, tmp_path: Path) -> None:
    missing, shortened = stored_objects(full_shell.data / "blobs")[:2]
    missing.unlink()
    shortened.write_bytes(shortened.read_bytes()[:-1])
    names = sorted(f"{path.parent.name}/{path.name}" for path in (missing, shortened))
    result = full_shell("backup", tmp_path / "backup", "--keys", tmp_path / "keys", "--json")
    assert result.code == 1, result.err
    assert result.json["missing_objects"] == names
    lost_messages = "\n".join(result.json["messages_with_missing_objects"])
    for name, subject in zip(names, ("one", "two"), strict=False):
        assert name in lost_messages
        assert f"{subject!r}" in lost_messages
    restored = new_shell(full_shell, tmp_path / "new")
    result = restored("restore", tmp_path / "backup", "--keys", tmp_path / "keys", "--json")
    assert result.code == 1, result.err
    assert result.json["missing_objects"] == names
    assert "messages/" in result.json["messages_with_missing_objects"][0]


def test_object_lost_by_the_backup_is_named_and_others_are_restored(
    full_shell: CommandLine, tmp_path: Path
) -> None:
    back_up(full_shell, tmp_path / "backup", "--keys", tmp_path / "keys")
    lost = stored_objects(tmp_path / "backup" / "objects")[0]
    change_last_byte(lost)
    restored = new_shell(full_shell, tmp_path / "new")
    result = restored("restore", tmp_path / "backup", "--keys", tmp_path / "keys", "--json")
    assert result.code == 1, result.err
    assert result.json["missing_objects"] == [f"{lost.parent.name}/{lost.name}"]
    assert result.json["restored_objects"] == len(stored_objects(full_shell.data / "blobs")) - 1
    assert not result.json["check"]["whole"]


def test_damaged_copy_is_found_by_verify_and_made_again(
    full_shell: CommandLine, tmp_path: Path
) -> None:
    back_up(full_shell, tmp_path / "backup")
    damaged = stored_objects(tmp_path / "backup" / "objects")[0]
    change_last_byte(damaged)
    result = full_shell("backup", tmp_path / "backup", "--verify")
    assert result.code == 1
    assert f"{damaged.parent.name}/{damaged.name}" in result.err
    assert back_up(full_shell, tmp_path / "backup", "--verify")["copied_objects"] == 1


def test_keep_deletes_older_backups_and_unlisted_objects(
    full_shell: CommandLine, tmp_path: Path
) -> None:
    target, keys = tmp_path / "backup", tmp_path / "keys"
    first = back_up(full_shell, target, "--keys", keys)
    old, young = target / "objects/ab/old", target / "objects/ab/young"
    old.parent.mkdir(exist_ok=True)
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - TWO_DAYS,) * 2)
    for path in stored_objects(target / "objects"):
        if path != young:
            os.utime(path, (time.time() - TWO_DAYS,) * 2)
    second = back_up(full_shell, target, "--keys", keys, "--keep", "1")
    assert second["deleted_backups"] == [first["id"]]
    assert not old.exists()
    assert young.exists()
    assert len(stored_objects(target / "objects")) == len(
        [*stored_objects(full_shell.data / "blobs"), young]
    )
    suffixes = ("database", "manifest.json", "objects")
    assert sorted(path.name for path in (target / "db").iterdir()) == [
        f"{second['id']}.{suffix}" for suffix in suffixes
    ]
    assert [path.name for path in keys.iterdir()] == [second["id"]]


def test_restore_that_keeps_objects_reports_what_is_newer(
    full_shell: CommandLine, tmp_path: Path
) -> None:
    back_up(full_shell, tmp_path / "backup")
    object_count = len(stored_objects(full_shell.data / "blobs"))
    import_messages(full_shell, tmp_path, "later")
    for path in full_shell.data.glob("mail.db*"):
        path.unlink()
    refused = full_shell("restore", tmp_path / "backup")
    assert refused.code == 1
    assert "--keep-objects" in refused.err
    result = full_shell("restore", tmp_path / "backup", "--keep-objects", "--json")
    assert result.code == 0, result.err + result.out
    assert (result.json["kept_objects"], result.json["restored_objects"]) == (object_count, 0)
    assert result.json["newer"]["objects"] == 1
    assert "later" not in [row[3] for row in full_shell.read_rows(MESSAGES_QUERY)]


def test_backup_in_bucket_is_restored(
    full_shell: CommandLine, tmp_path: Path, s3_server: str
) -> None:
    full_shell.monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    full_shell.monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    target = f"s3://bucket/{tmp_path.name}?endpoint={s3_server}&region=eu-west-1"
    first = back_up(full_shell, target, "--keys", tmp_path / "keys", "--verify")
    second = back_up(full_shell, target, "--keys", tmp_path / "keys", "--keep", "1")
    assert second["copied_objects"] == 0
    assert second["deleted_backups"] == [first["id"]]
    messages = full_shell.read_rows(MESSAGES_QUERY)
    restored = new_shell(full_shell, tmp_path / "new")
    result = restored("restore", target, "--keys", tmp_path / "keys")
    assert result.code == 0, result.err + result.out
    assert restored.read_rows(MESSAGES_QUERY) == messages


def test_terminal_shows_progress_bars(full_shell: CommandLine, tmp_path: Path) -> None:
    target, keys = tmp_path / "backup", tmp_path / "keys"
    backup = run_on_terminal(tmp_path / "out", "backup", target, "--keys", keys, "--verify")
    assert backup.code == 0, backup.err
    assert re.search(r"\rBacking up ━+ .*\rVerifying ━+ 100%", backup.err, re.DOTALL), backup.err
    assert backup.out.startswith("Backup ")
    new_shell(full_shell, tmp_path / "new")
    restore = run_on_terminal(tmp_path / "restored", "restore", target, "--keys", keys)
    assert restore.code == 0, restore.err
    assert re.search(r"\rRestoring ━+ .*\robjects ━+ 100%", restore.err, re.DOTALL), restore.err
    assert "warning" not in restore.err  # no log line breaks the bar
    assert restore.out.startswith("Restored the backup ")


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_backup_refuses_target_in_object_store(full_shell: CommandLine, form: str) -> None:
    full_shell.set_settings(object_store_url=form.format(full_shell.data / "blobs"))
    result = full_shell("backup", full_shell.data / "blobs" / "backup")
    assert result.code == 2
    assert "apart from the object store" in result.err


@pytest.mark.parametrize(
    ("target", "is_refused"),
    [
        ("s3://mail?region=x", True),
        ("s3://mail/objects", True),
        ("s3://mail/objects/backups/", True),
        ("s3://mail/backups", False),
        ("s3://mail/objects-of-backups", False),
        ("s3://other/objects", False),
        ("s3://mail/objects?endpoint=https://other.example.org", False),
        ("/objects", False),
    ],
)
def test_target_and_object_store_must_be_apart_in_a_bucket(target: str, is_refused: bool) -> None:
    settings = Settings(object_store_url="s3://mail/objects?endpoint=https://s3.example.org")
    expectation = pytest.raises(CommandError, match="apart") if is_refused else nullcontext()
    with expectation:
        require_target_outside(target, settings)


def test_backup_refuses_target_of_another_store(full_shell: CommandLine, tmp_path: Path) -> None:
    back_up(full_shell, tmp_path / "backup")
    other = new_shell(full_shell, tmp_path / "other")
    assert other("init").code == 0
    result = other("backup", tmp_path / "backup")
    assert result.code == 1
    assert "another store" in result.err


def test_restore_refuses_existing_database(full_shell: CommandLine, tmp_path: Path) -> None:
    back_up(full_shell, tmp_path / "backup")
    messages = full_shell.read_rows(MESSAGES_QUERY)
    result = full_shell("restore", tmp_path / "backup")
    assert result.code == 1
    assert f"{full_shell.data}/mail.db exists" in result.err
    assert full_shell.read_rows(MESSAGES_QUERY) == messages


def test_restore_refuses_database_of_running_server(
    full_shell: CommandLine, tmp_path: Path
) -> None:
    back_up(full_shell, tmp_path / "backup")
    with store_lock.lock_sqlite_as_server(f"sqlite:///{full_shell.data}/mail.db"):
        result = full_shell("restore", tmp_path / "backup")
    assert result.code == 1
    assert "stop it, then restore" in result.err


def test_restore_refuses_foreign_objects(full_shell: CommandLine, tmp_path: Path) -> None:
    back_up(full_shell, tmp_path / "backup", "--keys", tmp_path / "keys")
    restored = new_shell(full_shell, tmp_path / "new")
    foreign = restored.data / "blobs" / "ab" / "foreign"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"x")
    result = restored("restore", tmp_path / "backup", "--keys", tmp_path / "keys", "--keep-objects")
    assert result.code == 1
    assert "another store" in result.err
    assert stored_objects(restored.data / "blobs") == [foreign]
    assert not (restored.data / "mail.db").exists()


def test_restore_refuses_damaged_database_copy(full_shell: CommandLine, tmp_path: Path) -> None:
    report = back_up(full_shell, tmp_path / "backup", "--keys", tmp_path / "keys")
    change_last_byte(tmp_path / "backup" / "db" / f"{report['id']}.database")
    restored = new_shell(full_shell, tmp_path / "new")
    result = restored("restore", tmp_path / "backup", "--keys", tmp_path / "keys")
    assert result.code == 1
    assert f"{report['id']}.database is damaged" in result.err
    assert not (restored.data / "mail.db").exists()


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [("revision", "9999", "newer"), ("dialect", "postgresql", "export"), ("format", 99, "newer")],
)
def test_restore_refuses_backup_that_it_can_not_read(
    full_shell: CommandLine, tmp_path: Path, field: str, value: object, reason: str
) -> None:
    report = back_up(full_shell, tmp_path / "backup", "--keys", tmp_path / "keys")
    path = tmp_path / "backup" / "db" / f"{report['id']}.manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    restored = new_shell(full_shell, tmp_path / "new")
    result = restored("restore", tmp_path / "backup", "--keys", tmp_path / "keys")
    assert result.code == 1
    assert reason in result.err
    assert not (restored.data / "mail.db").exists()


def test_incomplete_backup_is_ignored(full_shell: CommandLine, tmp_path: Path) -> None:
    report = back_up(full_shell, tmp_path / "backup", "--keys", tmp_path / "keys")
    (tmp_path / "backup" / "db" / f"{report['id']}.manifest.json").unlink()
    restored = new_shell(full_shell, tmp_path / "new")
    result = restored("restore", tmp_path / "backup", "--keys", tmp_path / "keys")
    assert result.code == 1
    assert "no complete backup" in result.err
    use_settings_of(full_shell)
    again = back_up(full_shell, tmp_path / "backup", "--keys", tmp_path / "keys", "--verify")
    assert (again["copied_objects"], again["objects"]) == (0, report["objects"])
    restored.set_settings(
        data=str(restored.data), database_url=f"sqlite:///{restored.data}/mail.db"
    )
    result = restored("restore", tmp_path / "backup", "--keys", tmp_path / "keys")
    assert result.code == 0, result.err + result.out


def test_damaged_earlier_backup_is_named_and_the_new_one_is_complete(
    full_shell: CommandLine, tmp_path: Path
) -> None:
    target, keys = tmp_path / "backup", tmp_path / "keys"
    first, second = (back_up(full_shell, target, "--keys", keys) for _ in range(2))
    (target / "db" / f"{first['id']}.manifest.json").write_text("{")
    change_last_byte(target / "db" / f"{second['id']}.objects")
    result = full_shell("backup", target, "--keys", keys, "--keep", "1", "--json")
    assert result.code == 1, result.err
    assert result.json["copied_objects"] == 0
    problems = " ".join(result.json["problems"])
    assert f"{first['id']}.manifest.json is damaged" in problems
    assert f"{second['id']}.objects is damaged" in problems
    assert "Old backups were not deleted" in problems
    assert len(list((target / "db").glob("*.manifest.json"))) == 3
    restored = new_shell(full_shell, tmp_path / "new")
    result = restored("restore", target, "--keys", keys)
    assert result.code == 0, result.err + result.out


def test_backup_earlier_than_one_of_the_target_is_refused(
    full_shell: CommandLine, tmp_path: Path
) -> None:
    report = back_up(full_shell, tmp_path / "backup")
    folder = tmp_path / "backup" / "db"
    for path in folder.iterdir():
        path.rename(folder / path.name.replace(str(report["id"]), "20990101T000000.000Z"))
    result = full_shell("backup", tmp_path / "backup", "--keep", "1")
    assert result.code == 1
    assert "20990101T000000.000Z, which is later than the clock" in result.err


def test_second_backup_of_a_target_is_refused_and_remains_are_deleted(
    full_shell: CommandLine, tmp_path: Path
) -> None:
    work_folder = tmp_path / "backup" / ".backup"
    back_up(full_shell, tmp_path / "backup")
    with locked_work_folder(work_folder) as files:
        result = full_shell("backup", tmp_path / "backup")
        assert result.code == 1
        assert "Another backup or restore" in result.err
        assert files.is_dir()
    files.mkdir()
    (files / "database").write_bytes(b"left by a killed process")
    old_part = tmp_path / "backup" / "objects" / "ab" / ".part-old"
    old_part.parent.mkdir(exist_ok=True)
    old_part.write_bytes(b"x")
    os.utime(old_part, (time.time() - TWO_DAYS,) * 2)
    back_up(full_shell, tmp_path / "backup", "--keep", "5")
    assert [path.name for path in work_folder.iterdir()] == ["lock"]
    assert not old_part.exists()


def test_restore_follows_symbolic_link_of_database(full_shell: CommandLine, tmp_path: Path) -> None:
    back_up(full_shell, tmp_path / "backup", "--keys", tmp_path / "keys")
    messages = full_shell.read_rows(MESSAGES_QUERY)
    restored = new_shell(full_shell, tmp_path / "new")
    other_disk = tmp_path / "other-disk"
    for folder in (restored.data, other_disk):
        folder.mkdir()
    link = restored.data / "mail.db"
    link.symlink_to(other_disk / "mail.db")
    result = restored("restore", tmp_path / "backup", "--keys", tmp_path / "keys")
    assert result.code == 0, result.err + result.out
    assert link.is_symlink()
    assert restored.read_rows(MESSAGES_QUERY) == messages


def test_missing_program_of_postgres_is_refused_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackupError, match=r"postgresql-client.*pg_basebackup"):
        require_program("pg_dump")


def test_programs_of_postgres_get_the_address_by_environment() -> None:
    url = "postgresql://mail:s%20e@db.example.org:5433/store?sslmode=verify-full"
    environment = libpq_environment(url)
    assert environment["PGPASSWORD"] == "s e"
    expected = {
        "PGHOST": "db.example.org",
        "PGPORT": "5433",
        "PGUSER": "mail",
        "PGDATABASE": "store",
        "PGSSLMODE": "verify-full",
    }
    assert {name: environment[name] for name in expected} == expected
