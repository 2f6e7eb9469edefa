"""Settings of the backups that `merganser doctor` looks for."""

from datetime import timedelta

from pydantic import Field
from pydantic_settings import BaseSettings

from merganser.settings.value_types import Duration


class BackupSettings(BaseSettings):
    """Settings of backups. Each is the variable `MERGANSER_` with the name in capitals."""

    backup_target: str | None = Field(
        default=None,
        description="Folder or bucket into which `merganser backup` writes. `merganser doctor` "
        "checks the age of the newest backup there. The server doesn't use it.",
    )
    backup_max_age: Duration = Field(
        default=timedelta(hours=36),
        ge=timedelta(minutes=1),
        description="Age of the newest backup from which `merganser doctor` reports it.",
    )
