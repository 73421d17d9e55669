// What was found to go wrong once: each test says how.
import test, { afterEach } from 'node:test';
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { Connection, internal } from '../holdfast.js';
import * as min from '../holdfast.min.js';
import { World, sleep, until } from './world.js';

const other = await import('../holdfast.js?v=abc');
for (const x of [internal, other.internal]) Object.assign(x.T, { hello: 60, probe: 40, lease: 40, ack: 2, ping: 30, gone: 150, settle: 40, ages: 20, redial: 100, fast: 60 });
const backoff = { base: 5, first: 10, cap: 50, stable: 20 };
let world;
afterEach(() => world?.end());

function open(page, options = {}, C = Connection) {
  const c = new C('ws://gw.test/ws', { backoff, share: 'worker', ...options }, page);
  const tab = { page, c, got: Object.create(null), resets: [], states: [], errors: [] };
  c.addEventListener('message', e => (tab.got[e.detail.topic] ??= []).push(e.detail.data));
  c.addEventListener('reset', e => tab.resets.push(e.detail.reason));
  c.addEventListener('state', e => tab.states.push(e.detail.state));
  c.addEventListener('error', e => tab.errors.push(e.detail));
  return tab;
}
const opened = (...tabs) => Promise.all(tabs.map(t => until(() => t.c.state === 'open', 'open')));
async function start(options, n = 1) {
  world = new World();
  const tabs = Array.from({ length: n }, () => open(world.page(), options));
  await opened(...tabs);
  return tabs;
}
const nested = n => { let v = 1; for (let i = 0; i < n; i++) v = i % 2 ? { v } : [v]; return v; };
const publishes = () => world.server.frames.filter(f => f.t === 'publish').length;

for (const share of ['worker', 'leader', 'none']) test(`${share}: data nested deeper than a frame may be ended the connection of all tabs for good`, async () => {
  const tabs = await start({ share, topics: ['a'] }, 2);
  await Promise.all(tabs.map(t => t.c.subscribe('a').ready));
  const circle = {};
  circle.circle = circle;
  for (const data of [nested(62), nested(70), nested(200000), { toJSON: () => nested(62) }, circle, 5n]) {
    await assert.rejects(tabs[1].c.publish('a', data), { code: 'bad_input', field: 'data', outcome: 'not_stored' });
    assert.throws(() => tabs[1].c.ephemeral('a', data), { code: 'bad_input', field: 'data' });
  }
  const unsaid = { toJSON: () => 'short' };
  unsaid.deep = nested(70);
  await tabs[1].c.publish('a', nested(61));
  await tabs[1].c.publish('a', unsaid);
  await until(() => tabs.every(t => t.got.a?.length === 2));
  assert.deepEqual(tabs[0].got.a, [nested(61), 'short']);
  assert.ok(tabs.every(t => t.c.state === 'open' && !t.states.includes('denied')));
});

test('a publish for which the server has ended the connection was sent again by each reconnect, which ended it again', async () => {
  const [t] = await start({ topics: ['a'] });
  await t.c.subscribe('a').ready;
  world.server.answer = f => { if (f.data !== 'poison') return null; world.server.drop(4400); return { t: 'nothing' }; };
  await assert.rejects(t.c.publish('a', 'poison'), { code: 'denied', outcome: 'unknown' });
  await until(() => t.c.state === 'denied');
  t.c.reconnect();
  await opened(t);
  await t.c.publish('a', 'fine');
  assert.equal(t.c.state, 'open');
  assert.equal(publishes(), 2);
  assert.equal((await t.c.info()).hub.counters.publishing, 0);
});

test('a publish that a denied Hub was sent, as it was on its way, stayed there', async () => {
  world = new World();
  const page = world.page(), hub = new internal.Hub(page), presence = 'hf:tab:x:1';
  await internal.hold(page.navigator.locks, presence); // or it is gone after T.gone, which a busy machine may need
  world.server.refuse = () => 4403;
  hub.attach({ t: 'hello', v: internal.PROTO, id: 'x', a: 1, presence, o: { url: 'ws://gw.test/ws', backoff, ring: 10, window: 10 }, subs: [] }, () => {});
  await until(() => hub.link.state === 'denied');
  hub.recv('x', { t: 'send', id: '1', topic: 'a', s: '{}', born: Date.now() });
  assert.equal(hub.waiting.length, 0);
  hub.close();
});

