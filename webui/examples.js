// Completion offers the example value that the description of an argument or input field ends with.

import { useEffect } from 'react';
import { useGraphiQL, useMonaco } from '@graphiql/react';
import { getContextAtPosition, Position } from 'graphql-language-service';

const EXAMPLE = /Example: `([^`]+)`\./;

// The description of the value that the cursor is at, and whether it is an item of a list.
function valueAt({ state, typeInfo }) {
  const isItem = state.kind === 'ListValue' && state.step === 1;
  const owner = isItem ? state.prevState.prevState : state; // between them is the state Value
  if (!isItem && owner.step !== 2) return null;
  if (owner.kind === 'Argument') return { isItem, description: typeInfo.argDef?.description };
  if (owner.kind !== 'ObjectField') return null;
  return { isItem, description: typeInfo.objectFieldDefs?.[owner.name]?.description };
}

// The literal to insert at a position (line and column from 0), or null.
export function exampleAt(schema, text, line, column) {
  const context = getContextAtPosition(text, new Position(line, column), schema, undefined, {}, 1);
  const value = context && valueAt(context);
  const example = value && EXAMPLE.exec(value.description ?? '')?.[1];
  return example ? (value.isItem ? example.slice(1, -1) : example) : null;
}

// Registers the completion while the page is shown.
export function ExampleCompletion() {
  const { monaco } = useMonaco();
  const schema = useGraphiQL((state) => state.schema);
  useEffect(() => {
    if (!monaco || !schema) return undefined;
    const provider = monaco.languages.registerCompletionItemProvider('graphql', {
      triggerCharacters: [':', ' ', '['],
      provideCompletionItems(model, position) {
        const { lineNumber, column } = position;
        const { startColumn, endColumn } = model.getWordUntilPosition(position);
        const example = exampleAt(schema, model.getValue(), lineNumber - 1, column - 1);
        const item = {
          label: example,
          detail: 'example',
          insertText: example,
          kind: monaco.languages.CompletionItemKind.Value,
          sortText: '0',
          range: new monaco.Range(lineNumber, startColumn, lineNumber, endColumn),
        };
        return { suggestions: example ? [item] : [] };
      },
    });
    return () => provider.dispose();
  }, [monaco, schema]);
  return null;
}
