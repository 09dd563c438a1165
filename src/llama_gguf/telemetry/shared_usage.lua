-- Adds the usage of keys that one gateway has counted, and returns what has changed.
--
-- KEYS: the last call of this gateway, since when usage is counted, the keys that have changed.
-- ARGV: the number of the call, the time (ms) since which changes are wanted, the
--       prefix of the keys' hashes, then one JSON text per key: its digest, its counts in total, and
--       for each span its window, number and counts, and the window's seconds per span and spans.

local KEPT_SECONDS, CALL_SECONDS, MOST = '34560000', '3600', 1000
local clock = redis.call('TIME')
local ms = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local last = tonumber(redis.call('GET', KEYS[1]) or 0)
local since = redis.call('GET', KEYS[2])
if not since then
  since = clock[1]
  redis.call('SET', KEYS[2], since)
end

local function add(key, field, counts)
  local known, place = redis.call('HGET', key, field), 0
  local sums = {}
  if known then
    for number in string.gmatch(known, '%d+') do
      sums[#sums + 1] = tonumber(number)
    end
  end
  for n, count in ipairs(counts) do
    sums[n] = string.format('%.0f', (sums[n] or 0) + count)
  end
  redis.call('HSET', key, field, table.concat(sums, ','))
end

if tonumber(ARGV[1]) > last then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', CALL_SECONDS)
  for number = 4, #ARGV do
    local usage = cjson.decode(ARGV[number])
    local key, lengths = ARGV[3] .. usage[1], {}
    add(key, 'total', usage[2])
    for _, span in ipairs(usage[3]) do
      add(key, span[1] .. ':' .. string.format('%.0f', span[2]), span[3])
      lengths[span[1]] = span[4]
    end
    for _, field in ipairs(redis.call('HKEYS', key)) do
      local window, span = string.match(field, '^(.+):(%d+)$')
      local length = window and lengths[window]
      if length and tonumber(span) * length[1] + length[1] * length[2] < tonumber(clock[1]) then
        redis.call('HDEL', key, field)
      end
    end
    redis.call('EXPIRE', key, KEPT_SECONDS)
    redis.call('ZADD', KEYS[3], ms, usage[1])
  end
end

local changed = {}
local found = redis.call('ZRANGEBYSCORE', KEYS[3], ARGV[2], '+inf', 'WITHSCORES', 'LIMIT', 0, MOST)
local newest = ARGV[2]
for place = 1, #found, 2 do
  changed[#changed + 1] = { found[place], redis.call('HGETALL', ARGV[3] .. found[place]) }
  newest = found[place + 1]
end
return { since, newest, #found / 2 >= MOST and 1 or 0, changed }
