// The hooks of examples/tabs/react, without React: only what they do with a Connection.
import test, { afterEach } from 'node:test';
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { Connection } from '../holdfast.js';
import { World, sleep, until } from './world.js';

const source = readFileSync(new URL('../../../examples/tabs/react/useTopic.js', import.meta.url), 'utf8');
const react = 'const useCallback = f => f, useSyncExternalStore = (subscribe, get) => ({ subscribe, get });';
const { useTopic, useConnectionState } = await import('data:text/javascript,' + encodeURIComponent(source.replace(/^import .* from 'react';$/m, react)));
let world;
afterEach(() => world?.end());

async function start() {
  world = new World();
  const c = new Connection('ws://gw.test/ws', { share: 'none' }, world.page());
  await until(() => c.state === 'open');
  return c;
}
/** What a component that is mounted does. */
function mount(store) {
  const m = { renders: 0, get now() { return store.get(); } };
  m.unmount = store.subscribe(() => m.renders++);
  return m;
}

test('useTopic: the newest messages, for two components one subscription', async () => {
  const c = await start();
  const all = mount(useTopic(c, 'a', { keep: 2 })), same = mount(useTopic(c, 'a'));
  await c.subscribe('a').ready;
  for (const i of [1, 2, 3]) world.server.publish('a', i);
  await until(() => all.now.messages.at(-1)?.data === 3);
  assert.deepEqual(all.now.messages.map(m => m.data), [2, 3]);
  assert.equal(all.now, same.now);
  assert.equal(all.now, all.now, 'the same as long as nothing happens');
  assert.ok(all.renders >= 3 && same.renders >= 3);
  all.unmount();
  await sleep(5);
  assert.ok([...world.server.conns][0].subs.has('a'));
  same.unmount();
  await until(() => ![...world.server.conns][0].subs.has('a'));
});

test('useTopic: keep: 0 kept all', async () => {
  const c = await start(), m = mount(useTopic(c, 'a', { keep: 0 }));
  await c.subscribe('a').ready;
  world.server.publish('a', 1);
  await until(() => c.subscribe('a').position === world.server.log('a').entries[0].pos);
  assert.deepEqual(m.now.messages, []);
});

test('useTopic, useConnectionState: without a connection, as in a first render, they threw', async () => {
  for (const none of [null, undefined]) {
    const m = mount(useTopic(none, 'a')), s = mount(useConnectionState(none));
    assert.deepEqual([m.now, s.now], [{ messages: [], reset: null, error: null }, 'connecting']);
    m.unmount();
    s.unmount();
  }
});

test('useTopic: a subscription that was closed elsewhere was taken for one that lives', async () => {
  const c = await start(), first = mount(useTopic(c, 'a'));
  await c.subscribe('a').ready;
  world.server.publish('a', 1);
  await until(() => first.now.messages.length === 1);
  c.unsubscribe('a');
  const second = mount(useTopic(c, 'a'));
  await c.subscribe('a').ready;
  world.server.publish('a', 2);
  await until(() => second.now.messages.length === 1);
  assert.deepEqual([first.now.messages[0].data, second.now.messages[0].data], [2, 2]);
  c.close();
  assert.equal(mount(useTopic(c, 'a')).now.error.code, 'closed');
  assert.equal(mount(useTopic(c, 'b')).now.error.code, 'closed');
});
