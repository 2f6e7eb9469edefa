"""The copies of the keys of `merganser backup` and `merganser restore`."""

import os
import time
from pathlib import Path

import pytest

from bench.servers.ports import free_port
from mail.backup.errors import BackupError
from merganser.commands.backup.key_copies import copy_key_files, require_unchanged_keys
from merganser.errors import CommandError
from merganser.settings.settings import read_settings
from tests.support.clients.backup_commands import (
    back_up,
    change_last_byte,
    full_shell,
    new_shell,
    stored_objects,
)
from tests.support.clients.command_line import CommandLine
from tests.support.stores.small_disk import mount_small_disk

__all__ = ["full_shell"]
TWO_DAYS = 2 * 24 * 3600.0


def test_backup_refuses_keys_in_target(full_shell: CommandLine, tmp_path: Path) -> None:
    result = full_shell("backup", tmp_path / "backup", "--keys", tmp_path / "backup" / "keys")
    assert result.code == 2
    assert "--keys" in result.err
    assert not (tmp_path / "backup").exists()


def test_restore_refuses_missing_key_file(full_shell: CommandLine, tmp_path: Path) -> None:
    back_up(full_shell, tmp_path / "backup")
    restored = new_shell(full_shell, tmp_path / "new")
    result = restored("restore", tmp_path / "backup")
    assert result.code == 1
    assert "--keys" in result.err
    assert stored_objects(restored.data / "blobs") == []
    assert not (restored.data / "mail.db").exists()


def test_keys_that_are_rotated_during_the_backup_fail_it(
    full_shell: CommandLine, tmp_path: Path
) -> None:
    keys, id_ = tmp_path / "keys", "20260101T000000.000Z"
    settings = read_settings()
    copy_key_files(settings, keys, id_)
    require_unchanged_keys(settings, keys, id_)
    change_last_byte(full_shell.data / "vault")
    with pytest.raises(BackupError, match="vault has changed during the backup"):
        require_unchanged_keys(settings, keys, id_)


def test_failed_backup_leaves_no_copies_of_keys(full_shell: CommandLine, tmp_path: Path) -> None:
    target, keys = tmp_path / "backup", tmp_path / "keys"
    (target / "objects").mkdir(parents=True)
    first, *_ = stored_objects(full_shell.data / "blobs")
    (target / "objects" / first.parent.name).write_bytes(b"not a folder")
    assert full_shell("backup", target, "--keys", keys).code != 0
    assert not any(keys.iterdir())
    (full_shell.data / "secret").unlink(missing_ok=True)
    (full_shell.data / "secret").mkdir()
    with pytest.raises(CommandError, match="Cannot copy the keys"):
        copy_key_files(read_settings(), keys, "20260101T000000.000Z")
    assert list(keys.iterdir()) == []


def test_backup_to_unreachable_bucket_leaves_no_copies_of_keys(
    full_shell: CommandLine, tmp_path: Path
) -> None:
    full_shell.monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    full_shell.monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    target = f"s3://bucket/backup?endpoint=http://127.0.0.1:{free_port()}&region=eu-west-1"
    result = full_shell("backup", target, "--keys", tmp_path / "keys")
    assert (result.code, "does not respond" in result.err) == (1, True), result.err
    assert not any((tmp_path / "keys").iterdir())


def test_keys_of_deleted_backups_do_not_outlast_a_later_failure(
    full_shell: CommandLine, tmp_path: Path
) -> None:
    target, keys = tmp_path / "backup", tmp_path / "keys"
    (target / "objects").mkdir(parents=True)
    with mount_small_disk(target / "objects" / "ab", 4) as disk:
        back_up(full_shell, target, "--keys", keys)
        unlisted = disk.folder / "unlisted"
        unlisted.write_bytes(b"x")
        os.utime(unlisted, (time.time() - TWO_DAYS,) * 2)
        with disk.mounted_read_only():
            result = full_shell("backup", target, "--keys", keys, "--keep", "1")
        assert result.code == 1, result.out
        (manifest,) = (target / "db").glob("*.manifest.json")
        assert [path.name for path in keys.iterdir()] == [manifest.name.partition(".m")[0]]
