// The bar on top: name, examples, and who is signed in.

import { useEffect, useRef, useState } from 'react';
import { pick, useGraphiQL, useGraphiQLActions } from '@graphiql/react';
import { examples } from '../graph/static/examples.json';
import * as session from './session.js';

const docs = new URL('docs/', session.endpoint).href;
const areas = [...new Set(examples.map(({ area }) => area))];

function Examples() {
  const { addTab, changeTab } = useGraphiQLActions();
  const { tabs, queryEditor } = useGraphiQL(pick('tabs', 'queryEditor'));

  function open(name) {
    const { query } = examples.find((example) => example.name === name);
    const index = tabs.findIndex((tab) => tab.query === query);
    if (index >= 0) return changeTab(index);
    addTab();
    queryEditor.setValue(query);
  }

  return (
    <select
      aria-label="Examples"
      value=""
      disabled={!queryEditor}
      onChange={(event) => open(event.target.value)}
    >
      <option value="" disabled>
        Examples
      </option>
      {areas.map((area) => (
        <optgroup key={area} label={area}>
          {examples
            .filter((example) => example.area === area)
            .map(({ name }) => (
              <option key={name}>{name}</option>
            ))}
        </optgroup>
      ))}
    </select>
  );
}

function PasswordFields() {
  return (
    <>
      <label>
        Username or address
        <input name="username" autoComplete="username" required autoFocus />
      </label>
      <label>
        Password
        <input name="password" type="password" autoComplete="current-password" required />
      </label>
    </>
  );
}

function CodeField() {
  return (
    <label>
      Code of your authenticator, or a recovery code
      <input name="code" autoComplete="one-time-code" required autoFocus />
    </label>
  );
}

// Asks for the password, then for the second factor if the account has one.
function SignIn({ onClose, onDone }) {
  const dialog = useRef(null);
  const waiting = useRef(null); // the factor that is missing, until it is proved
  const [factor, setFactor] = useState(null);
  const [problem, setProblem] = useState('');
  useEffect(() => dialog.current.showModal(), []);
  const takesCode = factor?.methods.some((method) => method !== 'EXTERNAL');

  function close() {
    if (waiting.current) session.cancelSignIn(waiting.current);
    waiting.current = null;
    onClose();
  }

  async function attempt(step) {
    setProblem('');
    try {
      waiting.current = await step();
      if (!waiting.current) return onDone();
      setFactor(waiting.current);
    } catch (error) {
      setProblem(error.message);
    }
  }

  function submit(event) {
    event.preventDefault();
    const { username, password, code } = Object.fromEntries(new FormData(event.target));
    attempt(() => (factor ? session.proveByCode(factor, code) : session.signIn(username, password)));
  }

  return (
    <dialog ref={dialog} onClose={close} aria-labelledby="sign-in-title">
      <form onSubmit={submit} key={factor ? 'factor' : 'password'}>
        <h2 id="sign-in-title">{factor ? 'Second factor' : 'Sign in'}</h2>
        {!factor && <PasswordFields />}
        {takesCode && <CodeField />}
        {factor && !takesCode && (
          <p>
            Another application checks the second factor of this account. Sign in there, and paste
            its token here.
          </p>
        )}
        {problem && <p role="alert">{problem}</p>}
        <footer>
          <button type="button" onClick={() => dialog.current.close()}>
            Cancel
          </button>
          {factor?.methods.includes('WEBAUTHN') && (
            <button type="button" onClick={() => attempt(() => session.proveByKey(factor))}>
              Use security key
            </button>
          )}
          {(!factor || takesCode) && <button className="main">Sign in</button>}
        </footer>
      </form>
    </dialog>
  );
}

function PasteToken({ onDone }) {
  function submit(event) {
    event.preventDefault();
    session.keep(new FormData(event.target).get('token').trim());
    onDone();
  }

  return (
    <form onSubmit={submit}>
      <input
        name="token"
        type="password"
        autoComplete="off"
        placeholder="Paste a token or API key"
        aria-label="Token or API key"
        required
      />
      <button>Use</button>
    </form>
  );
}

function useSession() {
  const { introspect } = useGraphiQLActions();
  const [who, setWho] = useState('');
  const [problem, setProblem] = useState('');

  async function refresh({ schema = true } = {}) {
    setProblem('');
    setWho(session.token() ? '…' : '');
    let refused = false; // then the schema was refused as well: without the token it is not
    try {
      if (session.token()) setWho(await session.whoAmI());
    } catch (error) {
      ({ refused } = error);
      setWho(session.token() ? 'unknown' : '');
      setProblem(error.message);
    }
    if (schema || refused) introspect();
  }

  async function signOut() {
    try {
      await session.signOut();
      await refresh();
    } catch (error) {
      await refresh();
      setProblem(`This page deleted the token, but the server didn't revoke it: ${error.message}`);
    }
  }

  useEffect(() => {
    refresh({ schema: false }); // GraphiQL reads the schema itself when it starts.
    const onHash = () => session.takeFromAddress() && refresh();
    addEventListener('hashchange', onHash);
    return () => removeEventListener('hashchange', onHash);
  }, []);

  return { who, problem, refresh, signOut };
}

export function Bar() {
  const { who, problem, refresh, signOut } = useSession();
  const [asking, setAsking] = useState(false);

  function done() {
    setAsking(false);
    refresh();
  }

  return (
    <header className="graphiql-container merganser-bar">
      <h1>
        Merganser <span>· GraphiQL</span>
      </h1>
      <Examples />
      <a href={docs}>Documentation</a>
      <p role="alert" title={problem}>
        {problem}
      </p>
      {who ? (
        <>
          <output aria-label="Signed in as">{who}</output>
          <button onClick={signOut}>Sign out</button>
        </>
      ) : (
        <>
          <PasteToken onDone={refresh} />
          <button className="main" onClick={() => setAsking(true)}>
            Sign in
          </button>
        </>
      )}
      {asking && <SignIn onClose={() => setAsking(false)} onDone={done} />}
    </header>
  );
}
