"""Settings of the log store, which `logs` and `merganser log` read."""

from datetime import timedelta

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from merganser.settings.value_types import DEFAULT_OPTIONS, ByteSize, Duration
from models.logs.levels import parse_levels


class LogStoreSettings(BaseSettings):
    """Settings of the log store. Each is the variable `MERGANSER_` with the name in capitals."""

    logs_levels: str = Field(
        default=DEFAULT_OPTIONS.logs_levels,
        description="Lowest level of the entries that the log store keeps (DEBUG, INFO, WARNING, "
        "ERROR or OFF), then exceptions for components. Example: INFO API=WARNING SPAM=OFF. It "
        "does not change the log on stderr.",
        json_schema_extra={"hint": "write a level, then exceptions such as API=WARNING"},
    )
    logs_retention: Duration = Field(
        default=DEFAULT_OPTIONS.logs_retention,
        ge=timedelta(hours=1),
        description="How long entries of the log store can be read.",
    )
    logs_max_size: ByteSize = Field(
        default=DEFAULT_OPTIONS.logs_max_size,
        ge=16 << 20,
        description="Largest size of the log store, at least 16 MiB. Beyond it the oldest entries "
        "are deleted.",
    )

    @field_validator("logs_levels")
    @classmethod
    def _check_levels(cls, levels: str) -> str:
        parse_levels(levels)
        return levels