test('without keep: a page that was hidden once got messages again after it had unsubscribed', async () => {
  const [t] = await start();
  await t.c.subscribe('a').ready;
  world.server.publish('a', 1);
  await until(() => t.got.a?.length === 1);
  t.page.show(false); t.page.show(true);
  for (const i of [2, 3]) world.server.publish('a', i);
  await until(() => t.got.a?.length === 3);
  t.c.unsubscribe('a');
  await t.c.subscribe('a').ready;
  await sleep(30);
  assert.deepEqual(t.got.a, [1, 2, 3]);
});

test('without keep: after a page was hidden once, last was ignored', async () => {
  const [t] = await start();
  await t.c.subscribe('a').ready;
  for (let i = 0; i < 5; i++) world.server.publish('a', i);
  await until(() => t.got.a?.length === 5);
  t.page.show(false); t.page.show(true);
  t.c.unsubscribe('a');
  t.got.a = [];
  await t.c.subscribe('a', { last: 3 }).ready;
  await until(() => t.got.a?.length >= 3);
  assert.deepEqual(t.got.a, [2, 3, 4]);
});

test('keep local: a tab put positions of topics back that others had read on', async () => {
  const [first] = await start({ keep: 'local' });
  const another = () => { const t = open(world.page(), { keep: 'local' }); return opened(t).then(() => t); };
  await first.c.subscribe('x').ready;
  world.server.publish('x', 1);
  await until(() => first.got.x?.length === 1);
  first.c.close();
  const a = await another(), b = await another(); // a is not subscribed
  b.c.subscribe('x');
  for (let i = 2; i < 6; i++) world.server.publish('x', i);
  await until(() => b.got.x?.length === 4);
  b.c.close();
  a.c.close();
  const c = await another();
  await c.c.subscribe('x').ready;
  await sleep(30);
  assert.deepEqual(c.got.x ?? [], []);
});

test('keep: what was in the storage and is no object of positions threw, or was sent to the server', async () => {
  for (const v of ['5', '"x"', 'null', '[1]', '{"a":5}', '{"a":{"b":1}}', '{"a":"x y"}', `{"a":"${'x'.repeat(65)}"}`, 'x{', '']) {
    world = new World();
    const page = world.page();
    page.sessionStorage.getItem = () => v;
    const t = open(page, { keep: 'session' });
    await opened(t);
    await t.c.subscribe('a').ready;
    assert.deepEqual(world.server.subscribes.at(-1).from ?? [], [], v);
    page.hide();
    t.c.close();
    assert.deepEqual([t.resets, t.errors], [[], []], v);
    world.end();
  }
});

test('keep: where storage is forbidden, nothing is kept, and nothing throws', async () => {
  world = new World();
  const page = world.page();
  Object.defineProperty(page, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } });
  const t = open(page, { keep: 'local', topics: ['a'] });
  await opened(t);
  await t.c.subscribe('a').ready;
  page.hide();
});

for (const share of ['worker', 'none']) for (const topic of ['constructor', 'toString', '__proto__']) {
  test(`${share}: a topic named ${topic} could not be subscribed to, and no other after it`, async () => {
    const [t] = await start({ share, keep: 'session' });
    const s = t.c.subscribe(topic);
    await s.ready;
    assert.equal(typeof s.position, 'string');
    await t.c.subscribe('another').ready;
    const pos = world.server.publish(topic, 1);
    await until(() => t.got[topic]?.length === 1);
    const info = await t.c.info();
    assert.ok(Object.keys(info.topics).includes(topic), 'info.topics');
    assert.ok(Object.keys(info.hub.topics).includes(topic), 'info.hub.topics');
    t.page.hide();
    const again = open(world.page({ sessionStorage: t.page.sessionStorage }), { share, keep: 'session' });
    await opened(again);
    assert.equal(again.c.subscribe(topic).position, pos, 'kept');
  });
}

for (const share of ['worker', 'leader', 'none']) test(`${share}: the first state was closed, and there was connecting before closed at the end`, async () => {
  world = new World();
  const t = open(world.page(), { share });
  await opened(t);
  t.c.close();
  assert.deepEqual(t.states, ['open', 'closed']);
});

