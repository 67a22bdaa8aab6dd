// SPDX-License-Identifier: Apache-2.0
// Views of accounts as of this block. Elapsed seconds are settled in memory, so that no transaction is necessary.
pragma solidity ^0.8.28;

import {EscrowClock} from "./EscrowClock.sol";
import {Account, Clock, LegState, LegView, Phase, Snapshot, Terms} from "./EscrowTypes.sol";
import {IEscrow} from "./IEscrow.sol";

/// @title Views of the escrow.
abstract contract EscrowViews is EscrowClock {
    /// @inheritdoc IEscrow
    function snapshot(Terms calldata terms) external view returns (Snapshot memory) {
        return _snapshot(terms);
    }

    /// @inheritdoc IEscrow
    function snapshots(Terms[] calldata terms) external view returns (Snapshot[] memory rows) {
        rows = new Snapshot[](terms.length);
        for (uint256 i = 0; i < terms.length; ++i) {
            rows[i] = _snapshot(terms[i]);
        }
    }

    /// @inheritdoc IEscrow
    function raw(bytes32[] calldata ids) external view returns (Account[] memory rows) {
        rows = new Account[](ids.length);
        for (uint256 i = 0; i < ids.length; ++i) {
            rows[i] = _accounts[ids[i]];
        }
    }

    function _snapshot(Terms calldata terms) private view returns (Snapshot memory s) {
        bytes32 id = idOf(terms.payer, terms.salt);
        bytes32 termsHash = _accounts[id].termsHash;
        Clock memory clock = _accounts[id].clock;
        s.blockTime = uint40(block.timestamp);
        s.exists = termsHash != 0;
        s.matches = s.exists && termsHash == keccak256(abi.encode(terms));
        s.closed = clock.phase == Phase.Closed;
        s.phase = clock.phase;
        if (!s.matches) return s;

        _advance(clock, terms);
        s.phase = clock.phase;
        s.deposited = _deposited(id, clock, terms);
        s.balanceScaled = s.closed ? 0 : clock.balance;
        s.paidSeconds = clock.paidSeconds;
        s.ended = clock.ended;
        if (clock.phase == Phase.Running) {
            s.paidUntil = _paidUntil(clock, terms);
            s.running = clock.running;
        } else if (clock.phase == Phase.Exhausted) {
            s.paidUntil = clock.settledAt;
            s.exhaustedAt = clock.settledAt;
        }
        s.legs = _legViews(id, clock, terms);
    }

    function _paidUntil(Clock memory clock, Terms calldata terms) private pure returns (uint40) {
        uint256 end = clock.settledAt + clock.balance / _burn(terms, clock.ended);
        return end > type(uint40).max ? type(uint40).max : uint40(end);
    }

    function _legViews(bytes32 id, Clock memory clock, Terms calldata terms)
        private
        view
        returns (LegView[] memory views)
    {
        views = new LegView[](terms.legs.length);
        for (uint256 i = 0; i < views.length; ++i) {
            LegState memory state = _legs[id][i];
            uint128 owed = _earned(state, clock, terms, i) - state.withdrawn;
            views[i] = LegView({
                servedSeconds: _served(state, clock, i),
                creditedSeconds: state.creditedSeconds,
                endedAt: state.endedAt,
                withdrawn: state.withdrawn,
                owed: owed
            });
        }
    }
}
