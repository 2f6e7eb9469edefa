// What graphql-ws and graphql-sse have in common: any operation is a stream of results.

import type { TypedDocumentNode } from '@graphql-typed-document-node/core';
import { print } from 'graphql';
import {
  ChangesSubscriptionDocument,
  InboxQueryDocument,
  MailboxCreateMutationDocument,
  MailboxDeleteMutationDocument,
} from '../generated/graphql/graphql.ts';
import type { Batch, Client } from './tour.ts';

interface Result<Data> {
  data?: Data | null;
  errors?: readonly { message: string }[];
}

interface Streaming {
  iterate<Data extends Record<string, unknown>>(request: {
    query: string;
    variables: Record<string, unknown>;
  }): AsyncIterableIterator<Result<Data>>;
  dispose(): void | Promise<void>;
}

function dataOf<Data>({ data, errors }: Result<Data>): Data {
  if (data && !errors) return data;
  throw new AggregateError(errors ?? [], errors?.[0]?.message ?? 'no data');
}

export function over(streaming: Streaming): Client {
  async function ask<Data extends Record<string, unknown>, Variables extends Record<string, unknown>>(
    document: TypedDocumentNode<Data, Variables>,
    variables: Variables,
  ): Promise<Data> {
    const { value } = await streaming.iterate<Data>({ query: print(document), variables }).next();
    return dataOf<Data>(value);
  }

  function follow(after: string, next: (batch: Batch) => void, failed: (cause: unknown) => void) {
    // Both clients write this object anew when they connect again, so they go on from here.
    const variables = { after };
    const results = streaming.iterate<{ changes: Batch }>({
      query: print(ChangesSubscriptionDocument),
      variables,
    });
    let wanted = true;
    (async () => {
      for await (const result of results) {
        const { changes } = dataOf(result);
        variables.after = changes.cursor;
        next(changes);
      }
      throw new Error('the stream has ended');
    })().catch((cause) => wanted && failed(cause));
    return () => {
      wanted = false;
      results.return?.();
    };
  }

  return {
    async inbox() {
      const { viewer } = await ask(InboxQueryDocument, { first: 10 });
      const nodes = viewer.user?.mailbox?.messages?.nodes ?? [];
      return { cursor: viewer.user?.cursor ?? '', subjects: nodes.map((each) => each.subject ?? '') };
    },
    create: async (path) =>
      (await ask(MailboxCreateMutationDocument, { paths: [path] })).mailboxCreate!,
    remove: async (id) => (await ask(MailboxDeleteMutationDocument, { id })).mailboxDelete!,
    follow,
    close: () => streaming.dispose(),
  };
}
