// SPDX-License-Identifier: Apache-2.0
// The money of a lease: a payer's deposit that burns by the second into up to 16 legs. It has no owner,
// no upgrade and no callback; what a later version does differently is a later contract.
pragma solidity ^0.8.28;

import {IERC3009} from "@openzeppelin/contracts/interfaces/draft-IERC3009.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {
    Account,
    Authorization,
    Clock,
    IEscrow,
    Ledger,
    Leg,
    LegState,
    LegView,
    Permit,
    Snapshot,
    Terms
} from "./IEscrow.sol";
import {OpenDigest} from "./OpenDigest.sol";

/// @title Leasehold's escrow.
/// @notice While an account's clock runs, it burns the rates of all its legs that have not ended. What a leg
/// serves is its payee's; what it does not serve is set aside for the payer, who gets it back at the close. So a
/// pause moves nobody's end, and no payee can shorten another's runway. Once the balance covers no further second,
/// all legs stop in the same one, and each must be started again after a top-up: the gap is never charged.
/// @dev Only seconds are counted; money is rate times seconds, in 10^-12 base units, and is rounded once: down,
/// when a payee's total is paid out. Hence deposited * SCALE == balance + sum(rate * burned seconds) at any time,
/// and refund + sum(floor(earned)) == deposited at the close.
contract Escrow is IEscrow, EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @notice The most legs that an account can have.
    uint256 public constant MAX_LEGS = 16;
    /// @notice Rates and balances count 10^-12 base units.
    uint256 public constant SCALE = 1e12;
    /// @notice The most base units that can be put into one account.
    uint256 public constant MAX_DEPOSIT = type(uint128).max / SCALE;

    mapping(bytes32 id => Account) private _accounts;
    mapping(bytes32 id => mapping(uint256 leg => LegState)) private _legs;

    /// @notice Refunds that could not be sent at the close, in base units.
    mapping(address payer => mapping(IERC20 token => uint256 amount)) public credits;

    constructor() EIP712("Leasehold Escrow", "1") {}

    // ---------------------------------------------------------------- opening

    /// @notice Opens an account with the caller's own money, by allowance.
    /// @param deposit base units; 0 is allowed, and can be topped up later
    /// @param validUntil unix seconds; a transaction that is mined later does nothing
    function open(Terms calldata terms, uint128 deposit, uint40 validUntil) external nonReentrant returns (bytes32 id) {
        if (msg.sender != terms.payer) revert NotPayer();
        id = _create(terms, deposit, validUntil);
        _pull(terms.token, msg.sender, deposit);
    }

    /// @notice open() with the allowance in the same transaction.
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

    /// @notice Opens an account for a payer who signed these arguments (openDigest), by the payer's allowance.
    /// @param signature of the payer: 65 bytes, or what the payer's ERC-1271 contract accepts
    function openWithSignature(Terms calldata terms, uint128 deposit, uint40 validUntil, bytes calldata signature)
        external
        nonReentrant
        returns (bytes32 id)
    {
        _checkSignature(terms, openDigest(terms, deposit, validUntil), signature);
        id = _create(terms, deposit, validUntil);
        _pull(terms.token, terms.payer, deposit);
    }

    /// @notice openWithSignature() with the payer's allowance in the same transaction.
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

    /// @notice Opens an account for a payer who signed these arguments, and an ERC-3009 authorization of the
    /// deposit to this contract whose nonce is the digest of these arguments: no allowance is needed or left.
    /// @dev The authorization alone would not do: the token is an argument too, and one that checks nothing would
    /// let a stranger take the payer's id.
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

    /// @notice Fills the account up to a total of `totalDeposited` base units from the caller's allowance. Anybody
    /// may; a repeat, a race or a smaller total moves nothing.
    /// @return amount base units moved
    function fundTo(Terms calldata terms, uint128 totalDeposited) external nonReentrant returns (uint128 amount) {
        return _fundTo(terms, totalDeposited);
    }

    /// @notice fundTo() with the caller's allowance in the same transaction.
    function fundToWithPermit(Terms calldata terms, uint128 totalDeposited, Permit calldata permit)
        external
        nonReentrant
        returns (uint128 amount)
    {
        _tryPermit(terms.token, msg.sender, permit);
        return _fundTo(terms, totalDeposited);
    }

    // ---------------------------------------------------------------- serving

    /// @notice Starts the caller's legs; those that run already just go on. The first start of an account, and the
    /// first after an exhaustion, starts its clock.
    /// @param legs bitmap; every leg must have the caller as its controller
    function start(Terms calldata terms, uint16 legs) external nonReentrant {
        (bytes32 id, Account storage account, Clock memory clock) = _loadOpen(terms);
        _checkBitmap(terms, legs);
        _checkControllers(terms, legs);
        _settle(id, account, clock, terms);
        if (legs & clock.ended != 0) revert LegIsEnded(_lowest(legs & clock.ended));
        if (clock.settledAt == 0) {
            _startClock(id, account, clock, terms);
        } else if (legs & ~clock.running != 0) {
            _checkCovered(clock, terms);
        }
        uint16 changed = legs & ~clock.running;
        for (uint16 rest = changed; rest != 0; rest &= rest - 1) {
            _legs[id][_lowest(rest)].runningSince = clock.paidSeconds;
        }
        clock.running |= changed;
        account.clock = clock;
        if (changed != 0) emit Started(id, changed, clock.paidSeconds);
    }

    /// @notice Stops the caller's legs until they are started again. The account's clock goes on, even if none is
    /// left: what isn't served is the payer's.
    /// @param legs bitmap; every leg must have the caller as its controller
    function pause(Terms calldata terms, uint16 legs) external nonReentrant {
        (bytes32 id, Account storage account, Clock memory clock) = _loadOpen(terms);
        _checkBitmap(terms, legs);
        _checkControllers(terms, legs);
        _settle(id, account, clock, terms);
        uint16 changed = clock.settledAt == 0 ? 0 : legs & clock.running;
        _endRuns(id, clock, changed);
        account.clock = clock;
        if (changed != 0) emit Paused(id, changed, clock.paidSeconds);
    }

    /// @notice Gives served seconds of the caller's leg back to the payer, such as those between a fault and its
    /// pause. What was withdrawn already can't be given back.
    function credit(Terms calldata terms, uint8 leg, uint40 creditedSeconds) external nonReentrant {
        (bytes32 id, Account storage account, Clock memory clock) = _loadOpen(terms);
        if (leg >= terms.legs.length) revert NoSuchLeg(leg < MAX_LEGS ? uint16(1 << leg) : 0);
        if (msg.sender != terms.legs[leg].controller) revert NotController(leg);
        _settle(id, account, clock, terms);
        account.clock = clock;

        LegState memory state = _legs[id][leg];
        uint40 served = _served(state, clock, leg);
        uint256 rate = terms.legs[leg].rate;
        uint256 kept = (state.withdrawn * SCALE + rate - 1) / rate;
        if (creditedSeconds > served - kept) revert CreditTooLarge(creditedSeconds, served - kept);
        if (creditedSeconds == 0) return;
        state.servedSeconds = served - creditedSeconds;
        state.runningSince = clock.paidSeconds;
        _legs[id][leg] = state;
        emit Credited(id, leg, creditedSeconds);
    }

    /// @notice Stops the caller's legs for good. They burn no more, so the others' end can only move later.
    /// @param legs bitmap; every leg must have the caller as its controller
    function endLeg(Terms calldata terms, uint16 legs) external nonReentrant {
        (bytes32 id, Account storage account, Clock memory clock) = _loadOpen(terms);
        _checkBitmap(terms, legs);
        _checkControllers(terms, legs);
        _settle(id, account, clock, terms);
        uint16 changed = legs & ~clock.ended;
        _endRuns(id, clock, changed & clock.running);
        for (uint16 rest = changed; rest != 0; rest &= rest - 1) {
            _legs[id][_lowest(rest)].endedAt = clock.paidSeconds;
        }
        clock.ended |= changed;
        if (clock.ended == _all(terms)) clock.settledAt = 0;
        account.clock = clock;
        if (changed != 0) emit LegEnded(id, changed, clock.paidSeconds);
    }

    // ---------------------------------------------------------------- leaving

    /// @notice Sends what the legs have earned to their payees. Each leg's payee or controller may ask for it, also
    /// after the close.
    /// @param legs bitmap
    /// @return amount base units sent
    function withdraw(Terms calldata terms, uint16 legs) external nonReentrant returns (uint256 amount) {
        return _withdraw(terms, legs);
    }

    /// @notice withdraw() for many accounts.
    function settleMany(Terms[] calldata terms, uint16[] calldata legs) external nonReentrant returns (uint256 amount) {
        if (terms.length != legs.length) revert LengthMismatch();
        for (uint256 i = 0; i < terms.length; ++i) {
            amount += _withdraw(terms[i], legs[i]);
        }
    }

    /// @notice Ends the account and sends the payer everything that no leg has earned. By the payer (running legs
    /// then get noticeSeconds more, as far as the balance covers them); by the closer; by anybody once startBy has
    /// passed without a start, pauseFor has passed since exhaustion, or every leg has ended.
    /// @param payouts bitmap of legs whose earnings are sent to their payees in the same call
    /// @return refund base units that are the payer's
    function close(Terms calldata terms, uint16 payouts) external nonReentrant returns (uint128 refund) {
        (bytes32 id, Account storage account, Clock memory clock) = _loadOpen(terms);
        if (payouts != 0) _checkBitmap(terms, payouts);
        _settle(id, account, clock, terms);
        Ledger memory ledger = account.ledger;
        if (msg.sender == terms.payer) {
            _giveNotice(clock, terms);
        } else if (msg.sender != terms.closer && !_isOver(clock, ledger, terms)) {
            revert MayNotClose();
        }
        refund = ledger.deposited - (ledger.startedAt == 0 ? 0 : _earnedOfAll(id, clock, terms));
        clock.balance = 0;
        clock.settledAt = 0;
        clock.closed = true;
        account.clock = clock;
        emit Closed(id, msg.sender, refund);
        for (uint16 rest = payouts; rest != 0; rest &= rest - 1) {
            _tryPayOut(id, clock, terms, _lowest(rest));
        }
        _sendRefund(id, terms, refund);
    }

    /// @notice Sends the caller a refund that could not be sent at the close.
    function withdrawCredit(IERC20 token) external nonReentrant returns (uint256 amount) {
        amount = credits[msg.sender][token];
        if (amount == 0) revert NoCredit();
        credits[msg.sender][token] = 0;
        emit CreditWithdrawn(msg.sender, token, amount);
        token.safeTransfer(msg.sender, amount);
    }

    // ---------------------------------------------------------------- reading

    /// @notice The id of a payer's account. It binds the payer: nobody else can take it.
    function idOf(address payer, bytes32 salt) public pure returns (bytes32) {
        return keccak256(abi.encode(payer, salt));
    }

    /// @notice What a payer signs (EIP-712) so that somebody else can open the account; also the ERC-3009 nonce.
    function openDigest(Terms calldata terms, uint128 deposit, uint40 validUntil) public view returns (bytes32) {
        return _hashTypedDataV4(OpenDigest.structHash(terms, deposit, validUntil));
    }

    /// @notice The account as of this block, settled, whether or not anybody has called since.
    function snapshot(Terms calldata terms) external view returns (Snapshot memory) {
        return _snapshot(terms);
    }

    /// @notice snapshot() of many accounts. One that doesn't exist, or has other terms, says so in its own row.
    function snapshots(Terms[] calldata terms) external view returns (Snapshot[] memory rows) {
        rows = new Snapshot[](terms.length);
        for (uint256 i = 0; i < terms.length; ++i) {
            rows[i] = _snapshot(terms[i]);
        }
    }

    /// @notice Accounts as stored, for who doesn't know their terms. termsHash is 0 where there is none.
    function raw(bytes32[] calldata ids) external view returns (Account[] memory rows) {
        rows = new Account[](ids.length);
        for (uint256 i = 0; i < ids.length; ++i) {
            rows[i] = _accounts[ids[i]];
        }
    }

    // ---------------------------------------------------------------- opening and funding, inside

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
        account.ledger.deposited = deposit;
        emit Opened(id, terms.payer, terms.market, terms, deposit);
    }

    function _checkSignature(Terms calldata terms, bytes32 digest, bytes calldata signature) private view {
        if (!SignatureChecker.isValidSignatureNowCalldata(terms.payer, digest, signature)) revert BadSignature();
    }

    function _fundTo(Terms calldata terms, uint128 totalDeposited) private returns (uint128 amount) {
        (bytes32 id, Account storage account, Clock memory clock) = _loadOpen(terms);
        uint128 deposited = account.ledger.deposited;
        if (totalDeposited <= deposited) return 0;
        if (totalDeposited > MAX_DEPOSIT) revert DepositTooLarge(totalDeposited);
        _settle(id, account, clock, terms);
        amount = totalDeposited - deposited;
        clock.balance += uint128(amount * SCALE);
        account.clock = clock;
        account.ledger.deposited = totalDeposited;
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

    // ---------------------------------------------------------------- the clock

    /// @dev Counts the clock up to this block, in memory; the caller stores it.
    function _settle(bytes32 id, Account storage account, Clock memory clock, Terms calldata terms) private {
        uint40 exhaustedAt = _advance(clock, terms);
        if (exhaustedAt == 0) return;
        account.ledger.exhaustedAt = exhaustedAt;
        emit Exhausted(id, exhaustedAt);
    }

    /// @dev All legs run or stop together: the balance covers whole seconds of their sum. Returns the second at
    /// which it covered no more, or 0. `running` stays as it was then, so that the last runs can be counted.
    function _advance(Clock memory clock, Terms calldata terms) private view returns (uint40 exhaustedAt) {
        if (clock.settledAt == 0) return 0;
        uint256 perSecond = _burn(terms, clock.ended);
        uint256 elapsed = block.timestamp - clock.settledAt;
        uint256 covered = clock.balance / perSecond;
        if (elapsed > covered) {
            exhaustedAt = clock.settledAt + uint40(covered);
            clock.settledAt = 0;
            elapsed = covered;
        } else {
            clock.settledAt = uint40(block.timestamp);
        }
        clock.balance -= uint128(elapsed * perSecond);
        clock.paidSeconds += uint40(elapsed);
    }

    function _startClock(bytes32 id, Account storage account, Clock memory clock, Terms calldata terms) private {
        Ledger memory ledger = account.ledger;
        if (ledger.startedAt == 0) {
            if (block.timestamp > terms.startBy) revert StartByPassed(terms.startBy);
            ledger.startedAt = uint40(block.timestamp);
        } else {
            _endRuns(id, clock, clock.running);
            ledger.exhaustedAt = 0;
        }
        _checkCovered(clock, terms);
        clock.settledAt = uint40(block.timestamp);
        account.ledger = ledger;
    }

    function _checkCovered(Clock memory clock, Terms calldata terms) private pure {
        uint256 perSecond = _burn(terms, clock.ended);
        if (clock.balance < perSecond) revert NotCovered(clock.balance, perSecond);
    }

    /// @dev Adds the runs of these legs, which must be running, to what they have served.
    function _endRuns(bytes32 id, Clock memory clock, uint16 legs) private {
        clock.running &= ~legs;
        for (uint16 rest = legs; rest != 0; rest &= rest - 1) {
            LegState storage state = _legs[id][_lowest(rest)];
            state.servedSeconds += clock.paidSeconds - state.runningSince;
        }
    }

    /// @dev Running legs are paid beyond now, but never beyond the end that they had anyway.
    function _giveNotice(Clock memory clock, Terms calldata terms) private pure {
        if (clock.settledAt == 0 || clock.running == 0 || terms.noticeSeconds == 0) return;
        uint256 covered = clock.balance / _burn(terms, clock.ended);
        clock.paidSeconds += uint40(covered < terms.noticeSeconds ? covered : terms.noticeSeconds);
    }

    /// @dev Whether anybody may close.
    function _isOver(Clock memory clock, Ledger memory ledger, Terms calldata terms) private view returns (bool) {
        if (clock.ended == _all(terms)) return true;
        if (ledger.startedAt == 0) return block.timestamp > terms.startBy;
        return ledger.exhaustedAt != 0 && block.timestamp > uint256(ledger.exhaustedAt) + terms.pauseFor;
    }

    // ---------------------------------------------------------------- the legs' money

    function _served(LegState memory state, Clock memory clock, uint256 leg) private pure returns (uint40) {
        uint40 run = clock.running & (1 << leg) == 0 ? 0 : clock.paidSeconds - state.runningSince;
        return state.servedSeconds + run;
    }

    /// @dev Rounded down, in base units: the one place where money is rounded.
    function _earned(LegState memory state, Clock memory clock, Terms calldata terms, uint256 leg)
        private
        pure
        returns (uint128)
    {
        return uint128(uint256(terms.legs[leg].rate) * _served(state, clock, leg) / SCALE);
    }

    function _earnedOfAll(bytes32 id, Clock memory clock, Terms calldata terms) private view returns (uint128 earned) {
        for (uint256 i = 0; i < terms.legs.length; ++i) {
            earned += _earned(_legs[id][i], clock, terms, i);
        }
    }

    function _withdraw(Terms calldata terms, uint16 legs) private returns (uint256 amount) {
        (bytes32 id, Account storage account, Clock memory clock) = _load(terms);
        _checkBitmap(terms, legs);
        _settle(id, account, clock, terms);
        account.clock = clock;
        for (uint16 rest = legs; rest != 0; rest &= rest - 1) {
            uint256 leg = _lowest(rest);
            address payee = terms.legs[leg].payee;
            if (msg.sender != payee && msg.sender != terms.legs[leg].controller) revert NotPayeeOrController(leg);
            uint128 owed = _takeOwed(id, clock, terms, leg);
            if (owed == 0) continue;
            amount += owed;
            emit Withdrawn(id, uint8(leg), payee, owed);
            terms.token.safeTransfer(payee, owed);
        }
    }

    /// @dev Counts what the leg is owed as withdrawn; the caller sends it.
    function _takeOwed(bytes32 id, Clock memory clock, Terms calldata terms, uint256 leg)
        private
        returns (uint128 owed)
    {
        LegState memory state = _legs[id][leg];
        owed = _earned(state, clock, terms, leg) - state.withdrawn;
        if (owed != 0) _legs[id][leg].withdrawn = state.withdrawn + owed;
    }

    function _tryPayOut(bytes32 id, Clock memory clock, Terms calldata terms, uint256 leg) private {
        uint128 owed = _takeOwed(id, clock, terms, leg);
        if (owed == 0) return;
        address payee = terms.legs[leg].payee;
        if (terms.token.trySafeTransfer(payee, owed)) {
            emit Withdrawn(id, uint8(leg), payee, owed);
        } else {
            _legs[id][leg].withdrawn -= owed;
            emit PayoutFailed(id, uint8(leg), payee, owed);
        }
    }

    function _sendRefund(bytes32 id, Terms calldata terms, uint128 refund) private {
        if (refund == 0 || terms.token.trySafeTransfer(terms.payer, refund)) return;
        credits[terms.payer][terms.token] += refund;
        emit RefundCredited(id, terms.payer, terms.token, refund);
    }

    // ---------------------------------------------------------------- terms and bitmaps

    function _load(Terms calldata terms)
        private
        view
        returns (bytes32 id, Account storage account, Clock memory clock)
    {
        id = idOf(terms.payer, terms.salt);
        account = _accounts[id];
        bytes32 stored = account.termsHash;
        if (stored == 0) revert AccountUnknown(id);
        if (stored != keccak256(abi.encode(terms))) revert TermsDiffer(id);
        clock = account.clock;
    }

    function _loadOpen(Terms calldata terms)
        private
        view
        returns (bytes32 id, Account storage account, Clock memory clock)
    {
        (id, account, clock) = _load(terms);
        if (clock.closed) revert AccountClosed(id);
    }

    /// @dev What one second burns, in 10^-12 base units. More than 0 unless all legs have ended.
    function _burn(Terms calldata terms, uint16 ended) private pure returns (uint256 perSecond) {
        for (uint256 i = 0; i < terms.legs.length; ++i) {
            if (ended & (1 << i) == 0) perSecond += terms.legs[i].rate;
        }
    }

    function _all(Terms calldata terms) private pure returns (uint16) {
        return uint16((1 << terms.legs.length) - 1);
    }

    function _checkBitmap(Terms calldata terms, uint16 legs) private pure {
        if (legs == 0 || legs & ~_all(terms) != 0) revert NoSuchLeg(legs);
    }

    function _checkControllers(Terms calldata terms, uint16 legs) private view {
        for (uint16 rest = legs; rest != 0; rest &= rest - 1) {
            uint256 leg = _lowest(rest);
            if (msg.sender != terms.legs[leg].controller) revert NotController(leg);
        }
    }

    /// @dev The index of the lowest bit set; there must be one.
    function _lowest(uint16 bitmap) private pure returns (uint256 index) {
        while (bitmap & 1 == 0) {
            bitmap >>= 1;
            ++index;
        }
    }

    // ---------------------------------------------------------------- the view

    function _snapshot(Terms calldata terms) private view returns (Snapshot memory s) {
        Account storage account = _accounts[idOf(terms.payer, terms.salt)];
        Clock memory clock = account.clock;
        Ledger memory ledger = account.ledger;
        s.blockTime = uint40(block.timestamp);
        s.exists = account.termsHash != 0;
        s.matches = s.exists && account.termsHash == keccak256(abi.encode(terms));
        s.closed = clock.closed;
        s.deposited = ledger.deposited;
        if (!s.matches) return s;

        uint40 exhaustedAt = _advance(clock, terms);
        if (exhaustedAt == 0) exhaustedAt = ledger.exhaustedAt;
        s.balanceScaled = clock.balance;
        s.exhaustedAt = exhaustedAt;
        s.paidUntil = clock.settledAt == 0 ? exhaustedAt : _paidUntil(clock, terms);
        s.startedAt = ledger.startedAt;
        s.paidSeconds = clock.paidSeconds;
        s.running = clock.settledAt == 0 ? 0 : clock.running;
        s.ended = clock.ended;
        s.legs = _legViews(terms, clock);
    }

    function _paidUntil(Clock memory clock, Terms calldata terms) private pure returns (uint40) {
        uint256 end = clock.settledAt + clock.balance / _burn(terms, clock.ended);
        return end > type(uint40).max ? type(uint40).max : uint40(end);
    }

    function _legViews(Terms calldata terms, Clock memory clock) private view returns (LegView[] memory views) {
        bytes32 id = idOf(terms.payer, terms.salt);
        views = new LegView[](terms.legs.length);
        for (uint256 i = 0; i < views.length; ++i) {
            LegState memory state = _legs[id][i];
            uint128 owed = _earned(state, clock, terms, i) - state.withdrawn;
            views[i] = LegView(_served(state, clock, i), state.endedAt, state.withdrawn, owed);
        }
    }
}
