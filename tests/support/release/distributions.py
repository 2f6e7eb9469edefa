"""Build the source distribution and the wheel, twice, and check what is in them."""

import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from packaging.metadata import Metadata

from tests.support.release.errors import ReleaseError

# A file or folder of each kind that the wheel must have.
REQUIRED_IN_WHEEL = (
    "merganser/__main__.py", "merganser/schema.graphql", "merganser/docs/README.md",
    "merganser/deploy/merganser.service", "merganser/migrations/versions/v0101_first_tables.py",
    "merganser/packages/graph/", "merganser/packages/resolvers/", "merganser/packages/mail/",
    "merganser/packages/models/",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Distributions:
    """The files of a release that are uploaded to a registry."""

    sdist: Path
    wheel: Path


def extract_commit(repository: Path, commit: str, folder: Path) -> Path:
    """Extract the files of a commit to a folder. Other files can't get into a distribution."""
    source = folder / "source"
    source.mkdir(parents=True)
    archive = folder / "source.tar"
    command = ["git", "-C", str(repository), "archive", f"--output={archive}", commit]
    subprocess.run(command, check=True)
    with tarfile.open(archive) as tar:
        tar.extractall(source, filter="data")
    archive.unlink()
    return source


def build_distributions(source: Path, folder: Path, epoch: int) -> Distributions:
    """Build the source distribution, and the wheel from its files. Raises ReleaseError.

    `epoch` is the time of all files (SOURCE_DATE_EPOCH), in seconds.
    """
    sdist = _build(source, "sdist", folder, epoch)
    unpacked = folder / "unpacked"
    with tarfile.open(sdist) as tar:
        tar.extractall(unpacked, filter="data")
    (project,) = unpacked.iterdir()
    wheel = _build(project, "wheel", folder, epoch)
    return Distributions(sdist, wheel)


def _build(project: Path, target: str, folder: Path, epoch: int) -> Path:
    """Build one distribution with hatchling, without a network. Raises ReleaseError."""
    output = folder / target
    # -P: the current folder has packages such as `mail`, which must not hide others
    command = [sys.executable, "-P", "-m", "hatchling", "build", "-t", target, "-d", str(output)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
    process = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise ReleaseError(f"The {target} can't be built: {process.stderr.strip()}")
    (built,) = output.iterdir()
    return built


def require_equal(first: Distributions, second: Distributions) -> None:
    """Raise ReleaseError if two builds of the same commit differ."""
    for one, other in ((first.sdist, second.sdist), (first.wheel, second.wheel)):
        if one.name != other.name or one.read_bytes() != other.read_bytes():
            raise ReleaseError(f"Two builds of {one.name} differ: the build isn't reproducible.")


def check_distributions(distributions: Distributions, version: str) -> None:
    """Check metadata, description and contents of both files. Raises ReleaseError."""
    with tarfile.open(distributions.sdist) as tar:
        member = tar.extractfile(f"merganser-{version}/PKG-INFO")
        require_metadata(member.read() if member else b"", version)
    with zipfile.ZipFile(distributions.wheel) as wheel:
        require_metadata(wheel.read(f"merganser-{version}.dist-info/METADATA"), version)
        names = wheel.namelist()
    missing = [
        required
        for required in REQUIRED_IN_WHEEL
        if not any(name.startswith(required) for name in names)
    ]
    if missing:
        raise ReleaseError(f"The wheel lacks {', '.join(missing)}.")


def require_metadata(data: bytes, version: str) -> None:
    """Raise ReleaseError if the metadata of a distribution is invalid, or of another version."""
    try:
        metadata = Metadata.from_email(data, validate=True)
    except ExceptionGroup as problems:
        reasons = "; ".join(str(problem) for problem in problems.exceptions)
        raise ReleaseError(f"The metadata of the package is invalid: {reasons}.") from problems
    if (metadata.name, str(metadata.version)) != ("merganser", version):
        raise ReleaseError(f"The metadata is of {metadata.name} {metadata.version}.")
    if metadata.description_content_type != "text/markdown" or not metadata.description:
        raise ReleaseError("The metadata needs README.md as its description in Markdown.")
