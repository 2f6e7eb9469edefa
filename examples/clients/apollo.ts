// Apollo Client: queries and mutations over HTTP, subscriptions over one WebSocket.

import { createHash } from 'node:crypto';
import { ApolloClient, ApolloLink, HttpLink, InMemoryCache } from '@apollo/client';
import { PersistedQueryLink } from '@apollo/client/link/persisted-queries';
import { GraphQLWsLink } from '@apollo/client/link/subscriptions';
import { OperationTypeNode } from 'graphql';
import {
  ChangesSubscriptionDocument,
  InboxQueryDocument,
  MailboxCreateMutationDocument,
  MailboxDeleteMutationDocument,
} from '../generated/graphql/graphql.ts';
import { socket } from './graphql-ws.ts';
import { type Client, type Place, showIfMain } from './tour.ts';

// Sends the hash of a document in its place, and the text only where the server does not know it.
const hashes = new PersistedQueryLink({
  sha256: (text) => createHash('sha256').update(text).digest('hex'),
});

export function make(place: Place, { persisted = false } = {}): Client {
  const http = new HttpLink({
    uri: place.endpoint,
    headers: { Authorization: `Bearer ${place.key}` },
    ...(place.fetch ? { fetch: place.fetch } : {}),
  });
  const live = socket(place);
  const client = new ApolloClient({
    link: ApolloLink.split(
      ({ operationType }) => operationType === OperationTypeNode.SUBSCRIPTION,
      new GraphQLWsLink(live),
      persisted ? ApolloLink.from([hashes, http]) : http,
    ),
    cache: new InMemoryCache({
      // these have no id: Apollo has to be told that what two documents know of them belongs together
      typePolicies: { MessageImap: { merge: true }, Viewer: { merge: true } },
    }),
  });

  return {
    async inbox() {
      const { data } = await client.query({
        query: InboxQueryDocument,
        variables: { first: 10 },
        fetchPolicy: 'network-only',
      });
      const user = data?.viewer.user;
      const nodes = user?.mailbox?.messages?.nodes ?? [];
      return { cursor: user?.cursor ?? '', subjects: nodes.map((each) => each.subject ?? '') };
    },
    async create(path) {
      const { data } = await client.mutate({
        mutation: MailboxCreateMutationDocument,
        variables: { paths: [path] },
      });
      return data!.mailboxCreate!;
    },
    async remove(id) {
      const { data } = await client.mutate({
        mutation: MailboxDeleteMutationDocument,
        variables: { id },
        update: (cache) => void cache.evict({ id: cache.identify({ __typename: 'Mailbox', id })! }),
      });
      return data!.mailboxDelete!;
    },
    follow(after, next, failed) {
      const changes = client
        .subscribe({ query: ChangesSubscriptionDocument, variables: { after } })
        .subscribe({
          next: ({ data, error }) => (data ? next(data.changes) : failed(error)),
          error: failed,
        });
      return () => changes.unsubscribe();
    },
    async close() {
      client.stop();
      await live.dispose();
    },
  };
}

await showIfMain(import.meta.filename, make);
