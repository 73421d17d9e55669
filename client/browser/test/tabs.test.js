// Tabs, hubs and their deaths: everything but a real browser.
import test, { afterEach } from 'node:test';
import assert from 'node:assert/strict';
import { Connection, internal } from '../holdfast.js';
import { World, Gateway, sleep, until } from './world.js';

Object.assign(internal.T, { hello: 60, probe: 40, lease: 40, ack: 2, ping: 30, gone: 150, settle: 40, ages: 20, redial: 100, fast: 60 });
const backoff = { base: 5, first: 10, cap: 50, stable: 20 };
let world;
afterEach(() => world?.end());

/** A tab that checks that it gets everything once and in order, or a reset. */
function open(page, options = {}) {
  const c = new Connection('ws://gw.test/ws', { backoff, ...options }, page);
  const tab = { page, c, got: {}, resets: [], states: [], errors: [], updates: 0 };
  c.addEventListener('message', e => (tab.got[e.detail.topic] ??= []).push(e.detail.data));
  c.addEventListener('reset', e => { tab.resets.push(e.detail); });
  c.addEventListener('state', e => tab.states.push(e.detail.state));
  c.addEventListener('error', e => tab.errors.push(e.detail));
  c.addEventListener('update', () => tab.updates++);
  return tab;
}
const ready = (...tabs) => Promise.all(tabs.map(t => until(() => t.c.state === 'open', 'open')));
async function start(n, options = {}, pageOptions) {
  world = new World();
  const tabs = Array.from({ length: n }, () => open(world.page(pageOptions), { topics: ['a'], ...options }));
  await ready(...tabs);
  await Promise.all(tabs.map(t => t.c.subscribe('a').ready));
  return tabs;
}
const publish = async (n, from = 0, topic = 'a', gap = 0) => { for (let i = 0; i < n; i++) { world.server.publish(topic, from + i); if (gap) await sleep(gap); } };
const all = (n, from = 0) => Array.from({ length: n }, (_, i) => from + i);
const have = (tabs, want, topic = 'a') => until(() => tabs.every(t => t.got[topic]?.length >= want.length), () => 'have')
  .catch(() => {}).then(() => { for (const t of tabs) assert.deepEqual(t.got[topic], want); });
const mode = async t => (await t.c.info()).mode;

