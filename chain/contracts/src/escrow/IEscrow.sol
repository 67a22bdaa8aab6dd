// SPDX-License-Identifier: Apache-2.0
// The complete interface of the escrow: actions, views, events and errors. They are implemented in Escrow.sol
// (permissions), EscrowClock.sol (time and money) and EscrowViews.sol.
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Account, Authorization, Permit, Snapshot, Terms} from "./EscrowTypes.sol";

/// @title Interface of the Leasehold escrow.
interface IEscrow {
    /// @notice An account was opened. Contains the complete terms, so that a client can recover them.
    event Opened(bytes32 indexed id, address indexed payer, address indexed market, Terms terms, uint128 deposit);
    /// @notice `amount` base units were received from `from`. `deposited` is the new total.
    event Funded(bytes32 indexed id, address indexed from, uint128 amount, uint128 deposited);
    /// @notice The legs of the bitmap started to serve. `paidSeconds` of the account at that time.
    event Started(bytes32 indexed id, uint16 legs, uint40 paidSeconds);
    /// @notice The legs of the bitmap stopped serving. `paidSeconds` of the account at that time.
    event Paused(bytes32 indexed id, uint16 legs, uint40 paidSeconds);
    /// @notice The controller of the leg returned `creditedSeconds` to the payer. `creditedTotal` is the new total.
    event Credited(bytes32 indexed id, uint8 leg, uint40 creditedSeconds, uint40 creditedTotal);
    /// @notice The legs of the bitmap ended permanently. `paidSeconds` of the account at that time.
    event LegEnded(bytes32 indexed id, uint16 legs, uint40 paidSeconds);
    /// @notice The balance covered no further second at `exhaustedAt`, and all legs stopped. Emitted by the next call.
    event Exhausted(bytes32 indexed id, uint40 exhaustedAt);
    /// @notice `amount` base units of a leg were withdrawn. They were sent to its payee, unless TransferCredited follows.
    event Withdrawn(bytes32 indexed id, uint8 leg, address indexed payee, uint128 amount);
    /// @notice `by` closed the account. `refund` base units belong to the payer.
    event Closed(bytes32 indexed id, address indexed by, uint128 refund);
    /// @notice The token did not transfer a refund or a payout to `owner` (withdrawCredit, deliverCredit).
    event TransferCredited(bytes32 indexed id, address indexed owner, IERC20 indexed token, uint128 amount);
    /// @notice The credited amounts of `owner` were sent to `to`.
    event CreditWithdrawn(address indexed owner, IERC20 indexed token, address indexed to, uint256 amount);

    /// @notice An account with this payer and salt was opened before.
    error AccountExists(bytes32 id);
    /// @notice No account with this payer and salt was opened.
    error AccountUnknown(bytes32 id);
    /// @notice The account has different terms.
    error TermsDiffer(bytes32 id);
    /// @notice The account is closed.
    error AccountClosed(bytes32 id);
    /// @notice The time of the block is after validUntil.
    error Expired(uint40 validUntil);
    /// @notice startBy has passed. In start: it has passed, and the account never started.
    error StartByPassed(uint40 startBy);
    /// @notice An account must have 1 to 16 legs.
    error LegCount(uint256 count);
    /// @notice Payer, market, token, closer, payee, controller and a recipient must not be zero.
    error ZeroAddress();
    /// @notice The rate of a leg must not be zero, because the account could otherwise never be exhausted.
    error ZeroRate(uint256 leg);
    /// @notice The deposit exceeds the range of an account (2^128 / 10^12 base units).
    error DepositTooLarge(uint256 deposit);
    /// @notice The token transferred a different amount. Tokens that charge a fee are not supported.
    error TransferMismatch(uint256 expected, uint256 received);
    /// @notice The signature is not one of the payer over these arguments.
    error BadSignature();
    /// @notice The caller is not the payer.
    error NotPayer();
    /// @notice The caller is not the controller of the leg.
    error NotController(uint256 leg);
    /// @notice The caller is neither the payee nor the controller of the leg.
    error NotPayeeOrController(uint256 leg);
    /// @notice The caller cannot close the account, or cannot close it yet.
    error MayNotClose();
    /// @notice The bitmap is empty or contains a leg that is not in the terms.
    error NoSuchLeg(uint16 legs);
    /// @notice The leg has ended permanently.
    error LegIsEnded(uint256 leg);
    /// @notice The balance does not cover one second. Top up first. Both values are in 10^-12 base units.
    error NotCovered(uint256 balance, uint256 perSecond);
    /// @notice Only seconds that were served and not withdrawn can be credited. Both values are totals.
    error CreditTooLarge(uint256 creditedTotal, uint256 atMost);
    /// @notice The number of terms and the number of bitmaps differ.
    error LengthMismatch();
    /// @notice The owner has no credited amount of the token.
    error NoCredit();

    /// @notice Opens an account with the caller's own tokens, using the caller's allowance.
    /// @param deposit base units; can be 0 and topped up later
    /// @param validUntil Unix seconds; a transaction that is mined later reverts
    function open(Terms calldata terms, uint128 deposit, uint40 validUntil) external returns (bytes32 id);

    /// @notice open() that sets the allowance in the same transaction.
    function openWithPermit(Terms calldata terms, uint128 deposit, uint40 validUntil, Permit calldata permit)
        external
        returns (bytes32 id);

    /// @notice Opens an account for a payer who signed these arguments (openDigest), using the payer's allowance.
    /// @param signature signature of the payer: 65 bytes, or any bytes that the payer's ERC-1271 contract accepts
    function openWithSignature(Terms calldata terms, uint128 deposit, uint40 validUntil, bytes calldata signature)
        external
        returns (bytes32 id);

