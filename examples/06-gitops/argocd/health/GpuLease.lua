-- Health of a GpuLease in Argo CD. Argo CD runs Lua 5.1 with only the base and table libraries.
local health = { status = "Progressing", message = "the market operator has not processed it yet" }
local status = obj.status
if status == nil or status.phase == nil or (status.observedGeneration or 0) < (obj.metadata.generation or 0) then
  return health
end

local ready = { status = "Unknown", reason = "", message = "" }
local funded = ready
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Ready" then ready = condition end
  if condition.type == "Funded" then funded = condition end
end

local function describe(condition)
  if (condition.message or "") == "" then return condition.reason or "" end
  return condition.reason .. ": " .. condition.message
end

-- Reasons that do not resolve by waiting: the manifest, the wallet or the market must change.
local needs_action = {
  InvalidSpec = true, NetworkNotFound = true, PriceOutOfRange = true,
  WalletNotReadable = true, WalletMalformed = true, InsufficientFunds = true, InsufficientGas = true,
}

health.message = status.phase .. ", " .. describe(ready)
if status.phase == "Pending" then
  if needs_action[ready.reason] then health.status = "Degraded" end
elseif status.phase == "Active" then
  if ready.status == "True" then
    health.status = "Healthy"
    if funded.status ~= "True" then health.message = "Active, but not topped up: " .. describe(funded) end
  elseif ready.status == "Unknown" then
    -- The paid time is served, but the provider or the chain cannot be read.
    health.status = "Unknown"
  elseif ready.reason == "GpuFault" or ready.reason == "NodeLost" then
    health.status = "Degraded"
  end
elseif status.phase == "Suspended" then
  health.status = "Suspended"
  health.message = "Suspended, " .. describe(funded)
elseif status.phase == "Closed" then
  local money = status.money or {}
  health.message = "Closed, " .. (status.closeReason or "")
    .. ": spent " .. (money.spent or "0") .. ", refunded " .. (money.refunded or "0")
  if status.closeReason == "JobSucceeded" or status.closeReason == "TermOver" then
    health.status = "Healthy"
  elseif status.closeReason ~= "Deleted" then
    health.status = "Degraded"
  end
end
return health