test('bad_position: its reset was lost when the Hub died before anybody listened', async () => {
  world = new World();
  world.server.forbid = f => f.from?.includes('unreadable') && { code: 'bad_position' };
  const c = new Connection('ws://gw.test/ws', { backoff, share: 'worker' }, world.page());
  const s = c.subscribe('a', { from: 'unreadable' });
  await s.ready;
  world.killWorker();
  await sleep(100);
  await until(() => world.server.conns.size === 1 && c.state === 'open');
  world.server.publish('a', 1);
  const seen = [];
  for (const type of ['reset', 'message']) s.addEventListener(type, e => seen.push(e.detail.reason ?? e.detail.data));
  await until(() => seen.length === 2);
  assert.deepEqual(seen, ['bad_position', 1]);
});

test('bad_position: its reset was lost over a reload before anybody listened, as the new position was kept', async () => {
  world = new World();
  const connect = page => new Connection('ws://gw.test/ws', { backoff, share: 'worker', keep: 'session' }, page);
  world.server.forbid = f => f.from?.includes('unreadable') && { code: 'bad_position' };
  const page = world.page(), c = connect(page);
  page.sessionStorage.setItem(internal.identity('ws://gw.test/ws', '') + 'pos', '{"a":"unreadable"}');
  await c.subscribe('a').ready;
  page.hide();
  const t = open(world.page({ sessionStorage: page.sessionStorage }), { keep: 'session', topics: ['a'] });
  await until(() => t.resets.length);
  assert.deepEqual(t.resets, ['bad_position']);
});

test('bad_position: of one tab, while the Hub died, it was a reset of all', async () => {
  const [good] = await start();
  world.server.forbid = f => f.from?.includes('unreadable') && { code: 'bad_position' };
  await good.c.subscribe('a').ready;
  world.server.publish('a', 1);
  await until(() => good.got.a?.length === 1);
  const bad = open(world.page());
  await opened(bad);
  world.killWorker();
  bad.c.subscribe('a', { from: 'unreadable' });
  await until(() => bad.resets.length);
  await opened(good, bad);
  world.server.publish('a', 2);
  await until(() => good.got.a?.length === 2);
  assert.deepEqual([good.got.a, good.resets, bad.resets], [[1, 2], [], ['bad_position']]);
});

test('bad_position: of a server that reads none of the positions of before, it was asked again and again', async () => {
  const tabs = await start({ topics: ['a'] }, 2);
  await Promise.all(tabs.map(t => t.c.subscribe('a').ready));
  world.server.publish('a', 1);
  await until(() => tabs.every(t => t.got.a?.length === 1));
  world.server.forbid = f => f.from?.length && { code: 'bad_position' };
  const before = world.server.subscribes.length;
  world.server.drop(1012);
  await until(() => tabs.every(t => t.resets.length === 1));
  assert.deepEqual(tabs.map(t => t.resets), [['bad_position'], ['bad_position']]);
  await sleep(50);
  assert.ok(world.server.subscribes.length - before <= 4, `${world.server.subscribes.length - before} times`);
});

test('70 tabs at 70 positions: those beyond 64 got a reset though nothing was missing', { timeout: 60000 }, async () => {
  world = new World();
  for (let i = 0; i < 100; i++) world.server.publish('a', i);
  const tabs = world.server.log('a').entries.slice(29, 99).reverse().map(({ pos }) => {
    const t = open(world.page());
    t.c.subscribe('a', { from: pos });
    return t;
  });
  const all = () => until(() => tabs.every((t, i) => t.got.a?.length >= i + 1), 'all', 20000);
  await all();
  assert.ok(tabs.every((t, i) => t.got.a.length === i + 1));
  assert.deepEqual(tabs.flatMap(t => t.resets), []);
});

test('a bundle without, a workerUrl with ?v=: living workers were not found, and there were two after a death', async () => {
  world = new World();
  world.builds = { '/holdfast.js?v=abc': other.internal };
  const options = { workerUrl: '/holdfast.js?v=abc', topics: ['a'] };
  const tabs = [1, 2].map(() => open(world.page(), options));
  await opened(...tabs);
  world.killWorker();
  await sleep(100);
  await opened(...tabs);
  tabs.push(open(world.page(), options));
  await opened(...tabs);
  await sleep(200);
  assert.equal(world.server.conns.size, 1);
  assert.equal(world.workers.size, 1);
});

for (const share of ['worker', 'leader']) test(`${share}: a tab with good credentials that came to a denied Hub was denied, too`, async () => {
  world = new World();
  world.server.refuse = f => f.token === 'good' ? 0 : 4401;
  const old = open(world.page(), { share, token: 'bad' });
  await until(() => old.c.state === 'denied');
  const fresh = open(world.page(), { share, token: 'good' });
  await fresh.c.publish('a', 1); // said at once, it does not fail
  await opened(old, fresh);
  assert.ok(!fresh.states.includes('denied'), fresh.states.join());
  assert.equal(world.server.conns.size, 1);
});

