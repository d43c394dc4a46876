-- wrk script: chats of about SIZE bytes, cycled, distinct from the first block on, or from nine tenths on (shared).
-- Arguments: SIZE STREAM distinct|shared.
local bodies, turn = {}, 0

function init(args)
  local size, stream = tonumber(args[1]), args[2]
  local count = size > 50000 and 32 or 256
  local words = "the quick brown fox jumps over the lazy dog and runs on through the quiet wood "
  for number = 1, count do
    local text = string.format("conversation %d. ", number) .. string.rep(words, math.ceil(size / #words))
    if args[3] == "shared" then
      text = string.sub(string.rep(words, math.ceil(size / #words)), 1, math.floor(size * 0.9)) .. text
    end
    text = string.sub(text, 1, size - 120)
    bodies[number] = string.format(
      '{"model": "base", "messages": [{"role": "user", "content": "%s"}], "stream": %s, "max_tokens": 64}', text, stream)
  end
end

function request()
  turn = turn % #bodies + 1
  return wrk.format("POST", nil, {["content-type"] = "application/json"}, bodies[turn])
end
