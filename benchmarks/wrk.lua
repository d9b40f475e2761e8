-- wrk sends requests in turn and tells its counts as JSON. The arguments after "--" come in threes: a path, a content
-- type, and the file of a body; without a file it is a GET.
local requests, turn = {}, 0

function init(arguments)
  for place = 1, #arguments, 3 do
    local path, content_type, name = arguments[place], arguments[place + 1], arguments[place + 2]
    if name == "" then
      requests[#requests + 1] = wrk.format("GET", path)
    else
      local file = assert(io.open(name, "rb"))
      requests[#requests + 1] = wrk.format("POST", path, { ["Content-Type"] = content_type }, file:read("*a"))
      file:close()
    end
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local e = summary.errors
  local socket = e.connect + e.read + e.write + e.timeout
  io.write(string.format(
    '\nCOUNTED {"answers": %d, "duration_us": %d, "not_2xx": %d, "socket_errors": %d, "p50_us": %d, "p99_us": %d}\n',
    summary.requests, summary.duration, e.status, socket, latency:percentile(50), latency:percentile(99)))
end
