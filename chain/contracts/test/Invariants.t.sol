// SPDX-License-Identifier: Apache-2.0
// Invariants after any sequence of actions of any callers.
pragma solidity ^0.8.28;

import {LegView, Phase, Snapshot, Terms} from "../src/escrow/EscrowTypes.sol";
import {Handler} from "./Handler.sol";
import {Ghost, Model} from "./Model.sol";
import {Stage} from "./Stage.sol";
import {vm} from "./Vm.sol";

contract InvariantTest is Stage {
    using Model for Ghost;

    Handler private handler;

    function setUp() public override {
        super.setUp();
        handler = new Handler(escrow, token, T0);
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    /// One invariant with four parts, because separate invariants would each run all sequences again.
    function invariant_theBooksAgree() public view {
        theTokensAreThere();
        everySnapshotIsTheModels();
        onlyPayeesArePaid();
        payersGetTheRest();
    }

    /// The contract holds exactly what is deposited and neither withdrawn nor refunded.
    function theTokensAreThere() private view {
        uint256 locked;
        for (uint256 i = 0; i < handler.count(); ++i) {
            Ghost memory g = handler.ghost(i);
            locked += g.deposited - g.refunded;
            for (uint256 l = 0; l < g.legs.length; ++l) {
                locked -= g.legs[l].withdrawn;
            }
        }
        vm.assertEq(token.balanceOf(address(escrow)), locked, "locked");
    }

    /// No snapshot reverts, and each equals the model, which counts second by second.
    function everySnapshotIsTheModels() private view {
        for (uint256 i = 0; i < handler.count(); ++i) {
            checkAccount(escrow.snapshot(handler.terms(i)), handler.ghost(i));
        }
    }

    function checkAccount(Snapshot memory s, Ghost memory g) private view {
        vm.assertTrue(s.exists && s.matches);
        vm.assertTrue(s.phase == g.phase, "phase");
        vm.assertEq(s.deposited, g.deposited, "deposited");
        vm.assertEq(s.balanceScaled, g.phase == Phase.Closed ? 0 : g.left, "balance");
        vm.assertEq(s.paidSeconds, g.ticks, "paid seconds");
        vm.assertEq(s.exhaustedAt, g.phase == Phase.Exhausted ? g.stoppedAt : 0, "exhaustedAt");
        uint256 end = s.exhaustedAt;
        if (g.phase == Phase.Running) end = handler.now_() + g.left / g.perSecond();
        vm.assertEq(s.paidUntil, end, "paidUntil");
        uint256 burned = s.phase == Phase.Closed ? g.left : s.balanceScaled;
        for (uint256 l = 0; l < g.legs.length; ++l) {
            LegView memory view_ = s.legs[l];
            vm.assertEq(s.running >> l & 1, g.legs[l].running ? 1 : 0, "running");
            vm.assertEq(s.ended >> l & 1, g.legs[l].ended ? 1 : 0, "ended");
            vm.assertEq(view_.servedSeconds, g.legs[l].served, "served");
            vm.assertEq(view_.withdrawn, g.legs[l].withdrawn, "withdrawn");
            vm.assertEq(view_.withdrawn + view_.owed, g.earned(l), "earned");
            vm.assertLe(view_.servedSeconds, g.legs[l].ended ? view_.endedAt : s.paidSeconds, "served is burned");
            burned += g.legs[l].rate * (g.legs[l].ended ? view_.endedAt : s.paidSeconds);
        }
        vm.assertEq(burned, g.deposited * SCALE, "what is left and what was burned is what came in");
    }

    /// Every payee holds exactly what was withdrawn for it, and nobody else holds any of it.
    function onlyPayeesArePaid() private view {
        for (uint256 i = 0; i < handler.count(); ++i) {
            Ghost memory g = handler.ghost(i);
            Terms memory terms = handler.terms(i);
            for (uint256 l = 0; l < g.legs.length; ++l) {
                vm.assertEq(token.balanceOf(terms.legs[l].payee), g.legs[l].withdrawn, "payee");
                vm.assertEq(token.balanceOf(terms.legs[l].controller), 0, "controller");
            }
        }
        vm.assertEq(token.balanceOf(handler.closer()), 0, "closer");
        vm.assertEq(token.balanceOf(handler.stranger()), handler.WEALTH() - handler.strangersGifts(), "stranger");
    }

    /// The payers hold what they did not deposit plus what was refunded.
    function payersGetTheRest() private view {
        uint256 expected = 2 * handler.WEALTH() + handler.strangersGifts();
        for (uint256 i = 0; i < handler.count(); ++i) {
            Ghost memory g = handler.ghost(i);
            expected = expected + g.refunded - g.deposited;
        }
        vm.assertEq(token.balanceOf(handler.payers(0)) + token.balanceOf(handler.payers(1)), expected, "payers");
    }

    /// After each sequence everything is closed and withdrawn, and the contract holds nothing.
    function afterInvariant() public {
        for (uint256 i = 0; i < handler.count(); ++i) {
            Terms memory terms = handler.terms(i);
            if (!escrow.snapshot(terms).closed) closeBy(terms.closer, terms, 0);
            for (uint256 l = 0; l < terms.legs.length; ++l) {
                withdraw(terms, l);
            }
        }
        vm.assertEq(token.balanceOf(address(escrow)), 0, "dust");
    }
}
