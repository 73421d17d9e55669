import { useCallback, useSyncExternalStore } from 'react';

// Two hooks for a Connection of holdfast-ws. Make the connection outside of components, one
// for the page, or above them in an effect and a context: it is to outlive their renders.

const nothing = Object.freeze({ messages: Object.freeze([]), reset: null, error: null });
/** By connection and topic, those that are mounted somewhere. @type {WeakMap<object, Map<string, any>>} */
const stores = new WeakMap();

/**
 * The newest messages of a topic, in order, each once: {messages, reset, error}.
 *
 * After a reset messages are those since, and reset is that event: with a snapshot it takes the place of all before, else
 * reload what the messages have changed. With an error, as forbidden, no more come. Components that use the same topic of
 * the same connection share one subscription, with the options of the first. It ends with the last of them, also for
 * those who have subscribed to the topic without the hook. Ephemeral messages are left out.
 *
 * @param {import('holdfast-ws').Connection} connection
 * @param {string} topic
 * @param {{last?: number, from?: string | null, keep?: number}} [options] last, from: as for subscribe; keep: so many messages are kept (100)
 */
export function useTopic(connection, topic, { last, from, keep = 100 } = {}) {
  const subscribe = useCallback(changed => {
    let ofConnection = stores.get(connection);
    if (!ofConnection) stores.set(connection, ofConnection = new Map());
    let store = ofConnection.get(topic);
    if (!store) ofConnection.set(topic, store = open(connection, topic, { last, from }, keep));
    store.listeners.add(changed);
    return () => {
      store.listeners.delete(changed);
      queueMicrotask(() => { // StrictMode, and a component that takes another's place, subscribe again at once
        if (store.listeners.size || ofConnection.get(topic) !== store) return;
        ofConnection.delete(topic);
        store.close();
      });
    };
    // Other options do not make another subscription.
  }, [connection, topic]); // eslint-disable-line react-hooks/exhaustive-deps
  return useSyncExternalStore(subscribe, () => stores.get(connection)?.get(topic)?.now ?? nothing, () => nothing);
}

/** The state of a connection: 'connecting', 'open', 'waiting', 'denied' or 'closed'.
 * @param {import('holdfast-ws').Connection} connection */
export function useConnectionState(connection) {
  const subscribe = useCallback(changed => {
    connection.addEventListener('state', changed);
    return () => connection.removeEventListener('state', changed);
  }, [connection]);
  return useSyncExternalStore(subscribe, () => connection.state, () => 'connecting');
}

/** @param {any} connection @param {string} topic @param {any} options @param {number} keep */
function open(connection, topic, options, keep) {
  const store = { listeners: new Set(), now: nothing, close() {} };
  let subscription;
  try { subscription = connection.subscribe(topic, options); } catch (error) { // closed, or no name of a topic
    store.now = { ...nothing, error };
    return store;
  }
  const set = what => { store.now = { ...store.now, ...what }; for (const changed of [...store.listeners]) changed(); };
  const ended = ({ detail }) => { if (detail.topic === topic) set({ error: detail.error }); };
  subscription.addEventListener('message', ({ detail }) => set({ messages: [...store.now.messages, detail].slice(-keep) }));
  subscription.addEventListener('reset', ({ detail }) => set({ messages: [], reset: detail }));
  connection.addEventListener('error', ended);
  store.close = () => {
    connection.removeEventListener('error', ended);
    subscription.close();
  };
  return store;
}
