-- Appends messages to topics. Atomic; one call for a batch of topics in one slot.
--
-- KEYS[i]  the head of topic i: <prefix>m:<topic>
-- ARGV     1 length of the prefix, 2 publish command, 3 largest announcement in
--          bytes, 4 how long a head lives (ms), 5 how long an ID lives (ms), then for
--          each topic: a random epoch (16 hex digits) in case it needs one, number
--          of entries to keep, bytes to keep, age to keep (ms), number of messages,
--          and for each of these: ID, and tag (4 bytes) with body in one string
--
-- A head is: epoch (16 bytes), seq (8), tag (4), bytes stored (8), and 28 bytes for
-- each segment, the oldest first: its first seq (8), the tag before that (4), its
-- bytes (8), when it was begun in ms (8). A segment is a string of entries, each:
-- seq (8), tag (4), prev (4), time in us (8), body.
--
-- Returns for each topic the epoch, or an error as a table; then for each of its
-- messages its seq, or for a duplicate the position it has as a string.
local call, pack, unpack, sub = redis.call, struct.pack, struct.unpack, string.sub
local plen, publish, hint = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local headttl, idttl = ARGV[4], ARGV[5]
local t = call('TIME')
local us = tonumber(t[1]) * 1000000 + tonumber(t[2])
local ms = math.floor(us / 1000)
local stamp = pack('>I8', us)
local out, a = {}, 6
for i = 1, #KEYS do
  local key = KEYS[i]
  local prefix, topic = sub(key, 1, plen), sub(key, plen + 3)
  local epoch, keep, room, age, n = ARGV[a], tonumber(ARGV[a+1]), tonumber(ARGV[a+2]), tonumber(ARGV[a+3]), tonumber(ARGV[a+4])
  a = a + 5
  local head = redis.pcall('GET', key)
  if type(head) == 'table' then
    out[#out+1] = head.err
    for _ = 1, n do
      out[#out+1] = 0
    end
    a = a + 2 * n
  else
    local seq, tag, total, segs = 0, '\0\0\0\0', 0, ''
    if head then
      epoch = sub(head, 1, 16)
      seq, tag, total, segs = unpack('>I8', head, 17), sub(head, 25, 28), unpack('>I8', head, 29), sub(head, 37)
    end
    out[#out+1] = '+' .. epoch
    local first, prev, blob = seq + 1, tag, {}
    for _ = 1, n do
      local id, body = ARGV[a], ARGV[a+1]
      a = a + 2
      local dup
      if id ~= '' then
        local name = prefix .. 'i' .. #topic .. ':' .. topic .. id
        local pos = epoch .. pack('>I8', seq + 1) .. sub(body, 1, 4)
        if not call('SET', name, pos, 'NX', 'PX', idttl) then
          dup = call('GET', name)
          if sub(dup, 1, 16) ~= epoch then -- of an epoch that is gone
            call('SET', name, pos, 'PX', idttl)
            dup = nil
          end
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
    if #blob > 0 then
      blob = table.concat(blob)
      local begun
      if #segs > 0 then -- go on with the last segment, if it is not large or old
        local last = sub(segs, -28)
        local lfirst, lbytes, lbegun = unpack('>I8', last), unpack('>I8', last, 13), unpack('>I8', last, 21)
        if (first - lfirst) * 16 < keep and lbytes * 16 < room and (ms - lbegun) * 16 < age and ms >= lbegun then
          local name = prefix .. 's' .. epoch .. string.format('%.0f', lfirst) .. ':' .. topic
          if call('APPEND', name, blob) == lbytes + #blob then
            segs = sub(segs, 1, -29) .. sub(last, 1, 12) .. pack('>I8', lbytes + #blob) .. sub(last, 21)
            begun = true
          else
            call('DEL', name) -- it was lost, and has just come back without its past
          end
        end
      end
      if not begun then
        local name = prefix .. 's' .. epoch .. string.format('%.0f', first) .. ':' .. topic
        call('SET', name, blob, 'PX', string.format('%.0f', age + age / 16 + 1000))
        segs = segs .. pack('>I8', first) .. prev .. pack('>I8I8', #blob, ms)
      end
      total = total + #blob
      while #segs > 28 do -- drop the oldest segment, if enough remains
        local sfirst, bytes, nfirst, nbegun = unpack('>I8', segs), unpack('>I8', segs, 13), unpack('>I8', segs, 29), unpack('>I8', segs, 49)
        if seq - nfirst + 1 < keep and total - bytes < room and ms - nbegun <= age then
          break
        end
        call('DEL', prefix .. 's' .. epoch .. string.format('%.0f', sfirst) .. ':' .. topic)
        total = total - bytes
        segs = sub(segs, 29)
      end
      call('SET', key, epoch .. pack('>I8', seq) .. tag .. pack('>I8', total) .. segs, 'PX', headttl)
      if #blob > hint then
        blob = ''
      end
      call(publish, prefix .. 'c:' .. topic, '1e' .. epoch .. blob)
    end
  end
end
return out
