-- Argo CD's health of a GpuPool. Lua 5.1, base and table libraries.
local health = { status = "Progressing", message = "the provider's operator has not looked at it yet" }
local status = obj.status
if status == nil or (status.observedGeneration or 0) < (obj.metadata.generation or 0) then
  return health
end
local selling = nil
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Selling" then selling = condition end
end
if selling == nil then return health end

-- Sold out, on purpose kept back, or another pool's: nothing is wrong with such a node.
local expected = { NoGpuFree = true, NotForSale = true, SoldByAnotherPool = true, NotSchedulable = true }
local amiss = {}
for _, node in ipairs(status.notSold or {}) do
  if not expected[node.reason] then table.insert(amiss, node.node .. ": " .. node.reason) end
end

health.status = "Healthy"
health.message = selling.reason
if (selling.message or "") ~= "" then health.message = selling.reason .. ": " .. selling.message end
if selling.reason == "OutsideHours" then
  health.status = "Suspended"
elseif selling.reason == "NoPaymentNetwork" then
  health.status = "Degraded"
elseif (status.nodes or 0) == 0 then
  health.status = "Degraded"
  health.message = "no GPU node has the labels of nodeSelector"
elseif #amiss > 0 then
  health.status = "Degraded"
  health.message = table.concat(amiss, ", ")
end
return health
