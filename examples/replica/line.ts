// One WebSocket for queries and the subscription, and what its end means.

import { setTimeout as sleep } from 'node:timers/promises';
import type { TypedDocumentNode } from '@graphql-typed-document-node/core';
import { print } from 'graphql';
import { type Client, createClient } from 'graphql-ws';

const PATIENCE = 10_000; // ms, for an answer to a greeting and to a ping

// Close codes after which nothing gets better by itself. 4403: the credential was refused, or has
// ended. The others say that this program does not speak as the server wants it to.
const FINAL_CLOSES: ReadonlyMap<number, string> = new Map([
  [4400, 'bad frame'],
  [4401, 'not greeted'],
  [4403, 'the credential was refused, or has ended'],
  [4406, 'no common protocol'],
  [4409, 'the id of an operation is taken'],
  [4429, 'greeted twice'],
]);
const TRY_AGAIN_LATER = 1013; // too many sockets of this account are open

// Codes of errors that the same request would meet again.
const FINAL_CODES: ReadonlySet<string> = new Set([
  'UNAUTHENTICATED',
  'FORBIDDEN',
  'BAD_CURSOR', // of another account: so is the file
  'BAD_USER_INPUT',
  'GRAPHQL_PARSE_FAILED',
  'GRAPHQL_VALIDATION_FAILED',
  'QUERY_TOO_COMPLEX',
  'DOCUMENT_NOT_TRUSTED',
]);

interface Problem {
  readonly message: string;
  readonly extensions?: { readonly code?: unknown; readonly retryAfterSeconds?: unknown };
}

// The server has answered with errors.
class Refused extends Error {
  readonly problems: readonly Problem[];

  constructor(problems: readonly Problem[]) {
    super(problems.map(({ message }) => message).join('; '));
    this.problems = problems;
  }
}

function codeOf(cause: unknown): number | null {
  const code = (cause as { code?: unknown } | null)?.code;
  return typeof code === 'number' ? code : null;
}

// Why it is no use to try again; null where it is.
export function finalReason(cause: unknown): string | null {
  if (cause instanceof Refused) {
    const final = cause.problems.some(({ extensions }) => FINAL_CODES.has(String(extensions?.code)));
    return final ? cause.message : null;
  }
  return FINAL_CLOSES.get(codeOf(cause) ?? 0) ?? null;
}

// What has happened, for people.
export function said(cause: unknown): string {
  const code = codeOf(cause);
  if (code !== null) return `closed with ${code} ${(cause as { reason?: string }).reason ?? ''}`.trim();
  return (cause as { message?: string } | null)?.message || 'no connection';
}

// Whether there are too many of us: then a short wait only adds to it.
export function crowded(cause: unknown): boolean {
  return codeOf(cause) === TRY_AGAIN_LATER;
}

function dataOf<Data>(result: { data?: Data | null; errors?: readonly Problem[] }): Data {
  // A null may stand for "gone", or for an error: with errors no part of it can be believed.
  if (result.errors?.length) throw new Refused(result.errors);
  if (!result.data) throw new Error('an answer without data');
  return result.data;
}

export class Line {
  readonly #client: Client;

  // `alive` ms after the last sign of life the server is asked for another.
  constructor(url: string, key: string, alive: number) {
    let late: NodeJS.Timeout | undefined;
    this.#client = createClient({
      url: url.replace(/^http/, 'ws'),
      connectionParams: { Authorization: `Bearer ${key}` },
      connectionAckWaitTimeout: PATIENCE,
      keepAlive: alive,
      retryAttempts: 0, // whoever asks knows from where to go on
      lazyCloseTimeout: 1000, // one socket for what is asked one after the other
      on: {
        // A line may be dead for hours without a word of it: only a missing answer tells.
        ping: (received) => {
          if (!received) late = setTimeout(() => this.#client.terminate(), Math.min(alive, PATIENCE));
        },
        pong: () => clearTimeout(late),
        closed: () => clearTimeout(late),
      },
    });
  }

  // The answer to a query. Where there were too many, it is asked again when the server says so.
  async ask<Data, Variables>(
    document: TypedDocumentNode<Data, Variables>,
    variables: Variables,
    stop: AbortSignal,
  ): Promise<Data> {
    for (;;) {
      try {
        let found: Data | undefined;
        await this.each(document, variables, async (data) => void (found = data));
        if (found !== undefined) return found;
        throw new Error('the line has ended');
      } catch (cause) {
        const wait = cause instanceof Refused && cause.problems[0]?.extensions?.retryAfterSeconds;
        if (typeof wait !== 'number') throw cause;
        await sleep(wait * 1000, undefined, { signal: stop });
      }
    }
  }

  // Hands on all that an operation answers, one after the other, until its end.
  async each<Data, Variables>(
    document: TypedDocumentNode<Data, Variables>,
    variables: Variables,
    take: (data: Data) => Promise<void>,
  ): Promise<void> {
    const results = this.#client.iterate<Data & Record<string, unknown>>({
      query: print(document),
      variables: variables as Record<string, unknown>,
    });
    try {
      for await (const result of results) await take(dataOf(result));
    } catch (cause) {
      // graphql-ws throws the list of errors, where an operation is refused whole
      throw Array.isArray(cause) ? new Refused(cause) : cause;
    }
  }

  close(): void {
    // It fails where it was about to connect, and could not: then there is nothing to close.
    Promise.resolve(this.#client.dispose()).catch(() => {});
    // The server may be gone without a word: nobody waits for its farewell.
    setImmediate(() => this.#client.terminate());
  }
}