test('last, from and floor that are none ended the topic in all tabs', async () => {
  const [good] = await start();
  await good.c.subscribe('a').ready;
  const bad = open(world.page());
  await opened(bad);
  for (const last of [-1, 1.5, 'x', '5', NaN, Infinity, {}]) assert.throws(() => bad.c.subscribe('a', { last }), { code: 'bad_input', field: 'last' }, String(last));
  for (const field of ['from', 'floor']) {
    for (const v of [5, 'x y', 'é', 'x'.repeat(65), [], {}, 'a\n']) assert.throws(() => bad.c.subscribe('a', { [field]: v }), { code: 'bad_input', field }, String(v));
  }
  await bad.c.subscribe('a', { last: 0, from: null, floor: undefined }).ready;
  world.server.publish('a', 1);
  await until(() => good.got.a?.length === 1 && bad.got.a?.length === 1);
  assert.deepEqual([...good.errors, ...bad.errors, ...good.resets, ...bad.resets], []);
});

// Names of members are shortened in it: one that is not ours alone would go wrong only there.
for (const [name, first, second] of [['leads', min.Connection, Connection], ['follows', Connection, min.Connection]]) {
  test(`what is served ${name} where a page has the source, and fails in the same way`, async () => {
    world = new World();
    world.server.refuse = f => f.token ? 0 : 4403;
    let token = 'good';
    const options = { share: 'leader', topics: ['a'], keep: 'session', token: () => token };
    const tabs = [];
    for (const C of [first, second]) { const t = open(world.page(), options, C); tabs.push(t); await opened(t); }
    assert.equal(world.server.conns.size, 1);
    for (const t of tabs) await t.c.subscribe('a').ready;
    const ephemeral = tabs.map(t => new Promise(done => t.c.addEventListener('ephemeral', e => done(e.detail.data))));
    const [receipt] = await Promise.all(tabs.map((t, i) => t.c.publish('a', i, { key: 'k' })));
    assert.equal(receipt.outcome, 'committed');
    tabs[1].c.ephemeral('a', 'soon');
    assert.deepEqual(await Promise.all(ephemeral), ['soon', 'soon']);
    await tabs[0].c.publish('a', new Uint8Array([1]));
    await until(() => tabs.every(t => t.got.a?.length === 3));
    assert.deepEqual(tabs[0].got.a, tabs[1].got.a);
    for (const t of tabs) {
      await assert.rejects(t.c.publish('', 1), { name: 'HoldfastError', code: 'bad_input', field: 'topic', outcome: 'not_stored' });
      await assert.rejects(t.c.publish('a', nested(62)), { code: 'bad_input', field: 'data' });
      assert.throws(() => t.c.subscribe('b', { last: -1 }), { code: 'bad_input', field: 'last' });
      const info = await t.c.info();
      const { counters, ...hub } = info.hub;
      assert.deepEqual(Object.keys(info), 'mode state why tab build proto leads topics publishing counters fault hub'.split(' '));
      assert.deepEqual(Object.keys(hub), 'hub tabs topics why conn node'.split(' '));
      assert.deepEqual(Object.keys(counters), 'entries resets repairs drops acked resent dials publishing'.split(' '));
      assert.deepEqual([hub.tabs, info.publishing, counters.acked, hub.topics.a.ring, hub.topics.a.cursors.length], [2, 0, 3, 3, 2]);
    }
    world.server.trim('a', 1);
    const reader = tabs[1].c.subscribe('b', { last: 5 });
    world.server.publish('b', 7);
    for await (const e of reader) { assert.equal(e.data, 7); break; }
    world.server.forbid = f => f.topic === 'no' && { code: 'forbidden', message: 'not you' };
    await assert.rejects(tabs[1].c.subscribe('no').ready, { code: 'forbidden' });
    await until(() => tabs[1].errors.length);
    for (const t of tabs) t.c.subscribe('c');
    tabs[0].c.reauth();
    await until(() => world.server.frames.some(f => f.t === 'auth'));
    tabs[0].c.close(); // the other leads
    await until(async () => (await tabs[1].c.info()).leads);
    await opened(tabs[1]);
    await tabs[1].c.publish('a', 'later');
    await until(() => tabs[1].got.a?.length === 4);
    tabs[1].page.hide();
    tabs[1].page.back();
    await opened(tabs[1]);
    world.server.answer = () => ({ t: 'nothing' });
    const lost = tabs[1].c.publish('a', 'lost');
    token = '';
    world.server.drop(1006);
    await assert.rejects(lost, { code: 'denied', outcome: 'unknown' });
    assert.equal(tabs[1].c.state, 'denied');
    assert.deepEqual(tabs.flatMap(t => t.resets), []);
    tabs[1].c.close();
    await assert.rejects(tabs[1].c.publish('a', 1), { code: 'closed' });
  });
}