for (const share of ['worker', 'leader']) {
  test(`${share}: ten tabs are one connection, and all get everything`, async () => {
    const tabs = await start(10, { share });
    assert.equal(world.server.most, 1);
    assert.equal(await mode(tabs[3]), share);
    await publish(100);
    await have(tabs, all(100));
    const info = await tabs[0].c.info();
    assert.equal(info.hub.tabs, 10);
    assert.equal(world.server.hello.beats, true);
  });

  test(`${share}: a tab that crashes or closes is forgotten, the last one closes the connection`, async () => {
    const tabs = await start(4, { share });
    const last = tabs[share === 'leader' ? 0 : 3], others = tabs.filter(t => t !== last);
    others[0].page.kill();
    await until(async () => (await last.c.info()).hub?.tabs === 3);
    others[1].c.close();
    await until(async () => (await last.c.info()).hub?.tabs === 2);
    others[2].page.hide();
    await until(async () => (await last.c.info()).hub?.tabs === 1);
    last.c.close();
    await until(() => world.server.conns.size === 0);
    assert.equal(world.server.dials, 1);
  });

  test(`${share}: the host dies while messages and publishes are under way`, async () => {
    const tabs = await start(5, { share });
    const sent = [];
    for (let round = 0; round < 3; round++) {
      for (let i = 0; i < 40; i++) {
        const t = tabs.filter(t => !t.page.dead)[i % 2];
        sent.push(t.c.publish('a', `${round}.${i}`).catch(e => { if (!t.page.dead) throw e; return null; }));
        if (i % 7 === 0) await sleep(1);
        if (i === 20) { if (share === 'worker') world.killWorker(true); else (await leader(tabs)).page.kill(); }
      }
      await sleep(5);
    }
    const alive = tabs.filter(t => !t.page.dead);
    await until(() => alive.every(t => t.c.state === 'open'));
    const receipts = await Promise.all(alive.length === tabs.length ? sent : []);
    assert.ok(receipts.every(r => r && ['committed', 'duplicate'].includes(r.outcome)));
    await until(() => alive.every(t => t.got.a?.length === world.server.log('a').entries.length));
    for (const t of alive) {
      assert.deepEqual(t.got.a, world.server.log('a').entries.map(e => e.data));
      assert.deepEqual(t.resets, []);
    }
    assert.equal(new Set(world.server.log('a').entries.map(e => e.data)).size, world.server.log('a').entries.length, 'each once');
    await until(() => world.server.conns.size === 1);
    if (share === 'worker') assert.equal(world.server.log('a').entries.length, 120);
  });

  test(`${share}: bfcache: out of the way, and back without a loss`, async () => {
    const tabs = await start(3, { share });
    await publish(5);
    await have(tabs, all(5));
    const away = share === 'leader' ? await leader(tabs) : tabs[1];
    away.page.hide();
    await until(() => tabs.filter(t => t !== away).every(t => t.c.state === 'open'));
    await publish(10, 5);
    await have(tabs.filter(t => t !== away), all(15));
    assert.deepEqual(away.got.a, all(5));
    assert.equal([...world.locks.all].some(l => l.owner === away.page), false, 'it holds and awaits no lock');
    away.page.back();
    await have(tabs, all(15));
    assert.deepEqual(away.resets, []);
  });

  test(`${share}: the server drops, restarts and says goodbye`, async () => {
    const tabs = await start(3, { share });
    for (const code of [1006, 1012, 4001, 1000, 4429]) {
      await publish(10, tabs[0].got.a?.length ?? 0);
      world.server.drop(code);
      await publish(10, world.server.log('a').entries.length);
      await have(tabs, all(world.server.log('a').entries.length));
    }
    for (const c of world.server.conns) c.ws.push({ t: 'goodbye', reason: 'drain', window: 20 });
    await sleep(5);
    world.server.drop(1012);
    await publish(10, 100);
    await have(tabs, all(110));
    assert.equal(world.server.dials, 7);
    assert.ok(tabs.every(t => !t.resets.length && t.states.includes('waiting')));
  });

  test(`${share}: history is gone: one reset for each tab, and it goes on`, async () => {
    const tabs = await start(3, { share });
    await publish(10);
    await have(tabs, all(10));
    world.server.up = false;
    world.server.drop();
    await publish(20, 10);
    world.server.trim('a', 25);
    world.server.up = true;
    await have(tabs, [...all(10), ...all(5, 25)]);
    for (const t of tabs) assert.deepEqual(t.resets.map(r => [r.reason, r.missed]), [['trimmed', 15]]);
  });

  test(`${share}: another user has another connection, also with a key that begins alike (traps 11, 12)`, async () => {
    world = new World();
    const tabs = [];
    for (const key of ['bobby', 'bob|', 'bob', 'bob%7C', 'bob']) { tabs.push(open(world.page(), { share, key, topics: ['a'] })); await ready(...tabs); }
    assert.equal(world.server.conns.size, 4);
    const hubs = await Promise.all(tabs.map(async t => (await t.c.info()).hub.hub));
    assert.equal(new Set(hubs).size, 4);
    assert.equal(hubs[2], hubs[4]);
  });
}
const leader = tabs => until(async () => { for (const t of tabs) if (!t.page.dead && !t.page.frozen && (await t.c.info()).leads) return t; });

test('none: each tab has its own', async () => {
  const tabs = await start(3, { share: 'none' });
  assert.equal(world.server.conns.size, 3);
  await publish(10);
  await have(tabs, all(10));
  tabs[0].page.hide();
  await until(() => world.server.conns.size === 2);
  await publish(5, 10);
  tabs[0].page.back();
  await have(tabs, all(15));
});

