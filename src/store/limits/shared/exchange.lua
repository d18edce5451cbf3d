#!lua flags=allow-oom
-- One exchange of a replica with the budgets that all replicas share: what it spent without asking, how its requests ended,
-- what it wants to draw; and back: what it got, and how each budget stands. All or nothing, on this server's clock.
--
-- What must hold at any moment, for each budget: what counts as spent, and what every replica may still spend without
-- asking (its promise), are together no more than the limit. So no outage, and no part of one, spends more.
--
-- KEYS[1]  the epoch: which life of the data this is; a store that lost data begins another
-- KEYS[3k-1 .. 3k+1]  of budget k: its state, what was spent by sub-window, its replicas
-- Times are microseconds. Numbers that a replica told stand in ARGV in the order in which they are read here.

local at = 0
local function word() at = at + 1 return ARGV[at] end
local function number() return tonumber(word()) end
local function whole(n) return string.format('%.0f', n) end
local function exact(n) return string.format('%.17g', n) end

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

local known, me, channel, sent, late = word(), word(), word(), number(), number()
local silent, restoring, grace = number(), number(), number()
local replicas_known, min_replicas, leaving = number(), number(), number()
local budgets = number()

-- A command that was held up somewhere: its sender has gone on without it.
if sent > 0 and now - sent > late then return {'late', whole(now)} end

local epoch = redis.call('HMGET', KEYS[1], 'id', 'born', 'expected')
local id, born, expected = epoch[1], tonumber(epoch[2]) or 0, math.min(tonumber(epoch[3]) or 0, 10000)
-- The clock was set back since: all have that time once more.
if born > now then
  born = now
  redis.call('HSET', KEYS[1], 'born', whole(born))
end
local versions, older, begins = {}, false, false
for k = 1, budgets do
  local version = number()
  versions[k] = version
  -- Others may have gone on since this server went back: what it last answered this replica tells.
  local mine = redis.call('HGET', KEYS[3 * k + 1], me)
  local answered = mine and tonumber(string.match(mine, '(%d+) %d+$'))
  if id == known and answered and version > answered then older = true end
  if id == known and version > tonumber(redis.call('HGET', KEYS[3 * k - 1], 'version') or 0) then older = true end
end
if restoring == 0 and known ~= '' and (id ~= known or older) then return {'lost', whole(now)} end
if not id or older then
  id, born, expected = me .. '@' .. whole(now), 0, 0
  if restoring == 1 then born, expected, begins = now, replicas_known, true end
  -- Who was promised what has been lost too, or is what it was once.
  for k = 1, budgets do redis.call('DEL', KEYS[3 * k + 1]) end
  redis.call('HSET', KEYS[1], 'id', id, 'born', whole(born), 'expected', expected)
end
-- Begun by one that is new, and here is the first that knows of a life before.
if restoring == 1 and born == 0 then
  born, expected, begins = now, replicas_known, true
  redis.call('HSET', KEYS[1], 'born', whole(born), 'expected', expected)
end
-- Until every replica has had the time to tell what it knows, nothing is drawn.
local waiting = born > 0 and now < born + grace

local B = {}

-- What was spent ------------------------------------------------------------------------------------------------------

local function lacks(b, tat) return math.max(0, math.ceil((tat - now) / b.period - 1e-6)) end

local function used(b)
  if b.len > 0 then return b.sum end
  return lacks(b, b.tat)
end

local function charge(b, when, n)
  if b.len == 0 then
    b.tat = math.max(b.tat, now) + n * b.period
    b.charged = b.charged + n
    return
  end
  local slot = math.min(math.floor(when / b.sub), b.head)
  if n <= 0 or slot <= b.head - b.len then return end
  redis.call('HINCRBY', b.spent, whole(slot), n)
  b.tail = b.sum == 0 and slot or math.min(b.tail, slot)
  b.sum, b.charged = b.sum + n, b.charged + n
end

