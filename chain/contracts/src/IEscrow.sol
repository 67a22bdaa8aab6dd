// SPDX-License-Identifier: Apache-2.0
// The words of the escrow: what a client signs, sends, reads and decodes. The rules are in Escrow.sol.
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

/// @notice The account's clock, as stored (one slot): true at `settledAt`, not now.
/// @param balance what is not burned yet, in 10^-12 base units
/// @param settledAt unix seconds up to which the clock was counted; 0 while it stands
/// @param paidSeconds seconds that the clock has burned since the first start
/// @param running bitmap; while the clock stands, the legs that ran in its last second
/// @param ended bitmap of the legs that stopped for good and burn no more
/// @param closed nothing but withdrawing is left to do
struct Clock {
    uint128 balance;
    uint40 settledAt;
    uint40 paidSeconds;
    uint16 running;
    uint16 ended;
    bool closed;
}

/// @notice The account's money and dates, as stored (one slot).
/// @param deposited base units put in since the opening
/// @param exhaustedAt unix seconds at which the balance stopped covering a second; 0 after the next start
/// @param startedAt unix seconds of the first start; 0 before it
struct Ledger {
    uint128 deposited;
    uint40 exhaustedAt;
    uint40 startedAt;
}

/// @notice An account as stored (three slots).
struct Account {
    bytes32 termsHash;
    Clock clock;
    Ledger ledger;
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
/// @param matches and it has these terms; otherwise everything below but closed and deposited is empty
/// @param closed nothing but withdrawing is left to do
/// @param deposited base units put in since the opening
/// @param balanceScaled not burned, in 10^-12 base units; 0 once closed
/// @param blockTime unix seconds of the block of the read
/// @param paidUntil unix seconds at which all legs stop; exhaustedAt when exhausted; 0 if the clock stands otherwise
/// @param exhaustedAt unix seconds; 0 if not exhausted
/// @param startedAt unix seconds of the first start; 0 before it
/// @param paidSeconds seconds that the clock has burned
/// @param running bitmap of the legs that serve in this second
/// @param ended bitmap of the legs that stopped for good
/// @param legs in the order of the terms
struct Snapshot {
    bool exists;
    bool matches;
    bool closed;
    uint128 deposited;
    uint256 balanceScaled;
    uint40 blockTime;
    uint40 paidUntil;
    uint40 exhaustedAt;
    uint40 startedAt;
    uint40 paidSeconds;
    uint16 running;
    uint16 ended;
    LegView[] legs;
}

/// @title What the escrow says: its events and errors.
interface IEscrow {
    /// @notice The whole terms are here, so that a client that lost everything finds them again.
    event Opened(bytes32 indexed id, address indexed payer, address indexed market, Terms terms, uint128 deposit);
    /// @notice `amount` base units came from `from`; `deposited` is the new total.
    event Funded(bytes32 indexed id, address indexed from, uint128 amount, uint128 deposited);
    /// @notice The legs of the bitmap began to serve; the account's paidSeconds then.
    event Started(bytes32 indexed id, uint16 legs, uint40 paidSeconds);
    /// @notice The legs of the bitmap stopped serving; the account's paidSeconds then.
    event Paused(bytes32 indexed id, uint16 legs, uint40 paidSeconds);
    /// @notice The leg's controller gave served seconds back to the payer.
    event Credited(bytes32 indexed id, uint8 leg, uint40 creditedSeconds);
    /// @notice The legs of the bitmap stopped for good; the account's paidSeconds then.
    event LegEnded(bytes32 indexed id, uint16 legs, uint40 paidSeconds);
    /// @notice The balance covered no further second at `at`; every leg stopped there. Emitted by the next call.
    event Exhausted(bytes32 indexed id, uint40 at);
    /// @notice `amount` base units of a leg went to its payee.
    event Withdrawn(bytes32 indexed id, uint8 leg, address indexed payee, uint128 amount);
    /// @notice A payout asked for at the close failed; the payee can still withdraw it.
    event PayoutFailed(bytes32 indexed id, uint8 leg, address indexed payee, uint128 amount);
    /// @notice `by` closed the account; `refund` base units are the payer's.
    event Closed(bytes32 indexed id, address indexed by, uint128 refund);
    /// @notice The refund could not be sent and waits for withdrawCredit.
    event RefundCredited(bytes32 indexed id, address indexed payer, IERC20 indexed token, uint128 amount);
    /// @notice A waiting refund was sent.
    event CreditWithdrawn(address indexed payer, IERC20 indexed token, uint256 amount);

    /// @notice The id is taken: an account of this payer and salt was opened before.
    error AccountExists(bytes32 id);
    /// @notice No account of this payer and salt was opened.
    error AccountUnknown(bytes32 id);
    /// @notice The account has other terms than these.
    error TermsDiffer(bytes32 id);
    /// @notice The account was closed.
    error AccountClosed(bytes32 id);
    /// @notice The block is later than the caller's validUntil.
    error Expired(uint40 validUntil);
    /// @notice startBy lies in the past; for start: it has passed and the account never started.
    error StartByPassed(uint40 startBy);
    /// @notice An account has 1 to 16 legs.
    error LegCount(uint256 count);
    /// @notice Payer, market, token, closer, payee and controller must be set.
    error ZeroAddress();
    /// @notice A leg must earn something, or the account could never be exhausted.
    error ZeroRate(uint256 leg);
    /// @notice More than the account can count (2^128 / 10^12 base units).
    error DepositTooLarge(uint256 deposit);
    /// @notice The token moved another amount than asked for: it takes a fee, and doesn't fit.
    error TransferMismatch(uint256 expected, uint256 received);
    /// @notice Not signed by the payer over exactly these arguments.
    error BadSignature();
    /// @notice Only the payer may.
    error NotPayer();
    /// @notice Only the leg's controller may.
    error NotController(uint256 leg);
    /// @notice Only the leg's payee or controller may.
    error NotPayeeOrController(uint256 leg);
    /// @notice The caller may not close, or not yet.
    error MayNotClose();
    /// @notice The bitmap is empty or names a leg that the terms don't have.
    error NoSuchLeg(uint16 legs);
    /// @notice The leg was ended for good.
    error LegIsEnded(uint256 leg);
    /// @notice The balance does not cover one second; top up first (both in 10^-12 base units).
    error NotCovered(uint256 balance, uint256 perSecond);
    /// @notice Only as many seconds can be given back as were served and not withdrawn.
    error CreditTooLarge(uint256 creditedSeconds, uint256 atMost);
    /// @notice Each terms needs its bitmap.
    error LengthMismatch();
    /// @notice No refund waits for the caller.
    error NoCredit();
}
