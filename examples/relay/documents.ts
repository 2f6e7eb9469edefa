// relay-compiler reads documents out of sources only: here each of operations/ becomes one. Their
// comments lose their backquotes, which it cannot read there.

import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';

const root = join(import.meta.dirname, '..');
const from = join(root, 'operations');
const to = join(root, 'generated', 'relay', 'documents');

rmSync(to, { recursive: true, force: true });
mkdirSync(to, { recursive: true });
mkdirSync(join(root, 'generated', 'relay', 'artifacts'), { recursive: true });
for (const file of readdirSync(from).filter((name) => name.endsWith('.graphql'))) {
  const text = readFileSync(join(from, file), 'utf8').replaceAll('`', "'");
  const source = `import { graphql } from 'relay-runtime';\n\nexport default graphql\`\n${text}\`;\n`;
  writeFileSync(join(to, `${basename(file, '.graphql')}.ts`), source);
}
