// SPDX-License-Identifier: Apache-2.0
// Storage of accounts, their clock, and the earnings of their legs. Contains all arithmetic of time and money.
// Permissions are in Escrow.sol.
pragma solidity ^0.8.28;

import {Account, Clock, LegState, Phase, Terms} from "./EscrowTypes.sol";
import {IEscrow} from "./IEscrow.sol";

/// @title The clock of an account and the value of its seconds.
/// @dev Only seconds are counted. Money is rate times seconds, in 10^-12 base units, and is rounded once: down, when
/// a payee is paid. Hence deposited * SCALE == balance + sum(rate * burned seconds) at any time, and
/// refund + sum(floor(earned)) == deposited at the close.
abstract contract EscrowClock is IEscrow {
    /// @inheritdoc IEscrow
    uint256 public constant MAX_LEGS = 16;
    /// @inheritdoc IEscrow
    uint256 public constant SCALE = 1e12;

    mapping(bytes32 id => Account) internal _accounts;
    mapping(bytes32 id => mapping(uint256 leg => LegState)) internal _legs;

    /// @inheritdoc IEscrow
    function idOf(address payer, bytes32 salt) public pure returns (bytes32) {
        return keccak256(abi.encode(payer, salt));
    }

    // ---------------------------------------------------------------- terms and bitmaps

    function _load(Terms calldata terms)
        internal
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
        internal
        view
        returns (bytes32 id, Account storage account, Clock memory clock)
    {
        (id, account, clock) = _load(terms);
        if (clock.phase == Phase.Closed) revert AccountClosed(id);
    }

    /// @dev The amount that one second burns, in 10^-12 base units. Greater than 0 unless all legs have ended.
    function _burn(Terms calldata terms, uint16 ended) internal pure returns (uint256 perSecond) {
        for (uint256 i = 0; i < terms.legs.length; ++i) {
            if (ended & (1 << i) == 0) perSecond += terms.legs[i].rate;
        }
    }

    function _all(Terms calldata terms) internal pure returns (uint16) {
        return uint16((1 << terms.legs.length) - 1);
    }

    function _checkBitmap(Terms calldata terms, uint16 legs) internal pure {
        if (legs == 0 || legs & ~_all(terms) != 0) revert NoSuchLeg(legs);
    }

    function _checkControllers(Terms calldata terms, uint16 legs) internal view {
        for (uint16 rest = legs; rest != 0; rest &= rest - 1) {
            uint256 leg = _lowest(rest);
            if (msg.sender != terms.legs[leg].controller) revert NotController(leg);
        }
    }

    /// @dev The index of the lowest set bit. At least one bit must be set.
    function _lowest(uint16 bitmap) internal pure returns (uint256 index) {
        while (bitmap & 1 == 0) {
            bitmap >>= 1;
            ++index;
        }
    }

    // ---------------------------------------------------------------- the clock

    /// @dev Advances the clock to this block in memory. The caller must store it.
    function _settle(bytes32 id, Clock memory clock, Terms calldata terms) internal {
        if (_advance(clock, terms)) emit Exhausted(id, clock.settledAt);
    }

    /// @dev The balance covers whole seconds of the sum of all rates, so all legs stop together. Returns whether the
    /// balance covered less than the elapsed time. `running` is not changed, so that the last runs can be counted.
    function _advance(Clock memory clock, Terms calldata terms) internal view returns (bool exhausted) {
        if (clock.phase != Phase.Running) return false;
        uint256 perSecond = _burn(terms, clock.ended);
        uint256 elapsed = block.timestamp - clock.settledAt;
        uint256 covered = clock.balance / perSecond;
        if (elapsed > covered) {
            exhausted = true;
            elapsed = covered;
            clock.phase = Phase.Exhausted;
        }
        _count(clock, elapsed, perSecond);
        clock.settledAt += uint40(elapsed);
    }

    function _count(Clock memory clock, uint256 elapsed, uint256 perSecond) private pure {
        clock.balance -= uint128(elapsed * perSecond);
        clock.paidSeconds += uint40(elapsed);
    }

    /// @dev Each leg must be started again after an exhaustion, because its workload may no longer exist.
    function _startClock(bytes32 id, Clock memory clock, Terms calldata terms) internal {
        if (clock.phase == Phase.Unstarted && block.timestamp > terms.startBy) revert StartByPassed(terms.startBy);
        _endRuns(id, clock, clock.running);
        clock.phase = Phase.Running;
        clock.settledAt = uint40(block.timestamp);
    }

    function _checkCovered(Clock memory clock, Terms calldata terms) internal pure {
        uint256 perSecond = _burn(terms, clock.ended);
        if (clock.balance < perSecond) revert NotCovered(clock.balance, perSecond);
    }

    /// @dev Adds the current runs of these legs to their served seconds. The legs must be running.
    function _endRuns(bytes32 id, Clock memory clock, uint16 legs) internal {
        clock.running &= ~legs;
        for (uint16 rest = legs; rest != 0; rest &= rest - 1) {
            LegState storage state = _legs[id][_lowest(rest)];
            state.servedSeconds += clock.paidSeconds - state.runningSince;
        }
    }

    /// @dev Pays running legs for the notice period, but not beyond the end that they had before.
    function _giveNotice(Clock memory clock, Terms calldata terms) internal pure {
        if (clock.phase != Phase.Running || clock.running == 0) return;
        uint256 perSecond = _burn(terms, clock.ended);
        uint256 covered = clock.balance / perSecond;
        _count(clock, covered < terms.noticeSeconds ? covered : terms.noticeSeconds, perSecond);
    }

    /// @dev Whether anyone can close the account.
    function _isOver(Clock memory clock, Terms calldata terms) internal view returns (bool) {
        if (clock.phase == Phase.Unstarted) return block.timestamp > terms.startBy;
        if (clock.phase == Phase.Exhausted) return block.timestamp > uint256(clock.settledAt) + terms.pauseFor;
        return clock.phase == Phase.Ended;
    }

    // ---------------------------------------------------------------- the money

    function _served(LegState memory state, Clock memory clock, uint256 leg) internal pure returns (uint40) {
        uint40 run = clock.running & (1 << leg) == 0 ? 0 : clock.paidSeconds - state.runningSince;
        return state.servedSeconds + run;
    }

    /// @dev Rounded down, in base units. This is the only place where money is rounded.
    function _earned(LegState memory state, Clock memory clock, Terms calldata terms, uint256 leg)
        internal
        pure
        returns (uint128)
    {
        return uint128(uint256(terms.legs[leg].rate) * _served(state, clock, leg) / SCALE);
    }

    function _earnedOfAll(bytes32 id, Clock memory clock, Terms calldata terms) internal view returns (uint128 earned) {
        for (uint256 i = 0; i < terms.legs.length; ++i) {
            earned += _earned(_legs[id][i], clock, terms, i);
        }
    }

    /// @dev The sum of the remaining and the burned amount. It is exact, because nothing has been rounded.
    function _deposited(bytes32 id, Clock memory clock, Terms calldata terms) internal view returns (uint128) {
        uint256 scaled = clock.balance;
        for (uint256 i = 0; i < terms.legs.length; ++i) {
            uint256 burned = clock.ended & (1 << i) == 0 ? clock.paidSeconds : _legs[id][i].endedAt;
            scaled += terms.legs[i].rate * burned;
        }
        return uint128(scaled / SCALE);
    }
}
