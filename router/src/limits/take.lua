-- GCRA: one bucket for all routers. KEYS[1] holds the theoretical arrival time, in microseconds of the server's clock.
-- ARGV: microseconds between two requests, burst, requests wanted. Answers: requests granted, milliseconds until the next.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local arrival = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
-- What was used up under other limits is no debt under these.
arrival = math.min(arrival, now + burst * interval)
local room = math.floor((burst * interval - (arrival - now)) / interval)
if room < 1 then
    return {0, math.ceil((arrival + interval - burst * interval - now) / 1000)}
end
local granted = math.min(room, wanted)
arrival = arrival + granted * interval
redis.call('SET', KEYS[1], string.format('%.0f', arrival), 'PX', math.ceil((arrival - now) / 1000) + 1000)
return {granted, 0}
