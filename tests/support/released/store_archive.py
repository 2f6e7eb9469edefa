"""The archive of a released store: its data folder, a manifest and answers, as `.tar.xz`."""

import json
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

RELEASED_FOLDER = Path(__file__).parents[2] / "released"
MANIFEST_NAME = "manifest.json"
DATA_FOLDER_NAME = "var"  # the data folder of a MerganserProcess
OMITTED_FOLDERS = ("spool",)
OMITTED_SUFFIXES = (".spare",)  # only keeps room on the disk


@dataclass(frozen=True)
class StoredAnswer:
    """A document, the account that executed it, and the data that it returned."""

    caller: str
    document: str
    data: Any


@dataclass(frozen=True)
class StoreManifest:
    """What made a store, the API keys of its accounts, and the answers to queries."""

    version: str
    commit: str
    revision: str  # of the last migration
    created_at: str  # ISO 8601, when the answers were read
    secrets: dict[str, str]  # API keys by account; they exist only in this store
    answers: list[StoredAnswer]

    @property
    def created_time(self) -> datetime:
        """The time at which the answers were read."""
        return datetime.fromisoformat(self.created_at)


def archive_paths() -> Sequence[Path]:
    """The archives of all released stores, the oldest revision first."""
    return sorted(RELEASED_FOLDER.glob("store-*.tar.xz"))


def archive_revision(store_archive: Path) -> str:
    """The last migration of the version that made a store."""
    return store_archive.name.split("-")[1]


def source_archive_path(store_archive: Path) -> Path:
    """The archive with the source of the version that made a store."""
    return store_archive.with_name(store_archive.name.replace("store-", "source-", 1))


def write_store_archive(folder: Path, manifest: StoreManifest, target: Path) -> None:
    """Write the data folder and the manifest. Owners and times of files are left out."""
    content = json.dumps(asdict(manifest), indent=1, sort_keys=True, ensure_ascii=False).encode()
    with tarfile.open(target, "w:xz", preset=9, format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo(MANIFEST_NAME)
        entry.size = len(content)
        archive.addfile(entry, BytesIO(content))
        for path in sorted((folder / DATA_FOLDER_NAME).rglob("*")):
            name = str(path.relative_to(folder))
            if _is_part_of_store(path, folder / DATA_FOLDER_NAME):
                archive.add(path, name, recursive=False, filter=_without_owner_and_time)


def _is_part_of_store(path: Path, data_folder: Path) -> bool:
    is_file_or_folder = path.is_dir() or path.is_file()
    in_omitted_folder = path.relative_to(data_folder).parts[0] in OMITTED_FOLDERS
    return is_file_or_folder and not in_omitted_folder and path.suffix not in OMITTED_SUFFIXES


def _without_owner_and_time(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    return entry


def extract_store_archive(archive_path: Path, folder: Path) -> StoreManifest:
    """Extract an archive into a folder and return its manifest."""
    with tarfile.open(archive_path, "r:xz") as archive:
        archive.extractall(folder, filter="data")
    values = json.loads((folder / MANIFEST_NAME).read_text())
    answers = [StoredAnswer(**answer) for answer in values.pop("answers")]
    return StoreManifest(**values, answers=answers)
