-- Argo CD's health of a PaymentNetwork. Lua 5.1, base and table libraries.
-- Only a market's operator writes its status: in a provider's own cluster it has none, and no marketId is set.
if obj.spec.marketId == nil and obj.status == nil then
  return { status = "Healthy", message = "no market's operator looks at it here" }
end
local health = { status = "Progressing", message = "the market has not looked at it yet" }
local status = obj.status
if status == nil or (status.observedGeneration or 0) < (obj.metadata.generation or 0) then
  return health
end
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Reachable" then
    health.message = condition.reason
    if (condition.message or "") ~= "" then health.message = condition.reason .. ": " .. condition.message end
    if condition.status == "True" then
      health.status = "Healthy"
    elseif condition.status == "Unknown" then
      health.status = "Unknown"
    else
      health.status = "Degraded"
    end
  end
end
return health