test('auto falls back: no worker, blocked worker, no locks, no channel (traps 15, 18)', async () => {
  for (const [options, blocked, want] of [[{}, false, 'worker'], [{ worker: false }, false, 'leader'], [{}, true, 'leader'], [{ worker: false, leader: false }, false, 'none'], [{ worker: false, locks: false }, false, 'none'], [{ locks: false }, false, 'worker'], [{ locks: false }, true, 'none']]) {
    world = new World();
    world.blocked = blocked;
    const tabs = [1, 2, 3].map(() => open(world.page(options), { topics: ['a'] }));
    await ready(...tabs);
    await Promise.all(tabs.map(t => t.c.subscribe('a').ready));
    assert.equal(await mode(tabs[0]), want, JSON.stringify(options));
    await until(() => world.server.conns.size === (want === 'none' ? 3 : 1));
    await publish(3);
    await have(tabs, all(3));
    world.end();
  }
});

test('a sandboxed frame: everything throws, and it works', async () => {
  world = new World();
  const page = world.page();
  const refuse = () => { throw new DOMException('sandboxed', 'SecurityError'); };
  page.navigator = { locks: { request: refuse, query: refuse } };
  page.SharedWorker = class { constructor() { refuse(); } };
  Object.defineProperty(page, 'sessionStorage', { get: refuse });
  const tab = open(page, { topics: ['a'], keep: 'session' });
  await ready(tab);
  assert.equal(await mode(tab), 'none');
  page.hide();
});

test('no locks: tabs that say nothing are forgotten, a worker that says nothing is replaced', async () => {
  const tabs = await start(3, {}, { locks: false });
  tabs[0].page.kill();
  await until(async () => (await tabs[1].c.info()).hub?.tabs === 2);
  world.killWorker();
  await publish(5);
  await have(tabs.slice(1), all(5));
});

test('a worker that never answers: another name, in the end another mode (traps 1, 2)', async () => {
  world = new World();
  world.hung = { has: key => !key.endsWith('again') };
  const two = [open(world.page(), { topics: ['a'] }), open(world.page(), { topics: ['a'] })];
  await ready(...two);
  assert.equal(await mode(two[0]), 'worker');
  assert.equal(world.server.dials, 1);
  world.end();
  world = new World();
  world.hung = { has: () => true, add() {} };
  const tab = open(world.page(), { topics: ['a'] });
  await ready(tab);
  assert.equal(await mode(tab), 'leader');
});

test('a worker that is slow: of two hellos the last counts, whatever the order in which they are read', async () => {
  world = new World();
  const connect = world.connect.bind(world), late = [];
  world.connect = (...args) => late.push(args);
  const tab = open(world.page(), { topics: ['a'] });
  await until(() => late.length === 2);
  world.connect = connect;
  for (const args of late.reverse()) { connect(...args); await sleep(5); }
  await ready(tab);
  await tab.c.subscribe('a').ready;
  await sleep(20);
  await publish(3);
  await have([tab], all(3));
  assert.deepEqual([await mode(tab), world.server.conns.size], ['worker', 1]);
});

test('a dead one that is still watched is not taken for alive (trap 23)', async () => {
  const [tab] = await start(1);
  const name = world.locks.all.find(l => l.name.startsWith('hf:hub:')).name;
  tab.c.close();
  world.killWorker();
  await sleep(5);
  const dead = name.replace('#', 'after=x#');
  world.locks.client(world.page()).request(dead, { mode: 'shared' }, () => new Promise(() => {}));
  const tried = [], connect = world.connect.bind(world);
  world.connect = (url, name, ...rest) => { tried.push(name); connect(url, name, ...rest); };
  const next = open(world.page(), { topics: ['a'] });
  await ready(next);
  assert.equal((await next.c.info()).counters.hubs, 1);
  assert.ok(!tried.some(name => name.endsWith('after=x')), tried.join());
});

test('hello again and again to the same hub, with entries under way (trap 22)', async () => {
  const tabs = await start(2);
  const got = [];
  const tab = new internal.Tab('ws://gw.test/ws', { backoff }, world.page(), (type, e) => { if (type === 'message' && got.push(e.data) % 7 === 0) tab.hello(); });
  tab.live = true;
  await tab.subscribe('a').ready;
  for (let i = 0; i < 30; i++) { await publish(20, 20 * i); await sleep(i % 3); }
  await have(tabs, all(600));
  await until(() => got.length >= 600);
  assert.deepEqual(got, all(600));
  assert.equal(tab.counters.broken, 0);
  tab.close();
});

