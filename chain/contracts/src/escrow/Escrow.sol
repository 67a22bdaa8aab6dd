// SPDX-License-Identifier: Apache-2.0
// Holds the deposit of a lease and distributes it by the second over up to 16 legs. It has no owner, no upgrade
// mechanism and no callbacks. A new version is a new contract.
pragma solidity ^0.8.28;

import {IERC3009} from "@openzeppelin/contracts/interfaces/draft-IERC3009.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {EscrowViews} from "./EscrowViews.sol";
import {Account, Authorization, Clock, Leg, LegState, Permit, Phase, Terms} from "./EscrowTypes.sol";
import {IEscrow} from "./IEscrow.sol";
import {OpenDigest} from "./OpenDigest.sol";

/// @title The Leasehold escrow.
/// @notice While the clock of an account runs, it burns the rates of all legs that have not ended. The seconds that
/// a leg serves belong to its payee. The seconds that it does not serve are set aside for the payer and refunded at
/// the close. Therefore a pause changes the end of no leg, and no payee can shorten the paid time of another. When
/// the balance covers no further second, all legs stop in the same second. After a top-up each must be started
/// again; the time in between is never charged.
contract Escrow is EscrowViews, EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @inheritdoc IEscrow
    uint256 public constant MAX_DEPOSIT = type(uint128).max / SCALE;

    /// @inheritdoc IEscrow
    mapping(address owner => mapping(IERC20 token => uint256 amount)) public credits;

    constructor() EIP712("Leasehold Escrow", "1") {}

    // ---------------------------------------------------------------- opening

    /// @inheritdoc IEscrow
    function open(Terms calldata terms, uint128 deposit, uint40 validUntil) external nonReentrant returns (bytes32 id) {
        if (msg.sender != terms.payer) revert NotPayer();
        id = _create(terms, deposit, validUntil);
        _pull(terms.token, msg.sender, deposit);
    }

    /// @inheritdoc IEscrow
    function openWithPermit(Terms calldata terms, uint128 deposit, uint40 validUntil, Permit calldata permit)
        external
        nonReentrant
        returns (bytes32 id)
    {
        if (msg.sender != terms.payer) revert NotPayer();
        id = _create(terms, deposit, validUntil);
        _tryPermit(terms.token, msg.sender, permit);
        _pull(terms.token, msg.sender, deposit);
    }

    /// @inheritdoc IEscrow
    function openWithSignature(Terms calldata terms, uint128 deposit, uint40 validUntil, bytes calldata signature)
        external
        nonReentrant
        returns (bytes32 id)
    {
        _checkSignature(terms, openDigest(terms, deposit, validUntil), signature);
        id = _create(terms, deposit, validUntil);
        _pull(terms.token, terms.payer, deposit);
    }

    /// @inheritdoc IEscrow
    function openWithSignatureAndPermit(
        Terms calldata terms,
        uint128 deposit,
        uint40 validUntil,
        bytes calldata signature,
        Permit calldata permit
    ) external nonReentrant returns (bytes32 id) {
        _checkSignature(terms, openDigest(terms, deposit, validUntil), signature);
        id = _create(terms, deposit, validUntil);
        _tryPermit(terms.token, terms.payer, permit);
        _pull(terms.token, terms.payer, deposit);
    }

    /// @inheritdoc IEscrow
    /// @dev The authorization is not sufficient: the token is an argument, and a token that does not verify
    /// authorizations would let a third party use the payer's id.
    function openWithAuthorization(
        Terms calldata terms,
        uint128 deposit,
        uint40 validUntil,
        bytes calldata signature,
        Authorization calldata authorization
    ) external nonReentrant returns (bytes32 id) {
        bytes32 digest = openDigest(terms, deposit, validUntil);
        _checkSignature(terms, digest, signature);
        id = _create(terms, deposit, validUntil);
        uint256 before = terms.token.balanceOf(address(this));
        IERC3009(address(terms.token))
            .receiveWithAuthorization(
                terms.payer,
                address(this),
                deposit,
                authorization.validAfter,
                authorization.validBefore,
                digest,
                authorization.v,
                authorization.r,
                authorization.s
            );
        _checkReceived(terms.token, before, deposit);
    }

    // ---------------------------------------------------------------- funding

    /// @inheritdoc IEscrow
    function fundTo(Terms calldata terms, uint128 totalDeposited) external nonReentrant returns (uint128 amount) {
        return _fundTo(terms, totalDeposited);
    }

    /// @inheritdoc IEscrow
    function fundToWithPermit(Terms calldata terms, uint128 totalDeposited, Permit calldata permit)
        external
        nonReentrant
        returns (uint128 amount)
    {
        _tryPermit(terms.token, msg.sender, permit);
        return _fundTo(terms, totalDeposited);
    }

    // ---------------------------------------------------------------- serving

    /// @inheritdoc IEscrow
    function start(Terms calldata terms, uint16 legs) external nonReentrant {
        (bytes32 id, Account storage account, Clock memory clock) = _loadOpen(terms);
        _checkBitmap(terms, legs);
        _checkControllers(terms, legs);
        _settle(id, clock, terms);
        if (legs & clock.ended != 0) revert LegIsEnded(_lowest(legs & clock.ended));
        if (clock.phase != Phase.Running) _startClock(id, clock, terms);
        uint16 changed = legs & ~clock.running;
        if (changed != 0) _checkCovered(clock, terms);
        for (uint16 rest = changed; rest != 0; rest &= rest - 1) {
            _legs[id][_lowest(rest)].runningSince = clock.paidSeconds;
        }
        clock.running |= changed;
        account.clock = clock;
        if (changed != 0) emit Started(id, changed, clock.paidSeconds);
    }

    /// @inheritdoc IEscrow
    function pause(Terms calldata terms, uint16 legs) external nonReentrant {
        (bytes32 id, Account storage account, Clock memory clock) = _loadOpen(terms);
        _checkBitmap(terms, legs);
        _checkControllers(terms, legs);
        _settle(id, clock, terms);
        uint16 changed = clock.phase == Phase.Running ? legs & clock.running : 0;
        _endRuns(id, clock, changed);
        account.clock = clock;
        if (changed != 0) emit Paused(id, changed, clock.paidSeconds);
    }

    /// @inheritdoc IEscrow
    function creditTo(Terms calldata terms, uint8 leg, uint40 creditedTotal) external nonReentrant {
        (bytes32 id, Account storage account, Clock memory clock) = _loadOpen(terms);
        if (leg >= terms.legs.length) revert NoSuchLeg(leg < MAX_LEGS ? uint16(1 << leg) : 0);
        if (msg.sender != terms.legs[leg].controller) revert NotController(leg);
        _settle(id, clock, terms);
        account.clock = clock;

        LegState memory state = _legs[id][leg];
        if (creditedTotal <= state.creditedSeconds) return;
        uint40 served = _served(state, clock, leg);
        uint256 rate = terms.legs[leg].rate;
        uint256 kept = (state.withdrawn * SCALE + rate - 1) / rate;
        uint256 atMost = state.creditedSeconds + served - kept;
        if (creditedTotal > atMost) revert CreditTooLarge(creditedTotal, atMost);
        uint40 creditedSeconds = creditedTotal - state.creditedSeconds;
        state.servedSeconds = served - creditedSeconds;
        state.runningSince = clock.paidSeconds;
        state.creditedSeconds = creditedTotal;
        _legs[id][leg] = state;
        emit Credited(id, leg, creditedSeconds, creditedTotal);
    }

    /// @inheritdoc IEscrow
    function endLeg(Terms calldata terms, uint16 legs) external nonReentrant {
        (bytes32 id, Account storage account, Clock memory clock) = _loadOpen(terms);
        _checkBitmap(terms, legs);
        _checkControllers(terms, legs);
        _settle(id, clock, terms);
        uint16 changed = legs & ~clock.ended;
        _endRuns(id, clock, changed & clock.running);
        for (uint16 rest = changed; rest != 0; rest &= rest - 1) {
            _legs[id][_lowest(rest)].endedAt = clock.paidSeconds;
        }
        clock.ended |= changed;
        if (clock.ended == _all(terms)) clock.phase = Phase.Ended;
        account.clock = clock;
        if (changed != 0) emit LegEnded(id, changed, clock.paidSeconds);
    }

    // ---------------------------------------------------------------- leaving

    /// @inheritdoc IEscrow
    function withdraw(Terms calldata terms, uint16 legs) external nonReentrant returns (uint256 amount) {
        return _withdraw(terms, legs);
    }

    /// @inheritdoc IEscrow
    function settleMany(Terms[] calldata terms, uint16[] calldata legs) external nonReentrant returns (uint256 amount) {
        if (terms.length != legs.length) revert LengthMismatch();
        for (uint256 i = 0; i < terms.length; ++i) {
            amount += _withdraw(terms[i], legs[i]);
        }
    }

    /// @inheritdoc IEscrow
    function close(Terms calldata terms, uint16 payouts) external nonReentrant returns (uint128 refund) {
        (bytes32 id, Account storage account, Clock memory clock) = _loadOpen(terms);
        if (payouts != 0) _checkBitmap(terms, payouts);
        _settle(id, clock, terms);
        if (msg.sender == terms.payer) {
            _giveNotice(clock, terms);
        } else if (msg.sender != terms.closer && !_isOver(clock, terms)) {
            revert MayNotClose();
        }
        refund = _deposited(id, clock, terms);
        if (clock.paidSeconds != 0) refund -= _earnedOfAll(id, clock, terms);
        clock.phase = Phase.Closed;
        account.clock = clock;
        emit Closed(id, msg.sender, refund);
        for (uint16 rest = payouts; rest != 0; rest &= rest - 1) {
            _payOut(id, clock, terms, _lowest(rest));
        }
        _send(id, terms.token, terms.payer, refund);
    }

    /// @inheritdoc IEscrow
    function withdrawCredit(IERC20 token, address to) external nonReentrant returns (uint256 amount) {
        if (to == address(0)) revert ZeroAddress();
        return _withdrawCredit(msg.sender, token, to);
    }

    /// @inheritdoc IEscrow
    function deliverCredit(IERC20 token, address owner) external nonReentrant returns (uint256 amount) {
        return _withdrawCredit(owner, token, owner);
    }

    // ---------------------------------------------------------------- reading

    /// @inheritdoc IEscrow
    function openDigest(Terms calldata terms, uint128 deposit, uint40 validUntil) public view returns (bytes32) {
        return _hashTypedDataV4(OpenDigest.structHash(terms, deposit, validUntil));
    }

    // ---------------------------------------------------------------- opening and funding, internal

    function _create(Terms calldata terms, uint128 deposit, uint40 validUntil) private returns (bytes32 id) {
        if (block.timestamp > validUntil) revert Expired(validUntil);
        if (block.timestamp > terms.startBy) revert StartByPassed(terms.startBy);
        if (deposit > MAX_DEPOSIT) revert DepositTooLarge(deposit);
        if (terms.payer == address(0) || terms.market == address(0)) revert ZeroAddress();
        if (address(terms.token) == address(0) || terms.closer == address(0)) revert ZeroAddress();
        uint256 count = terms.legs.length;
        if (count == 0 || count > MAX_LEGS) revert LegCount(count);
        for (uint256 i = 0; i < count; ++i) {
            Leg calldata leg = terms.legs[i];
            if (leg.payee == address(0) || leg.controller == address(0)) revert ZeroAddress();
            if (leg.rate == 0) revert ZeroRate(i);
        }

        id = idOf(terms.payer, terms.salt);
        Account storage account = _accounts[id];
        if (account.termsHash != 0) revert AccountExists(id);
        account.termsHash = keccak256(abi.encode(terms));
        account.clock.balance = uint128(deposit * SCALE);
        emit Opened(id, terms.payer, terms.market, terms, deposit);
    }

    function _checkSignature(Terms calldata terms, bytes32 digest, bytes calldata signature) private view {
        if (!SignatureChecker.isValidSignatureNowCalldata(terms.payer, digest, signature)) revert BadSignature();
    }

    function _fundTo(Terms calldata terms, uint128 totalDeposited) private returns (uint128 amount) {
        (bytes32 id, Account storage account, Clock memory clock) = _loadOpen(terms);
        uint128 deposited = _deposited(id, clock, terms);
        if (totalDeposited <= deposited) return 0;
        if (totalDeposited > MAX_DEPOSIT) revert DepositTooLarge(totalDeposited);
        _settle(id, clock, terms);
        amount = totalDeposited - deposited;
        clock.balance += uint128(amount * SCALE);
        account.clock = clock;
        emit Funded(id, msg.sender, amount, totalDeposited);
        _pull(terms.token, msg.sender, amount);
    }

    function _tryPermit(IERC20 token, address owner, Permit calldata permit) private {
        try IERC20Permit(address(token))
            .permit(owner, address(this), permit.value, permit.deadline, permit.v, permit.r, permit.s) {}
            catch {}
    }

    function _pull(IERC20 token, address from, uint256 amount) private {
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(from, address(this), amount);
        _checkReceived(token, before, amount);
    }

    function _checkReceived(IERC20 token, uint256 before, uint256 amount) private view {
        uint256 received = token.balanceOf(address(this)) - before;
        if (received != amount) revert TransferMismatch(amount, received);
    }

    // ---------------------------------------------------------------- leaving, internal

    function _withdraw(Terms calldata terms, uint16 legs) private returns (uint256 amount) {
        (bytes32 id, Account storage account, Clock memory clock) = _load(terms);
        _checkBitmap(terms, legs);
        _settle(id, clock, terms);
        account.clock = clock;
        for (uint16 rest = legs; rest != 0; rest &= rest - 1) {
            uint256 leg = _lowest(rest);
            if (msg.sender != terms.legs[leg].payee && msg.sender != terms.legs[leg].controller) {
                revert NotPayeeOrController(leg);
            }
            amount += _payOut(id, clock, terms, leg);
        }
    }

    /// @dev Sends to the payee what the leg is owed.
    function _payOut(bytes32 id, Clock memory clock, Terms calldata terms, uint256 leg) private returns (uint128 owed) {
        LegState memory state = _legs[id][leg];
        owed = _earned(state, clock, terms, leg) - state.withdrawn;
        if (owed == 0) return 0;
        _legs[id][leg].withdrawn = state.withdrawn + uint96(owed);
        address payee = terms.legs[leg].payee;
        emit Withdrawn(id, uint8(leg), payee, owed);
        _send(id, terms.token, payee, owed);
    }

    /// @dev An amount that the token does not transfer is credited, so that no holder whom the token rejects stops a
    /// call for others.
    function _send(bytes32 id, IERC20 token, address to, uint128 amount) private {
        if (amount == 0 || token.trySafeTransfer(to, amount)) return;
        credits[to][token] += amount;
        emit TransferCredited(id, to, token, amount);
    }

    /// @dev Sends all of an owner's credit, or nothing.
    function _withdrawCredit(address owner, IERC20 token, address to) private returns (uint256 amount) {
        amount = credits[owner][token];
        if (amount == 0) revert NoCredit();
        credits[owner][token] = 0;
        emit CreditWithdrawn(owner, token, to, amount);
        token.safeTransfer(to, amount);
    }
}
