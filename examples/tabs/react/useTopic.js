import { useCallback, useSyncExternalStore } from 'react';

// Two hooks for a Connection of holdfast-ws. Make the connection outside of components, one
// for the page, or above them in an effect and a context: it is to outlive their renders. As long as
// there is none, null will do.

const nothing = Object.freeze({ messages: Object.freeze([]), reset: null, error: null });
/** By connection and topic, those that are mounted somewhere. @type {WeakMap<object, Map<string, any>>} */
const stores = new WeakMap();

/**
 * The newest messages of a topic, in order, each once: {messages, reset, error}.
 *
 * After a reset messages are those since, and reset is that event: with a snapshot it takes the place of all before, else
 * reload what the messages have changed. With an error, as forbidden, no more come. Components that use the same topic of
 * the same connection share one subscription, with the options of the first. It ends with the last of them, also for
 * those who have subscribed to the topic without the hook. Where one of these closes it, it is begun anew when the next
 * component is mounted. Ephemeral messages are left out.
 *
 * @param {import('holdfast-ws').Connection | null | undefined} connection
 * @param {string} topic
 * @param {{last?: number, from?: string | null, keep?: number}} [options] last, from: as for subscribe; keep: so many messages are kept (100)
 */
export function useTopic(connection, topic, { last, from, keep = 100 } = {}) {
  const subscribe = useCallback(changed => {
    if (!connection) return () => {};
    let ofConnection = stores.get(connection);
    if (!ofConnection) stores.set(connection, ofConnection = new Map());
    let store = ofConnection.get(topic);
    if (!store) ofConnection.set(topic, store = { listeners: new Set(), now: nothing, subscription: null, close() {} });
    store.listeners.add(changed);
    open(store, connection, topic, { last, from }, keep);
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
 * @param {import('holdfast-ws').Connection | null | undefined} connection */
export function useConnectionState(connection) {
  const subscribe = useCallback(changed => {
    connection?.addEventListener('state', changed);
    return () => connection?.removeEventListener('state', changed);
  }, [connection]);
  return useSyncExternalStore(subscribe, () => connection?.state ?? 'connecting', () => 'connecting');
}

/** Has the store follow its topic, if it does not. @param {any} store @param {any} connection @param {string} topic @param {any} options @param {number} keep */
function open(store, connection, topic, options, keep) {
  const set = what => { store.now = { ...store.now, ...what }; for (const changed of [...store.listeners]) changed(); };
  let subscription;
  try { subscription = connection.subscribe(topic, options); } catch (error) { // closed, or no name of a topic
    return set({ error });
  }
  if (subscription === store.subscription) return; // of another component; one that was closed is not given again
  store.close();
  store.subscription = subscription;
  if (store.now !== nothing) set(nothing);
  const ended = ({ detail }) => { if (detail.topic === topic) set({ error: detail.error }); };
  const message = ({ detail }) => set({ messages: keep > 0 ? [...store.now.messages, detail].slice(-keep) : nothing.messages });
  const reset = ({ detail }) => set({ messages: nothing.messages, reset: detail });
  subscription.addEventListener('message', message);
  subscription.addEventListener('reset', reset);
  connection.addEventListener('error', ended);
  store.close = () => {
    connection.removeEventListener('error', ended);
    subscription.close();
  };
}
