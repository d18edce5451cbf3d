#!lua flags=allow-oom
-- A replica says which changes of generations it has applied, and wants its lease renewed.
-- KEYS  generations, leases
-- ARGV  an epoch to begin where there is none, the replica, for how long it is looked after (ms), the channel,
--       the epoch it knows, the last change it has applied
-- Returns {granted, server's time (ms), epoch, last change[, all generations where the replica lacks some]}
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local epoch = redis.call('HGET', KEYS[1], 'epoch')
local last = tonumber(redis.call('HGET', KEYS[1], 'last') or 0)
local applied = tonumber(ARGV[6])
local here = string.match(tostring(redis.pcall('INFO', 'server')), 'run_id:(%x+)') or ''
local gone = not epoch
  or epoch ~= redis.call('HGET', KEYS[2], 'epoch')
  -- Another server, or the same one after a restart, may lack the last changes.
  or here ~= redis.call('HGET', KEYS[2], 'server')
if gone or (epoch == ARGV[5] and last < applied) then
  epoch, last = ARGV[1], 0
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'last', 0)
  redis.call('HSET', KEYS[2], 'epoch', epoch, 'server', here, 'since', now)
end
if epoch ~= ARGV[5] then
  return {0, now, epoch, last, redis.call('HGETALL', KEYS[1])}
end
local replica = 'replica:' .. ARGV[2]
local due, before = string.match(redis.call('HGET', KEYS[2], replica) or '', '^(%d+) (%d+)$')
-- Never while it lacks a change: whoever made that change waits no longer than leases last that were granted before.
local granted = last == applied
if granted then
  due = now + ARGV[3]
end
redis.call('HSET', KEYS[2], replica, string.format('%.0f %.0f', due or 0, applied))
if tonumber(before) ~= applied then
  redis.call('PUBLISH', ARGV[4], cjson.encode({applied = {epoch = epoch, last = applied, replica = ARGV[2]}}))
end
if granted then
  return {1, now, epoch, last}
end
return {0, now, epoch, last, redis.call('HGETALL', KEYS[1])}
