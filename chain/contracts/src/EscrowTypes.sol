// SPDX-License-Identifier: Apache-2.0
// The words of the escrow: what a client signs and reads, and what is stored.
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

/// @notice One share of an account: a provider's, or a fee's.
/// @param payee the cold address that the leg's money goes to, and the only one
/// @param controller the hot key that starts, pauses, credits and ends the leg
/// @param rate what a served second earns, in 10^-12 base units of the token
struct Leg {
    address payee;
    address controller;
    uint128 rate;
}

/// @notice What an account is. Stored as a hash only; every call brings the terms along.
/// @param payer whose money it is, and where every refund goes
/// @param market the market that the account was opened in; an index for readers, without any right
/// @param token the ERC-20 that is paid; tokens that take a fee on transfer or rebase don't fit
/// @param closer may close at any time, without notice; the refund goes to the payer all the same
/// @param salt tells the accounts of one payer apart
/// @param startBy unix seconds; no first start after it, and anybody may close then
/// @param noticeSeconds paid to running legs when the payer closes, as far as the balance covers them
/// @param pauseFor seconds after exhaustion before anybody may close
/// @param legs 1 to 16 of them; bit i of every bitmap is legs[i]
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

/// @notice An ERC-2612 permit for the escrow as spender. One that fails is ignored: somebody may have
/// submitted it already, and the allowance alone decides.
/// @param value base units, at least what the call pulls; more leaves an allowance for later top-ups
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

/// @notice Where an account stands. Only Unstarted, Running and Exhausted lead on, and only Running burns.
enum Phase {
    Unstarted,
    Running,
    Exhausted,
    Ended,
    Closed
}

/// @notice The account's clock, as stored (one slot): true at `settledAt`, not now.
/// @param balance what is not burned yet, in 10^-12 base units; once closed, what went back with the refund
/// @param settledAt unix seconds up to which the clock was counted; if Exhausted, the second at which it stopped
/// @param paidSeconds seconds that the clock has burned since the first start
/// @param running bitmap; while the clock stands, the legs that ran in its last second
/// @param ended bitmap of the legs that stopped for good and burn no more
/// @param phase Exhausted is only written by the next call; a snapshot knows at once
struct Clock {
    uint128 balance;
    uint40 settledAt;
    uint40 paidSeconds;
    uint16 running;
    uint16 ended;
    Phase phase;
}

/// @notice An account as stored (two slots). What was deposited follows from what is left and what was burned.
struct Account {
    bytes32 termsHash;
    Clock clock;
}

/// @notice A leg as stored (one slot, written when the leg is first touched).
/// @param servedSeconds served and kept, without the run that goes on
/// @param runningSince the account's paidSeconds at the start of that run
/// @param endedAt the account's paidSeconds when the leg ended
/// @param withdrawn base units sent to the payee
struct LegState {
    uint40 servedSeconds;
    uint40 runningSince;
    uint40 endedAt;
    uint128 withdrawn;
}

/// @notice A leg as it stands at the block of the read.
/// @param servedSeconds served and kept, with the run that goes on
/// @param endedAt the account's paidSeconds when the leg ended; 0 if it has not
/// @param withdrawn base units sent to the payee
/// @param owed base units that can be withdrawn
struct LegView {
    uint40 servedSeconds;
    uint40 endedAt;
    uint128 withdrawn;
    uint128 owed;
}

/// @notice An account as it stands at the block of the read.
/// @param exists an account has this payer and salt
/// @param matches and it has these terms; otherwise everything below but closed and phase is empty
/// @param closed nothing but withdrawing is left to do
/// @param phase of this block: Exhausted as soon as it is
/// @param deposited base units put in since the opening
/// @param balanceScaled not burned, in 10^-12 base units; 0 once closed
/// @param blockTime unix seconds of the block of the read
/// @param paidUntil unix seconds at which all legs stop; exhaustedAt when exhausted; 0 if the clock stands otherwise
/// @param exhaustedAt unix seconds; 0 if not exhausted
/// @param paidSeconds seconds that the clock has burned
/// @param running bitmap of the legs that serve in this second
/// @param ended bitmap of the legs that stopped for good
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
