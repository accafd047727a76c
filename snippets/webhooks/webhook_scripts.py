"""The steps of a `WebhookQueue` as scripts for Redis 6.2 or later: each is done as a whole or not.

The time is Redis' own, so that the clocks of workers do not matter. A job is 14 values: source s
id i timestamp t type y body b enqueued ms attempts n.
"""

from __future__ import annotations

ENQUEUE = """
local seen, jobs, delayed = KEYS[1], KEYS[2], KEYS[3]
if redis.call('EXISTS', seen) == 1 then return 0 end
local waiting = redis.call('XLEN', jobs) + redis.call('ZCARD', delayed)
if waiting >= tonumber(ARGV[2]) then return -1 end
local t = redis.call('TIME')
redis.call('SET', seen, '', 'PX', ARGV[1])
redis.call('XADD', jobs, '*', 'source', ARGV[3], 'id', ARGV[4], 'timestamp', ARGV[5],
           'type', ARGV[6], 'body', ARGV[7],
           'enqueued', t[1] * 1000 + math.floor(t[2] / 1000), 'attempts', 0)
return 1
"""

# What is due, then one that a dead worker had in hand, then what is new. XREADGROUP alone would
# never return the second kind. The third value of a job is how often it was handed out.
TAKE = """
local jobs, delayed, group, want = KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2])
redis.pcall('XGROUP', 'CREATE', jobs, group, '0', 'MKSTREAM')
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for _, job in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, 100)) do
    redis.call('XADD', jobs, '*', unpack(cmsgpack.unpack(job)))
    redis.call('ZREM', delayed, job)
end
local taken, cursor = {}, ARGV[4]
if ARGV[5] == '1' then
    local lost = redis.call('XAUTOCLAIM', jobs, group, 'workers', ARGV[3], cursor, 'COUNT', 1)
    cursor = lost[1]
    for _, entry in ipairs(lost[2]) do
        if entry then  -- Redis 6.2 has a gap where somebody has trimmed the stream
            local times = redis.call('XPENDING', jobs, group, entry[1], entry[1], 1)[1][4]
            table.insert(taken, {entry[1], entry[2], times})
        end
    end
end
if #taken < want then
    local new = redis.call('XREADGROUP', 'GROUP', group, 'workers', 'COUNT', want - #taken,
                           'STREAMS', jobs, '>')
    for _, entry in ipairs(new and new[1][2] or {}) do
        table.insert(taken, {entry[1], entry[2], 1})
    end
end
return {cursor, taken}
"""

# Only who was handed the job last may move it: one that was lost to another worker is that
# worker's.
SETTLE = """
local jobs, delayed, dead, entry, where = KEYS[1], KEYS[2], KEYS[3], ARGV[2], ARGV[3]
local holder = redis.call('XPENDING', jobs, ARGV[1], entry, entry, 1)[1]
if not holder or holder[4] ~= tonumber(ARGV[8]) then return 0 end
redis.call('XACK', jobs, ARGV[1], entry)
local found = redis.call('XRANGE', jobs, entry, entry)[1]
if not found then return 0 end
redis.call('XDEL', jobs, entry)
local job = found[2]
job[14] = ARGV[4]
if where == 'retry' then
    local t = redis.call('TIME')
    local due = t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[5]
    redis.call('ZADD', delayed, due, cmsgpack.pack(job))
elseif where == 'dead' then
    job[15], job[16] = 'error', ARGV[6]
    redis.call('XADD', dead, 'MAXLEN', ARGV[7], '*', unpack(job))
end
return 1
"""

REQUEUE = """
local found = redis.call('XRANGE', KEYS[2], ARGV[1], ARGV[1])[1]
if not found then return 0 end
found[2][14] = 0
redis.call('XADD', KEYS[1], '*', unpack(found[2], 1, 14))
return redis.call('XDEL', KEYS[2], ARGV[1])
"""
