"""Archive a store and the source of this version: `python -m tests.support.released FOLDER`."""

import asyncio
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from merganser.server.store.migration import last_revision
from tests.support.released.source_archive import write_source_archive
from tests.support.released.store_archive import (
    DATA_FOLDER_NAME,
    StoredAnswer,
    StoreManifest,
    source_archive_path,
    write_store_archive,
)
from tests.support.released.store_clients import StoreClient, open_store_http
from tests.support.released.store_contents import USERNAMES, StoreWriter, fill_store
from tests.support.released.store_queries import QUERIES_OF_ROOT, QUERIES_OF_USERS
from tests.support.servers.merganser_server import ROOT, MerganserProcess

MAX_ARCHIVE_BYTES = 2_621_440  # 2.5 MiB, of a store and its source


async def _make_store(folder: Path) -> StoreManifest:
    """Create and fill a store below a folder. Returns its manifest with the answers."""
    process = MerganserProcess(folder)
    data_folder = folder / DATA_FOLDER_NAME
    async with (
        process.environment() as environment,
        open_store_http(environment, data_folder / "spool") as http,
    ):
        secrets = await fill_store(StoreWriter(environment, http, data_folder))
        callers = [("root", document) for document in QUERIES_OF_ROOT]
        callers += [
            (name, document) for name in (*USERNAMES, "demo") for document in QUERIES_OF_USERS
        ]
        created_at = environment.now().isoformat()
        answers = [
            StoredAnswer(name, document, await StoreClient(http, secrets[name]).execute(document))
            for name, document in callers
        ]
    return StoreManifest(
        version=_version(),
        commit=_commit(),
        revision=last_revision(),
        created_at=created_at,
        secrets=secrets,
        answers=answers,
    )


def _version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def _commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    completed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return completed.stdout.strip()


def main() -> int:
    """Write `store-REVISION-COMMIT.tar.xz` and `source-…` into the folder of the first argument."""
    target_folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / DATA_FOLDER_NAME / "spool").mkdir(parents=True)
        manifest = asyncio.run(_make_store(Path(folder)))
        name = f"store-{manifest.revision}-{manifest.commit[:8]}.tar.xz"
        target = target_folder / name
        write_store_archive(Path(folder), manifest, target)
    source = source_archive_path(target)
    write_source_archive(manifest.commit, source)
    size = target.stat().st_size + source.stat().st_size
    sys.stdout.write(f"{target}, {source}: {size} bytes, {len(manifest.answers)} answers\n")
    if size > MAX_ARCHIVE_BYTES:
        sys.stderr.write(f"The archives are larger than {MAX_ARCHIVE_BYTES} bytes.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