test('answers to subscribes of before are not taken', async () => {
  world = new World();
  await publish(20);
  const { server } = world, subscribe = server.subscribe.bind(server);
  server.subscribe = (...args) => setTimeout(() => subscribe(...args), 15);
  const one = open(world.page(), { topics: ['a'] });
  await ready(one);
  await sleep(5);
  const two = open(world.page());
  two.c.subscribe('a', { from: server.log('a').entries[4].pos });
  await have([two], all(15, 5));
  await publish(1, 20);
  await have([one], [20]);
  assert.deepEqual([...one.resets, ...two.resets], []);
});

test('a worker that was only slow to start dials for nobody who has gone on', async () => {
  world = new World();
  const ports = [];
  world.connect = (...args) => ports.push(args);
  const tab = open(world.page(), { topics: ['a'] });
  await ready(tab);
  assert.equal(await mode(tab), 'leader');
  assert.equal(ports.length, 4);
  delete world.connect;
  for (const args of ports) world.connect(...args);
  await until(async () => await mode(tab) === 'worker' && tab.c.state === 'open'); // it looks again
  await until(() => world.server.conns.size === 1);
});

test('a newcomer joins the generation that lives; two that were founded at once become one', async () => {
  const tabs = await start(3);
  world.killWorker(true);
  await ready(...tabs);
  const late = open(world.page(), { topics: ['a'] });
  await ready(late);
  assert.equal(world.started, 2);
  assert.equal(world.server.conns.size, 1);
  // Killed, and the name works at once again, as in Chromium: the newcomer founds its own.
  world.killWorker();
  const new2 = open(world.page(), { topics: ['a'] });
  await ready(new2, ...tabs, late);
  await until(() => world.server.conns.size === 1);
  await publish(10);
  await have([...tabs, late, new2], all(10));
  const hubs = await Promise.all([...tabs, late, new2].map(async t => (await t.c.info()).hub?.hub));
  assert.equal(new Set(hubs).size, 1);
});

test('leader frozen: it steps down, another leads at once; thawed it follows (traps 20, 21)', async () => {
  const tabs = await start(4, { share: 'leader' });
  const first = await leader(tabs);
  first.page.freeze();
  await publish(10);
  const rest = tabs.filter(t => t !== first);
  await have(rest, all(10));
  const second = await leader(rest);
  // The next in line freezes too, and is not given the lead.
  const third = rest.find(t => t !== second);
  third.page.freeze();
  second.page.kill();
  const fourth = rest.find(t => t !== second && t !== third);
  await until(async () => (await fourth.c.info()).leads);
  await publish(10, 10);
  await have([fourth], all(20));
  third.page.resume();
  first.page.resume();
  await have([first, third, fourth], all(20));
  assert.equal(world.server.conns.size, 1);
  // The last one, thawed with nobody else.
  fourth.page.freeze(); third.page.kill(); first.page.freeze();
  await publish(5, 20);
  fourth.page.resume();
  await have([fourth], all(25));
  assert.deepEqual(tabs.flatMap(t => t.resets), []);
});

test('leader frozen without stepping down: it answers, but the lead is stolen (trap 4)', async () => {
  world = new World();
  world.server.welcome = { ...world.server.welcome, beat: 60, timeout: 5000 };
  const tabs = [1, 2, 3].map(() => open(world.page(), { share: 'leader', topics: ['a'] }));
  await ready(...tabs);
  await Promise.all(tabs.map(t => t.c.subscribe('a').ready));
  const first = await leader(tabs);
  const rest = tabs.filter(t => t !== first);
  const beat = setInterval(() => { for (const c of world.server.conns) c.ws.push({ t: 'beat' }); }, 30);
  first.page.freeze(false);
  await publish(10);
  await have(rest, all(10));
  assert.equal((await rest[0].c.info()).leads || (await rest[1].c.info()).leads, true);
  first.page.resume();
  await publish(5, 10);
  await have(tabs, all(15));
  await until(() => world.server.conns.size === 1);
  assert.equal((await first.c.info()).leads, false);
  clearInterval(beat);
  assert.deepEqual(tabs.flatMap(t => t.resets), []);
});

