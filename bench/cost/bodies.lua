-- wrk script: chats of about SIZE bytes, distinct from each other, cycled. Arguments: SIZE STREAM.
local bodies, turn = {}, 0

function init(args)
  local size, stream = tonumber(args[1]), args[2]
  local count = size > 50000 and 32 or 256
  local words = "the quick brown fox jumps over the lazy dog and runs on through the quiet wood "
  for number = 1, count do
    local text = string.format("conversation %d. ", number) .. string.rep(words, math.ceil(size / #words))
    text = string.sub(text, 1, size - 120)
    bodies[number] = string.format(
      '{"model": "base", "messages": [{"role": "user", "content": "%s"}], "stream": %s, "max_tokens": 64}', text, stream)
  end
end

function request()
  turn = turn % #bodies + 1
  return wrk.format("POST", nil, {["content-type"] = "application/json"}, bodies[turn])
end
