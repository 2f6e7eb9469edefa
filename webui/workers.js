// Monaco's workers lie beside this script. To be imported before anything of GraphiQL.

const folder = new URL('.', document.currentScript.src);

const FILES = { json: 'json.worker.js', graphql: 'graphql.worker.js' };

globalThis.MonacoEnvironment = {
  getWorker: (_id, label) => new Worker(new URL(FILES[label] ?? 'editor.worker.js', folder)),
};