test('the types named what is for tests only, and knew no removeEventListener for what addEventListener takes', () => {
  const types = readFileSync(new URL('../holdfast.d.ts', import.meta.url), 'utf8');
  assert.doesNotMatch(types, /\binternal\b/);
  assert.match(types, /removeEventListener\(type: string, listener: \(\(e: CustomEvent\) => void\)/);
  for (const C of [Connection, min.Connection]) {
    const t = open(new World().page(), { share: 'none' }, C), f = () => assert.fail('removed');
    t.c.addEventListener('state', f);
    t.c.removeEventListener('state', f);
    t.c.close();
  }
});

for (const how of ['published', 'subscribed', 'was refused', 'was too fast']) {
  test(`a worker whose last Connection ${how} and closed was deaf for the next one in the page`, async () => {
    world = new World();
    const page = world.page(), c = new Connection('ws://gw.test/ws', { backoff }, page);
    await until(() => c.state === 'open');
    if (how === 'was refused') world.server.forbid = () => ({ code: 'unavailable', retry: 100 });
    if (how === 'was too fast') world.server.answer = () => ({ t: 'nack', outcome: 'not_stored', code: 'too_fast' });
    if (how === 'published' || how === 'was too fast') c.publish('a', 1).catch(() => {}); else c.subscribe('a');
    if (how.startsWith('was')) await sleep(50); // until it knows
    c.close();
    world.server.forbid = world.server.answer = null;
    await sleep(internal.T.fast + 200); // it would have looked again by now
    const t = open(page);
    await opened(t);
    await t.c.subscribe('b').ready;
    assert.equal((await t.c.publish('b', 2)).outcome, 'committed');
    assert.equal(world.started, 1);
  });
}

for (const how of ['close', 'hide', 'freeze']) {
  test(`leader: to ${how} it told its followers that they were closed`, async () => {
    const [leader, ...ts] = await start({ share: 'leader' }, 3);
    if (how === 'close') leader.c.close(); else leader.page[how]();
    await until(() => world.server.dials === 2);
    await opened(...ts);
    for (const t of ts) assert.ok(!t.states.includes('closed'), t.states.join());
  });
}

/** A leader that is frozen and is not told so, and three who follow it. */
async function frozen() {
  const ts = await start({ share: 'leader', topics: ['a'] }, 4);
  await Promise.all(ts.map(t => t.c.subscribe('a').ready));
  ts[3].page.show(false);
  ts[0].page.frozen = true;
  return ts;
}

test('leader: frozen, it answered all the same, as a channel goes on, until its server should have been heard', async () => {
  const [, b, , d] = await frozen(); // with a beat of 25 s
  await until(() => world.server.dials === 2);
  world.server.publish('a', 1);
  await until(() => b.got.a?.length === 1 && d.got.a?.length === 1);
});

for (const hidden of [true, false]) {
  test(`leader: a ${hidden ? 'hidden' : 'visible'} tab that came while a deposed one was frozen went to that`, async () => {
    await frozen();
    await until(() => world.server.dials === 2);
    for (let i = 0; i < 3; i++) {
      const page = world.page();
      if (hidden) page.document.visibilityState = 'hidden';
      const t = open(page, { share: 'leader', topics: ['a'] });
      await opened(t);
      await t.c.subscribe('a').ready;
      world.server.publish('a', i);
      await until(() => t.got.a?.at(-1) === i);
    }
    assert.equal(world.server.dials, 2);
  });
}

for (const hidden of [true, false]) {
  test(`leader: one that got the lead while it could not run took a ${hidden ? 'hidden' : 'visible'} tab with it when it woke`, async () => {
    const [a, b, c, d] = await start({ share: 'leader', topics: ['a'] }, 4);
    await Promise.all([a, b, c, d].map(t => t.c.subscribe('a').ready));
    d.page.show(false);
    b.page.frozen = true; // without an event
    a.page.kill();
    await until(async () => (await c.c.info()).leads);
    world.server.publish('a', 1);
    await until(() => d.got.a?.length === 1);
    const { dials } = world.server;
    if (!hidden) d.page.show(true);
    b.page.resume();
    world.server.publish('a', 2);
    await d.c.publish('a', 3);
    await until(() => [b, c, d].every(t => t.got.a?.length === 3));
    assert.equal(world.server.dials, dials);
    assert.ok((await c.c.info()).leads);
  });
}

test('none: without locks a page that said nothing for long was gone for its own Hub, and got nothing more', async () => {
  world = new World();
  const t = open(world.page({ locks: false }), { share: 'none', topics: ['a'] });
  await opened(t);
  await t.c.subscribe('a').ready;
  await sleep(internal.T.gone + 3 * internal.T.ping);
  world.server.publish('a', 1);
  await until(() => t.got.a?.length === 1);
  assert.equal(world.server.dials, 1);
});

test('leader: two who found it silent at once took the lead one after the other, and there was a dial too many', async () => {
  world = new World();
  const { Tab } = internal;
  const [a, b, c] = [1, 2, 3].map(() => new Tab('ws://gw.test/ws', { backoff, share: 'leader' }, world.page(), () => {}));
  await until(() => [a, b, c].every(t => t.state === 'open'));
  assert.ok(a.hub);
  a.env.frozen = true;
  for (const t of [b, c]) t.env.clearInterval(t.timer); // here it is time when we say so
  const silence = (t, asked) => { Object.assign(t, { tick: performance.now(), heard: -1e6, asked: asked && -1e6 }); t.probe(); };
  for (const t of [b, c]) silence(t, false);
  await sleep(0);
  c.ch.onmessage = c.own.onmessage = () => {}; // is slow
  silence(b, true);
  await until(() => world.server.dials === 2);
  silence(c, true);
  await sleep(20);
  assert.equal(world.server.dials, 2);
  assert.ok(b.hub && !c.hub);
  silence(c, false); // but if it hears nothing of this one, either
  await sleep(0);
  silence(c, true);
  await until(() => c.hub && !b.hub);
  for (const t of [a, b, c]) t.close();
});

test('leader: a follower that crashed left a channel behind', async () => {
  const [leader] = await start({ share: 'leader' });
  const before = leader.page.channels.size;
  for (let i = 0; i < 5; i++) {
    const t = open(world.page(), { share: 'leader' });
    await opened(t);
    t.page.kill();
    await until(async () => (await leader.c.info()).hub?.tabs === 1);
  }
  assert.equal(leader.page.channels.size, before);
});

for (const share of ['auto', 'worker', 'leader', 'none']) {
  test(`${share}: where channels, workers and locks are there and throw, as in Firefox without cookies, nothing was dialled`, async () => {
    world = new World();
    const page = world.page(), no = () => { throw new DOMException('The operation is insecure.', 'SecurityError'); };
    page.BroadcastChannel = page.SharedWorker = class { constructor() { no(); } };
    for (const request of [async () => no(), page.navigator.locks.request]) {
      page.navigator = { locks: { request, query: async () => ({ held: [] }) } };
      const { Connection } = await import('../holdfast.js?v=abc123'); // a build tells others of itself over a channel
      const c = new Connection('ws://gw.test/ws', { backoff, share }, page);
      await until(() => c.state === 'open');
      c.close();
    }
  });
}

test('options that are none were taken, and then nothing worked', async () => {
  world = new World();
  for (const [field, o] of Object.entries({
    share: { share: 'Worker' }, keep: { keep: true }, ring: { ring: NaN }, window: { window: '256' }, base: { backoff: { base: () => 1 } },
    cap: { backoff: { cap: -1 } }, topics: { topics: 'room' }, topic: { topics: ['a', 5] }, key: { key: '\ud800' },
  })) assert.throws(() => new Connection('ws://gw.test/ws', o, world.page()), { code: 'bad_input', field });
  for (const o of [{ backoff: null }, { backoff: {} }, null, { key: undefined, keep: false }]) new Connection('ws://gw.test/ws', o, world.page()).close();
  await sleep(30);
  assert.equal(world.server.conns.size, 0); // of those that have thrown, too
});

test('null for options threw', async () => {
  const [t] = await start();
  await t.c.subscribe('a', null).ready;
  await t.c.publish('a', 1, null);
});

test('window below 32: a hidden tab, whose timers are slow, was lagging though it took everything at once', async () => {
  const [visible] = await start({ window: 8, ring: 50, topics: ['a'] });
  const page = world.page(), timeout = page.setTimeout;
  page.setTimeout = (f, ms) => timeout(f, Math.max(ms, 60000));
  const t = open(page, { topics: ['a'] }); // the options of the first count
  await opened(visible, t);
  await t.c.subscribe('a').ready;
  for (let i = 0; i < 1000; i++) { world.server.publish('a', i); if (i % 8 === 0) await sleep(1); }
  await until(() => visible.got.a?.length === 1000 && t.got.a?.length >= 990);
  assert.deepEqual(t.resets, []);
});

test('reauth before there was a Hub was forgotten; with cookies it showed the server no token', async () => {
  world = new World();
  const asked = [], c = new Connection('ws://gw.test/ws', { backoff, share: 'none', token: ({ refresh }) => { asked.push(refresh); return 'x'; } }, world.page());
  c.reauth();
  await until(() => asked.includes(true));
  world.end();
  const [t] = await start();
  await sleep(internal.T.redial);
  t.c.reauth();
  await until(() => world.server.dials === 2);
  await opened(t);
  assert.ok(!world.server.frames.some(f => f.t === 'auth'));
});

test('tabs for which the worker was too slow never looked again, and those that came later had a connection of their own', async () => {
  world = new World();
  const link = world.link.bind(world);
  const late = [];
  world.link = (w, port) => late.push([w, port]);
  const ts = Array.from({ length: 3 }, () => open(world.page(), { share: 'auto', topics: ['a'] }));
  await until(async () => (await Promise.all(ts.map(t => t.c.info()))).every(i => i.mode === 'leader'));
  world.link = link;
  for (const [w, port] of late) link(w, port);
  ts.push(open(world.page(), { share: 'auto', topics: ['a'] }));
  await until(async () => (await Promise.all(ts.map(t => t.c.info()))).every(i => i.mode === 'worker' && i.state === 'open'));
  await until(() => world.server.conns.size === 1);
  world.server.publish('a', 1);
  await until(() => ts.every(t => t.got.a?.length === 1));
});

test('a message that a listener had answered with close came to the Connection after it was closed', async () => {
  const [t] = await start();
  const seen = [], s = t.c.subscribe('a');
  s.addEventListener('message', () => t.c.close());
  for (const type of ['message', 'state']) t.c.addEventListener(type, e => seen.push(e.detail.state ?? type));
  await s.ready;
  world.server.publish('a', 1);
  await until(() => seen.includes('closed'));
  assert.deepEqual(seen, ['closed']);
});

test('a beat of more than 24 days was one of no time at all', async () => {
  world = new World();
  world.server.welcome = { beat: 30 * 86400e3, timeout: 10000 };
  const page = world.page(), timeout = page.setTimeout;
  page.setTimeout = (f, ms) => { assert.ok(ms < 2 ** 31, `${ms}`); return timeout(f, ms); };
  await opened(open(page, { share: 'none' }));
});

test('keep: positions of all topics that there ever were stayed in the storage', async () => {
  const [t] = await start({ keep: 'session' });
  for (let i = 0; i < 120; i++) { const s = t.c.subscribe(`room/${i}`); await s.ready; s.close(); }
  const kept = Object.keys(JSON.parse(t.page.sessionStorage.getItem(internal.identity('ws://gw.test/ws', '') + 'pos')));
  assert.deepEqual(kept, Array.from({ length: 100 }, (_, i) => `room/${i + 20}`));
});

for (const share of ['worker', 'leader', 'none']) test(`${share}: logged out, but shown as waiting for seconds`, async () => {
  const tabs = await start({ share, topics: ['a'], backoff: { base: 3600e3, cap: 3600e3, first: 3600e3 } }, 2);
  const told = tabs.map(t => { const list = []; t.c.addEventListener('state', e => list.push(e.detail)); return list; });
  world.server.refuse = () => 4401;
  world.server.drop(4401, undefined, 'logged out');
  await until(() => tabs.every(t => t.c.state === 'denied'));
  for (const list of told) {
    assert.deepEqual(list.map(({ state, why, code }) => [state, why, code]), [['connecting', '4401 logged out', 4401], ['denied', '4401 unauthenticated', 4401]]);
  }
  assert.match((await tabs[0].c.info()).hub.why, /^4401/);
  assert.equal((await tabs[0].c.info()).hub.counters.drops, 2);
  world.server.refuse = null;
  tabs.forEach(t => t.c.reauth());
  await opened(...tabs);
});

for (const share of ['worker', 'leader', 'none']) test(`${share}: that the server limited it was seen nowhere`, async () => {
  const tabs = await start({ share, topics: ['a'] }, 2);
  const lines = () => tabs.map(t => t.page.lines);
  let n = 0;
  world.server.answer = f => ++n % 2 ? { t: 'nack', outcome: 'not_stored', code: 'too_fast', message: '20 a second, gateway.Limits.Publishes', retry: 1 } : null;
  world.server.forbid = f => f.topic === 'one more' && { code: 'too_many_topics', message: '128, gateway.Limits.Topics' };
  const fast = 'holdfast: the server limits this connection: too_fast: 20 a second, gateway.Limits.Publishes';
  const many = 'holdfast: the server limits this connection: too_many_topics: 128, gateway.Limits.Topics';
  const publish = async () => { for (const t of tabs) await t.c.publish('a', 1); };
  await publish();
  await publish();
  await until(() => lines().every(l => l.length));
  assert.deepEqual(lines(), [[fast], [fast]], 'one line in each page for each connection');
  await assert.rejects(tabs[0].c.subscribe('one more').ready, { code: 'too_many_topics', message: 'too_many_topics: 128, gateway.Limits.Topics' });
  await until(() => lines()[0].length > 1);
  assert.deepEqual(lines()[0], [fast, many]);
  world.server.answer = f => f.data === 2 && ++n % 2 ? { t: 'nack', outcome: 'not_stored', code: 'too_fast', message: '50 a second, gateway.Limits.Frames', retry: 1 } : null;
  for (const t of tabs) { n = 0; await t.c.publish('a', 2); }
  await until(() => lines().every(l => l.includes('holdfast: the server limits this connection: too_fast: 50 a second, gateway.Limits.Frames')), 'another limit with the same code');
  world.server.answer = f => ++n % 2 ? { t: 'nack', outcome: 'not_stored', code: 'too_fast', message: '20 a second, gateway.Limits.Publishes', retry: 1 } : null;
  n = 0;
  world.server.drop();
  await until(() => world.server.conns.size === (share === 'none' ? 2 : 1) && tabs.every(t => t.c.state === 'open'));
  await publish();
  await until(() => lines().every(l => l.filter(x => x === fast).length === 2));
});

test('a publish that is behind younger ones is not kept longer for that', () => {
  const hub = new internal.Hub({}), told = [], publish = (id, born) => ({ id, topic: 'a', s: '', born, tabs: new Set(['tab']) });
  hub.link = { limits: {} };
  hub.tabs.set('tab', { post: m => told.push([m.id, m.error.code]) });
  hub.waiting = [publish('young', Date.now()), publish('old', Date.now() - internal.T.age - 1), publish('young too', Date.now())];
  hub.publish();
  assert.deepEqual(told, [['old', 'expired']]);
  assert.deepEqual(hub.waiting.map(p => p.id), ['young', 'young too']);
});

test('a worker that took a second to start was taken for dead, and there were two', async () => {
  world = new World();
  const link = world.link.bind(world);
  world.link = (w, port) => void setTimeout(() => link(w, port), 5 * internal.T.hello);
  const t = open(world.page());
  await opened(t);
  assert.deepEqual([world.started, world.server.dials, (await t.c.info()).mode], [1, 1, 'worker']);
});

test('a tab that said hello again while its token was asked for was not asked again, and all waited for 10 s', async () => {
  world = new World();
  const link = world.link.bind(world);
  world.link = (w, port) => void setTimeout(() => link(w, port), 5 * internal.T.hello);
  const t = open(world.page(), { token: () => 'x' });
  await opened(t);
  assert.deepEqual([world.server.dials, world.server.hello.token], [1, 'x']);
});

test('a tab that closed while its token was asked for was waited for for 10 s', async () => {
  world = new World();
  let asked = 0;
  const token = () => { asked++; return new Promise(() => {}); };
  const other = open(world.page(), { token: () => 'x' });
  await opened(other);
  const t = open(world.page(), { token });
  await until(async () => (await other.c.info()).hub?.tabs === 2);
  world.server.drop();
  await until(() => asked); // who came last
  t.c.close();
  await until(() => world.server.dials === 2);
  await opened(other);
});
