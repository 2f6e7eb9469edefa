// Relay: a network layer of fetch for queries and mutations, of graphql-ws for subscriptions.
// Its documents were compiled before, by `npm run compile`.

import {
  commitMutation,
  Environment,
  fetchQuery,
  type FetchFunction,
  type GraphQLTaggedNode,
  type MutationParameters,
  Network,
  Observable,
  RecordSource,
  requestSubscription,
  Store,
  type SubscribeFunction,
} from 'relay-runtime';
import changes, {
  type ChangesSubscription,
} from '../generated/relay/artifacts/ChangesSubscription.graphql.ts';
import inbox, { type InboxQuery } from '../generated/relay/artifacts/InboxQuery.graphql.ts';
import create, {
  type MailboxCreateMutation,
} from '../generated/relay/artifacts/MailboxCreateMutation.graphql.ts';
import remove, {
  type MailboxDeleteMutation,
} from '../generated/relay/artifacts/MailboxDeleteMutation.graphql.ts';
import { socket } from './graphql-ws.ts';
import { type Client, type Place, showIfMain } from './tour.ts';

export function environmentOf(place: Place, live = socket(place)): Environment {
  const send = place.fetch ?? fetch;
  const ask: FetchFunction = async ({ text, name }, variables) => {
    const answer = await send(place.endpoint, {
      method: 'POST',
      headers: {
        Authorization: `Bearer ${place.key}`,
        'Content-Type': 'application/json',
        Accept: 'application/graphql-response+json, application/json',
      },
      body: JSON.stringify({ query: text, operationName: name, variables }),
    });
    return answer.json();
  };
  const follow: SubscribeFunction = ({ text, name }, variables) =>
    Observable.create((sink) =>
      live.subscribe(
        { query: text!, operationName: name, variables },
        sink as Parameters<typeof live.subscribe>[1],
      ),
    );
  return new Environment({
    network: Network.create(ask, follow),
    store: new Store(new RecordSource()),
  });
}

function change<Operation extends MutationParameters>(
  environment: Environment,
  mutation: GraphQLTaggedNode,
  variables: Operation['variables'],
): Promise<Operation['response']> {
  return new Promise((resolve, reject) => {
    commitMutation<Operation>(environment, {
      mutation,
      variables,
      onCompleted: (response, errors) => (errors?.length ? reject(errors[0]) : resolve(response)),
      onError: reject,
    });
  });
}

export function make(place: Place): Client {
  const live = socket(place);
  const environment = environmentOf(place, live);

  return {
    async inbox() {
      const data = await fetchQuery<InboxQuery>(environment, inbox, { first: 10 }).toPromise();
      const user = data?.viewer.user;
      const nodes = user?.mailbox?.messages?.nodes ?? [];
      return { cursor: user?.cursor ?? '', subjects: nodes.map((each) => each.subject ?? '') };
    },
    create: async (path) =>
      (await change<MailboxCreateMutation>(environment, create, { paths: [path] })).mailboxCreate!,
    remove: async (id) =>
      (await change<MailboxDeleteMutation>(environment, remove, { id })).mailboxDelete!,
    follow(after, next, failed) {
      const subscription = requestSubscription<ChangesSubscription>(environment, {
        subscription: changes,
        variables: { after },
        onNext: (data) => data && next(data.changes),
        onError: failed,
        onCompleted: () => failed(new Error('the stream has ended')),
      });
      return () => subscription.dispose();
    },
    close: () => live.dispose(),
  };
}

await showIfMain(import.meta.filename, make);
