"""Checks of a release: version, changelog, schema, reproducible distributions and SBOM."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from datetime import UTC, date, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from tests.support.release import distributions, release_commit, release_steps, release_texts, sbom
from tests.support.release.errors import ReleaseError
from tests.support.servers.forked_process import run_forked
from tests.support.servers.merganser_server import ROOT

EPOCH = 1_800_000_000
HASHES = "ab" * 32, "cd" * 32
CHANGELOG = """# Changelog

## [Unreleased]

### Added

- A change.

## [1.1.0] - 2026-12-01

- An earlier change.
"""
DAY = date(2027, 1, 31)


def project_table() -> dict[str, Any]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert isinstance(project, dict)
    return project


def test_version_is_the_same_everywhere() -> None:
    version = project_table()["version"]
    assert metadata.version("merganser") == version
    assert run_forked(["--version"], {}).stdout == f"merganser {version}\n"
    pages = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    wheel_names = set(release_texts.WHEEL_NAME.findall(pages))
    assert wheel_names == {f"merganser-{version}-py3"}


def test_changelog_gets_heading_of_the_version() -> None:
    assert release_texts.release_changelog(CHANGELOG, "1.2.0", DAY) == CHANGELOG.replace(
        "## [Unreleased]\n", "## [Unreleased]\n\n## [1.2.0] - 2027-01-31\n"
    )


@pytest.mark.parametrize(
    ("changelog", "error"),
    [
        ("# Changelog\n", "first section"),
        (CHANGELOG.replace("## [Unreleased]\n", ""), "first section"),
        (CHANGELOG.replace("- A change.\n", ""), "Unreleased of CHANGELOG.md has no entries"),
        (CHANGELOG.replace("1.1.0", "1.2.0"), "has version 1.2.0: release a newer one"),
        (CHANGELOG.replace("1.1.0", "1.10.0"), "has version 1.10.0: release a newer one"),
    ],
)
def test_changelog_without_new_entries_is_refused(changelog: str, error: str) -> None:
    with pytest.raises(ReleaseError, match=re.escape(error)):
        release_texts.release_changelog(changelog, "1.2.0", DAY)


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder and return its output."""
    return release_commit.run_git(folder, *arguments)


def commit_all(repository: Path) -> None:
    """Commit all files of a repository, as an author of its own."""
    git(repository, "config", "user.name", "Ada")
    git(repository, "config", "user.email", "ada@example.org")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "A change.")


