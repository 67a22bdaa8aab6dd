-- Health of a GpuProvider in Argo CD, in the market cluster. Lua 5.1, base and table libraries.
local health = { status = "Progressing", message = "the market operator has not processed it yet" }
local status = obj.status
if status == nil or (status.observedGeneration or 0) < (obj.metadata.generation or 0) then
  return health
end
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Ready" then
    health.message = condition.reason
    if (condition.message or "") ~= "" then health.message = condition.reason .. ": " .. condition.message end
    if condition.reason == "Silent" then
      health.status = "Degraded"
    else
      -- Offering, or sold out.
      health.status = "Healthy"
    end
  end
end
return health
