// SPDX-License-Identifier: Apache-2.0
// The whole of the escrow that a caller sees: actions, views, events and errors. The rules behind them are in
// Escrow.sol (who may), EscrowClock.sol (time and money) and EscrowViews.sol.
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Account, Authorization, Permit, Snapshot, Terms} from "./EscrowTypes.sol";

/// @title Leasehold's escrow, as its callers see it.
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
    /// @notice The balance covered no further second at `exhaustedAt`; every leg stopped there. Emitted by the next call.
    event Exhausted(bytes32 indexed id, uint40 exhaustedAt);
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

    /// @notice Opens an account with the caller's own money, by allowance.
    /// @param deposit base units; 0 is allowed, and can be topped up later
    /// @param validUntil unix seconds; a transaction that is mined later does nothing
    function open(Terms calldata terms, uint128 deposit, uint40 validUntil) external returns (bytes32 id);

    /// @notice open() with the allowance in the same transaction.
    function openWithPermit(Terms calldata terms, uint128 deposit, uint40 validUntil, Permit calldata permit)
        external
        returns (bytes32 id);

    /// @notice Opens an account for a payer who signed these arguments (openDigest), by the payer's allowance.
    /// @param signature of the payer: 65 bytes, or what the payer's ERC-1271 contract accepts
    function openWithSignature(Terms calldata terms, uint128 deposit, uint40 validUntil, bytes calldata signature)
        external
        returns (bytes32 id);

    /// @notice openWithSignature() with the payer's allowance in the same transaction.
    function openWithSignatureAndPermit(
        Terms calldata terms,
        uint128 deposit,
        uint40 validUntil,
        bytes calldata signature,
        Permit calldata permit
    ) external returns (bytes32 id);

    /// @notice Opens an account for a payer who signed these arguments, and an ERC-3009 authorization of the
    /// deposit to this contract whose nonce is the digest of these arguments: no allowance is needed or left.
    function openWithAuthorization(
        Terms calldata terms,
        uint128 deposit,
        uint40 validUntil,
        bytes calldata signature,
        Authorization calldata authorization
    ) external returns (bytes32 id);

    /// @notice Fills the account up to a total of `totalDeposited` base units from the caller's allowance. Anybody
    /// may; a repeat, a race or a smaller total moves nothing.
    /// @return amount base units moved
    function fundTo(Terms calldata terms, uint128 totalDeposited) external returns (uint128 amount);

    /// @notice fundTo() with the caller's allowance in the same transaction.
    function fundToWithPermit(Terms calldata terms, uint128 totalDeposited, Permit calldata permit)
        external
        returns (uint128 amount);

    /// @notice Starts the caller's legs; those that run already just go on. The first start of an account, and the
    /// first after an exhaustion, starts its clock.
    /// @param legs bitmap; every leg must have the caller as its controller
    function start(Terms calldata terms, uint16 legs) external;

    /// @notice Stops the caller's legs until they are started again. The account's clock goes on, even if none is
    /// left: what isn't served is the payer's.
    /// @param legs bitmap; every leg must have the caller as its controller
    function pause(Terms calldata terms, uint16 legs) external;

    /// @notice Gives served seconds of the caller's leg back to the payer, such as those between a fault and its
    /// pause. What was withdrawn already can't be given back.
    function credit(Terms calldata terms, uint8 leg, uint40 creditedSeconds) external;

    /// @notice Stops the caller's legs for good. They burn no more, so the others' end can only move later.
    /// @param legs bitmap; every leg must have the caller as its controller
    function endLeg(Terms calldata terms, uint16 legs) external;

    /// @notice Sends what the legs have earned to their payees. Each leg's payee or controller may ask for it, also
    /// after the close.
    /// @param legs bitmap
    /// @return amount base units sent
    function withdraw(Terms calldata terms, uint16 legs) external returns (uint256 amount);

    /// @notice withdraw() for many accounts.
    function settleMany(Terms[] calldata terms, uint16[] calldata legs) external returns (uint256 amount);

    /// @notice Ends the account and sends the payer everything that no leg has earned. By the payer (running legs
    /// then get noticeSeconds more, as far as the balance covers them); by the closer; by anybody once startBy has
    /// passed without a start, pauseFor has passed since exhaustion, or every leg has ended.
    /// @param payouts bitmap of legs whose earnings are sent to their payees in the same call
    /// @return refund base units that are the payer's
    function close(Terms calldata terms, uint16 payouts) external returns (uint128 refund);

    /// @notice Sends the caller a refund that could not be sent at the close.
    function withdrawCredit(IERC20 token) external returns (uint256 amount);

    /// @notice What a payer signs (EIP-712) so that somebody else can open the account; also the ERC-3009 nonce.
    function openDigest(Terms calldata terms, uint128 deposit, uint40 validUntil) external view returns (bytes32);

    /// @notice The most base units that can be put into one account.
    function MAX_DEPOSIT() external view returns (uint256);

    /// @notice Refunds that could not be sent at the close, in base units.
    function credits(address payer, IERC20 token) external view returns (uint256 amount);

    /// @notice The id of a payer's account. It binds the payer: nobody else can take it.
    function idOf(address payer, bytes32 salt) external pure returns (bytes32);

    /// @notice The most legs that an account can have.
    function MAX_LEGS() external view returns (uint256);

    /// @notice Rates and balances count 10^-12 base units.
    function SCALE() external view returns (uint256);

    /// @notice The account as of this block, settled, whether or not anybody has called since.
    function snapshot(Terms calldata terms) external view returns (Snapshot memory);

    /// @notice snapshot() of many accounts. One that doesn't exist, or has other terms, says so in its own row.
    function snapshots(Terms[] calldata terms) external view returns (Snapshot[] memory rows);

    /// @notice Accounts as stored, for who doesn't know their terms. termsHash is 0 where there is none.
    function raw(bytes32[] calldata ids) external view returns (Account[] memory rows);
}