-- Takes up to n back from where they were charged.
local function take(b, when, n)
  if b.len == 0 then
    b.tat, b.charged = b.tat - n * b.period, b.charged - n
    return n
  end
  local slot = math.min(math.floor(when / b.sub), b.head)
  if slot <= b.head - b.len then return 0 end
  n = math.min(n, tonumber(redis.call('HGET', b.spent, whole(slot)) or 0))
  if n > 0 and redis.call('HINCRBY', b.spent, whole(slot), -n) <= 0 then redis.call('HDEL', b.spent, whole(slot)) end
  b.sum, b.charged = b.sum - n, b.charged - n
  return n
end

-- What was noted on this clock before it was set back, or on that of a primary that was ahead, goes back with it: it would
-- last for longer by as much.
local function follow(b)
  local back = math.max(0, b.last - now)
  if back == 0 then return 0 end
  for _, field in ipairs({'tat', 'gate', 'lapses', 'expires', 'heard', 'strangers', 'last'}) do
    b[field] = math.max(0, b[field] - back)
  end
  -- Its answer will not be known for one.
  b.probed = 0
  return back
end

local function lapse(b)
  if b.len == 0 then return end
  local head = math.floor(now / b.sub)
  -- Nothing was spent that far ahead: when it was nobody knows, so it counts from now on, and no loop may look for it.
  if b.head >= head + b.len then
    local n = math.min(b.sum, b.limit)
    redis.call('DEL', b.spent)
    b.head, b.tail, b.sum, b.charged = head, head, 0, b.charged - b.sum
    charge(b, now, n)
  end
  head = math.max(head, b.head)
  b.tail = math.max(b.tail, b.head - b.len + 1)
  local first = head - b.len + 1
  if b.sum > 0 and first > b.head then
    redis.call('DEL', b.spent)
    b.sum = 0
  end
  local lapsed = b.sum
  if lapsed > 0 then
    for slot = b.tail, math.min(first - 1, b.head) do
      local n = tonumber(redis.call('HGET', b.spent, whole(slot)) or 0)
      if n > 0 then
        redis.call('HDEL', b.spent, whole(slot))
        b.sum = b.sum - n
      end
    end
  end
  b.head, b.tail = head, math.max(b.tail, first)
end

-- Sub-windows of another length, as after a change of the limit, or on a clock that was set back: each counts to its end.
local function recut(b, old, back)
  local pairs_ = redis.call('HGETALL', b.spent)
  redis.call('DEL', b.spent)
  b.head, b.sum = math.floor(now / b.sub), 0
  for i = 1, #pairs_, 2 do
    charge(b, (tonumber(pairs_[i]) + 1) * old - 1 - back, tonumber(pairs_[i + 1]))
    b.charged = b.charged - tonumber(pairs_[i + 1])
  end
end

