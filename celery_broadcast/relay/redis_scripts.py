"""What the relay has Redis do in one step, in Redis' own language.

Sent whole with every call (about a kilobyte beside parcels of fifty), so that a
server that has restarted, or another that stands in for it, needs no preparation.
"""

from __future__ import annotations

TAKE = """
-- Give a replica one entry: one that another was silent about for the lease, or the next.
-- KEYS: streams, in the order in which to look. ARGV: group, consumer, lease in ms
-- ('' is not to look for silent ones), ttl in ms.
-- Returns {gone}, or {gone, key, id, fields, deliveries}; `gone` were dropped by a
-- bound of the stream after a replica had got them.
local group, consumer, lease, gone = ARGV[1], ARGV[2], ARGV[3], 0

local function failed(reply, key)
  return redis.error_reply(reply.err .. ' KEY ' .. key)
end

if lease ~= '' then
  local now = redis.call('TIME')
  local oldest = now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[4]
  for _, key in ipairs(KEYS) do
    local trimmed = redis.pcall('XTRIM', key, 'MINID', '=', string.format('%.0f', oldest))
    if type(trimmed) == 'table' and trimmed.err then return failed(trimmed, key) end
    local silent = redis.pcall('XPENDING', key, group, 'IDLE', lease, '-', '+', 100)
    if silent.err then return failed(silent, key) end
    for _, entry in ipairs(silent) do
      local claimed = redis.pcall('XCLAIM', key, group, consumer, lease, entry[1])
      if claimed.err then return failed(claimed, key) end
      if claimed[1] and claimed[1][2] then
        return {gone, key, claimed[1][1], claimed[1][2], entry[4]}
      end
      -- Redis 7 has forgotten it by itself, 6.2 hasn't.
      redis.call('XACK', key, group, entry[1])
      gone = gone + 1
    end
  end
end

for _, key in ipairs(KEYS) do
  local reply = redis.pcall('XREADGROUP', 'GROUP', group, consumer,
    'COUNT', 1, 'STREAMS', key, '>')
  if reply and reply.err then return failed(reply, key) end
  if reply then
    local entry = reply[1][2][1]
    return {gone, key, entry[1], entry[2], 0}
  end
end
return {gone}
"""

RENEW = """
-- Begin the lease of an entry anew, if this replica still has it; return 1 if so, else 0.
-- KEYS: stream. ARGV: group, consumer, id.
local mine = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if mine.err or not mine[1] then return 0 end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'JUSTID')
return 1
"""

GIVE_BACK = """
-- Give an entry to nobody, long silent, if this replica still has it; as often handed
-- out as before. KEYS: stream. ARGV: group, consumer, id, nobody, silence in ms, deliveries.
local mine = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if mine.err or not mine[1] then return 0 end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[4], 0, ARGV[3],
  'IDLE', ARGV[5], 'RETRYCOUNT', ARGV[6], 'JUSTID')
return 1
"""

TRIM = """
-- Drop the oldest entries of a stream until it keeps to its bounds.
-- KEYS: stream. ARGV: bytes, ttl in ms ('' is no ttl).
local key, bytes = KEYS[1], tonumber(ARGV[1])
if ARGV[2] ~= '' then
  local now = redis.call('TIME')
  local oldest = now[1] * 1000 + math.floor(now[2] / 1000) - ARGV[2]
  redis.call('XTRIM', key, 'MINID', '=', string.format('%.0f', oldest))
end
local share = 1
while true do
  -- All nodes: by default Redis looks at the five oldest, which tell nothing of the rest.
  local used = redis.call('MEMORY', 'USAGE', key, 'SAMPLES', 0)
  local length = redis.call('XLEN', key)
  if not used or used <= bytes or length == 0 then return end
  -- As if all were of one size. Where the oldest are smaller it isn't enough, so
  -- each further try drops twice that share.
  local surplus = math.ceil(length * (1 - bytes / used) * share)
  redis.call('XTRIM', key, 'MAXLEN', '=', math.max(0, length - surplus))
  share = share * 2
end
"""

SWEEP = """
-- Remove the consumers of a group that hold nothing and are silent; this one only when
-- it leaves. What a removed consumer holds would be lost, so all is one step. Before
-- Redis 7.2 one that waits in vain counts as silent too; it comes back with the next entry.
-- KEYS: streams. ARGV: group, silence in ms, consumer, 'leaves' or ''.
local removed = 0
for _, key in ipairs(KEYS) do
  local consumers = redis.pcall('XINFO', 'CONSUMERS', key, ARGV[1])
  for _, fields in ipairs(consumers) do
    local consumer = {}
    for i = 1, #fields, 2 do consumer[fields[i]] = fields[i + 1] end
    local goes = consumer.idle >= tonumber(ARGV[2])
    if consumer.name == ARGV[3] then goes = ARGV[4] == 'leaves' end
    if consumer.pending == 0 and goes then
      redis.call('XGROUP', 'DELCONSUMER', key, ARGV[1], consumer.name)
      removed = removed + 1
    end
  end
end
return removed
"""
