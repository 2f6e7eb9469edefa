// Queries by POST, subscriptions by WebSocket, both with the token of the bar.

import { createGraphiQLFetcher } from '@graphiql/toolkit';
import { Kind, parse } from 'graphql';
import { createClient } from 'graphql-ws';
import { bearer, endpoint } from './session.js';

const FORBIDDEN = 4403; // The token was refused; asking again would not help.

const post = createGraphiQLFetcher({ url: endpoint.href });

function explain(cause) {
  if (!(cause instanceof CloseEvent)) throw cause;
  throw new Error(`The socket was closed: ${cause.code} ${cause.reason}`);
}

// Not by the toolkit: there an error of the socket is also thrown where nobody can catch it.
function live(params, connectionParams) {
  const url = new URL(endpoint);
  url.protocol = url.protocol.replace('http', 'ws');
  const client = createClient({
    url: url.href,
    connectionParams,
    shouldRetry: (cause) => cause instanceof CloseEvent && cause.code !== FORBIDDEN,
  });
  const results = client.iterate(params);
  return {
    [Symbol.asyncIterator]() {
      return this;
    },
    next: () => results.next().catch(explain),
    return: () => results.return(),
  };
}

// What is typed in the headers pane wins over the bar, also as payload of `connection_init`.
function merged(typed = {}) {
  const names = Object.keys(typed).map((name) => name.toLowerCase());
  return names.includes('authorization') ? typed : { ...bearer(), ...typed };
}

// GraphiQL looks at the text a moment after each key, so on a quick run the name it gives is that
// of the text before. Null where the text cannot be parsed: the server says what is wrong with it.
function operationOf({ query, operationName }) {
  let definitions;
  try {
    ({ definitions } = parse(query));
  } catch {
    return null;
  }
  const operations = definitions.filter(({ kind }) => kind === Kind.OPERATION_DEFINITION);
  return operations.find(({ name }) => name?.value === operationName) ?? operations[0] ?? null;
}

export function fetcher(given, options) {
  const operation = operationOf(given);
  const params = operation ? { ...given, operationName: operation.name?.value } : given;
  const headers = merged(options?.headers);
  return operation?.operation === 'subscription' ? live(params, headers) : post(params, { headers });
}
