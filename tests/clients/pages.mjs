// The inbox page by page, put together by Relay's own connection handler.

import { createRequire } from 'node:module';
import { environmentOf } from '../../examples/clients/relay.ts';
import query from '../../examples/generated/relay/artifacts/InboxPagesQuery.graphql.ts';

const examples = createRequire(new URL('../../examples/package.json', import.meta.url));
const { commitLocalUpdate, ConnectionHandler, fetchQuery } = examples('relay-runtime');

// Subjects of the whole inbox, and how many requests it took.
export async function pages(place, first) {
  const environment = environmentOf(place);
  let subjects = [];
  let requests = 0;
  let after = null;
  do {
    const { mailbox } = await fetchQuery(environment, query, { first, after }).toPromise();
    requests += 1;
    commitLocalUpdate(environment, (store) => {
      const connection = ConnectionHandler.getConnection(store.get(mailbox.id), 'InboxPages_messages');
      const nodes = connection.getLinkedRecords('edges').map((edge) => edge.getLinkedRecord('node'));
      subjects = nodes.map((node) => node.getValue('subject'));
      const info = connection.getLinkedRecord('pageInfo');
      after = info.getValue('hasNextPage') ? info.getValue('endCursor') : null;
    });
  } while (after);
  return { subjects, requests };
}
