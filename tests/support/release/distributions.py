"""Build the source distribution and the wheel, and check what is in them."""

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
    """Build the source distribution, and the wheel from its files, without a network.

    `epoch` is the time of all files (SOURCE_DATE_EPOCH), in seconds. Raises ReleaseError.
    """
    folder.mkdir()
    _run_program(
        "build", "--no-isolation", "--outdir", ".", str(source), folder=folder, epoch=epoch
    )
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Distributions(sdist, wheel)


def _run_program(module: str, *arguments: str, folder: Path, epoch: int | None = None) -> None:
    """Run a program of Python. Raises ReleaseError with its output if it fails."""
    variables = {} if epoch is None else {"SOURCE_DATE_EPOCH": str(epoch)}
    # -P: the current folder can have packages such as `mail`, which must not hide others
    process = subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        output = (process.stdout + process.stderr).strip()
        raise ReleaseError(f"`{module}` failed:\n{output}")


def require_equal(first: Distributions, second: Distributions) -> None:
    """Raise ReleaseError if two builds of the same commit differ."""
    for one, other in ((first.sdist, second.sdist), (first.wheel, second.wheel)):
        if one.name != other.name or one.read_bytes() != other.read_bytes():
            raise ReleaseError(f"Two builds of {one.name} differ: the build isn't reproducible.")


def check_distributions(distributions: Distributions, version: str) -> None:
    """Check metadata, description and contents of both files. Raises ReleaseError."""
    files = [str(distributions.sdist), str(distributions.wheel)]
    folder = distributions.sdist.parent
    _run_program("twine", "--no-color", "check", "--strict", *files, folder=folder)
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
