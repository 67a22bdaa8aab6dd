// SPDX-License-Identifier: Apache-2.0
// Types of the escrow: what a client signs and reads, and what is stored.
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

/// @notice One leg of an account.
/// @param payee cold address that receives the money of the leg; it alone can send a credit elsewhere (withdrawCredit)
/// @param controller hot key that starts, pauses, credits and ends the leg
/// @param rate earnings of a served second, in 10^-12 base units of the token
struct Leg {
    address payee;
    address controller;
    uint128 rate;
}

/// @notice The terms of an account. Only their hash is stored, and every call passes them.
/// @param payer owner of the deposit, who receives every refund
/// @param market the market in which the account was opened; an index for readers, without permissions
/// @param token ERC-20 token of the payment; tokens that charge a fee on transfer or rebase are not supported
/// @param closer can close the account at any time without notice; the refund is sent to the payer
/// @param salt distinguishes the accounts of one payer
/// @param startBy Unix seconds; after it, an account without a start cannot start, and anyone can close it
/// @param noticeSeconds seconds for which running legs are paid when the payer closes, as far as the balance covers
/// them
/// @param pauseFor seconds after exhaustion until anyone can close the account
/// @param legs 1 to 16 legs; bit i of every bitmap refers to legs[i]
struct Terms {
    address payer;
    address market;
    IERC20 token;
    address closer;
    bytes32 salt;
    uint40 startBy;
    uint32 noticeSeconds;
    uint32 pauseFor;
    Leg[] legs;
}

/// @notice An ERC-2612 permit with the escrow as spender. A permit that fails is ignored, because it may have been
/// submitted before; the allowance decides.
/// @param value base units, at least the amount of the call; a larger value leaves an allowance for later top-ups
struct Permit {
    uint256 value;
    uint256 deadline;
    uint8 v;
    bytes32 r;
    bytes32 s;
}

/// @notice An ERC-3009 authorization of the token. Its nonce is the digest of the opening.
struct Authorization {
    uint256 validAfter;
    uint256 validBefore;
    uint8 v;
    bytes32 r;
    bytes32 s;
}

/// @notice Phase of an account. Ended leads only to Closed, and Closed is final. Only Running burns.
enum Phase {
    Unstarted,
    Running,
    Exhausted,
    Ended,
    Closed
}

/// @notice The clock of an account, as stored (one slot). It is valid at `settledAt`, not now.
/// @param balance amount that is not burned, in 10^-12 base units; once closed, the part that was refunded
/// @param settledAt Unix seconds up to which the clock was counted; if Exhausted, the second at which it stopped
/// @param paidSeconds seconds that the clock has burned since the first start
/// @param running bitmap of running legs; while the clock is stopped, the legs that ran in its last second
/// @param ended bitmap of the legs that ended permanently and no longer burn
/// @param phase Exhausted is stored by the next call; a snapshot shows it immediately
struct Clock {
    uint128 balance;
    uint40 settledAt;
    uint40 paidSeconds;
    uint16 running;
    uint16 ended;
    Phase phase;
}

/// @notice An account as stored (two slots). The deposit is the sum of the remaining and the burned amount.
struct Account {
    bytes32 termsHash;
    Clock clock;
}

/// @notice A leg as stored (one slot, written when the leg is first touched).
/// @param servedSeconds served and not credited, without the current run
/// @param runningSince paidSeconds of the account at the start of the current run
/// @param endedAt paidSeconds of the account when the leg ended
/// @param creditedSeconds total of the credits; only creditTo changes it, and it never falls
/// @param withdrawn base units withdrawn for the payee; never more than MAX_DEPOSIT, which is below 2^89
struct LegState {
    uint40 servedSeconds;
    uint40 runningSince;
    uint40 endedAt;
    uint40 creditedSeconds;
    uint96 withdrawn;
}

/// @notice A leg as of the block of the read.
/// @param servedSeconds served and not credited, including the current run
/// @param creditedSeconds total of the credits
/// @param endedAt paidSeconds of the account when the leg ended; 0 if it has not ended
/// @param withdrawn base units withdrawn for the payee
/// @param owed base units that can be withdrawn
struct LegView {
    uint40 servedSeconds;
    uint40 creditedSeconds;
    uint40 endedAt;
    uint128 withdrawn;
    uint128 owed;
}

/// @notice An account as of the block of the read.
/// @param exists whether an account has this payer and salt
/// @param matches whether it has these terms; otherwise all fields below except closed and phase are empty
/// @param closed whether it is closed; payees can still withdraw
/// @param phase phase as of this block, including an exhaustion that is not stored yet
/// @param deposited base units deposited since the opening
/// @param balanceScaled amount that is not burned, in 10^-12 base units; 0 once closed
/// @param blockTime Unix seconds of the block of the read
/// @param paidUntil Unix seconds at which all legs stop; exhaustedAt when exhausted; otherwise 0 while the clock is
/// stopped
/// @param exhaustedAt Unix seconds; 0 if not exhausted
/// @param paidSeconds seconds that the clock has burned
/// @param running bitmap of the legs that serve as of this block
/// @param ended bitmap of the legs that ended permanently
/// @param legs in the order of the terms
struct Snapshot {
    bool exists;
    bool matches;
    bool closed;
    Phase phase;
    uint128 deposited;
    uint256 balanceScaled;
    uint40 blockTime;
    uint40 paidUntil;
    uint40 exhaustedAt;
    uint40 paidSeconds;
    uint16 running;
    uint16 ended;
    LegView[] legs;
}
