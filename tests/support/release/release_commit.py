"""The commit and the tag of a release, in a git repository."""

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.support.release.errors import ReleaseError


def run_git(repository: Path, *arguments: str, **variables: str) -> str:
    """Return what a git command prints. Raises ReleaseError if it fails."""
    command = ["git", "-C", str(repository), *arguments]
    environment = {**os.environ, **variables}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if process.returncode:
        raise ReleaseError(f"`git {arguments[0]}` failed: {process.stderr.strip()}")
    return process.stdout.strip()


def require_committed_changes(repository: Path) -> None:
    """Raise ReleaseError if a file differs from the commit, or is in no commit."""
    if run_git(repository, "status", "--porcelain"):
        raise ReleaseError("There are changes without a commit: commit them first.")


def require_new_tag(repository: Path, tag: str) -> None:
    """Raise ReleaseError if the tag exists."""
    if run_git(repository, "tag", "--list", tag):
        raise ReleaseError(f"The tag {tag} exists: release a new version.")


def create_commit(repository: Path, texts: Mapping[str, str], message: str) -> str:
    """Commit new texts of files on top of HEAD, and return the hash of the commit.

    The branch and the files of the checkout stay as they are until `move_branch`.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        run_git(repository, "read-tree", "HEAD", **index)
        for name, text in texts.items():
            file = Path(folder) / "text"
            file.write_text(text)
            blob = run_git(repository, "hash-object", "-w", "--path", name, str(file))
            run_git(
                repository, "update-index", "--add", "--cacheinfo", f"100644,{blob},{name}", **index
            )
        tree = run_git(repository, "write-tree", **index)
    return run_git(repository, "commit-tree", tree, "-p", "HEAD", "-m", message)


def find_changed_files(repository: Path, commit: str) -> list[str]:
    """Return the paths of the files in which a commit differs from HEAD."""
    return run_git(repository, "diff", "--name-only", "HEAD", commit).splitlines()


def move_branch(repository: Path, commit: str) -> None:
    """Move the current branch to a commit on top of it, and update the files."""
    run_git(repository, "merge", "--ff-only", "--quiet", commit)


def create_tag(repository: Path, tag: str, message: str) -> None:
    """Tag the current commit, with a message."""
    run_git(repository, "tag", "--annotate", tag, "--message", message)


def commit_epoch(repository: Path, commit: str) -> int:
    """The time of a commit, in seconds (SOURCE_DATE_EPOCH)."""
    return int(run_git(repository, "log", "-1", "--format=%ct", commit))