@pytest.fixture(scope="module")
def released_clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of this repository in which `make release VERSION=9.8.7 TAG=1` has run."""
    clone = tmp_path_factory.mktemp("release") / "clone"
    git(ROOT, "clone", "--quiet", "--shared", str(ROOT), str(clone))
    for name in ("pyproject.toml", "requirements.lock"):  # they belong to this environment
        shutil.copy(ROOT / name, clone / name)
    changelog = (clone / "CHANGELOG.md").read_text()
    unreleased = "## [Unreleased]\n"
    entry = f"{unreleased}\n- A change for the test of the release.\n"
    (clone / "CHANGELOG.md").write_text(changelog.replace(unreleased, entry, 1))
    (clone / "tests/schema/accepted_changes.json").write_text('{"A change.": "a reason"}\n')
    commit_all(clone)
    released = run_release(clone, "release", "9.8.7", "--tag")
    assert released.returncode == 0, released.stderr
    built, committed, *others = released.stdout.splitlines()
    assert built == "Built and checked Merganser 9.8.7 in dist/."
    assert committed.startswith("Committed CHANGELOG.md, docs/operating/install.md, ")
    assert committed.endswith(', tests/schema/released.graphql: "Release 9.8.7".')
    assert others == [
        "Tagged this commit as v9.8.7.",
        "Nothing was pushed or uploaded. These commands remain:",
        "  git push origin HEAD v9.8.7",
        "  python -m twine upload dist/*.whl dist/*.tar.gz",
        "  python -m tests.support.released tests/released",
    ]
    return clone


def run_release(checkout: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the program of `make release` and `make dist` in a checkout."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "tests.support.release", *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_release_is_committed_and_tagged(released_clone: Path) -> None:
    assert git(released_clone, "status", "--porcelain") == ""
    assert git(released_clone, "log", "-1", "--format=%s by %an") == "Release 9.8.7 by Ada"
    assert git(released_clone, "cat-file", "-t", "v9.8.7") == "tag"
    for commit in ("v9.8.7^{commit}", git(ROOT, "branch", "--show-current") or "HEAD"):
        assert git(released_clone, "rev-parse", commit) == git(released_clone, "rev-parse", "HEAD")


def test_release_changes_version_changelog_and_schema(released_clone: Path) -> None:
    version, today = project_table()["version"], datetime.now(UTC).date()
    changelog = (released_clone / "CHANGELOG.md").read_text()
    day = re.findall(r"^## \[9\.8\.7\] - (.*)$", changelog, re.MULTILINE)[0]
    assert today - timedelta(days=1) <= date.fromisoformat(day) <= today
    replaced = {  # by path: the old text, and the new one
        "pyproject.toml": (f'\nversion = "{version}"\n', '\nversion = "9.8.7"\n'),
        "CHANGELOG.md": ("## [Unreleased]\n", f"## [Unreleased]\n\n## [9.8.7] - {day}\n"),
        "tests/schema/accepted_changes.json": ('{"A change.": "a reason"}', "{}"),
    }
    names = git(released_clone, "diff", "--name-only", "HEAD~1", "HEAD").splitlines()
    pages = [name for name in names if name.startswith("docs/")]
    replaced |= dict.fromkeys(pages, (f"merganser-{version}-py3", "merganser-9.8.7-py3"))
    assert "docs/operating/install.md" in pages
    assert {*names} == {*replaced, "tests/schema/released.graphql"}
    for name, (old, new) in replaced.items():
        before = git(released_clone, "show", f"HEAD~1:{name}") + "\n"
        assert (released_clone / name).read_text() == before.replace(old, new), name
    schema = (released_clone / "schema.graphql").read_text()
    released = (released_clone / "tests/schema/released.graphql").read_text()
    assert released == f"# merganser 9.8.7\n{schema}"


def test_release_has_distributions_with_metadata_bill_and_checksums(released_clone: Path) -> None:
    output = released_clone / "dist"
    sdist, wheel = output / "merganser-9.8.7.tar.gz", output / "merganser-9.8.7-py3-none-any.whl"
    bill, checksums = output / "merganser-9.8.7.cdx.json", output / "SHA256SUMS"
    assert {*output.iterdir()} == {sdist, wheel, bill, checksums}
    distributions.check_distributions(distributions.Distributions(sdist, wheel), "9.8.7")
    with tarfile.open(sdist) as files:
        epoch = release_commit.commit_epoch(released_clone, "HEAD")
        assert {member.mtime for member in files} == {epoch}
        changelog = files.extractfile("merganser-9.8.7/CHANGELOG.md")
        assert changelog
        assert b"## [9.8.7] - " in changelog.read()
    sbom.require_valid_bill(bill.read_text())
    assert json.loads(bill.read_text())["metadata"]["component"]["version"] == "9.8.7"
    command = ["sha256sum", "--check", "--strict", str(checksums)]
    subprocess.run(command, cwd=output, check=True, capture_output=True)
    assert len(checksums.read_text().splitlines()) == 3


def test_distributions_of_released_commit_have_the_same_bytes_again(released_clone: Path) -> None:
    checksums = released_clone / "dist" / "SHA256SUMS"
    before = checksums.read_text()
    checksums.unlink()
    assert run_release(released_clone, "dist").returncode == 0
    assert checksums.read_text() == before


@pytest.fixture
def small_repository(tmp_path: Path) -> Path:
    """A repository with the files that a release changes; its package can't be built."""
    repository = tmp_path / "repository"
    (repository / "tests" / "schema").mkdir(parents=True)
    git(tmp_path, "init", "--quiet", str(repository))
    (repository / "pyproject.toml").write_text('[project]\nversion = "1.1.0"\n')
    (repository / "CHANGELOG.md").write_text(CHANGELOG)
    (repository / "schema.graphql").write_text("type Query { a: Int }\n")
    commit_all(repository)
    return repository


