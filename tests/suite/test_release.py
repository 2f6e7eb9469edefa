"""Checks of a release: version, changelog, schema, reproducible distributions and SBOM."""

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support.release import distributions, release_texts, sbom
from tests.support.release.errors import ReleaseError
from tests.support.servers.merganser_server import ROOT

EPOCH = 1_800_000_000
HASHES = "ab" * 32, "cd" * 32
CHANGELOG = """# Changelog

## [Unreleased]

- Later change.

## [1.2.0] - 2027-01-31

### Added

- A change.

## [1.1.0] - 2026-12-01

- An earlier change.
"""


def project_table() -> dict[str, Any]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert isinstance(project, dict)
    return project


def test_version_is_that_of_pyproject() -> None:
    assert release_texts.read_version(ROOT) == project_table()["version"]


def test_complete_changelog_section_is_accepted() -> None:
    release_texts.require_changelog_section(CHANGELOG, "1.2.0")


@pytest.mark.parametrize(
    ("changelog", "error"),
    [
        ("## [Unreleased]\n\n- A change.\n", "must have the section"),
        (CHANGELOG.replace("1.2.0", "1.3.0"), "must have the section"),
        (CHANGELOG.replace(" - 2027-01-31", ""), "needs a date"),
        (CHANGELOG.replace("2027-01-31", "soon"), "needs a date"),
        (CHANGELOG.replace("- A change.\n", ""), "has no entries"),
    ],
)
def test_incomplete_changelog_section_is_refused(changelog: str, error: str) -> None:
    with pytest.raises(ReleaseError, match=error):
        release_texts.require_changelog_section(changelog, "1.2.0")


def test_released_schema_must_be_the_schema_of_the_version() -> None:
    schema = "type Query { a: Int }\n"
    release_texts.require_released_schema(f"# merganser 1.2.0\n{schema}", schema, "1.2.0")
    for released in (f"# merganser 1.1.0\n{schema}", f"# merganser 1.2.0\n{schema}\n", schema):
        with pytest.raises(ReleaseError, match="make released"):
            release_texts.require_released_schema(released, schema, "1.2.0")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> distributions.Distributions:
    folder = tmp_path_factory.mktemp("release")
    source = distributions.extract_commit(ROOT, "HEAD", folder / "commit")
    first = distributions.build_distributions(source, folder / "first", EPOCH)
    second = distributions.build_distributions(source, folder / "second", EPOCH)
    distributions.require_equal(first, second)
    return first


def test_distributions_have_metadata_and_all_files(built: distributions.Distributions) -> None:
    version = project_table()["version"]
    distributions.check_distributions(built, version)
    assert built.sdist.name == f"merganser-{version}.tar.gz"
    assert built.wheel.name == f"merganser-{version}-py3-none-any.whl"


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


def test_failed_build_is_reported(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(ReleaseError, match="The sdist can't be built"):
        distributions.build_distributions(tmp_path, tmp_path / "out", EPOCH)


def test_commit_is_extracted_without_other_files(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    (repository / "kept.txt").write_text("committed")
    subprocess.run([*git, "add", "kept.txt"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "one"], check=True)
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
