"""The steps of a release: texts, commit, distributions, bill of materials, checksums and tag."""

import hashlib
import shutil
import tempfile
import tomllib
from datetime import date
from pathlib import Path

from tests.support.release import release_commit
from tests.support.release.distributions import (
    build_distributions,
    check_distributions,
    extract_commit,
    require_equal,
)
from tests.support.release.release_texts import read_version, release_texts
from tests.support.release.sbom import (
    create_bill_of_materials,
    require_valid_bill,
    required_names,
    runtime_extras,
)

OUTPUT_FOLDER = "dist"
CHECKSUM_FILE = "SHA256SUMS"


def release_version(root: Path, version: str, day: date, *, with_tag: bool) -> str:
    """Release a version of a checkout. Returns what was done, and what remains.

    The branch and the files change only after all checks. Raises ReleaseError if one fails.
    """
    tag, title = f"v{version}", f"Release {version}"
    release_commit.require_committed_changes(root)
    release_commit.require_new_tag(root, tag)
    texts = release_texts(root, version, day)
    commit = release_commit.create_commit(root, texts, title)
    built = write_distributions(root, commit, version)
    changed_files = release_commit.find_changed_files(root, commit)
    release_commit.move_branch(root, commit)
    lines = [built, f'Committed {", ".join(changed_files)}: "{title}".']
    remaining = [
        f"git push origin HEAD {tag}",
        f"python -m twine upload {OUTPUT_FOLDER}/*.whl {OUTPUT_FOLDER}/*.tar.gz",
        "python -m tests.support.released tests/released",
    ]
    if with_tag:
        release_commit.create_tag(root, tag, f"Merganser {version}")
        lines.append(f"Tagged this commit as {tag}.")
    else:
        remaining.insert(0, f'git tag --annotate {tag} --message "Merganser {version}"')
    lines.append("Nothing was pushed or uploaded. These commands remain:")
    return "\n".join([*lines, *(f"  {command}" for command in remaining)])


def build_commit(root: Path) -> str:
    """Build the commit of a checkout in dist/. Returns what was done. Raises ReleaseError."""
    release_commit.require_committed_changes(root)
    return write_distributions(root, "HEAD", read_version(root))


def write_distributions(root: Path, commit: str, version: str) -> str:
    """Write the distributions of a commit, the bill of materials and the checksums into dist/.

    Returns what was done. Raises ReleaseError if a check fails; dist/ is unchanged then.
    """
    epoch = release_commit.commit_epoch(root, commit)
    output = root / OUTPUT_FOLDER
    with tempfile.TemporaryDirectory() as scratch:
        source = extract_commit(root, commit, Path(scratch) / "commit")
        built = build_distributions(source, Path(scratch) / "first", epoch)
        require_equal(built, build_distributions(source, Path(scratch) / "second", epoch))
        check_distributions(built, version)
        project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
        needs = required_names(project["name"], runtime_extras(project))
        lock = (source / "requirements.lock").read_text()
        bill = create_bill_of_materials(project, lock, needs, epoch)
        require_valid_bill(bill)
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
    return f"Built and checked Merganser {version} in {OUTPUT_FOLDER}/."