-- After a loss: the most that any replica last heard was spent, by sub-window (of a token bucket: until when it fills), beginning
-- with what this server knew. What a replica has drawn since nobody else may have heard of: it is told apart, and comes on top.
local function load_heard(b)
  local heard, life = {}, id .. '/' .. whole(b.sub) .. ' '
  local kept = redis.call('HGET', b.state, 'told') or ''
  if string.sub(kept, 1, #life) == life then
    for slot, n in string.gmatch(string.sub(kept, #life + 1), '(%d+):(%d+)') do heard[slot] = tonumber(n) end
  elseif b.len == 0 then
    heard['0'] = b.tat
  else
    local all = redis.call('HGETALL', b.spent)
    for i = 1, #all, 2 do heard[all[i]] = tonumber(all[i + 1]) end
  end
  return heard
end

local function save_heard(b, heard)
  local kept = {}
  for slot, n in pairs(heard) do kept[#kept + 1] = slot .. ':' .. whole(n) end
  redis.call('HSET', b.state, 'told', id .. '/' .. whole(b.sub) .. ' ' .. table.concat(kept, ' '))
end

-- How many of n that a replica heard were spent nobody has told of yet.
local function untold(b, heard, slot, n)
  if b.len > 0 then
    local more = math.max(0, n - (heard[slot] or 0))
    heard[slot] = math.max(heard[slot] or 0, n)
    return more
  end
  local more = math.max(0, n - lacks(b, heard['0'] or 0))
  heard['0'] = math.max(heard['0'] or 0, now + n * b.period)
  return more
end

-- What others on the account have spent -----------------------------------------------------------------------------

local function foreign(b)
  if now >= b.expires then return 0 end
  return now >= b.lapses and math.max(0, b.foreign - 1) or b.foreign
end

local function seen(b, charged)
  if b.probed > 0 and b.probed == charged then b.probed, b.foreign = 0, math.max(0, b.foreign - 1) end
end

-- What others had in flight before this was charged, and have not spoken of since, has been answered, as far as is known: it
-- may be long ago, and what is taken for the spending of strangers stays until somebody hears better.
local function in_flight(b, charged)
  local sum = b.mine.in_flight
  for name, r in pairs(b.replicas) do
    if name ~= me and r.seen >= charged then sum = sum + r.in_flight end
  end
  return sum
end

local function observe(b, remaining, reset, charged)
  if charged < b.heard then return end
  local left = math.max(0, b.limit - used(b))
  local certain = math.max(0, left - remaining)
  local likely = math.max(0, left + in_flight(b, charged) - remaining)
  b.foreign, b.before, b.heard, b.probed = math.max(certain, math.min(likely, b.before)), likely, charged, 0
  -- One or two may only have been counted there at another moment than here.
  if b.foreign > 2 then b.strangers = now end
  b.expires = now + b.window
  b.lapses = math.min(math.max(now + reset, now), b.expires)
end

-- The gate after a 429, and the slow start after it ------------------------------------------------------------------

local function room(b)
  if b.gate == 0 then return math.huge end
  if now < b.gate then return 0 end
  return 2 * 2 ^ math.min(math.floor((now - b.gate) / b.step), 50) - 1 - b.passed
end

-- Promises ------------------------------------------------------------------------------------------------------------

-- What a replica may have spent by now without asking: what it was promised, and its share of what has lapsed since.
local function worth(b, r)
  return math.floor(r.promise + r.share * math.min(math.max(0, b.charged - used(b) - r.lapsed), r.spent))
end

local function save_replica(b, name, r)
  redis.call('HSET', b.roster, name, table.concat({whole(r.seen), exact(r.promise), exact(r.share), whole(r.lapsed), whole(r.spent),
    whole(r.in_flight), whole(r.applied), whole(r.version), whole(r.back)}, ' '))
end

local function load_replicas(b)
  b.replicas, b.shares, b.in_flight, b.count = {}, 0, 0, 0
  local all = redis.call('HGETALL', b.roster)
  -- While this server could not be heard, nobody was silent. One that has just begun cannot tell that from all being gone.
  local gap = known == id and b.last > 0 and now - b.last > silent and now - b.last or -b.back
  if known == id then b.last = now end
  for i = 1, #all, 2 do
    local f = {}
    for field in string.gmatch(all[i + 1], '%S+') do f[#f + 1] = tonumber(field) end
    local r = {seen = f[1] + gap, promise = f[2], share = f[3], lapsed = f[4], spent = f[5], in_flight = f[6], applied = f[7],
      version = f[8] or 0, back = f[9] or 0}
    if now - r.seen > b.keep then
      redis.call('HDEL', b.roster, all[i])
    else
      b.replicas[all[i]] = r
      if gap ~= 0 then save_replica(b, all[i], r) end
    end
  end
  b.mine = b.replicas[me] or {applied = 0, promise = 0, share = 0, back = 0}
  -- Those who were to come back and have; who has begun since is none of them.
  local away = expected
  if restoring == 1 then b.mine.back, b.replicas[me] = 1, b.mine end
  for _, r in pairs(b.replicas) do away = away - r.back end
  for i = 1, expected - 1 do
    if b.replicas['?' .. i] then
      away = away - 1
      if away < 0 then
        redis.call('HDEL', b.roster, '?' .. i)
        b.replicas['?' .. i] = nil
      end
    end
  end
end

-- What is not to be had for this replica: promised to others, or spent by strangers. What replicas that are not heard of
-- have spent, upstream counts as foreign: that much is not set aside twice, and as long as it does, they are not dead.
local function weigh(b)
  local promised, unheard = 0, 0
  b.count, b.shares, b.others_in_flight = 1, 0, 0
  for name, r in pairs(b.replicas) do
    if name ~= me then
      local silence = now - r.seen
      if silence <= silent then
        promised = promised + worth(b, r)
        b.others_in_flight = b.others_in_flight + r.in_flight
      elseif silence <= b.hold or now - b.strangers <= b.hold then
        unheard = unheard + worth(b, r)
      end
      if silence <= b.hold or now - b.strangers <= b.hold then
        b.count, b.shares = b.count + 1, b.shares + r.share
      end
    end
  end
  b.count = math.max(b.count, min_replicas)
  b.promised, b.unheard = promised, unheard
end

local function gone(b) return math.max(foreign(b), b.unheard) end

-- Each budget: what it is, and what this replica tells of it ---------------------------------------------------------

for k = 1, budgets do
  local b = {state = KEYS[3 * k - 1], spent = KEYS[3 * k], roster = KEYS[3 * k + 1]}
  B[k] = b
  b.name = word()
  b.limit, b.sub, b.len, b.period = number(), number(), number(), number()
  b.window, b.step, b.hold, b.keep = number(), number(), number(), number()
  local s = redis.call('HMGET', b.state, 'version', 'sum', 'head', 'tail', 'sub', 'charged', 'tat', 'gate', 'passed',
    'foreign', 'lapses', 'probed', 'expires', 'before', 'heard', 'period', 'strangers', 'last')
  for i = 1, 18 do s[i] = tonumber(s[i]) or 0 end
  b.version, b.sum, b.head, b.tail, b.charged, b.tat = s[1] + 1, s[2], s[3], s[4], s[6], s[7]
  b.gate, b.passed = s[8], s[9]
  b.foreign, b.lapses, b.probed, b.expires, b.before, b.heard = s[10], s[11], s[12], s[13], s[14], s[15]
  b.strangers, b.last = s[17], s[18]
  b.back = follow(b)
  if b.len > 0 and s[5] > 0 and (s[5] ~= b.sub or b.back > 0) then recut(b, s[5], b.back) end
  if b.tat > now and s[16] > 0 and s[16] ~= b.period then b.tat = now + math.ceil((b.tat - now) / s[16]) * b.period end
  lapse(b)
  load_replicas(b)
  local mine = b.mine

  local claim, share, flying, all = number(), number(), number(), number()
  b.whole = all == 1
  -- What it knows was spent, by all: nothing less is taken to be.
  local heard = restoring == 1 and load_heard(b)
  for _ = 1, number() do
    local when, n = number(), number()
    local slot = whole(math.floor(when / math.max(1, b.sub)))
    if heard then
      charge(b, when, untold(b, heard, slot, n))
    else
      local have = b.len > 0 and tonumber(redis.call('HGET', b.spent, slot) or 0) or used(b)
      charge(b, when, math.max(0, n - have))
    end
  end
  if heard then save_heard(b, heard) end
  if restoring == 1 and versions[k] > 0 and begins then
    -- Replicas that it knew of and that are not back yet may spend their shares.
    for i = 1, expected - 1 do
      local r = {seen = now, promise = math.floor(math.max(0, b.limit - used(b)) / expected), share = 1 / expected,
        lapsed = b.charged - used(b), spent = used(b), in_flight = 0, applied = 0, version = 0, back = 0}
      b.replicas['?' .. i] = r
      save_replica(b, '?' .. i, r)
    end
  end
  -- What it spent without asking, each told until it is known to have been heard.
  for _ = 1, number() do
    local serial, when, n = number(), number(), number()
    if serial > mine.applied then
      charge(b, when, n)
      mine.applied = serial
    end
  end
  -- Requests that upstream may have counted later than they were charged.
  for _ = 1, number() do
    local from, to = number(), number()
    if b.len > 0 then
      -- Where it is not found, as after the clock was set, or has lapsed, it counts all the same.
      take(b, from, 1)
      charge(b, to, 1)
    end
  end
  for _ = 1, number() do
    local when = number()
    take(b, when, 1)
    if b.gate > 0 and when >= b.gate then b.passed = math.max(0, b.passed - 1) end
    if b.probed == when then b.probed = 0 end
  end
  local shut = number()
  if shut >= 0 and now + shut > b.gate then b.gate, b.passed = now + shut, 0 end
  weigh(b)
  mine.claim, mine.share, mine.in_flight = claim, share, flying
  b.in_flight = b.others_in_flight + flying
  for _ = 1, number() do seen(b, number()) end
  for _ = 1, number() do observe(b, number(), number(), number()) end
end

-- Draws ---------------------------------------------------------------------------------------------------------------

local function fits(b, ahead, held, reserved)
  local free = b.limit - used(b) - gone(b) - reserved - math.min(held, b.limit - 1)
  return math.min(free, room(b)) > ahead
end

local answers, recalled = {}, {}
for _ = 1, number() do
  local pair = {B[number()], B[number()]}
  local ahead, held = number(), number()
  local refused, only_promised = 0, true
  for i, b in ipairs(pair) do
    local spared = i == 1 and held or 0
    if waiting or not fits(b, ahead, spared, b.promised) then
      refused = refused + i
      if fits(b, ahead, spared, 0) then recalled[b] = true else only_promised = false b.whole = true end
    end
  end
  if refused == 0 then
    for _, b in ipairs(pair) do
      charge(b, now, 1)
      b.in_flight, b.mine.in_flight = b.in_flight + 1, b.mine.in_flight + 1
      if b.gate > 0 then b.passed = b.passed + 1 end
      if b.foreign > 0 and now >= b.lapses and now < b.expires and b.probed == 0 then b.probed = now end
    end
    answers[#answers + 1] = '0'
  elseif waiting then
    answers[#answers + 1] = 'wait'
  else
    answers[#answers + 1] = whole(refused + (only_promised and 4 or 0))
  end
end

-- How each stands now -------------------------------------------------------------------------------------------------

local reply = {'ok', whole(now), id}
for _, b in ipairs(B) do
  local mine = b.mine
  local left = b.limit - used(b) - gone(b)
  local fair = math.min(math.floor(math.max(0, left) / b.count), left - b.promised)
  -- What others have yet to tell may be spent.
  if waiting then fair = 0 end
  mine.promise = math.max(mine.claim, fair, 0)
  mine.share = math.max(mine.share, math.min(1 / b.count, 1 - b.shares), 0)
  if leaving == 1 then
    redis.call('HDEL', b.roster, me)
  else
    mine.seen, mine.lapsed, mine.spent, mine.version = now, b.charged - used(b), used(b), b.version
    save_replica(b, me, mine)
  end
  redis.call('HSET', b.state, 'version', whole(b.version), 'sum', whole(b.sum), 'head', whole(b.head), 'tail', whole(b.tail),
    'sub', whole(b.sub), 'charged', whole(b.charged), 'tat', whole(b.tat), 'gate', whole(b.gate), 'passed', whole(b.passed),
    'foreign', whole(b.foreign), 'lapses', whole(b.lapses), 'probed', whole(b.probed), 'expires', whole(b.expires),
    'before', whole(b.before), 'heard', whole(b.heard), 'period', exact(b.period), 'strangers', whole(b.strangers),
    'last', whole(b.last))
  local keep = math.ceil((2 * b.window + b.keep) / 1000) + 60000
  for _, key in ipairs({b.state, b.spent, b.roster}) do redis.call('PEXPIRE', key, keep) end
  if recalled[b] then
    redis.pcall('PUBLISH', channel, b.name .. ' ' .. whole(math.max(0, left)))
  end
  local spent = b.whole and b.len > 0 and redis.call('HGETALL', b.spent) or {}
  for _, n in ipairs({b.version, used(b)}) do reply[#reply + 1] = whole(n) end
  for _, n in ipairs({mine.promise, mine.share}) do reply[#reply + 1] = exact(n) end
  for _, n in ipairs({b.count, b.in_flight, b.tat, b.gate, b.passed, b.foreign, b.lapses, b.probed, b.expires, b.before, b.heard,
    mine.applied, b.whole and 1 or 0, #spent / 2}) do
    reply[#reply + 1] = whole(n)
  end
  for _, n in ipairs(spent) do reply[#reply + 1] = n end
end
for _, answer in ipairs(answers) do reply[#reply + 1] = answer end
return reply
