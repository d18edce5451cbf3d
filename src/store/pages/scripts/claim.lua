-- KEYS  page, lease
-- ARGV  longest value to return, then, to take the lease where there is no page: token, duration (ms), 1 to take it although
--       there is one
-- Returns {'page', server's time (ms), value}, {'odd'} for one that is none, {'yours'}, {'taken', ms left}, or {'none'}
if ARGV[4] ~= '1' then
  local size = redis.pcall('STRLEN', KEYS[1])
  if type(size) ~= 'number' or size > tonumber(ARGV[1]) then
    return {'odd'}
  end
  if size > 0 then
    local clock = redis.call('TIME')
    return {'page', clock[1] * 1000 + math.floor(clock[2] / 1000), redis.call('GET', KEYS[1])}
  end
  if not ARGV[2] then
    return {'none'}
  end
end
if redis.call('SET', KEYS[2], ARGV[2], 'NX', 'PX', ARGV[3]) then
  return {'yours'}
end
return {'taken', redis.call('PTTL', KEYS[2])}
