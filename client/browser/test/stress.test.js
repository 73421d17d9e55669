// Tabs, topics, and everything that can happen to them, at random. What must hold: each tab gets each message of each topic
// once and in order from where it began, or a reset; what is published is stored once; and all comes to rest.
import test from 'node:test';
import assert from 'node:assert/strict';
import { Connection, internal } from '../holdfast.js';
import { World, sleep, until } from './world.js';

Object.assign(internal.T, { hello: 60, probe: 60, lease: 60, ack: 2, ping: 40, gone: 300, settle: 50, ages: 20, redial: 100, fast: 60 });
const ROUNDS = Number(process.env.ROUNDS ?? (process.env.HOLDFAST_VERIFY ? 20 : 2)); // seeds for each way to share

for (const share of ['worker', 'leader', 'none']) for (let round = 0; round < ROUNDS; round++) {
  const seed = Number(process.env.SEED ?? round * 7919 + share.length);
  test(`${share}, seed ${seed}`, { timeout: 60000 }, async t => {
    let s = seed + 1;
    const random = n => { s = (s * 48271) % 2147483647; return s % n; };
    const world = new World(), { server } = world, tabs = [], topics = ['a', 'b/ż', 'c'], accepted = [];
    let unhandled = 0, kills = 0;
    server.ackLoss = 0.02;

    class Reader {
      got = []; resets = 0; at = null;
      constructor(tab, topic) {
        this.tab = tab; this.topic = topic; this.log = server.log(topic);
        this.sub = tab.c.subscribe(topic);
        this.begin = null;
        const take = e => {
          if (e.type === 'reset') { this.resets++; this.at = this.log.at.get(e.pos); return; }
          const n = this.log.at.get(e.pos);
          assert.ok(n, 'a message that is none');
          if (this.at !== null) assert.equal(n, this.at + 1, `${tab.name} ${topic}: ${n} after ${this.at}`);
          assert.equal(e.data, this.log.entries[n - 1].data);
          this.at = n;
          this.got.push(n);
        };
        if (random(2)) for (const type of ['message', 'reset']) this.sub.addEventListener(type, e => { try { take(e.detail); } catch (x) { failed ??= x; } });
        else (async () => { for await (const e of this.sub) { take(e); if (random(5) === 0) await sleep(random(4)); } })().catch(x => { failed ??= x; });
      }
    }
    let failed = null;
    const open = () => {
      const page = world.page(), tab = { page, name: `tab${tabs.length}`, readers: new Map(), hidden: false };
      tab.c = new Connection('ws://gw.test/ws', { share, backoff: { base: 3, first: 5, cap: 30, stable: 10 }, ring: 200, window: 32 }, page);
      tabs.push(tab);
      for (const topic of topics) if (random(3)) tab.readers.set(topic, new Reader(tab, topic));
      return tab;
    };
    const alive = () => tabs.filter(x => !x.page.dead);
    const publish = tab => {
      const topic = topics[random(3)], id = `${tab.name}-${accepted.length}`, rec = { topic, id, tab, receipt: null, error: null };
      accepted.push(rec);
      tab.c.publish(topic, id, { id }).then(r => { rec.receipt = r; }, e => { rec.error = e; });
    };
    for (let i = 0; i < 4; i++) open();
    for (let step = 0; step < 250; step++) {
      if (failed) throw failed;
      const live = alive(), tab = live[random(live.length)];
      switch (random(22)) {
        case 0: if (share === 'worker') { world.killWorker(random(4) === 0); kills++; } break;
        case 1: if (live.length > 2) { tab.page.kill(); kills++; } break;
        case 2: if (live.length > 2) tab.c.close(), tab.page.dead = true; break;
        case 3: case 4: if (live.length < 7) open(); break;
        case 5: server.drop([1006, 1012, 4001][random(3)]); break;
        case 6: if (!tab.away) { tab.away = true; tab.page.hide(); } else { tab.away = false; tab.page.back(); } break;
        case 7: if (!tab.away) { if (!tab.page.frozen) tab.page.freeze(random(3) > 0); else tab.page.resume(); } break;
        case 8: tab.page.dispatchEvent(new Event('online')); break;
        case 9: if (random(4) === 0) { server.up = !server.up; if (!server.up) server.drop(); } break;
        case 10: { const topic = topics[random(3)], r = tab.readers.get(topic); if (!r) tab.readers.set(topic, new Reader(tab, topic)); break; }
        case 11: if (random(6) === 0) { const topic = topics[random(3)]; server.trim(topic, server.log(topic).entries.length - random(300)); } break;
        case 12: for (let i = random(200); i > 0; i--) server.publish(topics[0], `burst${step}.${i}`); break;
        case 13: case 14: for (let i = random(10); i > 0; i--) publish(tab); break;
        case 15: tab.c.reconnect(); break;
        default: for (let i = random(5); i > 0; i--) server.publish(topics[random(3)], `${step}.${i}`);
      }
      await sleep(random(8));
    }
    // And then there is peace.
    server.up = true;
    server.ackLoss = 0;
    for (const x of alive()) { if (x.away) x.page.back(); if (x.page.frozen) x.page.resume(); }
    await until(() => failed || alive().every(x => x.c.state === 'open'), 'all are open', 10000);
    await until(() => failed || accepted.every(r => r.tab.page.dead || r.receipt || r.error), 'all is answered', 10000);
    await Promise.all(alive().flatMap(x => [...x.readers.values()].map(r => r.sub.ready)));
    for (const topic of topics) server.publish(topic, 'the last');
    const behind = () => alive().flatMap(x => [...x.readers.values()]).filter(r => r.at !== r.log.entries.length);
    await until(() => failed || !behind().length, 'all have all', 10000).catch(async e => {
      const r = behind()[0];
      throw new Error(`${e.message}: ${r.tab.name} ${r.topic} at ${r.at} of ${r.log.entries.length}: ${JSON.stringify(await r.tab.c.info())}`);
    });
    if (failed) throw failed;
    for (const r of accepted) if (!r.tab.page.dead) {
      assert.ifError(r.error);
      assert.equal(server.log(r.topic).entries.filter(e => e.data === r.id).length, 1, r.id);
    }
    for (const topic of topics) {
      const ids = server.log(topic).entries.map(e => e.data).filter(d => d.startsWith('tab'));
      assert.equal(new Set(ids).size, ids.length, 'each is stored once');
    }
    // Who has found only names that hang, and nobody who knew a better one, is alone.
    let alone = 0;
    await until(async () => {
      alone = (await Promise.all(alive().map(x => x.c.info()))).filter(i => i.mode === 'none').length;
      return server.conns.size === Math.max(alone, Math.min(alive().length, alone + 1));
    }, 'one connection in the end', 10000);
    const infos = await Promise.all(alive().map(x => x.c.info()));
    assert.equal(infos.reduce((n, i) => n + i.counters.faults, 0), 0, 'no faults');
    const readers = tabs.flatMap(x => [...x.readers.values()]);
    t.diagnostic(`${readers.reduce((n, r) => n + r.got.length, 0)} deliveries to ${tabs.length} tabs, ${readers.reduce((n, r) => n + r.resets, 0)} resets, ` +
      `${kills} kills, ${server.dials} dials, ${accepted.length} publishes, ${server.duplicates} repeated, ${infos.reduce((n, i) => n + i.counters.broken, 0)} broken links, ${share === 'none' ? 0 : alone} alone`);
    for (const x of alive()) x.c.close();
    await until(() => server.conns.size === 0, 'all is closed');
    world.end();
  });
}
