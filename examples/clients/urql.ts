// urql: queries and mutations over HTTP, subscriptions over a WebSocket or as server-sent events.

import {
  cacheExchange,
  createClient,
  fetchExchange,
  type SubscriptionForwarder,
  subscriptionExchange,
} from '@urql/core';
import {
  ChangesSubscriptionDocument,
  InboxQueryDocument,
  MailboxCreateMutationDocument,
  MailboxDeleteMutationDocument,
} from '../generated/graphql/graphql.ts';
import { streams } from './graphql-sse.ts';
import { socket } from './graphql-ws.ts';
import { type Client, type Place, showIfMain } from './tour.ts';

export type Live = 'graphql-ws' | 'graphql-sse' | 'fetch';

// `fetch`: urql reads server-sent events by itself, and needs no second client.
export function make(place: Place, live: Live = 'graphql-ws'): Client {
  const line = live === 'fetch' ? null : live === 'graphql-ws' ? socket(place) : streams(place);
  const forwardSubscription: SubscriptionForwarder = ({ query = '', variables }) => ({
    subscribe: (sink) => ({ unsubscribe: line!.subscribe({ query, variables }, sink) }),
  });
  const client = createClient({
    url: place.endpoint,
    fetchOptions: { headers: { Authorization: `Bearer ${place.key}` } },
    fetchSubscriptions: live === 'fetch',
    exchanges: line
      ? [cacheExchange, fetchExchange, subscriptionExchange({ forwardSubscription })]
      : [cacheExchange, fetchExchange],
    ...(place.fetch ? { fetch: place.fetch } : {}),
  });

  return {
    async inbox() {
      const { data, error } = await client.query(InboxQueryDocument, { first: 10 });
      if (error) throw error;
      const user = data?.viewer.user;
      const nodes = user?.mailbox?.messages?.nodes ?? [];
      return { cursor: user?.cursor ?? '', subjects: nodes.map((each) => each.subject ?? '') };
    },
    async create(path) {
      const { data, error } = await client.mutation(MailboxCreateMutationDocument, { paths: [path] });
      if (error) throw error;
      return data!.mailboxCreate!;
    },
    async remove(id) {
      const { data, error } = await client.mutation(MailboxDeleteMutationDocument, { id });
      if (error) throw error;
      return data!.mailboxDelete!;
    },
    follow(after, next, failed) {
      const changes = client
        .subscription(ChangesSubscriptionDocument, { after })
        .subscribe(({ data, error }) => (data ? next(data.changes) : failed(error)));
      return () => changes.unsubscribe();
    },
    close: () => line?.dispose(),
  };
}

await showIfMain(import.meta.filename, make);
