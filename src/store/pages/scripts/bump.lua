#!lua flags=allow-oom
-- A write was answered: the pages of its collections are no more.
-- KEYS  generations, leases
-- ARGV  an epoch to begin where there is none, the replica, for how long replicas are looked after (ms), the channel,
--       the collections
-- Returns {epoch, this change, whether there may be leases that nobody knows of, generations, replicas to wait for}
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local epoch = redis.call('HGET', KEYS[1], 'epoch')
local here = string.match(tostring(redis.pcall('INFO', 'server')), 'run_id:(%x+)') or ''
local gone = not epoch
  or epoch ~= redis.call('HGET', KEYS[2], 'epoch')
  -- Another server, or the same one after a restart, may lack the last changes.
  or here ~= redis.call('HGET', KEYS[2], 'server')
  -- Whoever can write to anything must not fill the server: from the start, then.
  or redis.call('HLEN', KEYS[1]) > 10000
if gone then
  epoch = ARGV[1]
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'last', 0)
  redis.call('HSET', KEYS[2], 'epoch', epoch, 'server', here, 'since', now)
end
local last = redis.call('HINCRBY', KEYS[1], 'last', 1)
local numbers, changed = {}, {}
for at = 5, #ARGV do
  local number = redis.call('HINCRBY', KEYS[1], 'of:' .. ARGV[at], 1)
  numbers[#numbers + 1] = number
  changed[#changed + 1] = {ARGV[at], number}
end
redis.call('PUBLISH', ARGV[4], cjson.encode({changed = {epoch = epoch, last = last, changed = changed}}))
local waiting = {}
local leases = redis.call('HGETALL', KEYS[2])
for at = 1, #leases, 2 do
  local replica = string.match(leases[at], '^replica:(.+)$')
  if replica then
    local due, applied = string.match(leases[at + 1], '^(%d+) (%d+)$')
    if not due or tonumber(due) < now then
      redis.call('HDEL', KEYS[2], leases[at])
    elseif replica ~= ARGV[2] then
      waiting[#waiting + 1] = replica
    end
    -- Later than any that is granted now: it was before the clock was set back, and lasts no longer than those.
    if due and tonumber(due) > now + ARGV[3] then
      redis.call('HSET', KEYS[2], leases[at], string.format('%.0f %s', now + ARGV[3], applied))
    end
  end
end
local since = tonumber(redis.call('HGET', KEYS[2], 'since') or now)
if since > now then
  since = now
  redis.call('HSET', KEYS[2], 'since', now)
end
local unsure = now - since < tonumber(ARGV[3])
return {epoch, last, unsure and 1 or 0, numbers, waiting}
