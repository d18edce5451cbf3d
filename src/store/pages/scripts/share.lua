-- A fetch is over.
-- KEYS  lease, page
-- ARGV  token, channel, the page's name, what waiting replicas are to do without a page ('alone', 'again')[, value, for
--       how long (ms)]
-- Returns whether the page is kept now. A server that is full keeps none, and that is no error; one that evicts nothing keeps
-- a fifth of its memory free of pages, for what must not be refused.
local word = ARGV[4]
local memory = tostring(redis.pcall('INFO', 'memory'))
local used, most = string.match(memory, 'used_memory:(%d+)'), string.match(memory, 'maxmemory:(%d+)')
local evicts = not string.find(memory, 'maxmemory_policy:noeviction', 1, true)
local room = evicts or not used or tonumber(most) == 0 or tonumber(used) < tonumber(most) * 0.8
if ARGV[5] and room then
  local set = redis.pcall('SET', KEYS[2], ARGV[5], 'PX', ARGV[6])
  if not (type(set) == 'table' and set.err) then
    word = 'kept'
  end
end
if ARGV[1] ~= '' and redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
  redis.call('PUBLISH', ARGV[2], cjson.encode({fetched = {name = ARGV[3], word = word}}))
end
return word == 'kept' and 1 or 0
