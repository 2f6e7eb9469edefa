"""The same operation through graphql-core's executor and another one: the answers must be equal."""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLSchema,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
    parse,
    print_ast,
    validate,
)
from graphql.execution import Executor
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext as Stock

from tests.differential_documents import Author
from tests.differential_play import Play
from tests.differential_values import Dice

PLACE = re.compile(r"0x[0-9a-f]+")
SIGHTS = 4  # of each document, with other values and variables
SHARES = (0.0, 0.0, 0.01, 0.05, 0.15)  # of values that are odd
LONGEST = 10.0  # seconds of one execution


@dataclass(frozen=True)
class Case:
    """One execution: what is asked, with what, and what the values hang on."""

    document: str
    variables: dict[str, Any]
    seed: int
    wrong: float


@dataclass
class Answer:
    """All that is to be equal."""

    data: Any
    errors: list[str]
    calls: list[str]

    def differs(self, other: "Answer") -> str:
        """In what; "" where they are equal."""
        for what in ("data", "errors", "calls"):
            if getattr(self, what) != getattr(other, what):
                return what
        return ""


@dataclass
class Tally:
    """What was compared."""

    cases: int = 0
    with_errors: int = 0
    refused: int = 0  # before anything ran: the variables do not fit
    documents: int = 0
    differences: list[str] = field(default_factory=list)
    words: Counter[str] = field(default_factory=Counter)  # of the errors


def frozen(value: Any) -> Any:
    """A value so that equal ones are the same in every way: order of keys, types, texts."""
    if isinstance(value, dict):
        return type(value).__name__, [(name, frozen(one)) for name, one in value.items()]
    if isinstance(value, list | tuple):
        return type(value).__name__, [frozen(one) for one in value]
    return type(value).__name__, PLACE.sub("0x", repr(value))


def told(error: GraphQLError) -> str:
    """All that a client hears of an error, and what the log and the codes are made of."""
    cause = error.original_error
    facts = (error.path, error.locations, frozen(error.extensions or {}), type(cause).__name__)
    return PLACE.sub("0x", f"{error.message} {facts} {cause}")


async def answered(
    executor_class: type[Executor[Any]],
    schema: GraphQLSchema,
    document: DocumentNode,
    context: Any,
    variables: dict[str, Any] | None,
) -> tuple[Any, list[GraphQLError]]:
    """Data and errors of one execution."""
    executor = executor_class.build(
        schema, document, context_value=context, raw_variable_values=dict(variables or {})
    )
    if isinstance(executor, list):
        return None, executor
    async with asyncio.timeout(LONGEST):
        result: Any = executor.execute_operation()
        if executor.is_awaitable(result):
            result = await result
        while executor.background_futures:  # what graphql-core has left behind
            await asyncio.wait(list(executor.background_futures))
    return result.data, list(result.errors or ())


