-- Adds what one gateway has used of windows that several gateways share, and renews its shares.
--
-- KEYS: the gateways, the windows that have changed, then one hash per window.
-- ARGV: the gateway, the number of its call, an epoch for an empty server, the channel for recalls,
--       the time (ms) since which changes are wanted or "", 1 if the gateway leaves, then one JSON
--       text per window: limit, seconds that it slides by or 0 for one of the calendar, its present
--       period or 0, seconds to keep it, what the gateway keeps of its share, 1 if it gives back,
--       pairs of period and amount to add, and pairs of period and least amount.
--
-- Rule 1: what is used and the shares of all live gateways are never more than the limit, together.
--         One that has no share of a window yet may use its part, limit / gateways, unasked.
-- Rule 2: a call that comes again, after a lost reply, adds nothing.
-- Rule 3: the time is that of this server, and is read once: Valkey stops it in a script, Redis not.

local LIVE_MS, FORGOTTEN_MS, CHANGES_MS = 5000, 3600000, 60000
local me, sequence, channel, leaves = ARGV[1], tonumber(ARGV[2]), ARGV[4], ARGV[6] == '1'
local clock = redis.call('TIME')
local second = tonumber(clock[1])
local ms = second * 1000 + math.floor(tonumber(clock[2]) / 1000)

local function whole(number)
  return string.format('%.0f', number)
end

local function add(key, pairs_of)
  for place = 1, #pairs_of, 2 do
    local period = whole(pairs_of[place])
    local sum = tonumber(redis.call('HGET', key, period) or 0) + pairs_of[place + 1]
    redis.call('HSET', key, period, whole(math.max(sum, 0)))
  end
end

local function raise(key, pairs_of)
  for place = 1, #pairs_of, 2 do
    local period, least = whole(pairs_of[place]), pairs_of[place + 1]
    if tonumber(redis.call('HGET', key, period) or 0) < least then
      redis.call('HSET', key, period, whole(least))
    end
  end
end

-- The gateways.
local live, count, epoch, last, joined = {}, 1, nil, nil, 1
local all = redis.call('HGETALL', KEYS[1])
for place = 1, #all, 2 do
  local id, value = all[place], all[place + 1]
  if id == 'epoch' then
    epoch = value
  else
    local seen, number = string.match(value, '^(%d+):(%d+)$')
    local age = ms - tonumber(seen)
    if id == me then
      last = tonumber(number)
      if age <= LIVE_MS then joined = 0 end
    elseif age <= LIVE_MS then
      live[id] = true
      count = count + 1
    elseif age > FORGOTTEN_MS then
      redis.call('HDEL', KEYS[1], id)
    end
  end
end
if not epoch then
  epoch = ARGV[3]
  redis.call('HSET', KEYS[1], 'epoch', epoch)
end
local is_repeated = last ~= nil and sequence <= last
redis.call('HSET', KEYS[1], me, whole(leaves and 0 or ms) .. ':' .. whole(math.max(sequence, last or 0)))

if joined == 1 and count > 1 and not leaves then
  redis.call('PUBLISH', channel, '*')
end

-- The windows.
local reply = { tostring(ms), epoch, joined, count }
for number = 3, #KEYS do
  local key, window = KEYS[number], cjson.decode(ARGV[number + 4])
  local limit, length, period, kept, keep = window[1], window[2], window[3], window[4], window[5]
  local gives_back = window[6] == 1
  raise(key, window[8])
  if not is_repeated and #window[7] > 0 then
    add(key, window[7])
    redis.call('ZADD', KEYS[2], ms, key)
  end
  local used, held, periods, present = 0, 0, {}, {}
  local fields = redis.call('HGETALL', key)
  for place = 1, #fields, 2 do
    local field, amount = fields[place], tonumber(fields[place + 1])
    if string.sub(field, 1, 2) == 'g:' then
      local id = string.sub(field, 3)
      if live[id] then
        held, present[id] = held + amount, true
      elseif id ~= me then
        redis.call('HDEL', key, field)
      end
    else
      local at = tonumber(field)
      if length > 0 and at <= second - length then
        redis.call('HDEL', key, field)
      else
        periods[#periods + 1] = at
        periods[#periods + 1] = amount
        if length > 0 or at == period then used = used + amount end
      end
    end
  end
  local left = math.max(limit - used, 0)
  for id in pairs(live) do
    if not present[id] then held = held + math.floor((length > 0 and limit or left) / count) end
  end
  local part = gives_back and math.floor(left / count) or math.ceil(left / count)
  if joined == 1 then keep = 0 end
  local share = math.max(keep, math.min(part, left - held), 0)
  if leaves then
    redis.call('HDEL', key, 'g:' .. me)
  else
    redis.call('HSET', key, 'g:' .. me, whole(share))
  end
  redis.call('EXPIRE', key, kept)
  if not gives_back and held > 0 and share * 2 < part then
    redis.call('PUBLISH', channel, key)
  end
  reply[#reply + 1] = { share, periods }
end

-- The changes.
local changes = {}
if ARGV[5] ~= '' then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', whole(ms - CHANGES_MS))
  changes = redis.call('ZRANGEBYSCORE', KEYS[2], ARGV[5], '+inf')
end
table.insert(reply, 5, changes)
return reply
