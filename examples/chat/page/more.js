// Several pages of the chat in one. Each is a tab of its own for holdfast.

const query = new URL(location.href).searchParams, name = query.get('name') ?? '';
document.title = `${name} · more tabs`;
for (let i = 0; i < Math.min(query.get('n'), 9); i++) {
  const frame = document.createElement('iframe');
  frame.title = `Tab ${i + 1} of ${name}`;
  frame.src = `/?name=${encodeURIComponent(name)}`;
  document.getElementById('frames').append(frame);
}
