-- Health of a GpuPool in Argo CD. Lua 5.1, base and table libraries.
local health = { status = "Progressing", message = "the provider operator has not processed it yet" }
local status = obj.status
if status == nil or (status.observedGeneration or 0) < (obj.metadata.generation or 0) then
  return health
end
local selling = nil
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Selling" then selling = condition end
end
if selling == nil then return health end

-- Reasons that are not a fault of the node: sold out, withheld on purpose, or part of another pool.
local expected = { NoGpuFree = true, NotForSale = true, SoldByAnotherPool = true, NotSchedulable = true, Tainted = true }
local faulty = {}
for _, node in ipairs(status.notSold or {}) do
  if not expected[node.reason] then table.insert(faulty, node.node .. ": " .. node.reason) end
end

health.status = "Healthy"
health.message = selling.reason
if (selling.message or "") ~= "" then health.message = selling.reason .. ": " .. selling.message end
if selling.reason == "OutsideHours" then
  health.status = "Suspended"
elseif selling.reason == "NoPaymentNetwork" or selling.reason == "NoRuntimeClass" or selling.reason == "PodsRefused" then
  health.status = "Degraded"
elseif (status.nodes or 0) == 0 then
  health.status = "Degraded"
  health.message = "no GPU node matches nodeSelector"
elseif #faulty > 0 then
  health.status = "Degraded"
  health.message = table.concat(faulty, ", ")
end
return health
