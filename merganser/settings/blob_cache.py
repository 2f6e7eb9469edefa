"""Settings of the blob cache, which keeps objects of remote object stores on a local disk."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings

from merganser.settings.value_types import ByteSize


class BlobCacheSettings(BaseSettings):
    """Settings of the blob cache. Each is the variable `MERGANSER_` with the name in capitals."""

    blob_cache: Path | None = Field(
        default=None,
        description="Folder on a local disk that keeps copies of objects of a remote object store. "
        "All processes of a machine can share it. It is not used for object stores in a folder. "
        "Without it nothing is kept.",
    )
    blob_cache_size: ByteSize = Field(
        default=1_000_000_000,
        ge=16 << 20,
        description="Largest size of the blob cache, at least 16 MiB. Beyond it the objects that "
        "were not used for the longest time are removed.",
        json_schema_extra={"hint": "write a size such as 10 GB"},
    )