test('frozen followers cost nothing and get one reset', async () => {
  const tabs = await start(3, { ring: 100, window: 16 });
  await publish(3);
  await have(tabs, all(3));
  tabs[2].page.freeze();
  internal.clock(() => performance.now() + 60000); // it does not answer for long
  await sleep(2);
  for (let i = 0; i < 30; i++) { await publish(100, 3 + 100 * i); await have(tabs.slice(0, 2), all(103 + 100 * i)); }
  internal.clock(() => performance.now() + 120000);
  for (let i = 30; i < 40; i++) { await publish(100, 3 + 100 * i); await have(tabs.slice(0, 2), all(103 + 100 * i)); }
  assert.ok(tabs[2].page.held.length < 40, `${tabs[2].page.held.length} messages wait for it`);
  tabs[2].page.resume();
  await until(() => tabs[2].got.a?.at(-1) === 4002);
  assert.equal(tabs[2].resets.length, 1);
  assert.equal(tabs[2].resets[0].missed + tabs[2].got.a.length, 4003);
  internal.clock(() => performance.now());
});

test('a worker that restarts on the same ports asks who is there (trap 19)', async () => {
  const tabs = await start(3);
  world.restartWorker();
  await publish(5);
  await have(tabs, all(5));
  await until(() => world.server.conns.size === 1);
});

test('and without locks: the new one asks (trap 19)', async () => {
  internal.T.ping = 10000;
  const tabs = await start(3, {}, { locks: false });
  world.restartWorker();
  await publish(5);
  await have(tabs, all(5));
  internal.T.ping = 30;
});

test('for await: held until it is read, acked as it is read, left it ends', async () => {
  world = new World();
  const c = new Connection('ws://gw.test/ws', { backoff, window: 8, ring: 2000 }, world.page());
  const sub = c.subscribe('a');
  await sub.ready;
  await publish(100);
  await sleep(20);
  assert.ok((await c.info()).topics.a.waiting <= 8, 'a window');
  const got = [];
  for await (const e of sub) {
    assert.equal(e.type, 'message');
    got.push(e.data);
    assert.equal(sub.position, e.pos);
    if (got.length === 50) world.killWorker(true); // what was not read comes again
    if (got.length === 100) break;
  }
  assert.deepEqual(got, all(100));
  await until(() => ![...world.server.conns].some(x => x.subs.size));
  assert.deepEqual(await sub[Symbol.asyncIterator]().next(), { value: undefined, done: true });
  c.close();
  assert.equal(c.state, 'closed');
});

test('last, from, floor, and what a second tab gets', async () => {
  world = new World();
  await publish(50);
  const log = world.server.log('a').entries;
  const one = open(world.page());
  one.c.subscribe('a', { last: 5 });
  await have([one], all(5, 45));
  const two = open(world.page());
  two.c.subscribe('a', { last: 20 });
  await have([two], all(20, 30));
  const three = open(world.page());
  three.c.subscribe('a', { from: log[9].pos });
  await have([three], all(40, 10));
  const four = open(world.page());
  four.c.subscribe('a', { from: 'nonsense' });
  await until(() => four.resets.length === 1);
  await publish(1, 50);
  await have([one], all(6, 45));
  await have([two], all(21, 30));
  await have([three], all(41, 10));
  assert.deepEqual([one, two, three].flatMap(t => t.resets), []);
  assert.equal(world.server.conns.size, 1);
});

test('a position that the server cannot read is the fault of one tab only, which gets a reset', async () => {
  const tabs = await start(2);
  world.server.forbid = f => f.from?.includes('unreadable') && { code: 'bad_position', field: 'from' };
  const bad = open(world.page());
  await bad.c.subscribe('a', { from: 'unreadable' }).ready;
  await publish(5);
  await have([...tabs, bad], all(5));
  assert.deepEqual(bad.resets.map(r => r.reason), ['bad_position']);
  assert.deepEqual(tabs.flatMap(t => [...t.resets, ...t.errors]), []);
});

