"""Write the error codes that descriptions of mutations list, as a module of graph/.

`python -m tests.support.reference.error_codes` writes the module from the code that creates the
errors. With `--check` it reports whether the module differs. The product imports only the module.
"""

import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from graph.types.descriptions import mutation_error_codes
from graph.types.descriptions.mutation_error_codes import ERROR_CODES_BY_MUTATION
from tests.support.reference.areas import iter_root_fields
from tests.support.reference.errors.root_field_errors import errors_by_root_field
from tests.support.schema.printed_schema import SDL

LINE_LENGTH = 100
# Codes that every mutation returns, for its input, its references, its caller or its storage.
# CONFLICT and UNAVAILABLE are listed where a mutation has a reason of its own.
UNLISTED_CODES = ("ABORTED", "DAMAGED", "FORBIDDEN", "NOT_FOUND", "VALIDATION")
MODULE_HEAD = f'''\
"""Error codes in descriptions of mutations. `make schema` writes this module from the code.

A mutation is listed with the codes that it returns for a reason of its own. The codes that every
mutation returns are left out: {", ".join(UNLISTED_CODES)}.
"""

ERROR_CODES_BY_MUTATION: dict[str, tuple[str, ...]] = {{
'''


def read_error_codes() -> dict[str, list[str]]:
    """Read the listed codes of each mutation from the code. Mutations without any are left out."""
    errors = errors_by_root_field()
    codes = {
        field.name: sorted({error.code for error in errors[field.name]} - {*UNLISTED_CODES})
        for field in iter_root_fields(SDL)
        if field.operation == "mutation"
    }
    return {name: codes[name] for name in sorted(codes) if codes[name]}


def module_text(codes_by_mutation: Mapping[str, Collection[str]]) -> str:
    """Return the text of the module, in the form of `ruff format`."""
    items = (line for name, codes in codes_by_mutation.items() for line in _item(name, codes))
    return "".join([MODULE_HEAD, *(f"    {line}\n" for line in items), "}\n"])


def _item(name: str, codes: Collection[str]) -> Iterator[str]:
    """Yield the lines of a mutation, without their indentation."""
    texts = [f'"{code}"' for code in codes]
    line = f'"{name}": ({", ".join(texts)}{"," if len(texts) == 1 else ""}),'
    if len(line) + 4 <= LINE_LENGTH:
        yield line
    else:
        yield from (f'"{name}": (', *(f"    {text}," for text in texts), "),")


def main() -> None:
    """Write or compare the module. Exits with status 1 if a compared module differs."""
    codes = {name: tuple(names) for name, names in read_error_codes().items()}
    if "--check" not in sys.argv:
        path = Path(mutation_error_codes.__file__)
        path.write_text(module_text(codes), encoding="utf-8")
    elif codes != ERROR_CODES_BY_MUTATION:
        names = sorted(
            name
            for name in codes.keys() | ERROR_CODES_BY_MUTATION.keys()
            if codes.get(name) != ERROR_CODES_BY_MUTATION.get(name)
        )
        sys.exit(f"Mutations have other errors, run `make schema`: {', '.join(names)}")


if __name__ == "__main__":
    main()
