// The search of the documentation explorer: names first, then the words of descriptions.

import { useCallback } from 'react';
import { useGraphiQL } from '@graphiql/react';
import { useDocExplorer } from '@graphiql/plugin-doc-explorer';

const MAX_RESULTS = 100;
const ROOTS = ['Query', 'Mutation', 'Subscription'];

function candidates(schema) {
  return Object.values(schema.getTypeMap())
    .filter(({ name }) => !name.startsWith('__'))
    .flatMap((type) => [
      { type, named: type },
      ...Object.values(type.getFields?.() ?? {}).flatMap((field) => [
        { type, field, named: field },
        ...(field.args ?? []).map((argument) => ({ type, field, argument, named: argument })),
      ]),
    ]);
}

// 0: the name; 1: a part of the name; 2: all words in the description of a root field; 3: in another
// description; null: no match. A word of a description matches from its beginning.
function rank({ type, named }, text, words) {
  const name = named.name.toLowerCase();
  if (name === text) return 0;
  if (name.includes(text)) return 1;
  const described = words.every((word) => word.test(named.description ?? ''));
  return described && words.length ? 2 + !ROOTS.includes(type.name) : null;
}

// The results, in groups as GraphiQL shows them: those of the shown type, types, and other fields.
export function searchSchema(schema, shownType, searched) {
  const text = searched.trim().toLowerCase();
  const words = (text.match(/[\p{L}\p{N}]+/gu) ?? []).map((word) => new RegExp(`\\b${word}`, 'i'));
  const results = candidates(schema)
    .map((candidate) => ({ ...candidate, rank: rank(candidate, text, words) }))
    .filter((candidate) => candidate.rank !== null)
    .sort((one, other) => one.rank - other.rank)
    .slice(0, MAX_RESULTS);
  return {
    within: results.filter(({ type, field }) => field && type === shownType),
    types: results.filter(({ type, field }) => !field && type !== shownType),
    fields: results.filter(({ type, field }) => field && type !== shownType),
  };
}

// Takes the place of the function with this name in @graphiql/plugin-doc-explorer: see build.mjs.
export function useSearchResults() {
  const shownType = useDocExplorer().at(-1).def;
  const schema = useGraphiQL((state) => state.schema);
  return useCallback(
    (searched) =>
      schema ? searchSchema(schema, shownType, searched) : { within: [], types: [], fields: [] },
    [schema, shownType],
  );
}
