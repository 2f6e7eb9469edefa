"""The folder of keys by which ARC seals what is sent on."""

from dataclasses import dataclass
from pathlib import Path

from mail.addresses.address_syntax import checked_domain
from mail.authentication import arc_seal
from mail.authentication.public_keys import is_domain
from merganser.errors import MISUSED, Trouble
from merganser.server.private_files import once
from models.errors import Refused


@dataclass(frozen=True, slots=True)
class Put:
    """A key that lies in the folder."""

    path: Path
    name: str  # in DNS
    record: str  # what is said there
    new: bool


def put(folder: Path, domain: str, selector: str) -> Put:
    """Make the key of a domain, unless it is there. Trouble."""
    try:
        known = arc_seal.on_wire(checked_domain(domain, path="domain"))
    except Refused as problem:
        raise Trouble(f"{domain} is no domain", code=MISUSED) from problem
    if not is_domain(selector):
        raise Trouble(f"--selector: {selector} is no name of a key", code=MISUSED)
    name = f"{selector}{arc_seal.BETWEEN}{known}"
    path = folder / f"{name}.pem"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = not path.exists()
        if new:
            once(path, arc_seal.new_key())
        key = arc_seal.loaded(path)
    except OSError as problem:
        raise Trouble(f"cannot write {path}: {problem.strerror}") from problem
    except arc_seal.Unusable as problem:
        raise Trouble(str(problem)) from problem
    return Put(path, name, arc_seal.record(key), new)


def names(folder: Path) -> list[str]:
    """The keys of the folder, by their names in DNS. Trouble where one cannot be used."""
    try:
        there = sorted(each for each in folder.iterdir() if each.suffix == ".pem")
        for path in there:
            arc_seal.loaded(path)
    except OSError as problem:
        raise Trouble(f"cannot read {folder}: {problem.strerror}") from problem
    except arc_seal.Unusable as problem:
        raise Trouble(str(problem)) from problem
    return [each.stem for each in there]
