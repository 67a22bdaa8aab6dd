// SPDX-License-Identifier: Apache-2.0
// A simple model of the escrow that counts second by second, with a counter for each leg. It shares no code and no
// formula with the contract. The invariants compare the two.
pragma solidity ^0.8.28;

import {Phase} from "../src/escrow/EscrowTypes.sol";

struct GhostLeg {
    uint256 rate;
    uint256 served;
    uint256 credited;
    uint256 withdrawn;
    bool running;
    bool ended;
}

struct Ghost {
    Phase phase;
    uint256 deposited;
    /// Not burned, in 10^-12 base units.
    uint256 left;
    uint256 refunded;
    uint256 ticks;
    uint256 stoppedAt;
    uint256 startBy;
    uint256 pauseFor;
    uint256 notice;
    GhostLeg[] legs;
}

library Model {
    uint256 private constant SCALE = 1e12;

    /// One second, from `time` to `time` + 1.
    function tick(Ghost memory ghost, uint256 time) internal pure {
        if (ghost.phase != Phase.Running) return;
        uint256 cost = perSecond(ghost);
        if (ghost.left < cost) {
            ghost.phase = Phase.Exhausted;
            ghost.stoppedAt = time;
            for (uint256 i = 0; i < ghost.legs.length; ++i) {
                ghost.legs[i].running = false;
            }
            return;
        }
        ghost.left -= cost;
        ghost.ticks += 1;
        for (uint256 i = 0; i < ghost.legs.length; ++i) {
            if (ghost.legs[i].running) ghost.legs[i].served += 1;
        }
    }

    function perSecond(Ghost memory ghost) internal pure returns (uint256 cost) {
        for (uint256 i = 0; i < ghost.legs.length; ++i) {
            if (!ghost.legs[i].ended) cost += ghost.legs[i].rate;
        }
    }

    /// Total earnings of the leg.
    function earned(Ghost memory ghost, uint256 leg) internal pure returns (uint256) {
        return ghost.legs[leg].rate * ghost.legs[leg].served / SCALE;
    }

    function fundTo(Ghost memory ghost, uint256 total) internal pure returns (uint256 amount) {
        if (total <= ghost.deposited) return 0;
        amount = total - ghost.deposited;
        ghost.deposited = total;
        ghost.left += amount * SCALE;
    }

    /// Whether a start of this leg is refused.
    function refusesStart(Ghost memory ghost, uint256 leg, uint256 time) internal pure returns (bool) {
        if (ghost.phase == Phase.Closed || ghost.legs[leg].ended) return true;
        if (ghost.phase == Phase.Unstarted && time > ghost.startBy) return true;
        return !ghost.legs[leg].running && ghost.left < perSecond(ghost);
    }

    function start(Ghost memory ghost, uint256 leg) internal pure {
        ghost.legs[leg].running = true;
        ghost.phase = Phase.Running;
    }

    function end(Ghost memory ghost, uint256 leg) internal pure {
        ghost.legs[leg].running = false;
        ghost.legs[leg].ended = true;
        if (perSecond(ghost) == 0) ghost.phase = Phase.Ended;
    }

    /// Seconds that can be credited: those that its withdrawn money does not depend on.
    function creditable(Ghost memory ghost, uint256 leg) internal pure returns (uint256 seconds_) {
        GhostLeg memory l = ghost.legs[leg];
        seconds_ = l.served;
        while (seconds_ > 0 && (l.served - seconds_) * l.rate < l.withdrawn * SCALE) seconds_ -= 1;
    }

    function anybodyMayClose(Ghost memory ghost, uint256 time) internal pure returns (bool) {
        if (ghost.phase == Phase.Unstarted) return time > ghost.startBy;
        if (ghost.phase == Phase.Exhausted) return time > ghost.stoppedAt + ghost.pauseFor;
        return ghost.phase == Phase.Ended;
    }

    function close(Ghost memory ghost, bool withNotice, uint256 time) internal pure {
        bool served = false;
        for (uint256 i = 0; i < ghost.legs.length; ++i) {
            served = served || ghost.legs[i].running;
        }
        for (uint256 i = 0; withNotice && served && i < ghost.notice; ++i) {
            tick(ghost, time + i);
        }
        ghost.refunded = ghost.deposited;
        for (uint256 i = 0; i < ghost.legs.length; ++i) {
            ghost.refunded -= earned(ghost, i);
            ghost.legs[i].running = false;
        }
        ghost.phase = Phase.Closed;
    }
}
