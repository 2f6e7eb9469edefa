// The licences of every package of which something was bundled.

import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';

const LICENCE_FILE = /^(licen[cs]e|copying|notice|thirdpartynotices)/i;

function folderOf(input) {
  return /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(input)?.[0];
}

function section(folder) {
  const { name, version, license } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
  const files = readdirSync(folder).filter((file) => LICENCE_FILE.test(file));
  const texts = files.sort().map((file) => readFileSync(join(folder, file), 'utf8').trim());
  const body = texts.length ? texts.join('\n\n') : `(The package has no licence file of its own.)`;
  return `${name} ${version}, licence: ${license}\n\n${body.replaceAll('\r\n', '\n')}\n`;
}

export function licences(inputs) {
  const folders = [...new Set(inputs.map(folderOf))].filter(
    (folder) => folder && existsSync(join(folder, 'package.json')),
  );
  const rule = `\n${'='.repeat(80)}\n\n`;
  return ['What graphiql.js, graphiql.css and the workers are made of.\n']
    .concat(folders.sort().map(section))
    .join(rule);
}
