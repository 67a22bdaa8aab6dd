// SPDX-License-Identifier: Apache-2.0
// The clock: starts, pauses, credits and ends of legs.
pragma solidity ^0.8.28;

import {Phase, Snapshot, Terms} from "../src/escrow/EscrowTypes.sol";
import {IEscrow} from "../src/escrow/IEscrow.sol";
import {Stage} from "./Stage.sol";
import {vm} from "./Vm.sol";

contract ServeTest is Stage {
    // ---------------------------------------------------------------- start

    function test_nothingIsChargedBeforeTheFirstStart() public {
        Terms memory terms = termsOf(3);
        bytes32 id = open(terms, 600);
        vm.warp(T0 + 1000);
        vm.expectEmit(address(escrow));
        emit IEscrow.Started(id, 1, 0);
        start(terms, 0);
        vm.assertEq(paidUntil(terms), T0 + 1100);
        vm.assertEq(escrow.snapshot(terms).running, 1);
        vm.warp(T0 + 1010);
        start(terms, 1);
        vm.warp(T0 + 1030);
        vm.assertEq(legView(terms, 0).owed, 30);
        vm.assertEq(legView(terms, 1).owed, 40);
        vm.assertEq(legView(terms, 2).owed, 0);
        Snapshot memory s = escrow.snapshot(terms);
        vm.assertEq(s.balanceScaled, (600 - 30 * 6) * SCALE);
        vm.assertEq(s.paidSeconds, 30);
        vm.assertEq(s.paidUntil, T0 + 1100);
    }

    function test_startingARunningLegChangesNothing() public {
        Terms memory terms = termsOf(2);
        open(terms, 300);
        start(terms, 0);
        vm.warp(T0 + 10);
        vm.recordLogs();
        start(terms, 0);
        vm.assertEq(vm.getRecordedLogs().length, 0);
        vm.warp(T0 + 20);
        vm.assertEq(legView(terms, 0).servedSeconds, 20);
        vm.assertEq(paidUntil(terms), T0 + 100);
    }

    function test_oneControllerStartsItsLegsTogether() public {
        Terms memory terms = termsOf(6);
        bytes32 id = open(terms, 210);
        vm.expectEmit(address(escrow));
        emit IEscrow.Started(id, 9, 0);
        vm.prank(controllers[0]);
        escrow.start(terms, 9);
        vm.assertEq(escrow.snapshot(terms).running, 9);
    }

    function test_onlyTheControllerServes() public {
        Terms memory terms = termsOf(3);
        open(terms, 600);
        start(terms, 0);
        address[4] memory others = [payer, closer, payees[0], controllers[1]];
        for (uint256 i = 0; i < 4; ++i) {
            vm.expectRevert(abi.encodeWithSelector(IEscrow.NotController.selector, 0));
            vm.prank(others[i]);
            escrow.start(terms, 1);
            vm.expectRevert(abi.encodeWithSelector(IEscrow.NotController.selector, 0));
            vm.prank(others[i]);
            escrow.pause(terms, 1);
            vm.expectRevert(abi.encodeWithSelector(IEscrow.NotController.selector, 0));
            vm.prank(others[i]);
            escrow.creditTo(terms, 0, 0);
            vm.expectRevert(abi.encodeWithSelector(IEscrow.NotController.selector, 0));
            vm.prank(others[i]);
            escrow.endLeg(terms, 1);
        }
        vm.expectRevert(abi.encodeWithSelector(IEscrow.NotController.selector, 1));
        vm.prank(controllers[0]);
        escrow.start(terms, 3);
    }

    function test_aLegMustExist() public {
        Terms memory terms = termsOf(3);
        open(terms, 600);
        uint16[2] memory wrong = [uint16(0), 9];
        for (uint256 i = 0; i < 2; ++i) {
            bytes memory noSuchLeg = abi.encodeWithSelector(IEscrow.NoSuchLeg.selector, wrong[i]);
            vm.expectRevert(noSuchLeg);
            vm.prank(controllers[0]);
            escrow.start(terms, wrong[i]);
            vm.expectRevert(noSuchLeg);
            vm.prank(controllers[0]);
            escrow.pause(terms, wrong[i]);
            vm.expectRevert(noSuchLeg);
            vm.prank(controllers[0]);
            escrow.endLeg(terms, wrong[i]);
            vm.expectRevert(noSuchLeg);
            vm.prank(payees[0]);
            escrow.withdraw(terms, wrong[i]);
        }
        vm.expectRevert(abi.encodeWithSelector(IEscrow.NoSuchLeg.selector, 8));
        vm.prank(controllers[0]);
        escrow.creditTo(terms, 3, 0);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.NoSuchLeg.selector, 0));
        vm.prank(controllers[0]);
        escrow.creditTo(terms, 255, 0);
    }

    function test_aFirstStartComesInTime() public {
        Terms memory terms = termsOf(2);
        open(terms, 300);
        vm.warp(terms.startBy + 1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.StartByPassed.selector, terms.startBy));
        start(terms, 0);
        vm.warp(terms.startBy);
        start(terms, 0);
        vm.warp(terms.startBy + 10);
        start(terms, 1);
        vm.assertEq(escrow.snapshot(terms).running, 3);
    }

    function test_aStartNeedsOneSecondOfBalance() public {
        Terms memory terms = termsOf(3);
        open(terms, 5);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.NotCovered.selector, 5 * SCALE, 6 * SCALE));
        start(terms, 0);
        fundTo(terms, 6);
        start(terms, 0);
        vm.assertEq(paidUntil(terms), T0 + 1);
        vm.warp(T0 + 1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.NotCovered.selector, 0, 6 * SCALE));
        start(terms, 1);
    }

    function test_aStartNeedsNoMoneyFromItsController() public {
        Terms memory terms = termsOf(1);
        terms.legs[0].rate = 1;
        open(terms, 1);
        start(terms, 0);
        vm.warp(T0 + 3 days);
        // A rate of 10^-12 base units: three days amount to less than one base unit.
        vm.assertEq(withdraw(terms, 0), 0);
        vm.assertEq(escrow.snapshot(terms).balanceScaled, SCALE - 3 days);
        vm.assertEq(closeBy(closer, terms, 1), 1);
    }

    function test_termsAreCheckedOnEachCall() public {
        Terms memory terms = termsOf(2);
        bytes memory unknown = abi.encodeWithSelector(IEscrow.AccountUnknown.selector, idOf(terms));
        expectRevertOfEachCall(terms, unknown);
        open(terms, 300);
        Terms memory richer = termsOf(2);
        richer.legs[0].rate *= 100;
        expectRevertOfEachCall(richer, abi.encodeWithSelector(IEscrow.TermsDiffer.selector, idOf(terms)));
        closeBy(payer, terms, 0);
        bytes memory closed = abi.encodeWithSelector(IEscrow.AccountClosed.selector, idOf(terms));
        expectRevertOfEachCall(terms, closed);
    }

    function expectRevertOfEachCall(Terms memory terms, bytes memory reason) private {
        vm.expectRevert(reason);
        start(terms, 0);
        vm.expectRevert(reason);
        pause(terms, 0);
        vm.expectRevert(reason);
        vm.prank(controllers[0]);
        escrow.creditTo(terms, 0, 0);
        vm.expectRevert(reason);
        endLeg(terms, 0);
        vm.expectRevert(reason);
        fundTo(terms, 1000);
        vm.expectRevert(reason);
        closeBy(payer, terms, 0);
        if (bytes4(reason) == IEscrow.AccountClosed.selector) return;
        vm.expectRevert(reason);
        withdraw(terms, 0);
    }

    // ---------------------------------------------------------------- pause

    function test_aPauseMovesNobodysEnd() public {
        Terms memory terms = termsOf(3);
        bytes32 id = open(terms, 600);
        start(terms, 0);
        start(terms, 1);
        vm.warp(T0 + 10);
        vm.expectEmit(address(escrow));
        emit IEscrow.Paused(id, 2, 10);
        pause(terms, 1);
        vm.assertEq(paidUntil(terms), T0 + 100);
        vm.warp(T0 + 40);
        vm.assertEq(paidUntil(terms), T0 + 100);
        vm.assertEq(legView(terms, 1).servedSeconds, 10);
        start(terms, 1);
        vm.assertEq(paidUntil(terms), T0 + 100);
        vm.warp(T0 + 60);
        vm.assertEq(legView(terms, 1).servedSeconds, 30);
        vm.assertEq(legView(terms, 0).servedSeconds, 60);
        vm.recordLogs();
        pause(terms, 1);
        pause(terms, 1);
        pause(terms, 2);
        vm.assertEq(vm.getRecordedLogs().length, 1);
    }

    function test_theClockGoesOnWhenTheLastLegPauses() public {
        Terms memory terms = termsOf(2);
        open(terms, 300);
        start(terms, 0);
        vm.warp(T0 + 10);
        pause(terms, 0);
        vm.assertEq(paidUntil(terms), T0 + 100);
        vm.warp(T0 + 101);
        Snapshot memory s = escrow.snapshot(terms);
        vm.assertEq(s.exhaustedAt, T0 + 100);
        vm.assertEq(s.legs[0].owed, 10);
        vm.assertEq(closeBy(closer, terms, 0), 290);
    }

    // ---------------------------------------------------------------- credit

    function test_creditedSecondsAreThePayers() public {
        Terms memory terms = termsOf(1);
        bytes32 id = open(terms, 100);
        start(terms, 0);
        vm.warp(T0 + 50);
        vm.expectEmit(address(escrow));
        emit IEscrow.Credited(id, 0, 20, 20);
        vm.prank(controllers[0]);
        escrow.creditTo(terms, 0, 20);
        vm.assertEq(legView(terms, 0).servedSeconds, 30);
        vm.assertEq(paidUntil(terms), T0 + 100);
        vm.warp(T0 + 60);
        vm.assertEq(legView(terms, 0).servedSeconds, 40);
        pause(terms, 0);
        vm.expectEmit(address(escrow));
        emit IEscrow.Credited(id, 0, 5, 25);
        vm.prank(controllers[0]);
        escrow.creditTo(terms, 0, 25);
        vm.assertEq(legView(terms, 0).servedSeconds, 35);
        vm.assertEq(legView(terms, 0).creditedSeconds, 25);
        vm.assertEq(closeBy(closer, terms, 0), 65);
    }

    /// A repeat, which may be mined after the leg has served again, and a smaller total change nothing.
    function test_aRepeatedCreditCreditsNothing() public {
        Terms memory terms = termsOf(1);
        open(terms, 100);
        start(terms, 0);
        vm.warp(T0 + 50);
        pause(terms, 0);
        vm.prank(controllers[0]);
        escrow.creditTo(terms, 0, 20);
        start(terms, 0);
        vm.warp(T0 + 70);
        vm.recordLogs();
        for (uint40 total = 0; total <= 20; ++total) {
            vm.prank(controllers[0]);
            escrow.creditTo(terms, 0, total);
        }
        vm.assertEq(vm.getRecordedLogs().length, 0);
        vm.assertEq(legView(terms, 0).servedSeconds, 50);
        vm.assertEq(legView(terms, 0).creditedSeconds, 20);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.CreditTooLarge.selector, 71, 70));
        vm.prank(controllers[0]);
        escrow.creditTo(terms, 0, 71);
        vm.prank(controllers[0]);
        escrow.creditTo(terms, 0, 70);
        vm.assertEq(closeBy(closer, terms, 0), 100);
    }

    function test_whatWasWithdrawnCannotBeCredited() public {
        Terms memory terms = termsOf(1);
        terms.legs[0].rate = uint128(SCALE * 3 / 2);
        open(terms, 150);
        start(terms, 0);
        vm.warp(T0 + 11);
        vm.assertEq(withdraw(terms, 0), 16);
        // 16 units correspond to 10.67 seconds, so none of the 11 seconds can be credited.
        vm.expectRevert(abi.encodeWithSelector(IEscrow.CreditTooLarge.selector, 1, 0));
        vm.prank(controllers[0]);
        escrow.creditTo(terms, 0, 1);
        vm.warp(T0 + 15);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.CreditTooLarge.selector, 5, 4));
        vm.prank(controllers[0]);
        escrow.creditTo(terms, 0, 5);
        vm.prank(controllers[0]);
        escrow.creditTo(terms, 0, 4);
        vm.assertEq(withdraw(terms, 0), 0);
        vm.assertEq(legView(terms, 0).withdrawn, 16);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.CreditTooLarge.selector, 5, 4));
        vm.prank(controllers[0]);
        escrow.creditTo(terms, 0, 5);
    }

    function test_aCreditOfNothingSaysNothing() public {
        Terms memory terms = termsOf(1);
        open(terms, 100);
        vm.recordLogs();
        vm.prank(controllers[0]);
        escrow.creditTo(terms, 0, 0);
        vm.assertEq(vm.getRecordedLogs().length, 0);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.CreditTooLarge.selector, 1, 0));
        vm.prank(controllers[0]);
        escrow.creditTo(terms, 0, 1);
    }

    // ---------------------------------------------------------------- end of a leg

    function test_anEndedLegBurnsNoMore() public {
        Terms memory terms = termsOf(3);
        bytes32 id = open(terms, 600);
        start(terms, 0);
        start(terms, 2);
        vm.warp(T0 + 10);
        vm.expectEmit(address(escrow));
        emit IEscrow.LegEnded(id, 4, 10);
        endLeg(terms, 2);
        // 540 units are left for 3 units per second.
        vm.assertEq(paidUntil(terms), T0 + 10 + 180);
        vm.warp(T0 + 50);
        Snapshot memory s = escrow.snapshot(terms);
        vm.assertEq(s.legs[2].servedSeconds, 10);
        vm.assertEq(s.legs[2].endedAt, 10);
        vm.assertEq(s.legs[0].servedSeconds, 50);
        vm.assertEq(s.ended, 4);
        vm.assertEq(s.running, 1);
        vm.assertEq(s.deposited, 600);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.LegIsEnded.selector, 2));
        start(terms, 2);
        vm.recordLogs();
        endLeg(terms, 2);
        pause(terms, 2);
        vm.assertEq(vm.getRecordedLogs().length, 0);
        vm.assertEq(legView(terms, 2).endedAt, 10);
        vm.prank(controllers[2]);
        escrow.creditTo(terms, 2, 4);
        vm.assertEq(withdraw(terms, 2), 18);
    }

    function test_theClockStopsWithTheLastLeg() public {
        Terms memory terms = termsOf(2);
        open(terms, 300);
        start(terms, 0);
        vm.warp(T0 + 10);
        endLeg(terms, 0);
        endLeg(terms, 1);
        vm.warp(T0 + 1000);
        Snapshot memory s = escrow.snapshot(terms);
        vm.assertTrue(s.phase == Phase.Ended);
        vm.assertEq(s.paidUntil, 0);
        vm.assertEq(s.exhaustedAt, 0);
        vm.assertEq(s.paidSeconds, 10);
        vm.assertEq(fundTo(terms, 310), 10);
        vm.assertEq(closeBy(stranger, terms, 0), 300);
        vm.assertEq(withdraw(terms, 0), 10);
    }

    function test_aLegCanEndBeforeAnyStart() public {
        Terms memory terms = termsOf(2);
        open(terms, 100);
        endLeg(terms, 1);
        start(terms, 0);
        vm.assertEq(paidUntil(terms), T0 + 100);
        vm.warp(T0 + 40);
        Snapshot memory s = escrow.snapshot(terms);
        vm.assertEq(s.deposited, 100);
        vm.assertEq(s.balanceScaled, 60 * SCALE);
    }
}
