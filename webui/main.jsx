// GraphiQL with a bar for the token.

import './workers.js';
import 'graphiql/style.css';
import './style.css';
import { createRoot } from 'react-dom/client';
import { DOC_EXPLORER_PLUGIN, DocExplorerStore } from '@graphiql/plugin-doc-explorer';
import { HISTORY_PLUGIN, HistoryStore } from '@graphiql/plugin-history';
import { GraphiQLProvider } from '@graphiql/react';
import { GraphiQL, GraphiQLInterface } from 'graphiql';
import { examples } from '../graph/static/examples.json';
import { Bar } from './bar.jsx';
import { ExampleCompletion } from './examples.js';
import { fetcher } from './fetcher.js';
import { takeFromAddress } from './session.js';

const PLUGINS = [DOC_EXPLORER_PLUGIN, HISTORY_PLUGIN];

// Tabs and history may hold passwords and headers, so they too live in sessionStorage.
function Page() {
  return (
    <GraphiQLProvider
      fetcher={fetcher}
      storage={sessionStorage}
      defaultTabs={[{ query: examples[0].query }]}
      plugins={PLUGINS}
      referencePlugin={DOC_EXPLORER_PLUGIN}
      inputValueDeprecation
      shouldPersistHeaders={false}
    >
      <HistoryStore>
        <DocExplorerStore>
          <Bar />
          <ExampleCompletion />
          <GraphiQLInterface showPersistHeadersSettings={false}>
            <GraphiQL.Logo>{null}</GraphiQL.Logo>
          </GraphiQLInterface>
        </DocExplorerStore>
      </HistoryStore>
    </GraphiQLProvider>
  );
}

takeFromAddress();
createRoot(document.getElementById('root')).render(<Page />);
