// SPDX-License-Identifier: Apache-2.0
// Tokens that charge fees, refuse transfers, return false values or call back; hostile submitters and payees.
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Authorization, Leg, LegView, Permit, Terms} from "../src/escrow/EscrowTypes.sol";
import {IEscrow} from "../src/escrow/IEscrow.sol";
import {
    BlocklistToken,
    BonusToken,
    BurningToken,
    EveryCall,
    FalseToken,
    FeeToken,
    MintableToken,
    ReentrantToken,
    SilentToken,
    TurncoatToken,
    Wallet
} from "./HostileTokens.sol";
import {Stage} from "./Stage.sol";
import {vm} from "./Vm.sol";

contract HostileTest is Stage {
    function termsIn(MintableToken hostile, uint256 legs) private returns (Terms memory terms) {
        hostile.mint(payer, 10_000);
        vm.prank(payer);
        hostile.approve(address(escrow), type(uint256).max);
        terms = termsOf(legs);
        terms.token = IERC20(address(hostile));
    }

    // ---------------------------------------------------------------- tokens with fees or bonuses

    function test_aTokenThatTakesAFeeIsRefused() public {
        Terms memory terms = termsIn(new FeeToken(), 1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.TransferMismatch.selector, 600, 599));
        open(terms, 600);
        open(terms, 0);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.TransferMismatch.selector, 100, 99));
        fundTo(terms, 100);
    }

    function test_aTokenThatGivesMoreIsRefused() public {
        Terms memory terms = termsIn(new BonusToken(), 1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.TransferMismatch.selector, 600, 601));
        open(terms, 600);
    }

    function test_aTokenThatSaysNoIsHeard() public {
        FalseToken hostile = new FalseToken();
        Terms memory terms = termsIn(hostile, 1);
        open(terms, 100);
        start(terms, 0);
        hostile.setBroken(true);
        vm.expectRevert(abi.encodeWithSelector(SafeERC20.SafeERC20FailedOperation.selector, address(hostile)));
        fundTo(terms, 200);
        vm.warp(T0 + 6);
        vm.assertEq(withdraw(terms, 0), 6);
        vm.assertEq(escrow.credits(payees[0], terms.token), 6);
        vm.warp(T0 + 10);
        vm.assertEq(closeBy(closer, terms, 1), 90);
        vm.assertEq(escrow.credits(payer, terms.token), 90);
        vm.assertEq(escrow.credits(payees[0], terms.token), 10);
        vm.assertEq(legView(terms, 0).owed, 0);
        vm.expectRevert(abi.encodeWithSelector(SafeERC20.SafeERC20FailedOperation.selector, address(hostile)));
        vm.prank(payees[0]);
        escrow.withdrawCredit(terms.token, payees[0]);
        hostile.setBroken(false);
        vm.prank(payees[0]);
        vm.assertEq(escrow.withdrawCredit(terms.token, payees[0]), 10);
    }

    // ---------------------------------------------------------------- transfers that fail

    function test_aRefundThatFailsBecomesACredit() public {
        BlocklistToken hostile = new BlocklistToken();
        Terms memory terms = termsIn(hostile, 2);
        bytes32 id = open(terms, 300);
        start(terms, 0);
        vm.warp(T0 + 10);
        hostile.block_(payer, true);
        vm.expectEmit(address(escrow));
        emit IEscrow.TransferCredited(id, payer, terms.token, 290);
        closeBy(closer, terms, 3);
        vm.assertEq(hostile.balanceOf(payees[0]), 10);
        vm.assertEq(escrow.credits(payer, terms.token), 290);

        // The refund of a second account is added to it.
        hostile.block_(payer, false);
        terms.salt = bytes32(uint256(2));
        open(terms, 50);
        hostile.block_(payer, true);
        closeBy(closer, terms, 0);
        vm.assertEq(escrow.credits(payer, terms.token), 340);

        vm.expectRevert("blocked");
        vm.prank(payer);
        escrow.withdrawCredit(terms.token, payer);
        vm.expectRevert(IEscrow.NoCredit.selector);
        vm.prank(stranger);
        escrow.withdrawCredit(terms.token, stranger);
        vm.expectRevert(IEscrow.ZeroAddress.selector);
        vm.prank(payer);
        escrow.withdrawCredit(terms.token, address(0));

        // It is still blocked, and names another recipient.
        vm.expectEmit(address(escrow));
        emit IEscrow.CreditWithdrawn(payer, terms.token, market, 340);
        vm.prank(payer);
        vm.assertEq(escrow.withdrawCredit(terms.token, market), 340);
        vm.assertEq(hostile.balanceOf(market), 340);
        vm.expectRevert(IEscrow.NoCredit.selector);
        vm.prank(payer);
        escrow.withdrawCredit(terms.token, market);
        vm.assertEq(hostile.balanceOf(address(escrow)), 0);
    }

    /// The first legs have run for 10 seconds when the token blocks the payee of leg 1.
    function blockedAfterTenSeconds(uint256 started)
        private
        returns (BlocklistToken hostile, Terms memory terms, bytes32 id)
    {
        hostile = new BlocklistToken();
        terms = termsIn(hostile, 3);
        id = open(terms, 600);
        for (uint256 leg = 0; leg < started; ++leg) {
            start(terms, leg);
        }
        vm.warp(T0 + 10);
        hostile.block_(payees[1], true);
    }

    /// A payee whom the token blocks stops neither the withdrawals of others nor the end of its own leg.
    function test_aBlockedPayeeNamesAnotherRecipient() public {
        (BlocklistToken hostile, Terms memory terms, bytes32 id) = blockedAfterTenSeconds(2);
        Terms[] memory both = new Terms[](2);
        (both[0], both[1]) = (terms, terms);
        uint16[] memory legs = new uint16[](2);
        (legs[0], legs[1]) = (2, 2);
        vm.expectEmit(address(escrow));
        emit IEscrow.Withdrawn(id, 1, payees[1], 20);
        vm.expectEmit(address(escrow));
        emit IEscrow.TransferCredited(id, payees[1], terms.token, 20);
        vm.prank(controllers[1]);
        vm.assertEq(escrow.settleMany(both, legs), 20);
        vm.assertEq(legView(terms, 1).owed, 0);
        vm.assertEq(legView(terms, 1).withdrawn, 20);
        vm.assertEq(withdraw(terms, 0), 10);
        // What was withdrawn, even if it was not sent, cannot be credited to the payer.
        vm.expectRevert(abi.encodeWithSelector(IEscrow.CreditTooLarge.selector, 1, 0));
        vm.prank(controllers[1]);
        escrow.creditTo(terms, 1, 1);
        vm.expectRevert(IEscrow.NoCredit.selector);
        vm.prank(controllers[1]);
        escrow.withdrawCredit(terms.token, controllers[1]);
        vm.prank(payees[1]);
        vm.assertEq(escrow.withdrawCredit(terms.token, market), 20);
        vm.assertEq(hostile.balanceOf(market), 20);
        vm.assertEq(closeBy(closer, terms, 7), 570);
        vm.assertEq(hostile.balanceOf(address(escrow)), 0);
    }

    function test_aPayoutThatFailsStaysThePayees() public {
        (BlocklistToken hostile, Terms memory terms, bytes32 id) = blockedAfterTenSeconds(3);
        vm.expectEmit(address(escrow));
        emit IEscrow.TransferCredited(id, payees[1], terms.token, 20);
        vm.assertEq(closeBy(closer, terms, 7), 540);
        vm.assertEq(hostile.balanceOf(payees[0]), 10);
        vm.assertEq(hostile.balanceOf(payees[2]), 30);
        vm.assertEq(legView(terms, 1).withdrawn, 20);
        hostile.block_(payees[1], false);
        vm.assertEq(withdraw(terms, 1), 0);
        vm.prank(payees[1]);
        vm.assertEq(escrow.withdrawCredit(terms.token, payees[1]), 20);
        vm.assertEq(hostile.balanceOf(address(escrow)), 0);
    }

    /// A payee that is a contract has no way to call withdrawCredit. Anybody can have its credit sent to it, to nobody
    /// else, and only once.
    function test_theCreditOfAPayeeThatIsAContractIsDelivered() public {
        BlocklistToken hostile = new BlocklistToken();
        Terms memory terms = termsIn(hostile, 2);
        terms.legs[1].payee = address(new Wallet(payees[1]));
        open(terms, 300);
        start(terms, 0);
        start(terms, 1);
        vm.warp(T0 + 10);
        hostile.block_(payees[0], true);
        hostile.block_(terms.legs[1].payee, true);
        closeBy(closer, terms, 3);

        // While the token blocks the payee, a delivery changes nothing.
        vm.expectRevert("blocked");
        vm.prank(stranger);
        escrow.deliverCredit(terms.token, terms.legs[1].payee);
        vm.assertEq(escrow.credits(terms.legs[1].payee, terms.token), 20);

        hostile.block_(terms.legs[1].payee, false);
        vm.expectEmit(address(escrow));
        emit IEscrow.CreditWithdrawn(terms.legs[1].payee, terms.token, terms.legs[1].payee, 20);
        vm.prank(stranger);
        vm.assertEq(escrow.deliverCredit(terms.token, terms.legs[1].payee), 20);
        vm.assertEq(hostile.balanceOf(terms.legs[1].payee), 20);
        vm.assertEq(hostile.balanceOf(stranger), 0);
        vm.expectRevert(IEscrow.NoCredit.selector);
        vm.prank(stranger);
        escrow.deliverCredit(terms.token, terms.legs[1].payee);
        // The other credit and the same credit in another token are not touched.
        vm.assertEq(escrow.credits(payees[0], terms.token), 10);
        vm.expectRevert(IEscrow.NoCredit.selector);
        vm.prank(stranger);
        escrow.deliverCredit(IERC20(address(token)), payees[0]);
    }

    /// A token that calls back in the middle of a delivery moves neither the same credit again nor another one.
    function test_aDeliveryIsNotRepeatedInTheMiddleOfItself() public {
        TurncoatToken hostile = new TurncoatToken();
        Terms memory terms = termsIn(hostile, 2);
        open(terms, 300);
        start(terms, 0);
        start(terms, 1);
        vm.warp(T0 + 10);
        closeBy(closer, terms, 3);
        hostile.relent();
        bytes[] memory calls = new bytes[](2);
        calls[0] = abi.encodeCall(IEscrow.deliverCredit, (terms.token, payees[0]));
        calls[1] = abi.encodeCall(IEscrow.deliverCredit, (terms.token, payees[1]));
        hostile.arm(address(escrow), calls);
        vm.prank(stranger);
        vm.assertEq(escrow.deliverCredit(terms.token, payees[0]), 10);
        vm.assertEq(hostile.fired(), 2);
        vm.assertEq(hostile.unguarded(), 0);
        vm.assertEq(hostile.balanceOf(payees[0]), 10);
        vm.assertEq(hostile.balanceOf(payees[1]), 0);
        vm.assertEq(escrow.credits(payees[1], terms.token), 20);
        vm.assertEq(hostile.balanceOf(address(escrow)), 290);
    }

    /// A closer that passes too little gas cannot turn the refund into a credit, or make a payout fail.
    function testFuzz_aStarvedCloseDoesNothing(uint256 gasLimit) public {
        Terms memory terms = termsOf(3);
        open(terms, 600);
        start(terms, 0);
        vm.warp(T0 + 10);
        uint256 before = token.balanceOf(payer);
        vm.prank(closer);
        gasLimit = 20_000 + gasLimit % 200_000;
        (bool done,) = address(escrow).call{gas: gasLimit}(abi.encodeCall(IEscrow.close, (terms, 1)));
        vm.assertTrue(done || gasLimit < 180_000, "enough gas");
        vm.assertEq(escrow.credits(payer, terms.token), 0);
        vm.assertEq(escrow.credits(payees[0], terms.token), 0);
        vm.assertEq(token.balanceOf(payer), done ? before + 590 : before);
        vm.assertEq(token.balanceOf(payees[0]), done ? 10 : 0);
    }

    // ---------------------------------------------------------------- tokens that call back

    function test_noActionCanBeMadeInTheMiddleOfAnother() public {
        ReentrantToken hostile = new ReentrantToken();
        Terms memory terms = termsIn(hostile, 1);
        // The token has every role in this account, so that each of its calls is permitted.
        terms.payer = address(hostile);
        terms.closer = address(hostile);
        terms.legs[0] = Leg(address(hostile), address(hostile), uint128(SCALE));
        hostile.mint(address(hostile), 10_000);
        vm.prank(address(hostile));
        hostile.approve(address(escrow), type(uint256).max);
        open(terms, 100);
        start(terms, 0);

        bytes[] memory calls = EveryCall.on(terms);
        hostile.arm(address(escrow), calls);
        vm.warp(T0 + 1);
        vm.assertEq(withdraw(terms, 0), 1);
        vm.assertEq(hostile.fired(), calls.length);
        vm.prank(address(hostile));
        vm.assertEq(escrow.fundTo(terms, 101), 1);
        vm.assertEq(hostile.fired(), 2 * calls.length);
        vm.warp(T0 + 2);
        vm.assertEq(closeBy(address(hostile), terms, 1), 99);
        vm.assertEq(hostile.fired(), 4 * calls.length);
        Terms memory next = termsOf(1);
        next.payer = address(hostile);
        next.token = terms.token;
        next.salt = bytes32(uint256(2));
        open(next, 100);
        vm.assertEq(hostile.fired(), 5 * calls.length);
        vm.assertEq(hostile.unguarded(), 0);
    }

    /// A close is paid for by its caller, so a token can make it expensive, but not prevent it: the refund becomes a
    /// credit, and the payee is paid when the token transfers again.
    function test_aTokenThatBurnsAllGasPreventsNoClose() public {
        BurningToken hostile = new BurningToken();
        Terms memory terms = termsIn(hostile, 1);
        open(terms, 100);
        start(terms, 0);
        vm.warp(T0 + 10);
        hostile.setBurning(true);
        vm.prank(closer);
        (bool done,) = address(escrow).call{gas: 1_000_000}(abi.encodeCall(IEscrow.close, (terms, 0)));
        vm.assertFalse(done, "a refund is not lost for want of gas");
        vm.prank(closer);
        vm.assertEq(escrow.close{gas: 4_000_000}(terms, 0), 90);
        vm.assertEq(escrow.credits(payer, terms.token), 90);
        hostile.setBurning(false);
        vm.assertEq(withdraw(terms, 0), 10);
        vm.prank(payer);
        vm.assertEq(escrow.withdrawCredit(terms.token, payer), 90);
        vm.assertEq(hostile.balanceOf(address(escrow)), 0);
    }

    function test_aTokenThatReturnsNothingIsAccepted() public {
        SilentToken hostile = new SilentToken();
        Terms memory terms = termsIn(hostile, 1);
        open(terms, 100);
        start(terms, 0);
        vm.warp(T0 + 10);
        vm.assertEq(fundTo(terms, 150), 50);
        vm.assertEq(withdraw(terms, 0), 10);
        vm.assertEq(closeBy(closer, terms, 1), 140);
        vm.assertEq(hostile.balanceOf(payees[0]), 10);
        vm.assertEq(hostile.balanceOf(address(escrow)), 0);
    }

    // ---------------------------------------------------------------- submitters

    /// A token that does not verify authorizations must not let a caller occupy the id of a payer.
    function test_nobodySquatsAnIdWithATokenOfTheirOwn() public {
        ReentrantToken hostile = new ReentrantToken();
        Terms memory terms = termsOf(1);
        terms.token = IERC20(address(hostile));
        terms.closer = stranger;
        terms.legs[0] = Leg(stranger, stranger, 1);
        Authorization memory none;
        bytes memory own = signOpen(OTHER_KEY, terms, 600, NEVER);
        vm.expectRevert(IEscrow.BadSignature.selector);
        vm.prank(stranger);
        escrow.openWithAuthorization(terms, 600, NEVER, own, none);
        vm.assertFalse(escrow.snapshot(termsOf(1)).exists);
    }

    /// A submitter has the signature and the permit of a payer, and tries to open an account to its own advantage.
    function testFuzz_aSubmitterGainsNothing(uint8 way, uint128 rate, uint128 deposit, uint40 until) public {
        address self = stranger;
        deposit = deposit % 1_000_000;
        bytes memory signature = signOpen(PAYER_KEY, termsOf(2), 600, T0 + 60);
        Permit memory permit = signPermit(PAYER_KEY, 600, NEVER);
        Authorization memory authorization =
            signAuthorization(PAYER_KEY, 600, escrow.openDigest(termsOf(2), 600, T0 + 60));
        Terms memory terms = termsOf(2);
        if (way & 1 != 0) terms.closer = self;
        if (way & 2 != 0) terms.legs[0] = Leg(self, self, rate == 0 ? 1 : rate);
        if (way & 4 == 0) deposit = 600;
        if (way & 8 == 0) until = T0 + 60;
        bool same = terms.closer == closer && terms.legs[0].payee == payees[0] && deposit == 600 && until == T0 + 60;

        uint256 before = token.balanceOf(payer);
        bytes memory call = abi.encodeCall(IEscrow.openWithSignature, (terms, deposit, until, signature));
        if (way & 48 == 16) {
            call = abi.encodeCall(IEscrow.openWithSignatureAndPermit, (terms, deposit, until, signature, permit));
        } else if (way & 48 == 32) {
            call = abi.encodeCall(IEscrow.openWithAuthorization, (terms, deposit, until, signature, authorization));
        } else if (way & 48 == 48) {
            call = abi.encodeCall(IEscrow.open, (terms, deposit, until));
        }
        vm.prank(self);
        (bool done,) = address(escrow).call(call);
        vm.assertEq(done, same && way & 48 != 48);
        vm.assertEq(token.balanceOf(payer), done ? before - 600 : before);
        vm.assertEq(token.balanceOf(self), 0);
        if (done) vm.assertEq(closeBy(closer, termsOf(2), 0), 600);
    }

    // ---------------------------------------------------------------- payees and controllers

    /// A provider with both keys and any order of calls gets at most its rate for the seconds until the end that the
    /// other leg had before, and the other leg loses nothing.
    function testFuzz_aPayeeGainsNothing(uint256 seed) public {
        Terms memory terms = termsOf(2);
        open(terms, 300);
        start(terms, 1);
        uint40 end = paidUntil(terms);
        uint256 now_ = T0;
        for (uint256 i = 0; i < 12; ++i) {
            seed = uint256(keccak256(abi.encode(seed)));
            now_ += seed % 20;
            vm.warp(now_);
            vm.assertTrue(act(terms, seed, now_, end), "succeeds exactly when permitted");
            uint256 served = (now_ < end ? now_ : end) - T0;
            vm.assertLe(token.balanceOf(payees[0]) + legView(terms, 0).owed, served, "more than its rate");
            vm.assertEq(legView(terms, 1).owed, 2 * served, "the other's earnings");
            vm.assertEq(paidUntil(terms), end, "the other's end");
        }
        uint256 before = token.balanceOf(payer);
        closeBy(closer, terms, 3);
        vm.assertEq(
            token.balanceOf(payer) - before + token.balanceOf(payees[0]) + token.balanceOf(payees[1]), 300, "conserved"
        );
        vm.assertEq(token.balanceOf(controllers[0]), 0);
    }

    /// Makes one call as the payee or the controller of leg 0. Returns whether it succeeded or was refused as it must.
    function act(Terms memory terms, uint256 seed, uint256 now_, uint256 end) private returns (bool) {
        bool byController = seed >> 8 & 1 == 1;
        bool runs = escrow.snapshot(terms).running & 1 == 1;
        uint40 given = uint40(seed >> 16) % 10;
        LegView memory leg = legView(terms, 0);
        bytes[6] memory calls = [
            abi.encodeCall(IEscrow.start, (terms, 1)),
            abi.encodeCall(IEscrow.pause, (terms, 1)),
            abi.encodeCall(IEscrow.creditTo, (terms, 0, given)),
            abi.encodeCall(IEscrow.withdraw, (terms, 1)),
            abi.encodeCall(IEscrow.withdraw, (terms, 3)),
            abi.encodeCall(IEscrow.close, (terms, 3))
        ];
        // Leg 0 earns one base unit per second, so `owed` is what can be credited besides what has been.
        bool credits = byController && given <= leg.creditedSeconds + leg.owed;
        bool[6] memory permitted = [byController && (runs || now_ < end), byController, credits, true, false, false];
        uint256 kind = (seed >> 64) % 6;
        vm.prank(byController ? controllers[0] : payees[0]);
        (bool done,) = address(escrow).call(calls[kind]);
        return done == permitted[kind];
    }
}
