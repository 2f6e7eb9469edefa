// The same short tour with every client: read the inbox, make a folder and hear of it, be refused
// twice, delete the folder and hear of that.

import { randomUUID } from 'node:crypto';
import { realpathSync } from 'node:fs';

export interface Place {
  endpoint: string; // https://mail.example.org/graphql
  key: string; // an API key, or the token of `authenticate`
  fetch?: typeof fetch;
}

export interface Refusal {
  readonly __typename: string;
  readonly code: string;
  readonly message: string;
  readonly path: readonly string[];
  readonly constraint?: string; // of a ValidationError
}

interface Event {
  readonly __typename: string;
  readonly type: string;
  readonly path?: string | null | undefined;
}

export interface Batch {
  readonly cursor: string;
  readonly events: readonly Event[];
}

interface Folder {
  readonly id: string;
  readonly path: string;
}

// What the tour asks of a client.
export interface Client {
  inbox(): Promise<{ cursor: string; subjects: string[] }>;
  create(path: string): Promise<{ mailboxes: readonly Folder[]; errors: readonly Refusal[] }>;
  remove(id: string): Promise<{ deletedIds: readonly string[]; errors: readonly Refusal[] }>;
  // Returns a function that ends the subscription.
  follow(after: string, next: (batch: Batch) => void, failed: (cause: unknown) => void): () => void;
  close?(): void | Promise<void>;
}

export interface Report {
  subjects: string[];
  heard: string[];
  refused: readonly Refusal[];
}

// What a subscription has told of one folder, and who waits for it.
class Log {
  heard: string[] = [];
  #cause: unknown;
  #changed: () => void = () => {};

  add(event: Event): void {
    this.heard.push(event.type);
    this.#changed();
  }

  fail(cause: unknown): void {
    this.#cause = cause ?? new Error('the subscription ended');
    this.#changed();
  }

  async has(type: string): Promise<void> {
    while (!this.heard.includes(type)) {
      if (this.#cause) throw this.#cause;
      await new Promise<void>((resolve) => (this.#changed = resolve));
    }
  }
}

export async function tour(client: Client): Promise<Report> {
  const { cursor, subjects } = await client.inbox();
  const path = `Tour ${randomUUID()}`;
  const log = new Log();
  // From the cursor that came with the inbox: what happens in between is not missed.
  const stop = client.follow(
    cursor,
    (batch) => batch.events.filter((event) => event.path === path).forEach((event) => log.add(event)),
    (cause) => log.fail(cause),
  );
  try {
    const made = await client.create(path);
    const folder = made.mailboxes[0];
    if (!folder) throw new Error(made.errors[0]?.message ?? 'no folder was made');
    await log.has('MAILBOX_CREATED');
    const [again, nameless] = [await client.create(path), await client.create('a//b')];
    await client.remove(folder.id);
    await log.has('MAILBOX_DELETED');
    return { subjects, heard: log.heard, refused: [...again.errors, ...nameless.errors] };
  } finally {
    stop();
    await client.close?.();
  }
}

// Shows the tour if `file` is the program that Node was started with: `node clients/….ts`. Server and
// API key come from the environment. `import.meta.main` would say the same, but Node 22 lacks it.
export async function showIfMain(file: string, make: (place: Place) => Client): Promise<void> {
  const program = process.argv[1];
  if (!program || realpathSync(program) !== file) return;
  const { ENDPOINT = 'http://127.0.0.1:8025/graphql', KEY } = process.env;
  if (!KEY) throw new Error('KEY is missing: set it to the API key that `make run` prints');
  console.log(await tour(make({ endpoint: ENDPOINT, key: KEY })));
}
