// The page's script. What concerns the connection is at the top, what concerns the screen
// below it.

const { module, worker } = document.body.dataset;
const query = new URLSearchParams(location.search);
const user = query.get('user') ?? 'guest';
const { connect } = await import(module);

const live = connect('/ws', {
  key: user, token: user, share: query.get('share') ?? 'auto',
  ...worker && { workerUrl: worker }, // the debug flag's, which can be told to die
});

// Numbers, of which this tab is to get each once.
const got = { count: 0, last: 0, missing: 0, twice: 0, resets: 0 };
const numbers = live.subscribe('numbers');
numbers.addEventListener('message', ({ detail: { data: n } }) => {
  if (got.last) {
    got.missing += Math.max(0, n - got.last - 1);
    got.twice += +(n <= got.last);
  }
  got.last = n;
  got.count++;
  show(got);
  if (n % 10 === 0) tell(); // not by a timer: those of hidden tabs are throttled to one in a minute
});
numbers.addEventListener('reset', () => { got.last = 0; got.resets++; show(got); });

live.subscribe('server', { last: 1 }).addEventListener('message', ({ detail: { data } }) => {
  count('open', data.open, 'connection$ at the server');
  count('dials', data.dials, 'dial$ since it was started');
  text('users', Object.entries(data.users).map(([name, n]) => `${name} ${n}`).join(', '));
});

const chat = live.subscribe('chat', { last: 5 });
chat.addEventListener('message', ({ detail: { data } }) => line(data.tab ? `tab ${data.tab}: ${data.text}` : data.text));
chat.addEventListener('reset', ({ detail }) => line(`${detail.missed || 'Some'} are missing`));
by('form').onsubmit = e => {
  e.preventDefault();
  live.publish('chat', { tab: number, text: e.target.text.value }).catch(error => say(`Not sent: ${error.message}`));
  e.target.reset();
};

live.addEventListener('state', () => tell());

// Which tabs there are says the hub, which has a cursor for each. What they look like they
// tell each other: their number, whether one leads, how much it has got.
const others = new Map();
const channel = new BroadcastChannel(`tabs:${user}`);
channel.onmessage = ({ data }) => {
  if (!others.has(data.id)) tell(); // it does not know this one either
  others.set(data.id, { ...data, at: performance.now() });
  draw();
};

let number = 0, info;
async function tell() {
  info = await live.info();
  const me = { id: info.tab, number, visible: document.visibilityState === 'visible', leads: info.leads, ...got };
  others.set(me.id, { ...me, at: performance.now() });
  channel.postMessage(me);
  draw();
}

// The smallest number that no tab has. A tab that is gone, however, gives its own back.
async function choose() {
  if (!navigator.locks) return Math.ceil(Math.random() * 1000) + 100; // on http:// but for localhost
  for (let n = 1; ; n++) {
    const mine = await new Promise(done => {
      navigator.locks.request(`tabs:${user}:${n}`, { ifAvailable: true }, lock => { done(!!lock); return lock && new Promise(() => {}); });
    });
    if (mine) return n;
  }
}

// What can be done to a tab.

by('nine').onclick = async () => {
  const before = info?.hub?.tabs ?? 1, more = () => (info?.hub?.tabs ?? 1) - before;
  // Without noopener they would all be in the process of this tab, and crash with it. With it,
  // nobody says whether they were blocked.
  for (let i = 0; i < 9; i++) open(location.href, '_blank', 'noopener');
  say('…');
  let came = 0;
  for (let idle = 0; idle < 30 && came < 9; idle++) {
    await new Promise(done => setTimeout(done, 100));
    if (more() > came) { came = more(); idle = 0; }
  }
  if (info?.mode === 'none') say('Each has a connection of its own, and is alone on it.');
  else if (came >= 9) say('Nine tabs came, the connection is the same.');
  else say(`${came} of 9 came so far. Browsers let a page open one at a time: allow pop-ups for this site, or click again.`);
};

by('crash').onclick = () => {
  // A page has no way to crash but a fault of the browser: V8 gives up the process, and with it all tabs that share it,
  // when a string falls into more pieces than a list can have.
  try { 'x'.repeat(2 ** 27 + 1).split(''); } catch { /* as it should be */ }
  say('This browser does not crash of what crashes others.');
};

by('kill').onclick = () => {
  if (info?.mode !== 'worker') return say('There is no worker.');
  new BroadcastChannel('debug').postMessage('die');
  say('The worker was killed. Another takes its place.');
};

by('block').onclick = () => {
  say('Nothing happens here for 5 s.');
  setTimeout(() => { // when that is on the screen
    for (const end = performance.now() + 5000; performance.now() < end;);
    say('That was 5 s. What came meanwhile is here.');
  }, 100);
};

// The screen.

function by(id) { return document.getElementById(id); }
function text(id, value) { by(id).textContent = value; }
function say(what) { text('said', what); }
function count(id, n, what) {
  text(id, n);
  by(id).previousElementSibling.textContent = what.replace('$', n === 1 ? '' : 's');
}
function element(name, content, className = '') {
  return Object.assign(document.createElement(name), { textContent: content, className });
}
function line(content) {
  by('chat').prepend(element('li', content));
  while (by('chat').children.length > 5) by('chat').lastChild.remove();
}
function show(g) {
  text('got', g.count);
  text('last', g.last || '–');
  for (const id of ['missing', 'twice', 'resets']) {
    text(id, g[id]);
    by(id).className = g[id] ? 'bad' : '';
  }
}

function draw() {
  if (!info) return;
  const cursors = info.hub?.topics.numbers?.cursors ?? [];
  const list = cursors.map(c => ({ number: Infinity, ...others.get(c.tab), id: c.tab })).sort((a, b) => a.number - b.number);
  for (const [id, t] of others) if (performance.now() - t.at > 10e3 && !list.some(t => t.id === id)) others.delete(id);
  const leader = list.find(t => t.leads);
  text('how', info.state !== 'open' ? `${info.state} ${info.why}` : {
    worker: 'The connection is in a SharedWorker.',
    leader: `The connection is in ${info.leads ? 'this tab, which leads' : leader ? `tab ${leader.number}, which leads` : 'another tab'}.`,
    none: 'This tab has a connection of its own.',
  }[info.mode]);
  count('sharing', list.length, list.length === 1 ? 'tab has this connection' : 'tabs share this connection');
  by('tabs').replaceChildren(...list.map(t => {
    const you = t.id === info.tab, silent = !you && !(performance.now() - t.at < 3000), known = t.number < Infinity;
    const li = element('li', '', `${you ? 'you' : ''} ${silent && known ? 'silent' : ''}`.trim());
    const what = [you && 'you', t.leads && 'leads', known && (silent ? 'stands still' : t.visible ? 'visible' : 'hidden')].filter(Boolean);
    li.append(element('b', known ? `Tab ${t.number}` : 'Another page'), element('span', what.join(', ')));
    if (known) li.append(element('span', `${t.count} numbers`));
    if (t.missing || t.twice || t.resets) li.append(element('span', `${t.missing} missing, ${t.twice} twice, ${t.resets} resets`, 'bad'));
    return li;
  }));
  document.title = `Tab ${number}${info.leads ? ', leads' : ''}`;
}

document.addEventListener('visibilitychange', tell);
setInterval(tell, 1000); // when there are no numbers
number = await choose();
text('number', number);
tell();