test('positions are kept over a reload', async () => {
  for (const keep of ['session', 'local']) {
    const [tab] = await start(1, { keep });
    await publish(5);
    await have([tab], all(5));
    tab.page.hide();
    tab.page.kill();
    await publish(5, 5);
    const again = open(world.page({ sessionStorage: tab.page.sessionStorage }), { keep, topics: ['a'] });
    await have([again], all(5, 5));
    again.c.close();
    await until(() => world.server.conns.size === 0);
    world.end();
  }
});

test('subscriptions come and go; the last one out unsubscribes', async () => {
  const tabs = await start(2, { topics: [] });
  const server = () => [...world.server.conns][0].subs;
  const [x, y] = tabs.map(t => t.c.subscribe('b'));
  await Promise.all([x.ready, y.ready]);
  await until(() => server().has('b'));
  x.close();
  await publish(3, 0, 'b');
  await have([tabs[1]], all(3), 'b');
  assert.equal(tabs[0].got.b, undefined);
  tabs[1].c.unsubscribe('b');
  await until(() => !server().has('b'));
  for (let i = 0; i < 20; i++) { const s = tabs[0].c.subscribe('b'); if (i < 19) s.close(); } // a flurry
  await tabs[0].c.subscribe('b').ready;
  await publish(3, 3, 'b');
  await have([tabs[0]], all(3, 3), 'b');
});

test('a topic that is forbidden ends with an error, others go on; what is unavailable is tried again', async () => {
  world = new World();
  let busy = 3;
  world.server.forbid = f => f.topic === 'secret' ? { code: 'forbidden', message: 'no' } : f.topic === 'busy' && busy-- > 0 ? { code: 'unavailable', retry: 5 } : null;
  const tab = open(world.page(), { topics: ['a', 'busy'] });
  const sub = tab.c.subscribe('secret');
  await assert.rejects(sub.ready, { name: 'HoldfastError', code: 'forbidden', topic: 'secret' });
  await assert.rejects(sub[Symbol.asyncIterator]().next(), { code: 'forbidden' });
  assert.equal(tab.errors.length, 1);
  await tab.c.subscribe('busy').ready;
  await publish(1, 0, 'busy');
  await have([tab], [0], 'busy');
  for (const c of world.server.conns) c.ws.push({ t: 'unsubscribed', topic: 'a', code: 'forbidden' });
  await until(() => tab.errors.length === 2);
});

test('publish: receipts, keys, bytes, refusals', async () => {
  const [tab, other] = await start(2);
  const r = await tab.c.publish('a', { x: 1 }, { key: 'k' });
  assert.equal(r.outcome, 'committed');
  assert.equal(r.pos, world.server.log('a').entries[0].pos);
  assert.equal((await tab.c.publish('a', 1, { id: 'mine' })).outcome, 'committed');
  const again = await other.c.publish('a', 1, { id: 'mine' });
  assert.deepEqual([again.outcome, again.id], ['duplicate', 'mine']);
  const [p, q] = await Promise.all([tab.c.publish('a', 2, { id: 'both' }), other.c.publish('a', 2, { id: 'both' })]);
  assert.equal(p.pos, q.pos, 'the same id at the same time from two tabs');
  assert.equal(world.server.frames.filter(f => f.id === 'both').length, 1);
  await tab.c.publish('a', new Uint8Array([0, 255]));
  assert.equal(world.server.log('a').entries.at(-1).data, 'AP8=');
  for (const [topic, data, o, code] of [['', 1, {}, 'bad_input'], ['a', undefined, {}, 'bad_input'], ['a', 1, { id: 'x'.repeat(129) }, 'bad_input'], ['\ud800', 1, {}, 'bad_input'], ['a', 'x'.repeat(40000), {}, 'too_large']]) {
    await assert.rejects(tab.c.publish(topic, data, o), { code, outcome: 'not_stored' }, code);
  }
  world.server.answer = f => f.data === 'bad' && { t: 'nack', outcome: 'not_stored', code: 'forbidden' };
  await assert.rejects(tab.c.publish('a', 'bad'), { code: 'forbidden', outcome: 'not_stored' });
  let n = 0;
  world.server.answer = f => f.data === 'later' && n++ < 3 && { t: 'nack', outcome: 'unknown', code: ['unavailable', 'too_fast', 'internal'][n - 1], retry: 3 };
  assert.equal((await tab.c.publish('a', 'later')).outcome, 'committed');
  assert.equal(n, 4);
});

