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
    -- The condition is true for a provider that offers or is sold out, and false for one that is silent or does not answer.
    if condition.status == "True" then
      health.status = "Healthy"
    else
      health.status = "Degraded"
    end
  end
end
return health
