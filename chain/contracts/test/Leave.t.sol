// SPDX-License-Identifier: Apache-2.0
// Outgoing money: withdrawals, closes by each permitted caller, notice, refunds, and the corresponding views.
pragma solidity ^0.8.28;

import {Account, Phase, Snapshot, Terms} from "../src/escrow/EscrowTypes.sol";
import {IEscrow} from "../src/escrow/IEscrow.sol";
import {Stage} from "./Stage.sol";
import {vm} from "./Vm.sol";

contract LeaveTest is Stage {
    // ---------------------------------------------------------------- withdraw

    function test_withdrawPaysThePayeeOnce() public {
        Terms memory terms = termsOf(3);
        bytes32 id = open(terms, 600);
        start(terms, 1);
        vm.warp(T0 + 30);
        vm.expectEmit(address(escrow));
        emit IEscrow.Withdrawn(id, 1, payees[1], 60);
        vm.assertEq(withdraw(terms, 1), 60);
        vm.assertEq(withdraw(terms, 1), 0);
        vm.assertEq(token.balanceOf(payees[1]), 60);
        vm.assertEq(legView(terms, 1).withdrawn, 60);
        vm.assertEq(legView(terms, 1).owed, 0);
        vm.assertEq(paidUntil(terms), T0 + 100);
        vm.warp(T0 + 40);
        vm.assertEq(withdraw(terms, 1), 20);
        vm.assertEq(token.balanceOf(payees[1]), 80);
    }

    function test_theControllerMayAskButThePayeeGets() public {
        Terms memory terms = termsOf(3);
        open(terms, 600);
        start(terms, 1);
        vm.warp(T0 + 30);
        vm.prank(controllers[1]);
        vm.assertEq(escrow.withdraw(terms, 2), 60);
        vm.assertEq(token.balanceOf(payees[1]), 60);
        vm.assertEq(token.balanceOf(controllers[1]), 0);
    }

    function test_nobodyElseWithdraws() public {
        Terms memory terms = termsOf(3);
        open(terms, 600);
        start(terms, 1);
        vm.warp(T0 + 30);
        address[4] memory others = [payer, closer, payees[0], controllers[2]];
        for (uint256 i = 0; i < 4; ++i) {
            vm.expectRevert(abi.encodeWithSelector(IEscrow.NotPayeeOrController.selector, 1));
            vm.prank(others[i]);
            escrow.withdraw(terms, 2);
        }
        vm.expectRevert(abi.encodeWithSelector(IEscrow.NotPayeeOrController.selector, 2));
        vm.prank(payees[1]);
        escrow.withdraw(terms, 6);
    }

    function test_fractionsAreKeptUntilTheyAreAUnit() public {
        Terms memory terms = termsOf(1);
        terms.legs[0].rate = uint128(SCALE * 2 / 3);
        open(terms, 100);
        start(terms, 0);
        uint256 sum;
        for (uint256 i = 1; i <= 100; ++i) {
            vm.warp(T0 + i);
            sum += withdraw(terms, 0);
        }
        vm.assertEq(sum, 66);
        vm.assertEq(closeBy(closer, terms, 0), 34);
    }

    function test_settleManyWithdrawsFromEach() public {
        Terms[] memory terms = new Terms[](3);
        uint16[] memory legs = new uint16[](3);
        for (uint256 i = 0; i < 3; ++i) {
            terms[i] = termsOf(2);
            terms[i].salt = bytes32(i);
            legs[i] = 1;
            open(terms[i], 300);
            start(terms[i], 0);
        }
        closeBy(closer, terms[2], 0);
        vm.warp(T0 + 10);
        vm.prank(payees[0]);
        vm.assertEq(escrow.settleMany(terms, legs), 20);
        vm.assertEq(token.balanceOf(payees[0]), 20);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.NotPayeeOrController.selector, 0));
        vm.prank(payees[1]);
        escrow.settleMany(terms, legs);
        vm.expectRevert(IEscrow.LengthMismatch.selector);
        vm.prank(payees[0]);
        escrow.settleMany(terms, new uint16[](2));
    }

    // ---------------------------------------------------------------- close: callers and times

    function test_theCloserClosesAtOnceAndThePayerIsRefunded() public {
        Terms memory terms = termsOf(3);
        terms.noticeSeconds = 60;
        bytes32 id = open(terms, 600);
        start(terms, 0);
        start(terms, 1);
        vm.warp(T0 + 10);
        uint256 before = token.balanceOf(payer);
        vm.expectEmit(address(escrow));
        emit IEscrow.Closed(id, closer, 570);
        vm.assertEq(closeBy(closer, terms, 0), 570);
        vm.assertEq(token.balanceOf(payer), before + 570);
        vm.assertEq(token.balanceOf(closer), 0);
        vm.warp(T0 + 1000);
        Snapshot memory s = escrow.snapshot(terms);
        vm.assertTrue(s.closed && s.phase == Phase.Closed);
        vm.assertEq(s.deposited, 600);
        vm.assertEq(s.balanceScaled, 0);
        vm.assertEq(s.running, 0);
        vm.assertEq(s.paidUntil, 0);
        vm.assertEq(s.legs[0].owed, 10);
        vm.assertEq(withdraw(terms, 0), 10);
        vm.assertEq(withdraw(terms, 1), 20);
        vm.assertEq(withdraw(terms, 2), 0);
        vm.assertEq(token.balanceOf(address(escrow)), 0);
    }

    function test_aClosedAccountIsClosed() public {
        Terms memory terms = termsOf(1);
        bytes32 id = open(terms, 100);
        closeBy(payer, terms, 0);
        address[3] memory everybody = [payer, closer, stranger];
        for (uint256 i = 0; i < 3; ++i) {
            vm.expectRevert(abi.encodeWithSelector(IEscrow.AccountClosed.selector, id));
            closeBy(everybody[i], terms, 0);
        }
        vm.assertEq(token.balanceOf(address(escrow)), 0);
    }

    function test_aStrangerClosesOnlyWhatNeverStarted() public {
        Terms memory terms = termsOf(2);
        open(terms, 300);
        vm.warp(terms.startBy);
        address[3] memory others = [stranger, payees[0], controllers[0]];
        for (uint256 i = 0; i < 3; ++i) {
            vm.expectRevert(IEscrow.MayNotClose.selector);
            closeBy(others[i], terms, 0);
        }
        vm.warp(terms.startBy + 1);
        uint256 before = token.balanceOf(payer);
        vm.assertEq(closeBy(stranger, terms, 0), 300);
        vm.assertEq(token.balanceOf(payer), before + 300);
    }

    function test_aStrangerNeverClosesWhatRuns() public {
        Terms memory terms = termsOf(2);
        terms.pauseFor = 0;
        open(terms, 300);
        start(terms, 0);
        vm.warp(T0 + 10);
        pause(terms, 0);
        vm.warp(T0 + 100);
        vm.expectRevert(IEscrow.MayNotClose.selector);
        closeBy(stranger, terms, 0);
        fundTo(terms, 30_000);
        vm.warp(terms.startBy + 1000);
        vm.expectRevert(IEscrow.MayNotClose.selector);
        closeBy(stranger, terms, 0);
        endLeg(terms, 0);
        vm.expectRevert(IEscrow.MayNotClose.selector);
        closeBy(stranger, terms, 0);
    }

    function test_aStrangerClosesWhatStayedExhausted() public {
        Terms memory terms = termsOf(2);
        open(terms, 301);
        start(terms, 0);
        vm.warp(T0 + 100 + terms.pauseFor);
        vm.expectRevert(IEscrow.MayNotClose.selector);
        closeBy(stranger, terms, 0);
        vm.warp(T0 + 100 + terms.pauseFor + 1);
        uint256 before = token.balanceOf(payer);
        vm.assertEq(closeBy(stranger, terms, 3), 201);
        vm.assertEq(token.balanceOf(payer), before + 201);
        vm.assertEq(token.balanceOf(payees[0]), 100);
        vm.assertEq(token.balanceOf(stranger), 0);
    }

    function test_aRestartEndsTheTimeToClose() public {
        Terms memory terms = termsOf(2);
        open(terms, 300);
        start(terms, 0);
        vm.warp(T0 + 100 + terms.pauseFor + 1);
        fundTo(terms, 600);
        start(terms, 0);
        vm.expectRevert(IEscrow.MayNotClose.selector);
        closeBy(stranger, terms, 0);
    }

    // ---------------------------------------------------------------- close: notice

    function test_thePayersCloseGivesRunningLegsTheirNotice() public {
        Terms memory terms = termsOf(3);
        terms.noticeSeconds = 60;
        open(terms, 1200);
        start(terms, 0);
        start(terms, 1);
        start(terms, 2);
        vm.warp(T0 + 10);
        pause(terms, 1);
        vm.assertEq(closeBy(payer, terms, 7), 1200 - 70 - 20 - 210);
        vm.assertEq(token.balanceOf(payees[0]), 70);
        vm.assertEq(token.balanceOf(payees[1]), 20);
        vm.assertEq(token.balanceOf(payees[2]), 210);
        vm.assertEq(escrow.snapshot(terms).deposited, 1200);
    }

    function test_noticeNeverPaysBeyondTheEnd() public {
        Terms memory terms = termsOf(2);
        terms.noticeSeconds = 60;
        open(terms, 301);
        start(terms, 0);
        vm.warp(T0 + 80);
        vm.assertEq(closeBy(payer, terms, 0), 201);
        vm.assertEq(legView(terms, 0).owed, 100);
        vm.assertEq(escrow.snapshot(terms).deposited, 301);
    }

    function test_noNoticeWithoutARunningLeg() public {
        Terms memory terms = termsOf(2);
        terms.noticeSeconds = 60;
        open(terms, 300);
        vm.assertEq(closeBy(payer, terms, 0), 300);

        Terms memory paused = termsOf(2);
        paused.salt = bytes32(uint256(2));
        paused.noticeSeconds = 60;
        open(paused, 300);
        start(paused, 0);
        vm.warp(T0 + 10);
        pause(paused, 0);
        vm.assertEq(closeBy(payer, paused, 0), 290);

        Terms memory spent = termsOf(2);
        spent.salt = bytes32(uint256(3));
        spent.noticeSeconds = 60;
        open(spent, 300);
        start(spent, 0);
        vm.warp(T0 + 500);
        fundTo(spent, 600);
        vm.assertEq(closeBy(payer, spent, 0), 500);
    }

    function test_aPayerWhoIsTheCloserGivesNoticeToo() public {
        Terms memory terms = termsOf(1);
        terms.closer = payer;
        terms.noticeSeconds = 60;
        open(terms, 100);
        start(terms, 0);
        vm.assertEq(closeBy(payer, terms, 0), 40);
    }

    // ---------------------------------------------------------------- views

    function test_aSnapshotOfOtherTermsSaysSo() public {
        Terms memory terms = termsOf(2);
        vm.assertFalse(escrow.snapshot(terms).exists);
        open(terms, 300);
        start(terms, 0);
        Terms memory other = termsOf(3);
        Snapshot memory s = escrow.snapshot(other);
        vm.assertTrue(s.exists);
        vm.assertFalse(s.matches);
        vm.assertEq(s.deposited, 0);
        vm.assertEq(s.legs.length, 0);

        Terms[] memory rows = new Terms[](3);
        rows[0] = other;
        rows[1] = terms;
        rows[2] = termsOf(1);
        rows[2].salt = bytes32(uint256(9));
        Snapshot[] memory all = escrow.snapshots(rows);
        vm.assertFalse(all[0].matches);
        vm.assertEq(all[1].paidUntil, T0 + 100);
        vm.assertFalse(all[2].exists);
    }

    function test_rawTellsWithoutTerms() public {
        Terms memory terms = termsOf(2);
        open(terms, 300);
        start(terms, 0);
        vm.warp(T0 + 10);
        pause(terms, 0);
        endLeg(terms, 1);
        bytes32[] memory ids = new bytes32[](2);
        ids[0] = idOf(terms);
        ids[1] = bytes32(uint256(1));
        Account[] memory rows = escrow.raw(ids);
        vm.assertEq(rows[0].termsHash, keccak256(abi.encode(terms)));
        vm.assertEq(rows[0].clock.balance, 270 * SCALE);
        vm.assertEq(rows[0].clock.settledAt, T0 + 10);
        vm.assertEq(rows[0].clock.paidSeconds, 10);
        vm.assertEq(rows[0].clock.running, 0);
        vm.assertEq(rows[0].clock.ended, 2);
        vm.assertTrue(rows[0].clock.phase == Phase.Running);
        vm.assertEq(rows[1].termsHash, 0);
        closeBy(closer, terms, 0);
        vm.assertTrue(escrow.raw(ids)[0].clock.phase == Phase.Closed);
    }

    /// A client reads the same values before and after another transaction settles the account.
    function testFuzz_aViewNeedsNoTransaction(uint128 deposit, uint40 elapsed) public {
        deposit = uint128(3 + deposit % 10_000);
        elapsed = elapsed % 20_000;
        Terms memory terms = termsOf(2);
        open(terms, deposit);
        start(terms, 1);
        vm.warp(T0 + elapsed);
        Snapshot memory before = escrow.snapshot(terms);
        vm.prank(payees[0]);
        escrow.withdraw(terms, 1);
        vm.assertEq(keccak256(abi.encode(before)), keccak256(abi.encode(escrow.snapshot(terms))));
    }

    /// For any numbers: nothing reverts, seconds are whole, and the parts sum up to the deposit.
    function testFuzz_noNumberBreaksTheClock(uint128[3] memory rates, uint128 deposit, uint40 elapsed, uint8 lost)
        public
    {
        elapsed = elapsed % (NEVER - T0);
        deposit = uint128(deposit % (escrow.MAX_DEPOSIT() + 1)) >> (lost % 100);
        Terms memory terms = termsOf(3);
        uint256 perSecond;
        for (uint256 i = 0; i < 3; ++i) {
            terms.legs[i].rate = uint128(1 + (rates[i] >> (lost % 120)) % type(uint128).max);
            perSecond += terms.legs[i].rate;
        }
        token.mint(payer, deposit);
        open(terms, deposit);
        uint256 covered = deposit * SCALE / perSecond;
        if (covered == 0) {
            vm.expectRevert(abi.encodeWithSelector(IEscrow.NotCovered.selector, deposit * SCALE, perSecond));
            start(terms, 0);
            return;
        }
        start(terms, 0);
        start(terms, 2);
        vm.warp(T0 + elapsed);
        Snapshot memory s = escrow.snapshot(terms);
        uint256 served = elapsed < covered ? elapsed : covered;
        vm.assertEq(s.paidSeconds, served);
        vm.assertEq(s.paidUntil, covered < NEVER - T0 ? T0 + covered : NEVER);
        vm.assertEq(s.deposited, deposit);
        uint256 refund = closeBy(closer, terms, 1);
        uint256 paid = terms.legs[0].rate * served / SCALE;
        vm.assertEq(token.balanceOf(payees[0]), paid);
        paid += withdraw(terms, 2);
        vm.assertEq(withdraw(terms, 1), 0);
        vm.assertEq(refund + paid, deposit);
        vm.assertEq(token.balanceOf(address(escrow)), 0);
    }
}
