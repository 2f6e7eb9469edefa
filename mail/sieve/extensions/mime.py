"""MIME parts (RFC 5703): loops, tests of their header fields, and their text."""

from collections.abc import Iterator, Sequence

from mail.mime import Header, encoded_words
from mail.mime.header_parameters import parameters
from mail.sieve import limits
from mail.sieve.execution import comparators
from mail.sieve.execution.interpreter import Break, Run
from mail.sieve.execution.signatures import Call, Given, Kind, Option, Signature
from mail.sieve.execution.string_templates import variable_name
from mail.sieve.extensions.variables import MODIFIERS, modified
from mail.sieve.message import Piece

MIME = (
    Option("mime", extension="mime"),
    Option("anychild", extension="mime"),
)
ASPECTS = (
    Option("type", group="aspect", extension="mime"),
    Option("subtype", group="aspect", extension="mime"),
    Option("contenttype", group="aspect", extension="mime"),
    Option("param", Kind.STRINGS, group="aspect", extension="mime"),
)


def fields_of(run: Run, call: Call, name: str) -> Sequence[Header]:
    """Return the fields with a name: of the message, or with :mime of the current part.

    With :anychild the fields of all parts inside of it are added.
    """
    if not call.has("mime"):
        return run.headers(name)
    piece = run.piece or run.message.piece
    if not call.has("anychild"):
        return _own(run, call, piece, name)
    found: list[Header] = []
    for one in (piece, *_below(piece)):
        run.spend(call)
        found += _own(run, call, one, name)
    return found


def aspects_of(run: Run, call: Call, field: Header) -> list[str]:
    """Return the texts of a field to compare: its value, or what :type, :param etc. select."""
    aspect = call.chosen("aspect", "")
    if not aspect:
        return [field.value]
    run.spend(call, comparators.cost(len(field.raw), 16))
    word, found = "", dict[str, str]()
    if field.key.lower() in ("content-type", "content-disposition"):
        word, found = parameters(encoded_words.unfolded(field.raw.partition(":")[2]))
    if aspect == "param":
        return [found.get(name.lower(), "") for name in run.texts(call, "param")]
    kind, _, subtype = word.partition("/")
    return [{"type": kind, "subtype": subtype, "contenttype": word}[aspect]]


def check_mime(call: Call) -> str | None:
    """Return the problem with the tags of :mime, None if nothing is."""
    if call.has("mime"):
        return None
    if call.has("aspect") or call.has("anychild"):
        tag = call.chosen("aspect", "anychild")
        return f":{tag} stands with :mime"
    return None


def _own(run: Run, call: Call, piece: Piece, name: str) -> Sequence[Header]:
    if piece is run.message.piece:  # with the edits of the script
        return run.headers(name)
    run.spend(call, len(piece.fields) // 200)
    return [one for one in piece.fields if one.key.lower() == name.lower()]


def _below(piece: Piece) -> Iterator[Piece]:
    """Yield the parts inside of a part, in order, at all levels."""
    waiting = list(reversed(piece.pieces))
    while waiting:
        one = waiting.pop()
        yield one
        waiting += reversed(one.pieces)


def _foreverypart(run: Run, call: Call) -> None:
    outer = run.piece
    root = run.message.piece
    name = run.text(call, "name").lower()
    try:
        for piece in (root, *_below(root)) if outer is None else tuple(_below(outer)):
            run.spend(call)
            run.piece = piece
            run.execute(call.blocks[0])
    except Break as end:
        if end.loop and end.loop != name:
            raise
    finally:
        run.piece = outer


def _break(run: Run, call: Call) -> None:
    run.note(call, "the end of the loop")
    raise Break(run.text(call, "name").lower())


def _extracttext(run: Run, call: Call) -> None:
    piece = run.piece or run.message.piece
    run.spend(call, comparators.cost(min(piece.size, limits.PIECE), 8))
    text = piece.text()
    first = call.number("first", len(text))
    name = call.chosen("variable", "")
    value = modified(call, text[:first])
    run.set_variable(call, name.lower(), value)
    run.note(call, f'{name} is "{value}"')


def _check_variable(call: Call) -> str | None:
    try:
        variable_name(call.chosen("variable", ""), has_globals=True)
    except ValueError as problem:
        return str(problem)
    return None


COMMANDS = (
    Signature(
        "foreverypart",
        _foreverypart,
        (),
        (Option("name", Kind.STRING, constant=True),),
        extension="foreverypart",
        block=True,
    ),
    Signature(
        "break",
        _break,
        (),
        (Option("name", Kind.STRING, constant=True),),
        extension="foreverypart",
    ),
    Signature(
        "extracttext",
        _extracttext,
        (Given("variable", constant=True),),
        (Option("first", Kind.NUMBER), *MODIFIERS),
        extension=("extracttext", "variables"),
        check=_check_variable,
    ),
)