@pytest.mark.parametrize(
    ("version", "error"),
    [
        ("1.2.0", "`build` failed:\n"),
        ("1.1.0", "CHANGELOG.md has version 1.1.0: release a newer one."),
        ("1.2", "The version 1.2 must be like 1.2.3."),
        ("1.3.0", "The tag v1.3.0 exists: release a new version."),
    ],
)
def test_release_that_fails_changes_nothing(
    small_repository: Path, version: str, error: str
) -> None:
    git(small_repository, "tag", "v1.3.0")
    before = git(small_repository, "show-ref")
    with pytest.raises(ReleaseError, match=re.escape(error)):
        release_steps.release_version(small_repository, version, DAY, with_tag=True)
    assert git(small_repository, "show-ref") == before
    assert git(small_repository, "status", "--porcelain") == ""


@pytest.mark.parametrize("name", ["schema.graphql", "new.txt"])
def test_release_needs_committed_changes(small_repository: Path, name: str) -> None:
    (small_repository / name).write_text("changed")
    with pytest.raises(ReleaseError, match="changes without a commit"):
        release_steps.build_commit(small_repository)
    with pytest.raises(ReleaseError, match="changes without a commit"):
        release_steps.release_version(small_repository, "1.2.0", DAY, with_tag=False)


def test_command_says_why_a_release_is_refused(small_repository: Path) -> None:
    refused = run_release(small_repository, "release", "1.1.0")
    assert refused.stderr == "release: CHANGELOG.md has version 1.1.0: release a newer one.\n"
    assert (refused.returncode, refused.stdout) == (1, "")


@pytest.mark.parametrize("changed_name", ["a.tar.gz", "a.whl"])
def test_builds_with_other_bytes_are_refused(tmp_path: Path, changed_name: str) -> None:
    builds = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in ("a.tar.gz", "a.whl"):
            (folder / name).write_text(f"{number}" if name == changed_name else "equal")
        builds.append(distributions.Distributions(folder / "a.tar.gz", folder / "a.whl"))
    distributions.require_equal(builds[0], builds[0])
    with pytest.raises(ReleaseError, match=f"Two builds of {changed_name} differ"):
        distributions.require_equal(*builds)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ("Metadata-Version: 2.4\nName: merganser\n", "invalid: .*version"),
        ("Metadata-Version: 2.4\nName: merganser\nVersion: 9\n", "is of merganser 9"),
        ("Metadata-Version: 2.4\nName: other\nVersion: 1.2.0\n", "is of other 1.2.0"),
        ("Metadata-Version: 2.4\nName: merganser\nVersion: 1.2.0\n", "README.md"),
        ("Metadata-Version: 2.4\nName: merganser\nVersion: 1.2.0\nX-Odd: 1\n", "invalid"),
    ],
)
def test_wrong_metadata_is_refused(fields: str, error: str) -> None:
    with pytest.raises(ReleaseError, match=error):
        distributions.require_metadata(fields.encode(), "1.2.0")


