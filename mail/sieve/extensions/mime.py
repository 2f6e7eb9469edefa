"""MIME parts (RFC 5703): loops, tests of their header fields, and their text."""

from collections.abc import Iterator, Sequence

from mail.mime import DecodedField, encoded_words
from mail.mime.header_parameters import parse_value_and_parameters
from mail.sieve import limits
from mail.sieve.execution import comparators
from mail.sieve.execution.interpreter import BreakLoop, ScriptRun
from mail.sieve.execution.signatures import (
    ArgumentType,
    CallSignature,
    PositionalArgument,
    SieveCall,
    TagOption,
)
from mail.sieve.execution.string_templates import parse_variable_name
from mail.sieve.extensions.variables import MODIFIER_OPTIONS, apply_modifiers
from mail.sieve.message import SievePart

_TEXT_COST = 32  # cost of converting a byte of HTML to text, relative to a comparison
MIME_OPTIONS = (
    TagOption("mime", extension="mime"),
    TagOption("anychild", extension="mime"),
)
ASPECT_OPTIONS = (
    TagOption("type", group="aspect", extension="mime"),
    TagOption("subtype", group="aspect", extension="mime"),
    TagOption("contenttype", group="aspect", extension="mime"),
    TagOption("param", ArgumentType.STRINGS, group="aspect", extension="mime"),
)


def fields_of_message_or_part(run: ScriptRun, call: SieveCall, name: str) -> Sequence[DecodedField]:
    """Return the fields with a name: of the message, or with :mime of the current part.

    With :anychild the fields of all parts inside of it are added.
    """
    if not call.has_argument("mime"):
        return run.fields_named(name)
    part = run.current_part or run.message.root_part
    if not call.has_argument("anychild"):
        return _fields_of_part(run, call, part, name)
    fields: list[DecodedField] = []
    for searched_part in (part, *_descendants(part)):
        run.count_steps(call)
        fields += _fields_of_part(run, call, searched_part, name)
    return fields


def aspects_of_field(run: ScriptRun, call: SieveCall, field: DecodedField) -> list[str]:
    """Return the texts of a field to compare: its value, or what :type, :param etc. select."""
    aspect = call.chosen_tag("aspect", "")
    if not aspect:
        return [field.value]
    run.count_steps(call, comparators.comparison_steps(len(field.raw), 16))
    word, aspects = "", dict[str, str]()
    if field.name.lower() in ("content-type", "content-disposition"):
        word, aspects = parse_value_and_parameters(
            encoded_words.unfold_and_decode_utf8(field.raw.partition(":")[2])
        )
    if aspect == "param":
        return [aspects.get(name.lower(), "") for name in run.strings_argument(call, "param")]
    kind, _, subtype = word.partition("/")
    return [{"type": kind, "subtype": subtype, "contenttype": word}[aspect]]


def mime_tags_problem(call: SieveCall) -> str | None:
    """Return the problem with the tags of :mime, None if nothing is."""
    if call.has_argument("mime"):
        return None
    if call.has_argument("aspect") or call.has_argument("anychild"):
        tag = call.chosen_tag("aspect", "anychild")
        return f":{tag} requires :mime."
    return None


def _fields_of_part(
    run: ScriptRun, call: SieveCall, part: SievePart, name: str
) -> Sequence[DecodedField]:
    if part is run.message.root_part:  # with the edits of the script
        return run.fields_named(name)
    run.count_steps(call, len(part.fields) // 200)
    return [field for field in part.fields if field.name.lower() == name.lower()]


def _descendants(part: SievePart) -> Iterator[SievePart]:
    """Yield the parts inside of a part, in order, at all levels."""
    waiting = list(reversed(part.parts))
    while waiting:
        next_part = waiting.pop()
        yield next_part
        waiting += reversed(next_part.parts)


def _execute_foreverypart(run: ScriptRun, call: SieveCall) -> None:
    outer = run.current_part
    root = run.message.root_part
    name = run.expanded_argument_or_empty(call, "name").lower()
    try:
        for part in (root, *_descendants(root)) if outer is None else tuple(_descendants(outer)):
            run.count_steps(call)
            run.current_part = part
            run.execute(call.blocks[0])
    except BreakLoop as end:
        if end.loop_name and end.loop_name != name:
            raise
    finally:
        run.current_part = outer


def _execute_break(run: ScriptRun, call: SieveCall) -> None:
    run.add_trace_step(call, "end of the loop")
    raise BreakLoop(run.expanded_argument_or_empty(call, "name").lower())


def _execute_extracttext(run: ScriptRun, call: SieveCall) -> None:
    part = run.current_part or run.message.root_part
    read_bytes = min(part.size, limits.MAX_PART_BYTES)
    run.count_steps(call, comparators.comparison_steps(read_bytes, _TEXT_COST))
    text = part.text()
    first = call.number_argument("first", len(text))
    name = call.chosen_tag("variable", "")
    value = apply_modifiers(call, text[:first])
    run.set_variable(call, name.lower(), value)
    run.add_trace_step(call, f'{name} is "{value}"')


def _variable_problem(call: SieveCall) -> str | None:
    try:
        parse_variable_name(call.chosen_tag("variable", ""), allow_globals=True)
    except ValueError as problem:
        return str(problem)
    return None


COMMANDS = (
    CallSignature(
        "foreverypart",
        _execute_foreverypart,
        (),
        (TagOption("name", ArgumentType.STRING, is_constant=True),),
        extension="foreverypart",
        has_block=True,
    ),
    CallSignature(
        "break",
        _execute_break,
        (),
        (TagOption("name", ArgumentType.STRING, is_constant=True),),
        extension="foreverypart",
    ),
    CallSignature(
        "extracttext",
        _execute_extracttext,
        (PositionalArgument("variable", is_constant=True),),
        (TagOption("first", ArgumentType.NUMBER), *MODIFIER_OPTIONS),
        extension=("extracttext", "variables"),
        find_problem=_variable_problem,
    ),
)
