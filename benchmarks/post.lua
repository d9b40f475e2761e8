-- wrk posts the files named after "--" in turn, the first argument being their content type, and tells its counts as JSON.
local requests, turn = {}, 0

function init(arguments)
  local headers = { ["Content-Type"] = arguments[1] }
  for place = 2, #arguments do
    local file = assert(io.open(arguments[place], "rb"))
    requests[#requests + 1] = wrk.format("POST", nil, headers, file:read("*a"))
    file:close()
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
