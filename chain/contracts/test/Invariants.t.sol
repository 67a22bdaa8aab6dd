// SPDX-License-Identifier: Apache-2.0
// Invariants after any sequence of actions of any callers.
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {LegView, Phase, Snapshot, Terms} from "../src/escrow/EscrowTypes.sol";
import {Handler, Kind} from "./Handler.sol";
import {
    BlocklistToken,
    BurningToken,
    EveryCall,
    FalseToken,
    MintableToken,
    ReentrantToken,
    SilentToken
} from "./HostileTokens.sol";
import {Ghost, Model} from "./Model.sol";
import {Stage} from "./Stage.sol";
import {vm} from "./Vm.sol";

contract InvariantTest is Stage {
    using Model for Ghost;

    uint256 private constant KINDS = 6;

    Handler private handler;

    function setUp() public override {
        super.setUp();
        MintableToken[] memory tokens = new MintableToken[](KINDS);
        tokens[uint256(Kind.Obedient)] = MintableToken(address(token));
        tokens[uint256(Kind.Silent)] = new SilentToken();
        tokens[uint256(Kind.Reentrant)] = new ReentrantToken();
        tokens[uint256(Kind.Blocking)] = new BlocklistToken();
        tokens[uint256(Kind.Burning)] = new BurningToken();
        tokens[uint256(Kind.False)] = new FalseToken();
        handler = new Handler(escrow, tokens, T0);
        ReentrantToken(address(tokens[uint256(Kind.Reentrant)]))
            .arm(address(escrow), EveryCall.on(handler.terms(uint256(Kind.Reentrant))));
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    /// One invariant with several parts, because separate invariants would each run all sequences again.
    function invariant_theBooksAgree() public view {
        everySnapshotIsTheModels();
        for (uint256 k = 0; k < KINDS; ++k) {
            theTokensAreThere(Kind(k));
            onlyPayeesArePaid(Kind(k));
            payersGetTheRest(Kind(k));
        }
        address reentrant = address(handler.tokens(uint256(Kind.Reentrant)));
        vm.assertEq(ReentrantToken(reentrant).unguarded(), 0, "no call in the middle of another");
    }

    /// Of each token, the contract holds exactly what is deposited in its accounts and neither withdrawn nor refunded.
    function theTokensAreThere(Kind k) private view {
        uint256 locked;
        for (uint256 i = 0; i < handler.count(); ++i) {
            if (handler.kind(i) != k) continue;
            Ghost memory g = handler.ghost(i);
            Terms memory terms = handler.terms(i);
            locked += g.deposited - g.refunded;
            for (uint256 l = 0; l < g.legs.length; ++l) {
                locked = locked - g.legs[l].withdrawn + waitingFor(terms.legs[l].payee, k);
            }
        }
        for (uint256 p = 0; p < 2; ++p) {
            locked += waitingFor(handler.payers(p), k);
        }
        vm.assertEq(handler.tokens(uint256(k)).balanceOf(address(escrow)), locked, "locked");
    }

    function waitingFor(address owner, Kind k) private view returns (uint256 waiting) {
        waiting = handler.credits(owner, uint256(k));
        vm.assertEq(escrow.credits(owner, IERC20(address(handler.tokens(uint256(k))))), waiting, "credits");
    }

    /// What was withdrawn for a holder, but is in the escrow still or was sent to the heir.
    function elsewhere(address owner, Kind k) private view returns (uint256) {
        return handler.credits(owner, uint256(k)) + handler.bequests(owner, uint256(k));
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
            vm.assertEq(view_.creditedSeconds, g.legs[l].credited, "credited");
            vm.assertEq(view_.withdrawn, g.legs[l].withdrawn, "withdrawn");
            vm.assertEq(view_.withdrawn + view_.owed, g.earned(l), "earned");
            vm.assertLe(view_.servedSeconds, g.legs[l].ended ? view_.endedAt : s.paidSeconds, "served is burned");
            burned += g.legs[l].rate * (g.legs[l].ended ? view_.endedAt : s.paidSeconds);
        }
        vm.assertEq(burned, g.deposited * SCALE, "what is left and what was burned is what came in");
    }

    /// Every payee holds exactly what was withdrawn for it, and nobody else holds any of it.
    function onlyPayeesArePaid(Kind k) private view {
        MintableToken held = handler.tokens(uint256(k));
        for (uint256 i = 0; i < handler.count(); ++i) {
            Ghost memory g = handler.ghost(i);
            Terms memory terms = handler.terms(i);
            for (uint256 l = 0; l < g.legs.length; ++l) {
                uint256 paid = handler.kind(i) == k ? g.legs[l].withdrawn - elsewhere(terms.legs[l].payee, k) : 0;
                vm.assertEq(held.balanceOf(terms.legs[l].payee), paid, "payee");
                vm.assertEq(held.balanceOf(terms.legs[l].controller), 0, "controller");
            }
        }
        vm.assertEq(held.balanceOf(handler.closer()), 0, "closer");
        vm.assertEq(held.balanceOf(handler.heir()), handler.inherited(uint256(k)), "heir");
        uint256 left = handler.WEALTH() - handler.strangersGifts(uint256(k));
        vm.assertEq(held.balanceOf(handler.stranger()), left, "stranger");
    }

    /// The payers hold what they did not deposit plus what was refunded and sent.
    function payersGetTheRest(Kind k) private view {
        uint256 expected = 2 * handler.WEALTH() + handler.strangersGifts(uint256(k));
        expected -= elsewhere(handler.payers(0), k) + elsewhere(handler.payers(1), k);
        for (uint256 i = 0; i < handler.count(); ++i) {
            if (handler.kind(i) != k) continue;
            Ghost memory g = handler.ghost(i);
            expected = expected + g.refunded - g.deposited;
        }
        MintableToken held = handler.tokens(uint256(k));
        vm.assertEq(held.balanceOf(handler.payers(0)) + held.balanceOf(handler.payers(1)), expected, "payers");
    }

    /// After each sequence everything is closed and withdrawn, and the contract holds nothing: of the tokens that
    /// transfer, even while all others refuse; and of these, when they transfer again.
    function afterInvariant() public {
        refuseAll(true);
        for (uint256 i = 0; i < handler.count(); ++i) {
            if (handler.kind(i) < Kind.Blocking) settle(i);
        }
        for (uint256 k = 0; k < uint256(Kind.Blocking); ++k) {
            vm.assertEq(handler.tokens(k).balanceOf(address(escrow)), 0, "dust");
        }
        refuseAll(false);
        for (uint256 i = 0; i < handler.count(); ++i) {
            if (handler.kind(i) >= Kind.Blocking) settle(i);
            Terms memory terms = handler.terms(i);
            collect(terms.payer, terms.token);
            for (uint256 l = 0; l < terms.legs.length; ++l) {
                deliver(terms.legs[l].payee, terms.token);
            }
        }
        for (uint256 k = 0; k < KINDS; ++k) {
            vm.assertEq(handler.tokens(k).balanceOf(address(escrow)), 0, "dust");
        }
    }

    function collect(address owner, IERC20 held) private {
        if (escrow.credits(owner, held) == 0) return;
        vm.prank(owner);
        escrow.withdrawCredit(held, owner);
    }

    function deliver(address owner, IERC20 held) private {
        if (escrow.credits(owner, held) == 0) return;
        vm.prank(stranger);
        escrow.deliverCredit(held, owner);
    }

    function settle(uint256 i) private {
        Terms memory terms = handler.terms(i);
        if (!escrow.snapshot(terms).closed) closeBy(terms.closer, terms, 0);
        for (uint256 l = 0; l < terms.legs.length; ++l) {
            withdraw(terms, l);
        }
    }

    /// Makes every hostile token refuse every transfer, or none.
    function refuseAll(bool refuse) private {
        BurningToken(address(handler.tokens(uint256(Kind.Burning)))).setBurning(refuse);
        FalseToken(address(handler.tokens(uint256(Kind.False)))).setBroken(refuse);
        BlocklistToken blocking = BlocklistToken(address(handler.tokens(uint256(Kind.Blocking))));
        for (uint256 i = 0; i < handler.count(); ++i) {
            Terms memory terms = handler.terms(i);
            blocking.block_(terms.payer, refuse);
            for (uint256 l = 0; l < terms.legs.length; ++l) {
                blocking.block_(terms.legs[l].payee, refuse);
            }
        }
    }
}
