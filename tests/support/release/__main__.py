"""Build a release in dist/, check it, and with `--tag` tag its commit. `make release` runs this."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import typer

from tests.support.release.distributions import (
    build_distributions,
    check_distributions,
    extract_commit,
    require_equal,
)
from tests.support.release.errors import ReleaseError
from tests.support.release.release_texts import check_release_texts
from tests.support.release.sbom import create_bill_of_materials, required_names, runtime_extras

ROOT = Path(__file__).parents[3]
OUTPUT = ROOT / "dist"
CHECKSUM_FILE = "SHA256SUMS"


def main() -> None:
    """Make the release. Exits with status 1 and one sentence if it can't be made."""
    try:
        version = check_release_texts(ROOT)
        if git("status", "--porcelain"):
            raise ReleaseError("There are changes without a commit: commit them first.")
        tag = f"v{version}"
        if "--tag" in sys.argv and git("tag", "--list", tag):
            raise ReleaseError(f"The tag {tag} exists: set a new version in pyproject.toml.")
        write_release(OUTPUT, version)
        if "--tag" in sys.argv:
            git("tag", "--annotate", tag, "--message", f"Merganser {version}")
            typer.echo(f"Tagged this commit as {tag}. Nothing was pushed.")
    except ReleaseError as problem:
        sys.exit(f"release: {problem}")


def write_release(output: Path, version: str) -> None:
    """Write both distributions, the bill of materials and the checksums into an empty folder."""
    epoch = int(git("log", "-1", "--format=%ct"))
    with tempfile.TemporaryDirectory() as scratch:
        source = extract_commit(ROOT, "HEAD", Path(scratch) / "commit")
        built = build_distributions(source, Path(scratch) / "first", epoch)
        require_equal(built, build_distributions(source, Path(scratch) / "second", epoch))
        check_distributions(built, version)
        project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
        needs = required_names(project["name"], runtime_extras(project))
        lock = (source / "requirements.lock").read_text()
        bill = create_bill_of_materials(project, lock, needs, epoch)
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        for path in (built.sdist, built.wheel):
            shutil.copy(path, output)
    (output / f"merganser-{version}.cdx.json").write_text(bill)
    checksums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(output.iterdir())
    ]
    (output / CHECKSUM_FILE).write_text("".join(checksums))
    typer.echo(f"Built and checked Merganser {version} in {output}.")


def git(*arguments: str) -> str:
    """Return what a git command of this checkout prints. Raises ReleaseError if it fails."""
    command = ["git", "-C", str(ROOT), *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise ReleaseError(f"`git {arguments[0]}` failed: {process.stderr.strip()}")
    return process.stdout.strip()


if __name__ == "__main__":
    main()
