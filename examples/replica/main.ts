// node replica/main.ts --file mail.db [--url http://…/graphql] [--key mgk_…]
// Keeps a replica of an account in a file, and prints a line for each change until it is told to end.

import { parseArgs } from 'node:util';
import { File } from './file.ts';
import { Line } from './line.ts';
import { Hopeless, Replica } from './replica.ts';

const { values } = parseArgs({
  options: {
    file: { type: 'string' },
    url: { type: 'string', default: process.env.ENDPOINT ?? 'http://127.0.0.1:8025/graphql' },
    key: { type: 'string', default: process.env.KEY ?? '' },
    wait: { type: 'string', default: '1000' }, // ms, the shortest before the next attempt
    alive: { type: 'string', default: '15000' }, // ms between two signs of life
  },
});
if (!values.file) throw new Error('--file is missing: where the replica is to be kept');
if (!values.key) throw new Error('KEY is missing: set it to the API key that `make run` prints');

const stop = new AbortController();
const file = new File(values.file);
const line = new Line(values.url, values.key, Number(values.alive));

// Strangers write subjects: nothing in them may move the cursor of a terminal.
const shown = (word: string | number | null) => String(word ?? '').replace(/[\p{Cc}\p{Cf}]/gu, ' ');
const replica = new Replica(file, line, (...words) => console.log(words.map(shown).join('\t')), stop.signal);

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    stop.abort();
    line.close();
  });
}

try {
  await replica.run(Number(values.wait), (text) => console.error(text));
} catch (cause) {
  if (!(cause instanceof Hopeless)) throw cause;
  console.error(`given up: ${cause.message}`);
  process.exitCode = 3;
} finally {
  file.close();
}
process.exit(); // a dead line would keep it for minutes
