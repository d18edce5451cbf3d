#!lua flags=allow-oom
-- A replica stops: nobody has to wait for it any more.
-- KEYS  leases
-- ARGV  the replica, the channel
redis.call('HDEL', KEYS[1], 'replica:' .. ARGV[1])
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch then
  redis.call('PUBLISH', ARGV[2], cjson.encode({left = {replica = ARGV[1]}}))
end
return 1