@dataclass
class Bench:
    """Two executors over one schema."""

    schema: GraphQLSchema
    other: type[Executor[Any]]
    plain: type[Executor[Any]] = Stock

    async def differences(self, tally: Tally, *, seed: int, documents: int) -> None:
        """Compare so many random documents, each with several values, into the tally."""
        for number in range(documents):
            author = Author(self.schema, Dice(seed).at(number).seed)
            text = author.document()
            await self._sights(tally, author, text, Dice(seed).at(number, "values"))

    async def _sights(self, tally: Tally, author: Author, text: str, dice: Dice) -> None:
        document = parse(text)
        tally.documents += 1
        for sight in range(SIGHTS):
            place = dice.at(sight)
            case = Case(text, author.values(place), place.seed, place.pick(SHARES))
            what = await self.compared(case, document, tally)
            if what:
                tally.differences.append(await self.told(case, what))

    async def compared(self, case: Case, document: DocumentNode, tally: Tally | None = None) -> str:
        """In what the answers differ; "" where they are equal."""
        plain = await self._answer(self.plain, case, document)
        other = await self._answer(self.other, case, document)
        if tally:
            tally.cases += 1
            tally.with_errors += bool(plain.errors)
            tally.refused += not plain.calls and plain.data is None
        return plain.differs(other)

    async def _answer(
        self, executor_class: type[Executor[Any]], case: Case, document: DocumentNode
    ) -> Answer:
        play = Play(
            self.schema,
            {n.name.value: n for n in document.definitions if isinstance(n, FragmentDefinitionNode)},
            seed=case.seed,
            wrong=case.wrong,
            fast=executor_class is not self.plain,
        )
        try:
            data, errors = await answered(
                executor_class, self.schema, document, play, case.variables
            )
        except Exception as broken:  # noqa: BLE001 - both must break in the same way
            data, errors = ("broken", repr(broken)), []
        play.maker.close()
        return Answer(frozen(data), sorted(map(told, errors)), sorted(map(str, play.calls)))

    async def told(self, case: Case, what: str) -> str:
        """A difference in words, made as small as it gets."""
        small = await self._smaller(case)
        document = parse(small.document)
        lines = [f"{what} differ (share of odd values {case.wrong}, seed {case.seed}):"]
        lines += [small.document, f"variables {small.variables}"]
        for each in (self.plain, self.other):
            for _ in range(SIGHTS):
                answer = await self._answer(each, small, document)
            lines += [f"{each.__name__}:", *(f"  {n}: {v}" for n, v in vars(answer).items())]
        return "\n".join(lines)

    async def _smaller(self, case: Case) -> Case:
        """A case with fewer selections that still differs."""
        again = True
        while again:
            again = False
            for text in shorter(case.document):
                less = Case(text, case.variables, case.seed, case.wrong)
                if await self._differs(less):
                    case, again = less, True
                    break
        return case

    async def _differs(self, case: Case) -> bool:
        document = parse(case.document)
        if validate(self.schema, document):
            return False
        for _ in range(SIGHTS - 1):  # an executor may look at a document first
            if await self.compared(case, document):
                return True
        return False


def shorter(text: str) -> Iterator[str]:
    """The document with one selection, one directive, or one unused part less, in turn."""
    number = 0
    while True:
        document = parse(text, no_location=True)
        if not _without(document, number):
            return
        number += 1
        yield print_ast(_tidy(document))


def _without(document: DocumentNode, number: int) -> bool:
    """Take the nth thing out; says whether there is one."""
    waiting = [n.selection_set for n in document.definitions if hasattr(n, "selection_set")]
    while waiting:
        chosen = waiting.pop()
        for nth, node in enumerate(chosen.selections):
            rest = list(chosen.selections)
            if number == 0:
                rest[nth : nth + 1] = (
                    node.selection_set.selections if isinstance(node, InlineFragmentNode) else ()
                )
                chosen.selections = tuple(rest)
                return bool(rest) or True
            number -= 1
            if node.directives:
                if number == 0:
                    node.directives = ()
                    return True
                number -= 1
            inner = getattr(node, "selection_set", None)
            if inner:
                waiting.append(inner)
    return False


def _tidy(document: DocumentNode) -> DocumentNode:
    """Drop empty selections, unused fragments and unused variables."""
    definitions = list(document.definitions)
    spread = set[str]()
    text = print_ast(document)
    for match in re.finditer(r"\.\.\.(\w+)", text):
        spread.add(match[1])
    document.definitions = tuple(
        n
        for n in definitions
        if not isinstance(n, FragmentDefinitionNode) or n.name.value in spread
    )
    for node in document.definitions:
        if isinstance(node, OperationDefinitionNode):
            body = print_ast(DocumentNode(definitions=document.definitions))
            node.variable_definitions = tuple(
                v
                for v in node.variable_definitions or ()
                if len(re.findall(rf"\${v.variable.name.value}\b", body)) > 1
            )
    return document


__all__ = ["FieldNode", "FragmentSpreadNode", "SelectionSetNode"]