    /// @notice openWithSignature() that sets the payer's allowance in the same transaction.
    function openWithSignatureAndPermit(
        Terms calldata terms,
        uint128 deposit,
        uint40 validUntil,
        bytes calldata signature,
        Permit calldata permit
    ) external returns (bytes32 id);

    /// @notice Opens an account for a payer who signed these arguments and an ERC-3009 authorization of the deposit
    /// to this contract. The nonce of the authorization is the digest of these arguments. No allowance is used.
    function openWithAuthorization(
        Terms calldata terms,
        uint128 deposit,
        uint40 validUntil,
        bytes calldata signature,
        Authorization calldata authorization
    ) external returns (bytes32 id);

    /// @notice Raises the deposit of the account to a total of `totalDeposited` base units, using the caller's
    /// allowance. Anyone can call it. A repeated call, a race or a smaller total transfers nothing.
    /// @return amount transferred base units
    function fundTo(Terms calldata terms, uint128 totalDeposited) external returns (uint128 amount);

    /// @notice fundTo() that sets the caller's allowance in the same transaction.
    function fundToWithPermit(Terms calldata terms, uint128 totalDeposited, Permit calldata permit)
        external
        returns (uint128 amount);

    /// @notice Starts legs of the caller. Legs that already run continue to run. The first start of an account, and
    /// the first after an exhaustion, starts its clock.
    /// @param legs bitmap; the caller must be the controller of every leg
    function start(Terms calldata terms, uint16 legs) external;

    /// @notice Stops legs of the caller until they are started again. The clock of the account continues even if no
    /// leg runs. Seconds that are not served belong to the payer.
    /// @param legs bitmap; the caller must be the controller of every leg
    function pause(Terms calldata terms, uint16 legs) external;

    /// @notice Raises the seconds of a leg of the caller that are returned to the payer to a total of
    /// `creditedTotal`, such as by those between a fault and its pause. Only served seconds can be credited, and none
    /// that have been withdrawn. A repeated call, a race or a smaller total credits nothing.
    function creditTo(Terms calldata terms, uint8 leg, uint40 creditedTotal) external;

    /// @notice Ends legs of the caller permanently. They no longer burn, so the end of the other legs can only move
    /// to a later time.
    /// @param legs bitmap; the caller must be the controller of every leg
    function endLeg(Terms calldata terms, uint16 legs) external;

    /// @notice Sends the earnings of the legs to their payees. The payee or the controller of each leg can call it,
    /// also after the close. An amount that the token does not transfer to its payee is credited to it (withdrawCredit,
    /// deliverCredit).
    /// @param legs bitmap
    /// @return amount base units that were sent or credited
    function withdraw(Terms calldata terms, uint16 legs) external returns (uint256 amount);

    /// @notice withdraw() for many accounts.
    function settleMany(Terms[] calldata terms, uint16[] calldata legs) external returns (uint256 amount);

    /// @notice Closes the account and refunds everything that no leg has earned to the payer. Can be called by the
    /// payer (running legs are then paid for noticeSeconds more, as far as the balance covers them), by the closer,
    /// and by anyone after startBy has passed without a start, after pauseFor has passed since exhaustion, or when
    /// every leg has ended.
    /// @param payouts bitmap of legs whose earnings are sent to their payees in the same call
    /// @return refund base units that belong to the payer
    function close(Terms calldata terms, uint16 payouts) external returns (uint128 refund);

    /// @notice Sends what the token did not transfer to the caller, refunds and payouts alike, to any recipient, such
    /// as another address that the token has not blocked.
    /// @param to must not be zero
    /// @return amount sent base units
    function withdrawCredit(IERC20 token, address to) external returns (uint256 amount);

    /// @notice Sends what the token did not transfer to `owner`, refunds and payouts alike, to `owner`. Anyone can call
    /// it, also for an owner that is a contract and cannot call withdrawCredit.
    /// @return amount sent base units
    function deliverCredit(IERC20 token, address owner) external returns (uint256 amount);

    /// @notice The EIP-712 digest that a payer signs so that another caller can open the account. It is also the
    /// ERC-3009 nonce.
    function openDigest(Terms calldata terms, uint128 deposit, uint40 validUntil) external view returns (bytes32);

    /// @notice The maximum deposit of one account in base units.
    function MAX_DEPOSIT() external view returns (uint256);

    /// @notice Refunds and payouts that the token did not transfer to `owner`, in base units.
    function credits(address owner, IERC20 token) external view returns (uint256 amount);

    /// @notice The id of an account. It depends on the payer, so nobody else can occupy it.
    function idOf(address payer, bytes32 salt) external pure returns (bytes32);

    /// @notice The maximum number of legs of an account.
    function MAX_LEGS() external view returns (uint256);

    /// @notice Rates and balances are in units of 10^-12 base units.
    function SCALE() external view returns (uint256);

    /// @notice The account as of this block. Includes elapsed seconds that no transaction has settled yet.
    function snapshot(Terms calldata terms) external view returns (Snapshot memory);

    /// @notice snapshot() for many accounts. The row of an account shows if it does not exist or has different terms.
    function snapshots(Terms[] calldata terms) external view returns (Snapshot[] memory rows);

    /// @notice Accounts as stored, for callers that do not know their terms. termsHash is 0 if there is no account.
    function raw(bytes32[] calldata ids) external view returns (Account[] memory rows);
}