test('publish: no more than limits.pending are on their way, in order', async () => {
  world = new World();
  world.server.welcome = { ...world.server.welcome, limits: { pending: 3 } };
  let open_ = 0, most = 0;
  const receive = world.server.receive.bind(world.server);
  world.server.receive = (c, text) => { if (text.includes('"publish"')) { most = Math.max(most, ++open_); setTimeout(() => { open_--; receive(c, text); }, 2); } else receive(c, text); };
  const tab = open(world.page(), { topics: ['a'] });
  await Promise.all(all(40).map(i => tab.c.publish('a', i)));
  assert.equal(most, 3);
  assert.deepEqual(world.server.log('a').entries.map(e => e.data), all(40));
});

test('publish: in order, also over lost connections', async () => {
  world = new World();
  world.server.welcome = { ...world.server.welcome, limits: { pending: 8 } };
  const tab = open(world.page(), { topics: ['a'] });
  const sent = all(100).map(i => tab.c.publish('a', i));
  for (let i = 1; i <= 5; i++) { await until(() => world.server.dials === i && [...world.server.conns][0]?.open); await sleep(1); world.server.drop(); }
  await Promise.all(sent);
  assert.deepEqual(world.server.log('a').entries.map(e => e.data), all(100));
});

test('publish: a minute without an answer is enough', async t => {
  internal.T.age = 50;
  const [tab] = await start(1);
  world.server.up = false;
  world.server.drop();
  await assert.rejects(tab.c.publish('a', 1), { code: 'expired' });
  tab.c.publish('a', 2).catch(() => {});
  await assert.rejects(Promise.all([tab.c.publish('a', 3), Promise.resolve().then(() => tab.c.close())]), { code: 'closed' });
  await assert.rejects(tab.c.publish('a', 4), { code: 'closed', outcome: 'not_stored' });
  internal.T.age = 60000;
});

test('ephemeral messages reach who is there', async () => {
  const tabs = await start(3);
  const got = [];
  for (const t of tabs) t.c.addEventListener('ephemeral', e => got.push(e.detail.data));
  tabs[0].c.ephemeral('a', { typing: true });
  await until(() => got.length === 3);
  assert.deepEqual(got[0], { typing: true });
  for (let i = 0; i < 300; i++) { tabs[0].c.ephemeral('a', i); if (i % 20 === 0) await sleep(4); }
  await until(() => got.includes(299), 'acks open the window again');
});

test('tokens: a function, asked on every dial, refreshed once; denied; reauth', async () => {
  world = new World();
  const asked = [];
  let good = 't1';
  world.server.refuse = f => f.token === good ? 0 : 4401;
  const options = { topics: ['a'], token: async ({ refresh }) => { asked.push(refresh); return refresh ? good : 't0'; } };
  const tabs = [open(world.page(), options), open(world.page(), options)];
  await ready(...tabs);
  assert.deepEqual(asked, [false, true]);
  assert.equal(world.server.hello.token, 't1');
  tabs[1].c.reauth();
  await until(() => world.server.hello.t === 'auth');
  assert.equal(world.server.hello.token, 't1');
  good = 'nobody has it';
  options.token = null;
  const pending = tabs[0].c.publish('a', 1).catch(e => e);
  await pending;
  world.server.refuse = () => 4401;
  world.server.drop(4401);
  await until(() => tabs.every(t => t.c.state === 'denied'));
  await assert.rejects(tabs[0].c.publish('a', 1), { code: 'denied', outcome: 'not_stored' });
  const dials = world.server.dials;
  for (const t of tabs) { t.page.show(false); t.page.show(true); t.page.dispatchEvent(new Event('online')); }
  await sleep(30);
  assert.equal(world.server.dials, dials, 'denied is denied');
  world.server.refuse = null;
  tabs[0].c.reauth();
  await ready(...tabs);
});

