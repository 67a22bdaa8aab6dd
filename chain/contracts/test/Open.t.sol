// SPDX-License-Identifier: Apache-2.0
// Opening: callers, sources of the deposit, and errors.
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {Account, Authorization, Leg, Permit, Phase, Snapshot, Terms} from "../src/escrow/EscrowTypes.sol";
import {IEscrow} from "../src/escrow/IEscrow.sol";
import {Wallet} from "./HostileTokens.sol";
import {Stage} from "./Stage.sol";
import {vm} from "./Vm.sol";

contract OpenTest is Stage {
    // ---------------------------------------------------------------- by the payer

    function test_openTakesTheDepositAndStandsStill() public {
        Terms memory terms = termsOf(3);
        uint256 before = token.balanceOf(payer);
        vm.expectEmit(address(escrow));
        emit IEscrow.Opened(idOf(terms), payer, market, terms, 600);
        bytes32 id = open(terms, 600);

        vm.assertEq(id, escrow.idOf(payer, terms.salt));
        vm.assertEq(token.balanceOf(payer), before - 600);
        vm.assertEq(token.balanceOf(address(escrow)), 600);
        vm.warp(T0 + 30 days);
        Snapshot memory s = escrow.snapshot(terms);
        vm.assertTrue(s.exists && s.matches && !s.closed);
        vm.assertTrue(s.phase == Phase.Unstarted);
        vm.assertEq(s.deposited, 600);
        vm.assertEq(s.balanceScaled, 600 * SCALE);
        vm.assertEq(s.blockTime, T0 + 30 days);
        vm.assertEq(s.paidUntil, 0);
        vm.assertEq(s.exhaustedAt, 0);
        vm.assertEq(s.paidSeconds, 0);
        vm.assertEq(s.running, 0);
        vm.assertEq(s.legs.length, 3);
    }

    function test_openWithNothingIsToppedUpLater() public {
        Terms memory terms = termsOf(1);
        open(terms, 0);
        vm.assertTrue(escrow.snapshot(terms).exists);
        vm.assertEq(fundTo(terms, 10), 10);
        start(terms, 0);
        vm.assertEq(paidUntil(terms), T0 + 10);
    }

    function test_onlyThePayerOpensWithoutSignature() public {
        token.mint(stranger, 600);
        vm.prank(stranger);
        token.approve(address(escrow), 600);
        vm.expectRevert(IEscrow.NotPayer.selector);
        vm.prank(stranger);
        escrow.open(termsOf(1), 600, NEVER);

        Permit memory permit = signPermit(PAYER_KEY, 600, NEVER);
        vm.expectRevert(IEscrow.NotPayer.selector);
        vm.prank(stranger);
        escrow.openWithPermit(termsOf(1), 600, NEVER, permit);
    }

    function test_anIdIsTakenOnce() public {
        Terms memory terms = termsOf(1);
        bytes32 id = open(terms, 600);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.AccountExists.selector, id));
        open(terms, 600);
        Terms memory others = termsOf(2);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.AccountExists.selector, id));
        open(others, 0);
        closeBy(payer, terms, 0);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.AccountExists.selector, id));
        open(terms, 600);
    }

    function test_anotherPayerWithTheSameSaltHasAnotherId() public {
        Terms memory terms = termsOf(1);
        Terms memory others = termsOf(1);
        others.payer = stranger;
        others.closer = stranger;
        open(others, 0);
        open(terms, 600);
        vm.assertTrue(escrow.snapshot(terms).matches);
        vm.assertEq(escrow.snapshot(terms).deposited, 600);
        vm.assertEq(escrow.snapshot(others).deposited, 0);
    }

    function test_aLateTransactionDoesNothing() public {
        Terms memory terms = termsOf(1);
        vm.warp(T0 + 101);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.Expired.selector, T0 + 100));
        vm.prank(payer);
        escrow.open(terms, 600, T0 + 100);
        vm.warp(T0 + 100);
        vm.prank(payer);
        escrow.open(terms, 600, T0 + 100);
    }

    function test_startByMustLieAhead() public {
        Terms memory terms = termsOf(1);
        terms.startBy = T0 - 1;
        vm.expectRevert(abi.encodeWithSelector(IEscrow.StartByPassed.selector, T0 - 1));
        open(terms, 600);
        terms.startBy = T0;
        open(terms, 600);
    }

    function test_legsAreOneToSixteen() public {
        Terms memory none = termsOf(0);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.LegCount.selector, 0));
        open(none, 600);
        Terms memory many = termsOf(17);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.LegCount.selector, 17));
        open(many, 600);
        Terms memory most = termsOf(16);
        open(most, 600);
        vm.assertEq(escrow.snapshot(most).legs.length, 16);
        vm.assertEq(escrow.MAX_LEGS(), 16);
        vm.assertEq(escrow.SCALE(), SCALE);
    }

    function test_everyLegMustCostSomething() public {
        Terms memory terms = termsOf(3);
        terms.legs[1].rate = 0;
        vm.expectRevert(abi.encodeWithSelector(IEscrow.ZeroRate.selector, 1));
        open(terms, 600);
    }

    function test_noAddressMayBeMissing() public {
        for (uint256 i = 0; i < 5; ++i) {
            Terms memory terms = termsOf(2);
            if (i == 0) terms.market = address(0);
            if (i == 1) terms.token = IERC20(address(0));
            if (i == 2) terms.closer = address(0);
            if (i == 3) terms.legs[1].payee = address(0);
            if (i == 4) terms.legs[1].controller = address(0);
            vm.expectRevert(IEscrow.ZeroAddress.selector);
            open(terms, 600);
        }
        Terms memory nobody = termsOf(1);
        nobody.payer = address(0);
        vm.expectRevert(IEscrow.BadSignature.selector);
        escrow.openWithSignature(nobody, 0, NEVER, new bytes(65));
    }

    function test_theDepositIsBounded() public {
        uint128 most = uint128(escrow.MAX_DEPOSIT());
        vm.assertTrue(uint256(most) * SCALE <= type(uint128).max && (uint256(most) + 1) * SCALE > type(uint128).max);
        token.mint(payer, uint256(most) + 1);
        Terms memory terms = termsOf(1);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.DepositTooLarge.selector, most + 1));
        open(terms, most + 1);
        open(terms, most);
        vm.assertEq(escrow.snapshot(terms).deposited, most);
        vm.assertEq(closeBy(payer, terms, 0), most);
    }

    function test_openNeedsTheMoney() public {
        Terms memory terms = termsOf(1);
        vm.prank(payer);
        token.approve(address(escrow), 599);
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientAllowance.selector, address(escrow), 599, 600)
        );
        open(terms, 600);
        vm.assertFalse(escrow.snapshot(terms).exists);
    }

    function test_aTokenMustBeAContract() public {
        Terms memory terms = termsOf(1);
        terms.token = IERC20(address(0xDEAD));
        // The call of balanceOf to an address without code reverts without data.
        vm.expectRevert(bytes(""));
        open(terms, 600);
    }

    // ---------------------------------------------------------------- with a permit

    function test_openWithPermit() public {
        withoutAllowance();
        Permit memory permit = signPermit(PAYER_KEY, 1000, T0 + 60);
        vm.prank(payer);
        escrow.openWithPermit(termsOf(3), 600, NEVER, permit);
        vm.assertEq(escrow.snapshot(termsOf(3)).deposited, 600);
        vm.assertEq(token.allowance(payer, address(escrow)), 400);
    }

    function test_aPermitThatWasFrontRunIsNoLoss() public {
        withoutAllowance();
        Permit memory permit = signPermit(PAYER_KEY, 600, T0 + 60);
        vm.prank(stranger);
        token.permit(payer, address(escrow), permit.value, permit.deadline, permit.v, permit.r, permit.s);
        vm.prank(payer);
        escrow.openWithPermit(termsOf(3), 600, NEVER, permit);
        vm.assertEq(escrow.snapshot(termsOf(3)).deposited, 600);
    }

    function test_aFailingPermitWithoutAllowanceOpensNothing() public {
        withoutAllowance();
        Permit memory permit = signPermit(OTHER_KEY, 600, T0 + 60);
        vm.expectRevert(
            abi.encodeWithSelector(IERC20Errors.ERC20InsufficientAllowance.selector, address(escrow), 0, 600)
        );
        vm.prank(payer);
        escrow.openWithPermit(termsOf(3), 600, NEVER, permit);
    }

    // ---------------------------------------------------------------- by any caller, with the payer's signature

    function test_anybodyOpensWhatThePayerSigned() public {
        bytes memory signature = signOpen(PAYER_KEY, termsOf(3), 600, T0 + 60);
        vm.prank(stranger);
        bytes32 id = escrow.openWithSignature(termsOf(3), 600, T0 + 60, signature);
        vm.assertEq(id, idOf(termsOf(3)));
        vm.assertEq(token.balanceOf(address(escrow)), 600);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.AccountExists.selector, id));
        escrow.openWithSignature(termsOf(3), 600, T0 + 60, signature);
    }

    function test_anybodyOpensWithSignatureAndPermit() public {
        withoutAllowance();
        bytes memory signature = signOpen(PAYER_KEY, termsOf(3), 600, NEVER);
        Permit memory permit = signPermit(PAYER_KEY, 600, NEVER);
        vm.prank(stranger);
        escrow.openWithSignatureAndPermit(termsOf(3), 600, NEVER, signature, permit);
        vm.assertEq(escrow.snapshot(termsOf(3)).deposited, 600);
        vm.assertEq(token.allowance(payer, address(escrow)), 0);
    }

    function test_aSignatureExpires() public {
        bytes memory signature = signOpen(PAYER_KEY, termsOf(3), 600, T0 + 60);
        vm.warp(T0 + 61);
        vm.expectRevert(abi.encodeWithSelector(IEscrow.Expired.selector, T0 + 60));
        escrow.openWithSignature(termsOf(3), 600, T0 + 60, signature);
    }

    /// The signature is invalid if a submitter changes any argument.
    function test_theSignatureCoversEveryArgument() public {
        bytes memory signature = signOpen(PAYER_KEY, termsOf(3), 600, T0 + 60);
        for (uint256 i = 0; i < 16; ++i) {
            Terms memory terms = changed(i);
            vm.expectRevert(IEscrow.BadSignature.selector);
            vm.prank(stranger);
            escrow.openWithSignature(terms, 600, T0 + 60, signature);
        }
        vm.expectRevert(IEscrow.BadSignature.selector);
        escrow.openWithSignature(termsOf(3), 601, T0 + 60, signature);
        vm.expectRevert(IEscrow.BadSignature.selector);
        escrow.openWithSignature(termsOf(3), 600, T0 + 61, signature);
        Permit memory permit = signPermit(PAYER_KEY, 600, NEVER);
        vm.expectRevert(IEscrow.BadSignature.selector);
        escrow.openWithSignatureAndPermit(termsOf(3), 601, T0 + 60, signature, permit);
        escrow.openWithSignature(termsOf(3), 600, T0 + 60, signature);
    }

    function test_theDigestIsTheOneThatWalletsCompute() public view {
        Terms memory terms = termsOf(2);
        bytes32 legType = keccak256("Leg(address payee,address controller,uint128 rate)");
        bytes32[2] memory legs;
        for (uint256 i = 0; i < 2; ++i) {
            legs[i] = keccak256(abi.encode(legType, terms.legs[i].payee, terms.legs[i].controller, terms.legs[i].rate));
        }
        bytes32 termsHash = keccak256(
            bytes.concat(
                abi.encode(
                    keccak256(
                        "Terms(address payer,address market,address token,address closer,bytes32 salt,uint40 startBy,uint32 noticeSeconds,uint32 pauseFor,Leg[] legs)Leg(address payee,address controller,uint128 rate)"
                    ),
                    terms.payer,
                    terms.market,
                    terms.token,
                    terms.closer
                ),
                abi.encode(
                    terms.salt,
                    terms.startBy,
                    terms.noticeSeconds,
                    terms.pauseFor,
                    keccak256(abi.encodePacked(legs[0], legs[1]))
                )
            )
        );
        bytes32 structHash = keccak256(
            abi.encode(
                keccak256(
                    "Open(Terms terms,uint128 deposit,uint40 validUntil)Leg(address payee,address controller,uint128 rate)Terms(address payer,address market,address token,address closer,bytes32 salt,uint40 startBy,uint32 noticeSeconds,uint32 pauseFor,Leg[] legs)"
                ),
                termsHash,
                uint128(600),
                T0
            )
        );
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Leasehold Escrow"),
                keccak256("1"),
                block.chainid,
                address(escrow)
            )
        );
        vm.assertEq(escrow.openDigest(terms, 600, T0), keccak256(abi.encodePacked("\x19\x01", domain, structHash)));
    }

    function test_aContractWalletSignsToo() public {
        Wallet wallet = new Wallet(payer);
        token.mint(address(wallet), 600);
        wallet.approve(token, address(escrow), 600);
        Terms memory terms = termsOf(1);
        terms.payer = address(wallet);
        bytes memory forged = signOpen(OTHER_KEY, terms, 600, NEVER);
        vm.expectRevert(IEscrow.BadSignature.selector);
        escrow.openWithSignature(terms, 600, NEVER, forged);
        bytes memory signature = signOpen(PAYER_KEY, terms, 600, NEVER);
        escrow.openWithSignature(terms, 600, NEVER, signature);
        vm.assertEq(escrow.snapshot(terms).deposited, 600);

        Terms memory next = termsOf(1);
        next.payer = address(wallet);
        next.salt = bytes32(uint256(2));
        signature = signOpen(PAYER_KEY, next, 0, NEVER);
        wallet.freeze();
        vm.expectRevert(IEscrow.BadSignature.selector);
        escrow.openWithSignature(next, 0, NEVER, signature);
    }

    // ---------------------------------------------------------------- with an ERC-3009 authorization

    function test_openWithAuthorizationNeedsNoAllowance() public {
        withoutAllowance();
        bytes32 digest = escrow.openDigest(termsOf(3), 600, NEVER);
        bytes memory signature = signOpen(PAYER_KEY, termsOf(3), 600, NEVER);
        Authorization memory authorization = signAuthorization(PAYER_KEY, 600, digest);
        vm.prank(stranger);
        bytes32 id = escrow.openWithAuthorization(termsOf(3), 600, NEVER, signature, authorization);
        vm.assertEq(id, idOf(termsOf(3)));
        vm.assertEq(token.balanceOf(address(escrow)), 600);
        vm.assertTrue(token.authorizationState(payer, digest));
    }

    function test_anAuthorizationOfOtherMoneyIsRefused() public {
        bytes memory signature = signOpen(PAYER_KEY, termsOf(3), 600, NEVER);
        bytes32 digest = escrow.openDigest(termsOf(3), 600, NEVER);
        Authorization memory less = signAuthorization(PAYER_KEY, 599, digest);
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        escrow.openWithAuthorization(termsOf(3), 600, NEVER, signature, less);
        Authorization memory others = signAuthorization(OTHER_KEY, 600, digest);
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        escrow.openWithAuthorization(termsOf(3), 600, NEVER, signature, others);
        Authorization memory elsewhere = signAuthorization(PAYER_KEY, 600, bytes32(uint256(1)));
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        escrow.openWithAuthorization(termsOf(3), 600, NEVER, signature, elsewhere);
    }

    /// The authorization pays only for the opening that it was signed for: its nonce is the digest of that opening.
    function test_anAuthorizationOpensNoOtherTerms() public {
        Terms memory other = termsOf(3);
        other.legs[0].payee = stranger;
        Authorization memory authorization =
            signAuthorization(PAYER_KEY, 600, escrow.openDigest(termsOf(3), 600, NEVER));
        bytes memory forged = signOpen(OTHER_KEY, other, 600, NEVER);
        vm.expectRevert(IEscrow.BadSignature.selector);
        escrow.openWithAuthorization(other, 600, NEVER, forged, authorization);
        bytes memory willing = signOpen(PAYER_KEY, other, 600, NEVER);
        vm.expectRevert(ERC3009.ERC3009InvalidSignature.selector);
        escrow.openWithAuthorization(other, 600, NEVER, willing, authorization);
    }

    // ----------------------------------------------------------------

    function withoutAllowance() private {
        vm.prank(payer);
        token.approve(address(escrow), 0);
    }

    /// The terms with one of 16 changes.
    function changed(uint256 i) private view returns (Terms memory terms) {
        terms = termsOf(i == 15 ? 2 : 3);
        if (i == 0) terms.payer = stranger;
        if (i == 1) terms.market = stranger;
        if (i == 2) terms.token = IERC20(stranger);
        if (i == 3) terms.closer = stranger;
        if (i == 4) terms.salt = bytes32(uint256(2));
        if (i == 5) terms.startBy += 1;
        if (i == 6) terms.noticeSeconds += 1;
        if (i == 7) terms.pauseFor += 1;
        if (i == 8) terms.legs[0].payee = stranger;
        if (i == 9) terms.legs[0].controller = stranger;
        if (i == 10) terms.legs[0].rate += 1;
        if (i == 11) terms.legs[2].payee = stranger;
        if (i == 12) terms.legs[2].controller = stranger;
        if (i == 13) terms.legs[2].rate -= 1;
        if (i == 14) (terms.legs[0], terms.legs[1]) = (terms.legs[1], terms.legs[0]);
    }
}
