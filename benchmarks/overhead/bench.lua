-- One request, sent again and again: its body is in the file that BODY names, its headers in HEADERS, one to a line.
local file = assert(io.open(os.getenv("BODY"), "rb"))
wrk.method, wrk.body = "POST", file:read("*a")
file:close()
for name, value in string.gmatch(os.getenv("HEADERS"), "([^:\n]+): ([^\n]+)") do
  wrk.headers[name] = value
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"p50": %d, "p90": %d, "p99": %d, "requests": %d, "took": %d, "refused": %d, "broken": %d}\n',
    latency:percentile(50), latency:percentile(90), latency:percentile(99), summary.requests, summary.duration,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
