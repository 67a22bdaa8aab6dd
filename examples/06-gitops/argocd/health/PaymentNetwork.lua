-- Health of a PaymentNetwork in Argo CD. Lua 5.1, base and table libraries.
-- The market operator writes its status, or the provider operator in a cluster without the market. In a provider cluster no
-- marketId is set, and the object is healthy before the operator has processed it.
if obj.spec.marketId == nil and obj.status == nil then
  return { status = "Healthy", message = "no operator has processed it" }
end
local health = { status = "Progressing", message = "the operator has not processed it yet" }
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
