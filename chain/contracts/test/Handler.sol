// SPDX-License-Identifier: Apache-2.0
// Performs random actions of tenants, providers, markets and third parties on several accounts of one token, on the
// contract and on the model. The model determines which calls must be refused.
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Leg, Phase, Terms} from "../src/escrow/EscrowTypes.sol";
import {IEscrow} from "../src/escrow/IEscrow.sol";
import {TestToken} from "../src/TestToken.sol";
import {Ghost, GhostLeg, Model} from "./Model.sol";
import {vm} from "./Vm.sol";

contract Handler {
    using Model for Ghost;

    uint256 private constant SCALE = 1e12;
    uint256 private constant MOST_ACCOUNTS = 8;
    uint256 public constant WEALTH = 1_000_000_000;

    IEscrow private immutable escrow;
    TestToken private immutable token;
    address public immutable closer = address(0xC105E);
    address public immutable stranger = address(0x57A);
    address[2] public payers = [address(0xFA1), address(0xFA2)];

    uint256 public now_;
    uint256 public strangersGifts;
    Terms[] private _terms;
    Ghost[] private _ghosts;

    constructor(IEscrow escrow_, TestToken token_, uint256 start_) {
        escrow = escrow_;
        token = token_;
        now_ = start_;
        for (uint256 i = 0; i < 3; ++i) {
            address holder = i < 2 ? payers[i] : stranger;
            token.mint(holder, WEALTH);
            vm.prank(holder);
            token.approve(address(escrow), type(uint256).max);
        }
        open(0);
        open(1);
        open(2);
    }

    // ---------------------------------------------------------------- read by the invariants

    function count() external view returns (uint256) {
        return _terms.length;
    }

    function terms(uint256 account) external view returns (Terms memory) {
        return _terms[account];
    }

    function ghost(uint256 account) external view returns (Ghost memory) {
        return _ghosts[account];
    }

    // ---------------------------------------------------------------- actions

    /// Weighted, so that some accounts are exhausted and others are not.
    function act(uint256 seed, uint256 account, uint256 leg, uint256 amount) external {
        uint256 i = account % _terms.length;
        uint256 l = leg % _terms[i].legs.length;
        uint256 kind = seed % 20;
        if (kind < 4) wait(amount % 60);
        else if (kind < 8) start(i, l);
        else if (kind < 10) pause(i, l);
        else if (kind < 12) fund(i, amount % 200, seed >> 8 & 1 == 0);
        else if (kind < 13) credit(i, l, amount);
        else if (kind < 15) withdraw(i, l, seed >> 8 & 1 == 0);
        else if (kind < 16) end(i, l);
        else if (kind < 17) close(i, seed >> 8, uint16(amount));
        else if (kind < 18) intrude(i, l, amount);
        else if (kind < 19) wait(amount % 400);
        else if (_terms.length < MOST_ACCOUNTS) open(amount);
    }

    function wait(uint256 time) private {
        for (uint256 i = 0; i < _ghosts.length; ++i) {
            Ghost memory g = _ghosts[i];
            for (uint256 t = 0; t < time; ++t) {
                g.tick(now_ + t);
            }
            save(i, g);
        }
        now_ += time;
        vm.warp(now_);
    }

    function open(uint256 seed) private {
        uint256 n = _terms.length;
        Terms storage t = _terms.push();
        Ghost storage g = _ghosts.push();
        t.payer = payers[n % 2];
        t.market = address(0x3A17);
        t.token = IERC20(address(token));
        t.closer = closer;
        t.salt = bytes32(n);
        t.startBy = uint40(now_ + 100 + seed % 200);
        t.noticeSeconds = uint32(n % 3 * 15);
        t.pauseFor = uint32(seed % 100);
        (g.startBy, g.notice, g.pauseFor) = (t.startBy, t.noticeSeconds, t.pauseFor);
        for (uint256 i = 0; i <= n % 3; ++i) {
            // Every leg has its own payee, so that balances show who was paid. Controllers are shared.
            uint256 rate = 1 + uint256(keccak256(abi.encode(seed, i))) % (3 * SCALE);
            t.legs.push(Leg(address(uint160(0xA000 + n * 16 + i)), address(uint160(0xC000 + i)), uint128(rate)));
            g.legs.push(GhostLeg(rate, 0, 0, false, false));
        }
        g.deposited = seed % 300;
        g.left = g.deposited * SCALE;
        vm.prank(t.payer);
        escrow.open(_terms[n], uint128(g.deposited), uint40(now_));
    }

    function fund(uint256 i, uint256 more, bool byStranger) private {
        Ghost memory g = _ghosts[i];
        // Sometimes less than the present deposit.
        uint256 total = g.deposited + more < 50 ? 0 : g.deposited + more - 50;
        address from = byStranger ? stranger : _terms[i].payer;
        bytes memory call = abi.encodeCall(IEscrow.fundTo, (_terms[i], uint128(total)));
        if (g.phase == Phase.Closed) return refused(from, call);
        uint256 before = token.balanceOf(from);
        uint256 amount = g.fundTo(total);
        accepted(from, call);
        vm.assertEq(before - token.balanceOf(from), amount, "fundTo fills up");
        if (byStranger) strangersGifts += amount;
        save(i, g);
    }

    function start(uint256 i, uint256 l) private {
        Ghost memory g = _ghosts[i];
        uint40 end_ = escrow.snapshot(_terms[i]).paidUntil;
        bool ran = g.phase == Phase.Running;
        bytes memory call = abi.encodeCall(IEscrow.start, (_terms[i], uint16(1 << l)));
        if (g.refusesStart(l, now_)) return refused(_terms[i].legs[l].controller, call);
        g.start(l);
        accepted(_terms[i].legs[l].controller, call);
        if (ran) sameEnd(i, end_);
        save(i, g);
    }

    function pause(uint256 i, uint256 l) private {
        Ghost memory g = _ghosts[i];
        uint40 end_ = escrow.snapshot(_terms[i]).paidUntil;
        bytes memory call = abi.encodeCall(IEscrow.pause, (_terms[i], uint16(1 << l)));
        if (g.phase == Phase.Closed) return refused(_terms[i].legs[l].controller, call);
        g.legs[l].running = false;
        accepted(_terms[i].legs[l].controller, call);
        sameEnd(i, end_);
        save(i, g);
    }

    function credit(uint256 i, uint256 l, uint256 amount) private {
        Ghost memory g = _ghosts[i];
        uint40 end_ = escrow.snapshot(_terms[i]).paidUntil;
        uint256 most = g.creditable(l);
        uint256 given = amount % (most + 3);
        bytes memory call = abi.encodeCall(IEscrow.credit, (_terms[i], uint8(l), uint40(given)));
        if (g.phase == Phase.Closed || given > most) return refused(_terms[i].legs[l].controller, call);
        g.legs[l].served -= given;
        accepted(_terms[i].legs[l].controller, call);
        sameEnd(i, end_);
        save(i, g);
    }

    function end(uint256 i, uint256 l) private {
        Ghost memory g = _ghosts[i];
        bytes memory call = abi.encodeCall(IEscrow.endLeg, (_terms[i], uint16(1 << l)));
        if (g.phase == Phase.Closed) return refused(_terms[i].legs[l].controller, call);
        g.end(l);
        accepted(_terms[i].legs[l].controller, call);
        save(i, g);
    }

    function withdraw(uint256 i, uint256 l, bool byController) private {
        Ghost memory g = _ghosts[i];
        uint40 end_ = escrow.snapshot(_terms[i]).paidUntil;
        address by = byController ? _terms[i].legs[l].controller : _terms[i].legs[l].payee;
        accepted(by, abi.encodeCall(IEscrow.withdraw, (_terms[i], uint16(1 << l))));
        g.legs[l].withdrawn = g.earned(l);
        sameEnd(i, end_);
        save(i, g);
    }

    function close(uint256 i, uint256 who, uint16 payouts) private {
        Ghost memory g = _ghosts[i];
        payouts &= uint16((1 << g.legs.length) - 1);
        address by = who % 3 == 0 ? _terms[i].payer : who % 3 == 1 ? closer : stranger;
        bytes memory call = abi.encodeCall(IEscrow.close, (_terms[i], payouts));
        bool may = by != stranger || g.anybodyMayClose(now_);
        if (g.phase == Phase.Closed || !may) return refused(by, call);
        uint256 before = token.balanceOf(_terms[i].payer);
        g.close(by == _terms[i].payer, now_);
        accepted(by, call);
        vm.assertEq(token.balanceOf(_terms[i].payer) - before, g.refunded, "the refund goes to the payer");
        for (uint256 l = 0; l < g.legs.length; ++l) {
            if (payouts >> l & 1 == 1) g.legs[l].withdrawn = g.earned(l);
        }
        save(i, g);
    }

    /// A third party tries every action that it is not permitted to do.
    function intrude(uint256 i, uint256 l, uint256 amount) private {
        Terms memory t = _terms[i];
        refused(stranger, abi.encodeCall(IEscrow.start, (t, uint16(1 << l))));
        refused(stranger, abi.encodeCall(IEscrow.pause, (t, uint16(1 << l))));
        refused(stranger, abi.encodeCall(IEscrow.credit, (t, uint8(l), uint40(amount % 2))));
        refused(stranger, abi.encodeCall(IEscrow.endLeg, (t, uint16(1 << l))));
        refused(stranger, abi.encodeCall(IEscrow.withdraw, (t, uint16(1 << l))));
        refused(stranger, abi.encodeCall(IEscrow.withdrawCredit, (t.token)));
        refused(t.payer, abi.encodeCall(IEscrow.open, (t, 0, uint40(now_))));
        t.legs[l].payee = stranger;
        refused(t.legs[l].controller, abi.encodeCall(IEscrow.withdraw, (t, uint16(1 << l))));
        t.salt = keccak256("fresh");
        refused(stranger, abi.encodeCall(IEscrow.open, (t, uint128(amount % 100), uint40(now_))));
        refused(stranger, abi.encodeCall(IEscrow.openWithSignature, (t, uint128(amount % 100), uint40(now_), "")));
    }

    // ---------------------------------------------------------------- helper functions

    function accepted(address by, bytes memory call) private {
        vm.prank(by);
        (bool done, bytes memory answer) = address(escrow).call(call);
        if (done) return;
        assembly ("memory-safe") {
            revert(add(answer, 0x20), mload(answer))
        }
    }

    function refused(address by, bytes memory call) private {
        vm.prank(by);
        (bool done,) = address(escrow).call(call);
        vm.assertFalse(done, "this call must be refused");
    }

    function sameEnd(uint256 i, uint40 end_) private view {
        vm.assertEq(escrow.snapshot(_terms[i]).paidUntil, end_, "nobody's end moves");
    }

    function save(uint256 i, Ghost memory g) private {
        Ghost storage s = _ghosts[i];
        (s.phase, s.deposited, s.left, s.refunded) = (g.phase, g.deposited, g.left, g.refunded);
        (s.ticks, s.stoppedAt) = (g.ticks, g.stoppedAt);
        for (uint256 l = 0; l < g.legs.length; ++l) {
            s.legs[l] = g.legs[l];
        }
    }
}
