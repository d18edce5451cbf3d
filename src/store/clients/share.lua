-- Adds what one replica's clients spent, and answers what each owes by now, all replicas together.
--
-- KEYS: the salt, then one key for each client: its theoretical arrival time (GCRA), and when that was told, in microseconds.
-- ARGV: the salt as this replica knows it and the window (microseconds); then for each client what it spent and since when
--       (microseconds, the latter counted back from now).
-- Answers {salt, debt…}. Where the salt is another one nothing was done: the keys are wrong.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local salt = redis.call('GET', KEYS[1])
if not salt then
  salt = ARGV[1]
  redis.call('SET', KEYS[1], salt)
end
local answer = {salt}
if salt ~= ARGV[1] then
  return answer
end
for i = 2, #KEYS do
  local spent, age = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local arrival, told = string.match(redis.call('GET', KEYS[i]) or '', '^(%d+) (%d+)$')
  -- Told later than it is now: the clock was set back, and nobody owes more for that.
  local back = math.max(0, (tonumber(told) or 0) - now)
  arrival = (tonumber(arrival) or 0) - back
  if spent > 0 or back > 0 then
    -- As if all of it had come first: less than it owes rather than more.
    arrival = math.max(arrival, now - age) + spent
    -- Also what is paid back counts for a window: others may yet tell of what came before.
    local kept = math.max(arrival - now, 0) + ARGV[2]
    redis.call('SET', KEYS[i], string.format('%.0f %.0f', arrival, now), 'PX', math.ceil(kept / 1000))
  end
  answer[i] = math.max(arrival - now, 0)
end
return answer
