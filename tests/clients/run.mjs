// Runs everything that needs Node against one server, side by side, and prints what came of it:
// node run.mjs '{"endpoint": …, "key": …}' prints {name: {ok, result | cause, ms}}.

import { make as apollo } from '../../examples/clients/apollo.ts';
import { make as graphqlSse } from '../../examples/clients/graphql-sse.ts';
import { make as graphqlWs, socket } from '../../examples/clients/graphql-ws.ts';
import { make as relay } from '../../examples/clients/relay.ts';
import { tour } from '../../examples/clients/tour.ts';
import { make as urql } from '../../examples/clients/urql.ts';
import { audit } from './audits.mjs';
import { cutSocket, cutStream } from './cut.mjs';
import { pages } from './pages.mjs';

const PATIENCE = 20_000; // ms, for each
const place = JSON.parse(process.argv[2]);
const { endpoint, key } = place;

// Each request by Apollo's own link: whether it held the text, and what was answered.
async function persisted() {
  const sent = [];
  const watched = async (url, init) => {
    const { query, extensions } = JSON.parse(init.body);
    const answer = await fetch(url, init);
    const { data, errors } = await answer.clone().json();
    const code = errors?.[0]?.extensions.code ?? null;
    const hash = extensions?.persistedQuery?.sha256Hash.length ?? 0;
    sent.push({ text: Boolean(query), hash, status: answer.status, data: Boolean(data), code });
    return answer;
  };
  const client = apollo({ ...place, fetch: watched }, { persisted: true });
  const first = await client.inbox();
  const second = await client.inbox();
  await client.close();
  // not the cursor: the other programs change the account at the same time
  const same = JSON.stringify(first.subjects) === JSON.stringify(second.subjects);
  return { sent, same };
}

// A credential that is wrong is refused once, and not tried again.
async function refused() {
  const client = socket({ endpoint, key: 'mgk_wrong' });
  let opened = 0;
  client.on('opened', () => (opened += 1));
  const { code } = await client.iterate({ query: '{ __typename }' }).next().catch((cause) => cause);
  return { code, opened };
}

const jobs = {
  'graphql-ws': () => tour(graphqlWs(place)),
  'graphql-sse': () => tour(graphqlSse(place)),
  apollo: () => tour(apollo(place)),
  'urql with graphql-ws': () => tour(urql(place, 'graphql-ws')),
  'urql with graphql-sse': () => tour(urql(place, 'graphql-sse')),
  'urql by itself': () => tour(urql(place, 'fetch')),
  relay: () => tour(relay(place)),
  'relay pages': () => pages(place, 2),
  persisted,
  refused,
  'cut socket': () => cutSocket(place),
  'cut stream': () => cutStream(place),
  'audits with a token': () => audit(endpoint, { Authorization: `Bearer ${key}` }),
  'audits without': () => audit(endpoint, {}),
};

async function run(job) {
  const start = performance.now();
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(reject, PATIENCE, new Error(`nothing came of it in ${PATIENCE} ms`));
  });
  const done = await Promise.race([job(), late]).then(
    (result) => ({ ok: true, result }),
    (cause) => ({ ok: false, cause: cause?.stack ?? JSON.stringify(cause) }),
  );
  clearTimeout(timer);
  return { ...done, ms: Math.round(performance.now() - start) };
}

const names = Object.keys(jobs);
const done = await Promise.all(names.map((name) => run(jobs[name])));
const report = Object.fromEntries(names.map((name, at) => [name, done[at]]));
process.stdout.write(JSON.stringify(report), () => process.exit());
