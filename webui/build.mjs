// Bundles GraphiQL into ../graph/static: scripts and styles as .gz, examples and licences as text.

import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { gzipSync } from 'node:zlib';
import { build } from 'esbuild';
import { licences } from './licences.mjs';

const OUT = '../graph/static';

const WORKERS = {
  'editor.worker': 'monaco-editor/esm/vs/editor/editor.worker.js',
  'json.worker': 'monaco-editor/esm/vs/language/json/json.worker.js',
  'graphql.worker': 'monaco-graphql/esm/graphql.worker.js',
};

// graphiql/style.css holds all of Monaco's styles already, so those that its modules import are
// left out; of its fonts only the icons stay, text is set in the fonts of the system.
const styles = {
  name: 'styles',
  setup(bundler) {
    bundler.onLoad({ filter: /monaco-editor[\\/].*\.css$/ }, () => ({ contents: '', loader: 'css' }));
    bundler.onLoad({ filter: /graphiql[\\/]dist[\\/]style\.css$/ }, ({ path }) => ({
      contents: readFileSync(path, 'utf8').replace(
        /@font-face\s*\{[^}]*font-family:\s*"?(Roboto|Fira Code)[^}]*\}/g,
        '',
      ),
      loader: 'css',
    }));
  },
};

// The documentation explorer searches names only; search.js also searches descriptions.
const search = {
  name: 'search',
  setup(bundler) {
    bundler.onLoad({ filter: /plugin-doc-explorer[\\/]dist[\\/]components[\\/]search\.js$/ }, ({ path }) => {
      const original = readFileSync(path, 'utf8');
      const own = resolve('search.js');
      const contents = original.replace(
        /^function useSearchResults\(\) \{[\s\S]*?^\}/m,
        `import { useSearchResults } from ${JSON.stringify(own)};`,
      );
      if (contents === original) throw new Error('useSearchResults of the explorer is not found');
      return { contents, loader: 'js', resolveDir: dirname(path) };
    });
  },
};

function operations(folder) {
  return readdirSync(folder)
    .sort()
    .map((file) => [basename(file, '.graphql'), readFileSync(join(folder, file), 'utf8')]);
}

// The area "Filters and Sieve" of a folder 03-filters_and_Sieve.
function areaOf(folder) {
  const words = folder.replace(/^\d+-/, '').replaceAll('_', ' ');
  return words[0].toUpperCase() + words.slice(1);
}

function examples() {
  const shown = readdirSync('operations')
    .sort()
    .flatMap((folder) =>
      operations(join('operations', folder)).map(([, query]) => ({
        area: areaOf(folder),
        name: /^(?:query|mutation|subscription) (\w+)/m.exec(query)[1],
        query,
      })),
    );
  return { examples: shown, page: Object.fromEntries(operations('page')) };
}

// The files of a folder and its subfolders, without those of npm, in the order of their paths.
function filesBelow(folder) {
  return readdirSync(folder, { withFileTypes: true })
    .filter(({ name }) => name !== 'node_modules')
    .flatMap((entry) => {
      const path = join(folder, entry.name);
      return entry.isDirectory() ? filesBelow(path) : [path];
    })
    .sort();
}

// A digest of the paths and contents of webui/. It is the first line of every script and style, and
// tests/http/test_graphiql_build.py compares it with webui/.
function sourcesDigest() {
  const digests = filesBelow('.').map((path) => {
    const digest = createHash('sha256').update(readFileSync(path)).digest('hex');
    return `${digest}  ${path}\n`;
  });
  return createHash('sha256').update(digests.join('')).digest('hex');
}

mkdirSync(OUT, { recursive: true });
readdirSync(OUT).forEach((file) => rmSync(join(OUT, file)));
writeFileSync(join(OUT, 'examples.json'), `${JSON.stringify(examples(), null, 2)}\n`);

const comment = `/* webui sha256:${sourcesDigest()} */`;
const { outputFiles, metafile } = await build({
  entryPoints: { graphiql: 'main.jsx', ...WORKERS },
  outdir: OUT,
  bundle: true,
  format: 'iife',
  minify: true,
  metafile: true,
  write: false,
  target: 'es2022',
  jsx: 'automatic',
  legalComments: 'none', // LICENSES.txt has them whole
  banner: { js: comment, css: comment },
  loader: { '.ttf': 'dataurl' },
  define: { 'process.env.NODE_ENV': '"production"' },
  plugins: [styles, search],
});

for (const { path, contents } of outputFiles) {
  const packed = gzipSync(contents, { level: 9 });
  writeFileSync(join(OUT, `${basename(path)}.gz`), packed);
  console.log(`${basename(path)}: ${contents.length} bytes, ${packed.length} packed`);
}
writeFileSync(join(OUT, 'LICENSES.txt'), licences(Object.keys(metafile.inputs)));
