import { StrictMode, useState } from 'react';
import { createRoot } from 'react-dom/client';
import { useConnectionState, useTopic } from './useTopic.js';

// The server says where the module is, with a hash of its content, and the module is not in
// the bundle: the shared worker needs an address of its own. An application that bundles it,
// with import { connect } from 'holdfast-ws', gives that address as workerUrl.
const { module, worker } = document.body.dataset;
const { connect } = await import(module);
const user = new URLSearchParams(location.search).get('user') ?? 'guest';
const live = connect('/ws', { key: user, token: user, ...worker && { workerUrl: worker } });

function Numbers({ name }) {
  const { messages, reset } = useTopic(live, 'numbers', { keep: 10 });
  return (
    <div>
      <dt className="numbers">{messages.map(m => m.data).join(' ')}{reset && `, after a reset: ${reset.reason}`}</dt>
      <dd id={name}>{messages.at(-1)?.data ?? '–'}</dd>
    </div>
  );
}

function Chat() {
  const { messages, reset, error } = useTopic(live, 'chat', { last: 5, keep: 5 });
  const [failed, setFailed] = useState('');
  const send = form => live.publish('chat', { tab: 'React', text: form.get('text') }).then(() => setFailed(''), e => setFailed(e.message));
  return (
    <section>
      <h2>Chat</h2>
      <form className="row" action={send}>
        <input name="text" maxLength="500" required aria-label="Say something" placeholder="Say something to all tabs" autoComplete="off" />
        <button>Send</button>
      </form>
      <p role="status" className="bad">{failed || error?.message}</p>
      {reset && <p>{reset.missed || 'Some'} are missing.</p>}
      <ul id="chat">{messages.toReversed().map(m => <li key={m.pos}>{m.data.tab && `tab ${m.data.tab}: `}{m.data.text}</li>)}</ul>
    </section>
  );
}

function Page() {
  const state = useConnectionState(live);
  const [shown, setShown] = useState(true);
  return (
    <>
      <header><h1>A page in React</h1><p id="state" role="status">{state}</p></header>
      <p>It shares the connection with the tabs of <a href="/" target="_blank" rel="noopener">the other page</a>. Both
        columns use the same topic, which is subscribed to once.</p>
      <button id="toggle" onClick={() => setShown(!shown)}>{shown ? 'Unmount' : 'Mount'}</button>
      {shown && <>
        <dl className="tiles two"><Numbers name="one" /><Numbers name="two" /></dl>
        <Chat />
      </>}
    </>
  );
}

createRoot(document.getElementById('root')).render(<StrictMode><Page /></StrictMode>);
