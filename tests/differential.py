"""The same operation through graphql-core's executor and another one: the answers must be equal."""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from graphql import (
    REMOVE,
    DirectiveNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLSchema,
    GraphQLSyntaxError,
    InlineFragmentNode,
    Node,
    NoUnusedFragmentsRule,
    NoUnusedVariablesRule,
    VariableDefinitionNode,
    Visitor,
    parse,
    print_ast,
    specified_rules,
    validate,
    visit,
)
from graphql.execution import Executor
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext as Stock

from tests.differential_documents import Author
from tests.differential_play import Play
from tests.differential_values import Dice

PLACE = re.compile(r"0x[0-9a-f]+")
ENOUGH = 3  # differences: each takes seconds to be made small
SIGHTS = 4  # of each document, with other values and variables
SHARES = (0.0, 0.0, 0.01, 0.05, 0.15)  # of values that are odd
LONGEST = 10.0  # seconds of one execution
RULES = [r for r in specified_rules if r not in (NoUnusedFragmentsRule, NoUnusedVariablesRule)]
PARTS = (
    FieldNode,
    InlineFragmentNode,
    FragmentSpreadNode,
    DirectiveNode,
    FragmentDefinitionNode,
    VariableDefinitionNode,
)


@dataclass(frozen=True)
class Case:
    """One execution: what is asked, with what, and what the values hang on."""

    document: str
    variables: dict[str, Any]
    seed: int
    wrong: float
    most: int = 3  # items of a list


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
            if len(tally.differences) >= ENOUGH:
                return
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
            most=case.most,
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
                less = replace(case, document=text)
                if await self._differs(less):
                    case, again = less, True
                    break
        return case

    async def _differs(self, case: Case) -> bool:
        try:
            document = parse(case.document)
        except GraphQLSyntaxError:
            return False
        if validate(self.schema, document, RULES):
            return False
        for _ in range(SIGHTS - 1):  # an executor may look at a document first
            if await self.compared(case, document):
                return True
        return False


def shorter(text: str) -> Iterator[str]:
    """The document with one part less, in turn: not all of these are documents."""
    parts = Part(-1)
    visit(parse(text), parts)
    for number in range(parts.seen):
        yield print_ast(visit(parse(text), Part(number)))


class Part(Visitor):
    """Takes the nth part out of a document."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.seen = 0

    def enter(self, node: Node, *_: Any) -> Any:
        if not isinstance(node, PARTS):
            return None
        self.seen += 1
        return REMOVE if self.seen - 1 == self.number else None