test('tokens: the tab that is asked does not answer, or fails', async () => {
  internal.T.token = 30;
  world = new World();
  const stuck = world.page(), fine = world.page();
  const a = open(stuck, { topics: ['a'], token: () => new Promise(() => {}) });
  await sleep(10);
  const b = open(fine, { topics: ['a'], token: 'static' });
  await ready(a, b);
  assert.equal(world.server.hello.token, 'static');
  world.end();
  world = new World();
  let n = 0;
  const c = open(world.page(), { topics: ['a'], token: () => { if (n++ < 2) throw new Error('login server'); return 'x'; } });
  await ready(c);
  assert.equal(n, 3);
  assert.equal(world.server.dials, 1, 'no socket before there is a token');
  internal.T.token = 10000;
});

test('final close codes end it, for all tabs', async () => {
  const tabs = await start(3);
  world.server.drop(4403);
  await until(() => tabs.every(t => t.c.state === 'denied'));
  assert.match((await tabs[0].c.info()).why, /4403/);
  tabs[0].c.reconnect();
  await ready(...tabs);
});

test('a deploy: old and new pages do not run each other\'s worker, old pages are told (trap 14)', async () => {
  const builds = await Promise.all(['1', '2'].map(v => import(`../holdfast.js?v=${v}`)));
  for (const share of ['worker', 'leader']) {
    world = new World();
    world.builds = Object.fromEntries(builds.map((b, i) => [new URL(`../holdfast.js?v=${i + 1}`, import.meta.url).href, b.internal]));
    const make = async i => {
      const tab = { page: world.page(), updates: [] };
      tab.page.performance.timeOrigin = ++time;
      tab.c = new builds[i].Connection('ws://gw.test/ws', { share, topics: ['a'], backoff }, tab.page);
      tab.c.addEventListener('update', e => tab.updates.push(e.detail.build));
      await ready(tab);
      return tab;
    };
    let time = Date.now();
    const old = await make(0), young = await make(1), again = await make(1);
    await until(() => old.updates.length);
    assert.deepEqual([...new Set(old.updates)], ['2']);
    assert.deepEqual([young.updates, again.updates], [[], []]);
    assert.equal(world.server.conns.size, share === 'worker' ? 2 : 1);
    world.end();
  }
});

test('tabs of two PROTO numbers do not understand each other, and each goes its way', async () => {
  const [tab] = await start(1);
  const hub = new internal.Hub(tab.page);
  const said = [];
  hub.attach({ t: 'hello', v: internal.PROTO + 1, id: 'x' }, m => said.push(m));
  assert.deepEqual(said, [{ t: 'skew', v: internal.PROTO }]);
  const { port1, port2 } = new MessageChannel();
  port1.close(); port2.close();
});

test('reconnect dials anew for all, and not in a storm', async () => {
  const tabs = await start(3);
  await sleep(internal.T.redial + 10);
  for (const t of tabs) for (let i = 0; i < 10; i++) t.c.reconnect();
  await until(() => world.server.dials === 2);
  await ready(...tabs);
  await publish(5);
  await have(tabs, all(5));
  await sleep(50);
  assert.equal(world.server.dials, 2);
});

test('a server that changes its mind, sends rubbish or breaks the chain loses and repeats nothing', async () => {
  const tabs = await start(2);
  await publish(5);
  await have(tabs, all(5));
  const [c] = world.server.conns;
  c.ws.push({ t: 'entries', topic: 'a', prev: 'wrong', entries: [{ pos: 'x', data: 'x' }] });
  await publish(5, 5);
  await have(tabs, all(10));
  const info = await tabs[0].c.info();
  assert.equal(info.hub.counters.repairs, 1);
  c.ws.push('rubbish');
  await publish(5, 10);
  await have(tabs, all(15));
  for (const conn of world.server.conns) { conn.ws.push({ t: 'future', x: 1 }); conn.ws.push({ t: 'entries', topic: 'of nobody', prev: 'a', entries: [] }); }
  await until(() => world.server.frames.some(f => f.t === 'unsubscribe' && f.topic === 'of nobody'));
});
