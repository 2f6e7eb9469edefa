"""Check the age of the newest backup."""

from datetime import UTC, datetime
from pathlib import Path

from mail.backup.target import BackupTarget, folder_or_url
from merganser.doctor.findings import CheckName, Finding, action_finding, hint_finding, ok_finding
from merganser.settings.settings import PREFIX, Settings


async def check_backups(settings: Settings) -> list[Finding]:
    """Check the newest complete backup in `backup_target`, by its manifest."""
    if settings.backup_target is None:
        return hint_finding(
            CheckName.BACKUP,
            "no backup target is configured",
            f"run `merganser backup` by a timer, and set {PREFIX}BACKUP_TARGET to its target",
        )
    location = folder_or_url(settings.backup_target)
    if _is_missing_folder(location):  # opening a target would create it
        return action_finding(
            CheckName.BACKUP,
            f"the folder {location} does not exist",
            f"run `merganser backup`, mount the disk, or correct {PREFIX}BACKUP_TARGET",
        )
    try:
        return await _check_newest_backup(location, settings)
    except Exception as problem:  # noqa: BLE001 - each error of the object store's client is a finding
        text = next(iter(str(problem).splitlines()), type(problem).__name__)
        return action_finding(
            CheckName.BACKUP, f"can't be read: {text}", f"correct {PREFIX}BACKUP_TARGET"
        )


def _is_missing_folder(location: str) -> bool:
    return "://" not in location and not Path(location).is_dir()


async def _check_newest_backup(location: str, settings: Settings) -> list[Finding]:
    target = BackupTarget(location)
    try:
        ids = await target.list_ids()
        if not ids:
            return action_finding(
                CheckName.BACKUP,
                f"{target.location} has no complete backup",
                "run `merganser backup`",
            )
        manifest = await target.read_manifest(ids[-1])
    finally:
        await target.close()
    age = datetime.now(UTC) - datetime.fromisoformat(manifest.began_at)
    found = f"the newest backup, {manifest.id}, is {age.total_seconds() / 3600:.1f} h old"
    if age > settings.backup_max_age:
        return action_finding(
            CheckName.BACKUP, found, "find out why `merganser backup` did not run or failed"
        )
    if manifest.missing_objects:
        return hint_finding(
            CheckName.BACKUP,
            f"{found}, and lacks {len(manifest.missing_objects)} objects that the store has lost",
            "run `merganser check`",
        )
    return ok_finding(CheckName.BACKUP, found)
