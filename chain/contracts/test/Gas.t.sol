// SPDX-License-Identifier: Apache-2.0
// Gas of each action as a separate transaction (`forge test --isolate`). gas.sh runs these tests and writes or checks
// gas/escrow.json. Without --isolate the values are 3 to 13 times too low and must not be used.
pragma solidity ^0.8.28;

import {Authorization, Permit, Terms} from "../src/escrow/EscrowTypes.sol";
import {BlocklistToken} from "./HostileTokens.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Stage} from "./Stage.sol";
import {vm} from "./Vm.sol";

contract GasTest is Stage {
    uint128 private constant DEPOSIT = 44_400_000;
    uint128 private constant EXTENDED = 111_000_000;

    function setUp() public override {
        super.setUp();
        // The escrow and the payees have held this token before, as on a real network.
        token.mint(address(escrow), 1);
        for (uint256 i = 0; i < 3; ++i) {
            token.mint(payees[i], 1);
        }
        vm.warp(T0 + 60);
    }

    /// Must be called directly after the measured call.
    function measured(string memory name) private {
        vm.snapshotGasLastCall("escrow", name);
    }

    /// Terms without zero bytes, like real ones: a zero byte of calldata costs a quarter.
    function leaseOf(uint256 count) private view returns (Terms memory terms) {
        terms = termsOf(count);
        terms.salt = keccak256("a lease");
        terms.market = addressOf("market");
        terms.closer = addressOf("closer");
        terms.noticeSeconds = 60;
        for (uint256 i = 0; i < count; ++i) {
            terms.legs[i].rate = uint128(2_055_555_555_555_556 + i);
        }
    }

    function addressOf(string memory name) private pure returns (address) {
        return address(uint160(uint256(keccak256(bytes(name)))));
    }

    function revokeAllowance() private {
        vm.prank(payer);
        token.approve(address(escrow), 0);
    }

    // ---------------------------------------------------------------- each action separately

    function test_openOneLeg() public {
        open(leaseOf(1), DEPOSIT);
        measured("open, 1 leg");
    }

    function test_openThreeLegs() public {
        open(leaseOf(3), DEPOSIT);
        measured("open, 3 legs");
    }

    function test_openWithSignature() public {
        bytes memory signature = signOpen(PAYER_KEY, leaseOf(3), DEPOSIT, NEVER);
        vm.prank(stranger);
        escrow.openWithSignature(leaseOf(3), DEPOSIT, NEVER, signature);
        measured("openWithSignature, 3 legs");
    }

    function test_openWithAuthorization() public {
        revokeAllowance();
        bytes memory signature = signOpen(PAYER_KEY, leaseOf(3), DEPOSIT, NEVER);
        Authorization memory authorization =
            signAuthorization(PAYER_KEY, DEPOSIT, escrow.openDigest(leaseOf(3), DEPOSIT, NEVER));
        vm.prank(stranger);
        escrow.openWithAuthorization(leaseOf(3), DEPOSIT, NEVER, signature, authorization);
        measured("openWithAuthorization, 3 legs");
    }

    function test_serving() public {
        Terms memory terms = leaseOf(3);
        open(terms, DEPOSIT);
        start(terms, 0);
        measured("start, the first leg of the account");
        vm.warp(T0 + 100);
        start(terms, 1);
        measured("start, a further leg");
        vm.warp(T0 + 200);
        pause(terms, 1);
        measured("pause");
        vm.warp(T0 + 300);
        start(terms, 1);
        measured("resume");
        vm.warp(T0 + 400);
        vm.prank(controllers[1]);
        escrow.creditTo(terms, 1, 10);
        measured("creditTo");
        vm.warp(T0 + 500);
        withdraw(terms, 1);
        measured("withdraw, the first of a leg");
        vm.warp(T0 + 600);
        withdraw(terms, 1);
        measured("withdraw, a later one");
        vm.warp(T0 + 700);
        endLeg(terms, 1);
        measured("endLeg");
        vm.warp(T0 + 800);
        fundTo(terms, EXTENDED);
        measured("fundTo");
        fundTo(terms, EXTENDED);
        measured("fundTo, nothing missing");
    }

    function test_exhaustion() public {
        Terms memory terms = leaseOf(3);
        open(terms, 1_000_000);
        start(terms, 0);
        start(terms, 1);
        start(terms, 2);
        vm.warp(T0 + 10 hours);
        fundTo(terms, DEPOSIT);
        measured("fundTo, after exhaustion");
        start(terms, 0);
        measured("start, the first of 3 after exhaustion");
    }

    function test_settleMany() public {
        Terms[] memory terms = new Terms[](10);
        uint16[] memory legs = new uint16[](10);
        for (uint256 i = 0; i < 10; ++i) {
            terms[i] = leaseOf(1);
            terms[i].salt = bytes32(i);
            legs[i] = 1;
            open(terms[i], DEPOSIT);
            start(terms[i], 0);
        }
        vm.warp(T0 + 1 hours);
        vm.prank(payees[0]);
        escrow.settleMany(terms, legs);
        measured("settleMany, 10 accounts");
    }

    function test_closeUnstarted() public {
        open(leaseOf(3), DEPOSIT);
        closeBy(leaseOf(3).closer, leaseOf(3), 0);
        measured("close, 3 legs, never started");
    }

    function test_deliverCredit() public {
        BlocklistToken hostile = new BlocklistToken();
        Terms memory terms = leaseOf(1);
        terms.token = IERC20(address(hostile));
        hostile.mint(payer, DEPOSIT);
        hostile.mint(payees[0], 1);
        hostile.mint(address(escrow), 1);
        vm.prank(payer);
        hostile.approve(address(escrow), DEPOSIT);
        open(terms, DEPOSIT);
        start(terms, 0);
        vm.warp(T0 + 1 hours);
        hostile.block_(payees[0], true);
        closeBy(terms.closer, terms, 1);
        hostile.block_(payees[0], false);
        vm.prank(stranger);
        escrow.deliverCredit(terms.token, payees[0]);
        measured("deliverCredit");
    }

    // ---------------------------------------------------------------- the story of one lease over three providers

    function test_storyClosedByCloser() public {
        Terms memory terms = tellStory("story: ");
        closeBy(terms.closer, terms, 0);
        measured("story: close by the closer");
        withdraw(terms, 0);
        measured("story: withdraw after the close");
    }

    function test_storyClosedByCloserWithPayouts() public {
        Terms memory terms = tellStory("");
        closeBy(terms.closer, terms, 7);
        measured("story: close by the closer, 3 payouts");
    }

    function test_storyClosedByTenant() public {
        Terms memory terms = tellStory("");
        closeBy(payer, terms, 0);
        measured("story: close by the tenant");
    }

    function test_storyClosedByTenantWithPayouts() public {
        Terms memory terms = tellStory("");
        closeBy(payer, terms, 7);
        measured("story: close by the tenant, 3 payouts");
    }

    /// One permit at the opening also covers a later top-up.
    function test_storyWithOnePermit() public {
        revokeAllowance();
        Terms memory terms = leaseOf(3);
        Permit memory permit = signPermit(PAYER_KEY, EXTENDED, NEVER);
        vm.prank(payer);
        escrow.openWithPermit(terms, DEPOSIT, NEVER, permit);
        measured("story: openWithPermit that covers the extension");
        vm.warp(T0 + 2 hours);
        fundTo(terms, EXTENDED);
        measured("story: fundTo from that permit");
    }

    /// Deposit, three starts and an extension. The caller must close the account.
    function tellStory(string memory prefix) private returns (Terms memory terms) {
        revokeAllowance();
        terms = leaseOf(3);
        Permit memory permit = signPermit(PAYER_KEY, DEPOSIT, NEVER);
        vm.prank(payer);
        escrow.openWithPermit(terms, DEPOSIT, NEVER, permit);
        if (bytes(prefix).length != 0) measured("story: openWithPermit");
        for (uint256 i = 0; i < 3; ++i) {
            vm.warp(T0 + 70 + i);
            start(terms, i);
        }
        vm.warp(T0 + 2 hours);
        permit = signPermit(PAYER_KEY, EXTENDED - DEPOSIT, NEVER);
        vm.prank(payer);
        escrow.fundToWithPermit(terms, EXTENDED, permit);
        if (bytes(prefix).length != 0) measured("story: fundToWithPermit");
        vm.warp(T0 + 4 hours);
    }
}