def test_commit_is_extracted_without_other_files(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    git(repository, "init", "--quiet")
    (repository / "kept.txt").write_text("committed")
    commit_all(repository)
    (repository / "kept.txt").write_text("changed later")
    (repository / "untracked.txt").write_text("secret")
    source = distributions.extract_commit(repository, "HEAD", tmp_path / "copy")
    assert [path.name for path in source.iterdir()] == ["kept.txt"]
    assert (source / "kept.txt").read_text() == "committed"


def bill_of_materials() -> dict[str, Any]:
    project = project_table()
    needs = sbom.required_names("merganser", sbom.runtime_extras(project))
    lock = (ROOT / "requirements.lock").read_text()
    text = sbom.create_bill_of_materials(project, lock, needs, EPOCH)
    assert text == sbom.create_bill_of_materials(project, lock, needs, EPOCH)
    bill = json.loads(text)
    assert isinstance(bill, dict)
    return bill


def test_bill_has_required_packages_with_hashes_and_none_of_development() -> None:
    bill = bill_of_materials()
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    assert bill["metadata"]["timestamp"] == "2027-01-15T08:00:00Z"
    components = {component["name"]: component for component in bill["components"]}
    assert {"graphql-core", "starlette", "asyncpg", "redis", "nats-py"} <= components.keys()
    assert not {"merganser", "pytest", "hypothesis", "ruff", "moto"} & components.keys()
    for name, component in components.items():
        assert component["purl"] == f"pkg:pypi/{name}@{component['version']}"
        assert component["hashes"]
        assert all(len(entry["content"]) == 64 for entry in component["hashes"])


def test_bill_with_unknown_member_is_refused() -> None:
    bill = bill_of_materials()
    sbom.require_valid_bill(json.dumps(bill))
    bill["components"][0]["type"] = "duck"
    with pytest.raises(ReleaseError, match="The bill of materials is invalid: 'duck' is not"):
        sbom.require_valid_bill(json.dumps(bill))


def test_bill_says_what_needs_what() -> None:
    bill = bill_of_materials()
    refs = [component["bom-ref"] for component in bill["components"]]
    root = bill["metadata"]["component"]["bom-ref"]
    assert root == f"pkg:pypi/merganser@{project_table()['version']}"
    assert len(set(refs)) == len(refs)
    needed = {entry["ref"]: set(entry["dependsOn"]) for entry in bill["dependencies"]}
    assert needed.keys() == {root, *refs}
    assert set().union(*needed.values()) == set(refs)
    names = {ref.partition("@")[0].removeprefix("pkg:pypi/") for ref in needed[root]}
    assert {"sqlalchemy", "uvicorn", "asyncpg"} <= names


def test_locked_packages_have_their_versions_and_hashes() -> None:
    lock = (
        "# a comment\none==1.0 \\\n"
        f"    --hash=sha256:{HASHES[1]} \\\n    --hash=sha256:{HASHES[0]}\n"
        f"Two_2[extra]==2.1 ; sys_platform == 'linux' \\\n    --hash=sha256:{HASHES[0]}\n"
        f"two-2==2.2 ; sys_platform == 'win32' \\\n    --hash=sha256:{HASHES[1]}\n"
    )
    assert sbom.read_locked_packages(lock) == {
        "one": sbom.LockedPackage("one", "1.0", HASHES),
        "two-2": sbom.LockedPackage("two-2", "2.1", HASHES[:1]),
    }


def test_package_without_lock_is_refused() -> None:
    with pytest.raises(ReleaseError, match="lacks starlette: run `make lock`"):
        sbom.create_bill_of_materials(
            project_table(), "", {"merganser": ["starlette"], "starlette": []}, EPOCH
        )


@pytest.mark.parametrize("builder", [WheelBuilder, SdistBuilder])
def test_distributions_of_a_checkout_have_no_passwords_of_services(
    builder: type[WheelBuilder | SdistBuilder], tmp_path: Path
) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    (tmp_path / "deploy/.env").write_text("POSTGRES_PASSWORD=secret\n")
    for name in ("schema.graphql", "docs"):
        (tmp_path / name).mkdir()
    files = {file.relative_path for file in builder(str(tmp_path)).recurse_included_files()}
    assert "deploy/compose.yaml" in files
    assert "deploy/.env" not in files


def test_image_has_no_passwords_of_services() -> None:
    lines = (ROOT / "deploy/Containerfile.dockerignore").read_text().splitlines()
    assert lines.index("deploy/.env") > lines.index("!deploy")  # the last match counts
