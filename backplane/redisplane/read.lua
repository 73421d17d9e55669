-- Reads a topic. It writes only to begin the epoch of a topic that has none, or to
-- keep one that is used.
--
-- KEYS[1]  the head of the topic
-- ARGV     1 length of the prefix, 2 a random epoch in case it needs one, 3 how long a
--          head lives (ms), 4 the epoch to read in, or '' for the newest entries, 5 seq
--          to read after, 6 number of entries wanted, 7 bytes wanted
--
-- Returns the head, which of its segments (from 1) is the oldest that is still there,
-- and those segments that have what is wanted.
local call, unpack, sub = redis.call, struct.unpack, string.sub
local key, plen = KEYS[1], tonumber(ARGV[1])
local prefix, topic = sub(key, 1, plen), sub(key, plen + 3)
local head = call('GET', key)
if not head then
  head = ARGV[2] .. struct.pack('>I8I4I8', 0, 0, 0)
  call('SET', key, head, 'PX', ARGV[3])
elseif call('PTTL', key) * 2 < tonumber(ARGV[3]) then
  redis.pcall('PEXPIRE', key, ARGV[3]) -- reading goes on where Redis refuses to write
end
local epoch, seq, n = sub(head, 1, 16), unpack('>I8', head, 17), (#head - 36) / 28
local function first(i) return unpack('>I8', head, 37 + (i - 1) * 28) end
local function count(i) return (i < n and first(i + 1) or seq + 1) - first(i) end
local function size(i) return unpack('>I8', head, 49 + (i - 1) * 28) - 30 * count(i) end -- without entry headers
local function name(i) return prefix .. 's' .. epoch .. string.format('%.0f', first(i)) .. ':' .. topic end
local after, want, room = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local from, to = n + 1, n -- segments to return
if ARGV[4] == '' then
  local entries, bytes = 0, 0
  while from > 1 and (from > n or (entries < want and bytes < room)) do
    from = from - 1
    entries, bytes = entries + count(from), bytes + size(from)
  end
elseif ARGV[4] == epoch and after < seq then
  from = n
  while from > 1 and first(from) > after + 1 do
    from = from - 1
  end
  to = math.max(from - 1, 0)
  local entries, bytes = 0, 0
  while to < n and (to < from or (entries < want and bytes < room)) do
    to = to + 1
    if to > from then -- the first may begin before what is wanted
      entries, bytes = entries + count(to), bytes + size(to)
    end
  end
end
-- Segments go when they are too old, and may be evicted: what comes before one that
-- is missing is not there either.
local oldest, got = n + 1, {}
for i = n, 1, -1 do
  if i >= from and i <= to then
    got[i] = call('GET', name(i))
    local bytes = unpack('>I8', head, 49 + (i - 1) * 28)
    if not got[i] or #got[i] < bytes then
      break
    end
    got[i] = sub(got[i], 1, bytes)
  elseif call('EXISTS', name(i)) == 0 then
    break
  end
  oldest = i
end
local out = {head, oldest}
for i = math.max(from, oldest), to do
  out[#out+1] = got[i]
end
return out
