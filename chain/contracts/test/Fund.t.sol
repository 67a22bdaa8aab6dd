// SPDX-License-Identifier: Apache-2.0
// Exhaustion, top-ups and their effect on the clock, and fundTo.
pragma solidity ^0.8.28;

import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {Permit, Phase, Snapshot, Terms} from "../src/escrow/EscrowTypes.sol";
import {IEscrow} from "../src/escrow/IEscrow.sol";
import {Stage} from "./Stage.sol";
import {vm} from "./Vm.sol";

contract FundTest is Stage {
    // ---------------------------------------------------------------- exhaustion and top-up

    function test_allLegsStopInTheSameSecond() public {
        Terms memory terms = termsOf(3);
        bytes32 id = open(terms, 605);
        start(terms, 0);
        start(terms, 1);
        start(terms, 2);
        vm.warp(T0 + 100);
        vm.assertTrue(escrow.snapshot(terms).phase == Phase.Running);
        vm.warp(T0 + 500);
        Snapshot memory s = escrow.snapshot(terms);
        vm.assertTrue(s.phase == Phase.Exhausted);
        vm.assertEq(s.exhaustedAt, T0 + 100);
        vm.assertEq(s.paidUntil, T0 + 100);
        vm.assertEq(s.running, 0);
        vm.assertEq(s.balanceScaled, 5 * SCALE);
        for (uint256 i = 0; i < 3; ++i) {
            vm.assertEq(s.legs[i].servedSeconds, 100);
        }
        vm.expectEmit(address(escrow));
        emit IEscrow.Exhausted(id, T0 + 100);
        vm.assertEq(withdraw(terms, 0), 100);
        vm.recordLogs();
        pause(terms, 1);
        vm.assertEq(vm.getRecordedLogs().length, 0);
        vm.assertEq(withdraw(terms, 1), 200);
        vm.assertEq(withdraw(terms, 2), 300);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.NotCovered.selector, 5 * SCALE, 6 * SCALE));
        start(terms, 0);
    }

    function test_theGapIsNeverCharged() public {
        Terms memory terms = termsOf(3);
        open(terms, 600);
        start(terms, 0);
        start(terms, 1);
        vm.warp(T0 + 300);
        fundTo(terms, 1200);
        vm.warp(T0 + 400);
        Snapshot memory s = escrow.snapshot(terms);
        vm.assertEq(s.exhaustedAt, T0 + 100);
        vm.assertEq(s.paidUntil, T0 + 100);
        vm.assertEq(s.balanceScaled, 600 * SCALE);
        vm.assertEq(s.running, 0);

        // Only the leg whose controller starts it continues; the workload of the other may no longer exist.
        start(terms, 0);
        vm.assertEq(paidUntil(terms), T0 + 500);
        vm.assertEq(escrow.snapshot(terms).running, 1);
        vm.assertEq(escrow.snapshot(terms).exhaustedAt, 0);
        vm.warp(T0 + 410);
        start(terms, 1);
        vm.warp(T0 + 430);
        s = escrow.snapshot(terms);
        vm.assertEq(s.legs[0].servedSeconds, 130);
        vm.assertEq(s.legs[1].servedSeconds, 120);
        vm.assertEq(s.paidSeconds, 130);
        vm.assertEq(s.deposited, 1200);
    }

    function test_aTopUpInTimeLeavesNoGap() public {
        Terms memory terms = termsOf(3);
        bytes32 id = open(terms, 600);
        start(terms, 0);
        vm.warp(T0 + 100);
        vm.expectEmit(address(escrow));
        emit IEscrow.Funded(id, payer, 600, 1200);
        fundTo(terms, 1200);
        vm.assertEq(paidUntil(terms), T0 + 200);
        vm.warp(T0 + 200);
        vm.assertEq(legView(terms, 0).servedSeconds, 200);
    }

    function test_aLegCanEndOrCreditWhileExhausted() public {
        Terms memory terms = termsOf(3);
        open(terms, 604);
        start(terms, 0);
        start(terms, 1);
        start(terms, 2);
        vm.warp(T0 + 150);
        vm.prank(controllers[1]);
        escrow.creditTo(terms, 1, 10);
        endLeg(terms, 2);
        vm.assertEq(legView(terms, 1).servedSeconds, 90);
        vm.assertEq(legView(terms, 2).servedSeconds, 100);
        vm.assertEq(legView(terms, 2).endedAt, 100);
        // The remainder that was too small for three legs covers one second for two.
        start(terms, 0);
        vm.assertEq(paidUntil(terms), T0 + 151);
        vm.warp(T0 + 300);
        vm.assertEq(legView(terms, 0).servedSeconds, 101);
        vm.assertEq(legView(terms, 1).servedSeconds, 90);
        vm.assertEq(closeBy(closer, terms, 7), 604 - 101 - 180 - 300);
    }

    function test_endingAllWhileExhausted() public {
        Terms memory terms = termsOf(1);
        open(terms, 10);
        start(terms, 0);
        vm.warp(T0 + 20);
        endLeg(terms, 0);
        vm.assertTrue(escrow.snapshot(terms).phase == Phase.Ended);
        vm.assertEq(closeBy(stranger, terms, 1), 0);
        vm.assertEq(token.balanceOf(payees[0]), 10);
    }

    // ---------------------------------------------------------------- fundTo

    function test_fundToMovesOnlyWhatIsMissing() public {
        Terms memory terms = termsOf(2);
        open(terms, 300);
        uint256 before = token.balanceOf(payer);
        vm.assertEq(fundTo(terms, 450), 150);
        vm.recordLogs();
        vm.assertEq(fundTo(terms, 450), 0);
        vm.assertEq(fundTo(terms, 100), 0);
        vm.assertEq(vm.getRecordedLogs().length, 0);
        vm.assertEq(token.balanceOf(payer), before - 150);
        start(terms, 0);
        vm.warp(T0 + 60);
        endLeg(terms, 1);
        vm.warp(T0 + 90);
        // The total includes what was burned, also by ended legs.
        vm.assertEq(escrow.snapshot(terms).deposited, 450);
        vm.assertEq(fundTo(terms, 450), 0);
        vm.assertEq(fundTo(terms, 451), 1);
    }

    function test_aStrangersTopUpIsHarmless() public {
        Terms memory terms = termsOf(2);
        open(terms, 300);
        token.mint(stranger, 100);
        vm.prank(stranger);
        token.approve(address(escrow), 100);
        vm.prank(stranger);
        escrow.fundTo(terms, 400);
        vm.assertEq(fundTo(terms, 400), 0);
        uint256 before = token.balanceOf(payer);
        closeBy(payer, terms, 0);
        vm.assertEq(token.balanceOf(payer), before + 400);
        vm.assertEq(token.balanceOf(stranger), 0);
    }

    function test_fundToWithPermit() public {
        Terms memory terms = termsOf(2);
        open(terms, 300);
        vm.prank(payer);
        token.approve(address(escrow), 0);
        Permit memory forged = signPermit(OTHER_KEY, 100, NEVER);
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientAllowance.selector, address(escrow), 0, 100)
        );
        vm.prank(payer);
        escrow.fundToWithPermit(terms, 400, forged);
        Permit memory permit = signPermit(PAYER_KEY, 100, NEVER);
        vm.prank(payer);
        vm.assertEq(escrow.fundToWithPermit(terms, 400, permit), 100);
        // The same call again: the permit is used, and nothing is missing.
        vm.prank(payer);
        vm.assertEq(escrow.fundToWithPermit(terms, 400, permit), 0);
    }

    function test_theTotalIsBounded() public {
        Terms memory terms = termsOf(2);
        open(terms, 300);
        uint128 most = uint128(escrow.MAX_DEPOSIT());
        token.mint(payer, uint256(most) + 1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.DepositTooLarge.selector, most + 1));
        fundTo(terms, most + 1);
        vm.assertEq(fundTo(terms, most), most - 300);
        start(terms, 0);
        vm.assertEq(paidUntil(terms), NEVER);
        vm.warp(T0 + 365 days);
        vm.assertEq(escrow.snapshot(terms).deposited, most);
        vm.assertEq(closeBy(closer, terms, 0), most - 365 days);
    }
}
