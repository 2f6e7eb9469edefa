// The inbox page by page: what `usePaginationFragment` of react-relay is given.

import { graphql } from 'relay-runtime';

export const query = graphql`
  query InboxPagesQuery($first: Int!, $after: String) {
    mailbox(by: { specialUse: INBOX }) {
      id
      ...InboxPages_mailbox @arguments(first: $first, after: $after)
    }
  }
`;

export const mailbox = graphql`
  fragment InboxPages_mailbox on Mailbox
  @refetchable(queryName: "InboxPagesNextQuery")
  @argumentDefinitions(first: { type: "Int", defaultValue: 20 }, after: { type: "String" }) {
    messages(first: $first, after: $after) @connection(key: "InboxPages_messages") {
      edges {
        node {
          id
          subject
          receivedAt
          seen
        }
      }
    }
  }
`;
