-- Appends messages to topics. Atomic; one call for a batch of topics in one slot.
--
-- KEYS     first the heads of the topics, <prefix>m:<topic>; in a cluster then the
--          names under which the IDs are kept, so that Redis can tell when the slot
--          is being moved
-- ARGV     1 number of topics, 2 length of the prefix, 3 publish command, 4 what is
--          between prefix and topic in a channel's name, 5 length in bytes above which
--          an entry is not announced itself, 6 how long a head lives (ms), 7 how
--          long an ID lives (ms), then for each topic: a random
--          epoch (16 hex digits) in case it needs one, number of entries to keep,
--          bytes to keep, age to keep (ms), entries and bytes from which on a segment
--          is full, number of messages, and for each of these: ID, and tag (4 bytes)
--          with body in one string
--
-- A head is: epoch (16 bytes), seq (8), tag (4), bytes stored (8), and 28 bytes for
-- each segment, the oldest first: its first seq (8), the tag before that (4), its
-- bytes (8), when it was begun in ms (8). A segment is a string of entries, each:
-- seq (8), tag (4), prev (4), time in us (8), body. What is in a segment beyond its
-- bytes does not count.
--
-- Returns for each topic the epoch after a +, or an error; then for each of its
-- messages its seq, or for a duplicate the position it has as a string. A topic with
-- an error has nothing stored.
--
-- Redis does not undo what a script has done before an error. So nothing here may
-- raise one: calls that can fail are made with pcall. But for the first write, for
-- that is where Redis says that it takes none at all, and the client is to see it.
local write = redis.call
local pcall, pack, unpack, sub = redis.pcall, struct.pack, struct.unpack, string.sub
local plen, publish, kind, hint = tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])
local headttl, idttl = ARGV[6], ARGV[7]
local t = redis.call('TIME')
local us = tonumber(t[1]) * 1000000 + tonumber(t[2])
local ms = math.floor(us / 1000)
local stamp = pack('>I8', us)
local out, a = {}, 8
for i = 1, tonumber(ARGV[1]) do
  local key = KEYS[i]
  local prefix, topic = sub(key, 1, plen), sub(key, plen + 3)
  local epoch, keep, room, age, full, heavy, n = ARGV[a], tonumber(ARGV[a+1]), tonumber(ARGV[a+2]), tonumber(ARGV[a+3]), tonumber(ARGV[a+4]), tonumber(ARGV[a+5]), tonumber(ARGV[a+6])
  a = a + 7
  local at = #out + 1 -- where the results of this topic begin
  local err
  local head = pcall('GET', key)
  if type(head) == 'table' then
    err = head.err
  elseif head and (#head < 36 or (#head - 36) % 28 ~= 0) then
    err = 'ERR the head is malformed'
  end
  local seq, tag, total, segs = 0, '\0\0\0\0', 0, ''
  if head and not err then
    epoch = sub(head, 1, 16)
    seq, tag, total, segs = unpack('>I8', head, 17), sub(head, 25, 28), unpack('>I8', head, 29), sub(head, 37)
  end
  out[at] = '+' .. epoch
  local first, prev, blob, ids = seq + 1, tag, {}, {}
  for _ = 1, n do
    local id, body = ARGV[a], ARGV[a+1]
    a = a + 2
    local dup
    if id ~= '' and not err then
      local name = prefix .. 'i' .. #topic .. ':' .. topic .. id
      local pos = epoch .. pack('>I8', seq + 1) .. sub(body, 1, 4)
      local set = write('SET', name, pos, 'NX', 'PX', idttl)
      write = pcall
      if set == false then
        dup = pcall('GET', name)
        if type(dup) == 'string' and sub(dup, 1, 16) ~= epoch then -- of an epoch that is gone
          set, dup = pcall('SET', name, pos, 'PX', idttl), nil
        end
      end
      if type(set) == 'table' and set.err then
        err = set.err
      elseif type(dup) == 'table' then
        err, dup = dup.err, nil
      elseif not dup then
        ids[#ids+1] = name
      end
    end
    if dup then
      out[#out+1] = dup
    else
      seq = seq + 1
      local was = tag
      tag = sub(body, 1, 4)
      blob[#blob+1] = pack('>I8', seq) .. tag .. was .. stamp .. sub(body, 5)
      out[#out+1] = seq
    end
  end
  local all = table.concat(blob)
  local gone = {} -- segments that are dropped
  if #blob > 0 and not err then
    local begun
    if #segs > 0 then -- go on with the last segment, if it is not full or old
      local last = sub(segs, -28)
      local lfirst, lbytes, lbegun = unpack('>I8', last), unpack('>I8', last, 13), unpack('>I8', last, 21)
      if first - lfirst < full and lbytes < heavy and (ms - lbegun) * 16 < age and ms >= lbegun then
        local name = prefix .. 's' .. epoch .. string.format('%.0f', lfirst) .. ':' .. topic
        local length = pcall('APPEND', name, all)
        if length == lbytes + #all then
          segs = sub(segs, 1, -29) .. sub(last, 1, 12) .. pack('>I8', lbytes + #all) .. sub(last, 21)
          begun = true
        elseif type(length) == 'table' then
          -- Redis bounds the length of a string to which is appended (proto-max-bulk-len).
          -- What does not fit begins another.
          err = not string.find(length.err, 'string exceeds', 1, true) and length.err or nil
        elseif length == #all then
          pcall('DEL', name) -- it was lost, and has just come back without its past
        end -- else it has more than the head knows of: leave it, and begin another
      end
    end
    if not begun and not err then
      local name = prefix .. 's' .. epoch .. string.format('%.0f', first) .. ':' .. topic
      local set = pcall('SET', name, all, 'PX', string.format('%.0f', age + age / 16 + 1000))
      err = set.err
      segs = segs .. pack('>I8', first) .. prev .. pack('>I8I8', #all, ms)
    end
    total = total + #all
    while #segs > 28 do -- drop the oldest segment, if enough remains
      local sfirst, bytes, nfirst, nbegun = unpack('>I8', segs), unpack('>I8', segs, 13), unpack('>I8', segs, 29), unpack('>I8', segs, 49)
      if seq - nfirst + 1 < keep and total - bytes < room and ms - nbegun <= age then
        break
      end
      gone[#gone+1] = prefix .. 's' .. epoch .. string.format('%.0f', sfirst) .. ':' .. topic
      total = total - bytes
      segs = sub(segs, 29)
    end
    if not err then
      err = pcall('SET', key, epoch .. pack('>I8', seq) .. tag .. pack('>I8', total) .. segs, 'PX', headttl).err
    end
  end
  if err then
    for _, name in ipairs(ids) do
      pcall('DEL', name)
    end
    out[at] = err
    for k = 1, n do
      out[at+k] = 0
    end
  elseif #blob > 0 then
    for _, name in ipairs(gone) do
      pcall('DEL', name)
    end
    -- Whole entries, as many as fit into one announcement; for one that is too large,
    -- only that there is something.
    local channel, from = prefix .. kind .. topic, 1
    while from <= #blob do
      local to, size = from, #blob[from]
      while to < #blob and size + #blob[to+1] <= hint do
        to = to + 1
        size = size + #blob[to]
      end
      local part = size <= hint and table.concat(blob, '', from, to) or ''
      pcall(publish, channel, '1e' .. epoch .. part)
      from = to + 1
    end
  end
end
return out
