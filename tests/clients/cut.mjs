// What clients do when the line is cut in the middle of a subscription.

import { make as overSse } from '../../examples/clients/graphql-sse.ts';
import { make as overHttp } from '../../examples/clients/apollo.ts';
import { socket } from '../../examples/clients/graphql-ws.ts';
import { over } from '../../examples/clients/streaming.ts';

// Makes folders with another client; the first is heard before the cut, the second is made while
// the line is down, the third when it is up again.
async function heardOf(place, follower, cut) {
  const maker = overHttp(place);
  const { cursor } = await maker.inbox();
  const names = ['before', 'meanwhile', 'after'].map((word) => `Cut ${crypto.randomUUID()} ${word}`);
  const heard = [];
  let failed;
  let told = () => {};
  const stop = follower.follow(
    cursor,
    ({ events }) => {
      heard.push(...events.map(({ path }) => path).filter((path) => names.includes(path)));
      told();
    },
    (cause) => {
      failed = cause ?? new Error('failed');
      told();
    },
  );
  const until = async (name) => {
    while (!heard.includes(name) && !failed) await new Promise((resolve) => (told = resolve));
    if (failed) throw failed;
  };
  try {
    await maker.create(names[0]);
    await until(names[0]);
    await Promise.all([cut(), maker.create(names[1])]);
    await until(names[1]);
    await maker.create(names[2]);
    await until(names[2]);
  } finally {
    stop();
    await follower.close();
    await maker.close();
  }
  return heard.map((name) => name.split(' ').at(-1));
}

export async function cutSocket(place) {
  const client = socket(place);
  return heardOf(place, over(client), async () => client.terminate());
}

// A body that can be ended as a broken line ends it.
function breakable(answer) {
  const reader = answer.body.getReader();
  let snap;
  const broken = new Promise((_, reject) => {
    snap = () => reject(new TypeError('terminated'));
  });
  broken.catch(() => {});
  const body = new ReadableStream({
    async pull(controller) {
      try {
        const { done, value } = await Promise.race([reader.read(), broken]);
        if (done) controller.close();
        else controller.enqueue(value);
      } catch (cause) {
        controller.error(cause);
        reader.cancel().catch(() => {});
      }
    },
    cancel: (cause) => reader.cancel(cause),
  });
  const { status, statusText, headers } = answer;
  return [new Response(body, { status, statusText, headers }), snap];
}

export async function cutStream(place) {
  const snaps = [];
  const patched = async (url, init) => {
    const [answer, snap] = breakable(await fetch(url, init));
    snaps.push(snap);
    return answer;
  };
  const follower = overSse({ ...place, fetch: patched });
  return heardOf(place, follower, async () => snaps.splice(0).forEach((snap) => snap()));
}
