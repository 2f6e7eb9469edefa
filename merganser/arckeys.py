"""The folder of keys by which ARC seals what is sent on."""

from dataclasses import dataclass
from pathlib import Path

from mail.addresses import checked_domain
from mail.authentication import sealing
from mail.authentication.keys import is_domain
from merganser.files import once
from merganser.trouble import MISUSED, Trouble
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
        known = sealing.on_wire(checked_domain(domain, path="domain"))
    except Refused as problem:
        raise Trouble(f"{domain} is no domain", code=MISUSED) from problem
    if not is_domain(selector):
        raise Trouble(f"--selector: {selector} is no name of a key", code=MISUSED)
    name = f"{selector}{sealing.BETWEEN}{known}"
    path = folder / f"{name}.pem"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = not path.exists()
        if new:
            once(path, sealing.new_key())
        key = sealing.loaded(path)
    except OSError as problem:
        raise Trouble(f"cannot write {path}: {problem.strerror}") from problem
    except sealing.Unusable as problem:
        raise Trouble(str(problem)) from problem
    return Put(path, name, sealing.record(key), new)


def names(folder: Path) -> list[str]:
    """The keys of the folder, by their names in DNS. Trouble where one cannot be used."""
    try:
        there = sorted(each for each in folder.iterdir() if each.suffix == ".pem")
        for path in there:
            sealing.loaded(path)
    except OSError as problem:
        raise Trouble(f"cannot read {folder}: {problem.strerror}") from problem
    except sealing.Unusable as problem:
        raise Trouble(str(problem)) from problem
    return [each.stem for each in there]
