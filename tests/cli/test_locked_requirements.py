"""requirements.lock has a version and hashes of every package that pyproject.toml requires."""

import re
import tomllib
from itertools import chain

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.servers.merganser_server import ROOT

LOCKED = re.compile(r"^([a-z0-9._-]+)(?:\[[^\]]*\])?==(\S+?)(?: ; .*)? \\$", re.MULTILINE)


@pytest.fixture(scope="module")
def lock() -> str:
    return (ROOT / "requirements.lock").read_text()


def required_packages() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = project["optional-dependencies"].values()
    return [Requirement(text) for text in chain(project["dependencies"], *groups)]


def test_lock_holds_an_allowed_version_of_every_requirement(lock: str) -> None:
    locked: dict[str, list[str]] = {}
    for name, version in LOCKED.findall(lock):
        locked.setdefault(canonicalize_name(name), []).append(version)
    stale = {
        str(requirement)
        for requirement in required_packages()
        for version in locked.get(canonicalize_name(requirement.name), [""])
        if not version or version not in requirement.specifier
    }
    assert not stale, "run `make lock`"


def test_lock_has_hashes_and_names_no_registry(lock: str) -> None:
    assert len(LOCKED.findall(lock)) == len(re.findall(r"^\S+==", lock, re.MULTILINE)) > 100
    for entry in re.split(r"^(?=\S+==)", lock, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in entry
    assert "://" not in lock
