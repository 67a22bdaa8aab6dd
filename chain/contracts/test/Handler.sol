// SPDX-License-Identifier: Apache-2.0
// Performs random actions of tenants, providers, markets and third parties on accounts of several tokens, on the
// contract and on the model. One token is obedient, the others misbehave, and are switched during the run. The model
// determines which calls must be refused.
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Leg, Phase, Terms} from "../src/escrow/EscrowTypes.sol";
import {IEscrow} from "../src/escrow/IEscrow.sol";
import {BlocklistToken, BurningToken, EveryCall, FalseToken, MintableToken, ReentrantToken} from "./HostileTokens.sol";
import {Ghost, GhostLeg, Model} from "./Model.sol";
import {vm} from "./Vm.sol";

/// What the token of an account does.
enum Kind {
    Obedient,
    /// Returns nothing.
    Silent,
    /// Calls every function of the escrow in each transfer.
    Reentrant,
    /// Refuses transfers of some holders.
    Blocking,
    /// Consumes all gas of a transfer.
    Burning,
    /// Returns false.
    False
}

contract Handler {
    using Model for Ghost;

    uint256 private constant SCALE = 1e12;
    uint256 private constant MOST_ACCOUNTS = 10;
    uint256 private constant KINDS = 6;
    bytes4 private constant PANIC = 0x4e487b71;
    uint256 public constant WEALTH = 1_000_000_000;
    /// Gas of each call. After one transfer that consumes all its gas, enough is left to finish; after two, it is not.
    uint256 private constant GAS = 8_000_000;

    IEscrow private immutable escrow;
    address public immutable closer = address(0xC105E);
    address public immutable stranger = address(0x57A);
    /// Another address of every holder, to which every token transfers.
    address public immutable heir = address(0x4E1);
    address[2] public payers = [address(0xFA1), address(0xFA2)];

    /// The token of each kind.
    MintableToken[] public tokens;
    uint256 public now_;
    /// What the stranger has paid into accounts of each kind.
    uint256[KINDS] public strangersGifts;
    /// What the token of each kind did not transfer to a holder and what waits for it.
    mapping(address owner => mapping(uint256 kind => uint256)) public credits;
    /// Credits that their owners sent to the heir, and their sum of each kind.
    mapping(address owner => mapping(uint256 kind => uint256)) public bequests;
    uint256[KINDS] public inherited;
    Terms[] private _terms;
    Ghost[] private _ghosts;
    Kind[] private _kinds;

    constructor(IEscrow escrow_, MintableToken[] memory tokens_, uint256 start_) {
        escrow = escrow_;
        tokens = tokens_;
        now_ = start_;
        for (uint256 k = 0; k < KINDS; ++k) {
            for (uint256 i = 0; i < 3; ++i) {
                address holder = i < 2 ? payers[i] : stranger;
                tokens[k].mint(holder, WEALTH);
                vm.prank(holder);
                tokens[k].approve(address(escrow), type(uint256).max);
            }
            open(Kind(k), k * 50);
        }
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

    function kind(uint256 account) external view returns (Kind) {
        return _kinds[account];
    }

    // ---------------------------------------------------------------- actions

    /// Weighted, so that some accounts are exhausted and others are not.
    function act(uint256 seed, uint256 account, uint256 leg, uint256 amount) external {
        uint256 i = account % _terms.length;
        uint256 l = leg % _terms[i].legs.length;
        uint256 what = seed % 24;
        if (what < 4) wait(amount % 60);
        else if (what < 8) start(i, l);
        else if (what < 10) pause(i, l);
        else if (what < 12) fund(i, amount % 200, seed >> 8 & 1 == 0);
        else if (what < 13) creditTo(i, l, amount);
        else if (what < 15) withdraw(i, l, seed >> 8 & 1 == 0);
        else if (what < 16) end(i, l);
        else if (what < 17) close(i, seed >> 8, uint16(amount));
        else if (what < 18) intrude(i, l, amount);
        else if (what < 19) wait(amount % 400);
        else if (what < 20) settle(i, amount % _terms.length, l);
        else if (what < 21) withdrawCredit(i, l, amount);
        else if (what < 23) switchToken(i, l, amount);
        else if (_terms.length < MOST_ACCOUNTS) open(Kind(leg % KINDS), amount);
    }

    /// Changes what the token of the account does, to all accounts of this token.
    function switchToken(uint256 i, uint256 l, uint256 who) private {
        Kind k = _kinds[i];
        if (k == Kind.Burning) {
            BurningToken burning = BurningToken(address(tokens[uint256(k)]));
            burning.setBurning(!burning.burning());
        } else if (k == Kind.False) {
            FalseToken hostile = FalseToken(address(tokens[uint256(k)]));
            hostile.setBroken(!hostile.broken());
        } else if (k == Kind.Blocking) {
            BlocklistToken blocking = BlocklistToken(address(tokens[uint256(k)]));
            address holder = who % 2 == 0 ? _terms[i].payer : _terms[i].legs[l].payee;
            blocking.block_(holder, !blocking.blocked(holder));
        } else if (k == Kind.Reentrant) {
            ReentrantToken(address(tokens[uint256(k)])).arm(address(escrow), EveryCall.on(_terms[i]));
        }
    }

    /// Whether the escrow cannot send a token to this holder now.
    function cannotSendTo(Kind k, address to) private view returns (bool) {
        address hostile = address(tokens[uint256(k)]);
        if (k == Kind.Blocking) return BlocklistToken(hostile).blocked(to);
        if (k == Kind.Burning) return BurningToken(hostile).burning();
        return k == Kind.False && FalseToken(hostile).broken();
    }

    /// Whether the escrow cannot take a token from this holder now.
    function cannotTakeFrom(Kind k, address from) private view returns (bool) {
        return k != Kind.Burning && cannotSendTo(k, from);
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

    function open(Kind k, uint256 seed) private {
        uint256 n = _terms.length;
        Terms storage t = _terms.push();
        Ghost storage g = _ghosts.push();
        t.payer = payers[n % 2];
        t.market = address(0x3A17);
        t.token = IERC20(address(tokens[uint256(k)]));
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
            g.legs.push(GhostLeg(rate, 0, 0, 0, false, false));
        }
        g.deposited = seed % 300;
        g.left = g.deposited * SCALE;
        bytes memory call = abi.encodeCall(IEscrow.open, (_terms[n], uint128(g.deposited), uint40(now_)));
        if (cannotTakeFrom(k, t.payer)) {
            refused(t.payer, call);
            _terms.pop();
            _ghosts.pop();
            return;
        }
        accepted(t.payer, call);
        _kinds.push(k);
    }

    function fund(uint256 i, uint256 more, bool byStranger) private {
        Ghost memory g = _ghosts[i];
        // Sometimes less than the present deposit.
        uint256 total = g.deposited + more < 50 ? 0 : g.deposited + more - 50;
        address from = byStranger ? stranger : _terms[i].payer;
        bytes memory call = abi.encodeCall(IEscrow.fundTo, (_terms[i], uint128(total)));
        if (g.phase == Phase.Closed) return refused(from, call);
        if (total > g.deposited && cannotTakeFrom(_kinds[i], from)) return refused(from, call);
        uint256 before = tokenOf(i).balanceOf(from);
        uint256 amount = g.fundTo(total);
        accepted(from, call);
        vm.assertEq(before - tokenOf(i).balanceOf(from), amount, "fundTo fills up");
        if (byStranger) strangersGifts[uint256(_kinds[i])] += amount;
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

    /// Sends the same call twice: a repeat changes nothing.
    function creditTo(uint256 i, uint256 l, uint256 amount) private {
        Ghost memory g = _ghosts[i];
        uint40 end_ = escrow.snapshot(_terms[i]).paidUntil;
        uint256 most = g.legs[l].credited + g.creditable(l);
        uint256 total = amount % (most + 3);
        address by = _terms[i].legs[l].controller;
        bytes memory call = abi.encodeCall(IEscrow.creditTo, (_terms[i], uint8(l), uint40(total)));
        if (g.phase == Phase.Closed) return refused(by, call);
        if (total > most) return refusedWith(by, call, IEscrow.CreditTooLarge.selector);
        if (total > g.legs[l].credited) {
            g.legs[l].served -= total - g.legs[l].credited;
            g.legs[l].credited = total;
        }
        accepted(by, call);
        accepted(by, call);
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
        uint40 end_ = escrow.snapshot(_terms[i]).paidUntil;
        address by = byController ? _terms[i].legs[l].controller : _terms[i].legs[l].payee;
        accepted(by, abi.encodeCall(IEscrow.withdraw, (_terms[i], uint16(1 << l))));
        paidOut(i, l);
        sameEnd(i, end_);
    }

    /// Withdraws from two accounts at once.
    function settle(uint256 i, uint256 j, uint256 l) private {
        l = l % _terms[j].legs.length;
        // A token that consumes all gas leaves enough for its credit, but not for another account.
        if (i == j || _kinds[i] == Kind.Burning && isStuck(i, l)) return;
        Terms[] memory both = new Terms[](2);
        (both[0], both[1]) = (_terms[i], _terms[j]);
        uint16[] memory legs = new uint16[](2);
        (legs[0], legs[1]) = (uint16(1 << l), uint16(1 << l));
        accepted(both[0].legs[l].controller, abi.encodeCall(IEscrow.settleMany, (both, legs)));
        paidOut(i, l);
        paidOut(j, l);
    }

    /// Whether the leg is owed something that its token does not send.
    function isStuck(uint256 i, uint256 l) private view returns (bool) {
        Ghost memory g = _ghosts[i];
        return g.earned(l) > g.legs[l].withdrawn && cannotSendTo(_kinds[i], _terms[i].legs[l].payee);
    }

    /// Everything that the leg has earned was withdrawn, and was sent or waits for its payee.
    function paidOut(uint256 i, uint256 l) private {
        Ghost memory g = _ghosts[i];
        if (isStuck(i, l)) {
            credits[_terms[i].legs[l].payee][uint256(_kinds[i])] += g.earned(l) - g.legs[l].withdrawn;
        }
        g.legs[l].withdrawn = g.earned(l);
        save(i, g);
    }

    function close(uint256 i, uint256 who, uint16 payouts) private {
        Ghost memory g = _ghosts[i];
        payouts &= uint16((1 << g.legs.length) - 1);
        address by = who % 3 == 0 ? _terms[i].payer : who % 3 == 1 ? closer : stranger;
        bytes memory call = abi.encodeCall(IEscrow.close, (_terms[i], payouts));
        bool may = by != stranger || g.anybodyMayClose(now_);
        if (g.phase == Phase.Closed || !may) return refused(by, call);
        uint256 before = tokenOf(i).balanceOf(_terms[i].payer);
        g.close(by == _terms[i].payer, now_);
        uint256 transfers = g.refunded == 0 ? 0 : 1;
        for (uint256 l = 0; l < g.legs.length; ++l) {
            if (payouts >> l & 1 == 1 && g.earned(l) != g.legs[l].withdrawn) transfers += 1;
        }
        bool burns = _kinds[i] == Kind.Burning && cannotSendTo(Kind.Burning, address(0));
        if (burns && transfers > 1) return refusedByToken(i, by, call);
        accepted(by, call);
        uint256 sent = tokenOf(i).balanceOf(_terms[i].payer) - before;
        if (cannotSendTo(_kinds[i], _terms[i].payer)) {
            vm.assertEq(sent, 0, "the refund waits");
            credits[_terms[i].payer][uint256(_kinds[i])] += g.refunded;
        } else {
            vm.assertEq(sent, g.refunded, "the refund goes to the payer");
        }
        save(i, g);
        for (uint256 l = 0; l < g.legs.length; ++l) {
            if (payouts >> l & 1 == 1) paidOut(i, l);
        }
    }

    /// The payer or a payee of the account sends what waits for it to itself or to the heir, or a third party has it sent
    /// to its owner.
    function withdrawCredit(uint256 i, uint256 l, uint256 amount) private {
        uint256 k = uint256(_kinds[i]);
        address owner = amount & 1 == 0 ? _terms[i].payer : _terms[i].legs[l].payee;
        bool delivered = amount & 4 == 4;
        address by = delivered ? stranger : owner;
        address to = delivered || amount & 2 == 0 ? owner : heir;
        bytes memory call = delivered
            ? abi.encodeCall(IEscrow.deliverCredit, (_terms[i].token, owner))
            : abi.encodeCall(IEscrow.withdrawCredit, (_terms[i].token, to));
        uint256 waiting = credits[owner][k];
        if (waiting == 0) return refusedWith(by, call, IEscrow.NoCredit.selector);
        if (cannotSendTo(_kinds[i], to)) return refusedByToken(i, by, call);
        accepted(by, call);
        credits[owner][k] = 0;
        if (to != heir) return;
        bequests[owner][k] += waiting;
        inherited[k] += waiting;
    }

    /// A third party tries every action that it is not permitted to do.
    function intrude(uint256 i, uint256 l, uint256 amount) private {
        Terms memory t = _terms[i];
        bytes4 why = _ghosts[i].phase == Phase.Closed ? IEscrow.AccountClosed.selector : IEscrow.NotController.selector;
        refusedWith(stranger, abi.encodeCall(IEscrow.start, (t, uint16(1 << l))), why);
        refusedWith(stranger, abi.encodeCall(IEscrow.pause, (t, uint16(1 << l))), why);
        refusedWith(stranger, abi.encodeCall(IEscrow.creditTo, (t, uint8(l), uint40(amount % 2))), why);
        refusedWith(stranger, abi.encodeCall(IEscrow.endLeg, (t, uint16(1 << l))), why);
        why = IEscrow.NotPayeeOrController.selector;
        refusedWith(stranger, abi.encodeCall(IEscrow.withdraw, (t, uint16(1 << l))), why);
        refusedWith(stranger, abi.encodeCall(IEscrow.withdrawCredit, (t.token, stranger)), IEscrow.NoCredit.selector);
        refusedWith(stranger, abi.encodeCall(IEscrow.deliverCredit, (t.token, stranger)), IEscrow.NoCredit.selector);
        why = now_ > t.startBy ? IEscrow.StartByPassed.selector : IEscrow.AccountExists.selector;
        refusedWith(t.payer, abi.encodeCall(IEscrow.open, (t, 0, uint40(now_))), why);
        t.legs[l].payee = stranger;
        why = IEscrow.TermsDiffer.selector;
        refusedWith(t.legs[l].controller, abi.encodeCall(IEscrow.withdraw, (t, uint16(1 << l))), why);
        t.salt = keccak256("fresh");
        uint128 deposit = uint128(amount % 100);
        why = IEscrow.NotPayer.selector;
        refusedWith(stranger, abi.encodeCall(IEscrow.open, (t, deposit, uint40(now_))), why);
        why = IEscrow.BadSignature.selector;
        refusedWith(stranger, abi.encodeCall(IEscrow.openWithSignature, (t, deposit, uint40(now_), "")), why);
    }

    // ---------------------------------------------------------------- helper functions

    function tokenOf(uint256 i) private view returns (MintableToken) {
        return tokens[uint256(_kinds[i])];
    }

    function accepted(address by, bytes memory call) private {
        vm.prank(by);
        (bool done, bytes memory answer) = address(escrow).call{gas: GAS}(call);
        if (done) return;
        assembly ("memory-safe") {
            revert(add(answer, 0x20), mload(answer))
        }
    }

    /// The call fails with an error that was written for it, not with a panic.
    function refused(address by, bytes memory call) private {
        bytes4 why = bytes4(failure(by, call));
        vm.assertTrue(why != bytes4(0) && why != PANIC, "refused with an error");
    }

    function refusedWith(address by, bytes memory call, bytes4 why) private {
        vm.assertEq(bytes32(bytes4(failure(by, call))), bytes32(why));
    }

    /// Without gas, nothing can say why.
    function refusedByToken(uint256 i, address by, bytes memory call) private {
        if (_kinds[i] == Kind.Burning) failure(by, call);
        else refused(by, call);
    }

    function failure(address by, bytes memory call) private returns (bytes memory) {
        vm.prank(by);
        (bool done, bytes memory answer) = address(escrow).call{gas: GAS}(call);
        vm.assertFalse(done, "this call must be refused");
        return answer;
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
