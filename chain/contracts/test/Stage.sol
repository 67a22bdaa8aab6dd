// SPDX-License-Identifier: Apache-2.0
// The fixture of every test: an escrow, a token, a payer with tokens, three providers, and their signatures.
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {Authorization, Leg, LegView, Permit, Snapshot, Terms} from "../src/escrow/EscrowTypes.sol";
import {IEscrow} from "../src/escrow/IEscrow.sol";
import {TestToken} from "../src/TestToken.sol";
import {vm} from "./Vm.sol";

abstract contract Stage {
    /// The time at which every test starts.
    uint40 internal constant T0 = 1_800_000_000;
    uint256 internal constant PAYER_KEY = 0xA11CE;
    uint256 internal constant OTHER_KEY = 0xB0B;
    uint256 internal constant SCALE = 1e12;
    uint40 internal constant NEVER = type(uint40).max;

    IEscrow internal escrow;
    TestToken internal token;
    address internal payer;
    address internal market = address(0x3A17);
    address internal closer = address(0xC105E);
    address internal stranger;
    address[] internal payees = [address(0xA001), address(0xA002), address(0xA003)];
    address[] internal controllers = [address(0xC001), address(0xC002), address(0xC003)];

    function setUp() public virtual {
        vm.warp(T0);
        escrow = IEscrow(deploy("abi/Escrow.json"));
        token = TestToken(deploy("abi/TestToken.json"));
        payer = vm.addr(PAYER_KEY);
        stranger = vm.addr(OTHER_KEY);
        token.mint(payer, 1_000_000e6);
        vm.prank(payer);
        token.approve(address(escrow), type(uint256).max);
    }

    /// Deploys the checked-in bytecode, not the one compiled with the tests.
    function deploy(string memory path) internal returns (address deployed) {
        bytes memory code = vm.parseJsonBytes(vm.readFile(path), ".bytecode");
        assembly ("memory-safe") {
            deployed := create(0, add(code, 0x20), mload(code))
        }
        vm.assertTrue(deployed != address(0), path);
    }

    // ---------------------------------------------------------------- terms

    /// `count` legs with rates of 1, 2, 3 … base units per second; start within one hour, no notice, one day of pause.
    function termsOf(uint256 count) internal view returns (Terms memory terms) {
        terms.payer = payer;
        terms.market = market;
        terms.token = IERC20(address(token));
        terms.closer = closer;
        terms.salt = bytes32(uint256(1));
        terms.startBy = T0 + 1 hours;
        terms.pauseFor = 1 days;
        terms.legs = new Leg[](count);
        for (uint256 i = 0; i < count; ++i) {
            terms.legs[i] = Leg(payees[i % 3], controllers[i % 3], uint128((i + 1) * SCALE));
        }
    }

    function open(Terms memory terms, uint128 deposit) internal returns (bytes32) {
        vm.prank(terms.payer);
        return escrow.open(terms, deposit, NEVER);
    }

    function start(Terms memory terms, uint256 leg) internal {
        vm.prank(terms.legs[leg].controller);
        escrow.start(terms, bit(leg));
    }

    function pause(Terms memory terms, uint256 leg) internal {
        vm.prank(terms.legs[leg].controller);
        escrow.pause(terms, bit(leg));
    }

    function endLeg(Terms memory terms, uint256 leg) internal {
        vm.prank(terms.legs[leg].controller);
        escrow.endLeg(terms, bit(leg));
    }

    function fundTo(Terms memory terms, uint128 total) internal returns (uint128) {
        vm.prank(payer);
        return escrow.fundTo(terms, total);
    }

    function withdraw(Terms memory terms, uint256 leg) internal returns (uint256) {
        vm.prank(terms.legs[leg].payee);
        return escrow.withdraw(terms, bit(leg));
    }

    function closeBy(address who, Terms memory terms, uint16 payouts) internal returns (uint128) {
        vm.prank(who);
        return escrow.close(terms, payouts);
    }

    function paidUntil(Terms memory terms) internal view returns (uint40) {
        return escrow.snapshot(terms).paidUntil;
    }

    function legView(Terms memory terms, uint256 leg) internal view returns (LegView memory) {
        return escrow.snapshot(terms).legs[leg];
    }

    function idOf(Terms memory terms) internal pure returns (bytes32) {
        return keccak256(abi.encode(terms.payer, terms.salt));
    }

    function bit(uint256 leg) internal pure returns (uint16) {
        return uint16(1 << leg);
    }

    // ---------------------------------------------------------------- signatures

    function signOpen(uint256 key, Terms memory terms, uint128 deposit, uint40 validUntil)
        internal
        view
        returns (bytes memory)
    {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, escrow.openDigest(terms, deposit, validUntil));
        return abi.encodePacked(r, s, v);
    }

    function signPermit(uint256 key, uint256 value, uint256 deadline) internal view returns (Permit memory permit) {
        address owner = vm.addr(key);
        bytes32 structHash = keccak256(
            abi.encode(
                keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"),
                owner,
                address(escrow),
                value,
                token.nonces(owner),
                deadline
            )
        );
        permit.value = value;
        permit.deadline = deadline;
        (permit.v, permit.r, permit.s) = vm.sign(key, tokenDigest(structHash));
    }

    function signAuthorization(uint256 key, uint256 value, bytes32 nonce)
        internal
        view
        returns (Authorization memory authorization)
    {
        authorization.validAfter = T0 - 1;
        authorization.validBefore = NEVER;
        bytes32 structHash = keccak256(
            abi.encode(
                keccak256(
                    "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
                ),
                vm.addr(key),
                address(escrow),
                value,
                authorization.validAfter,
                authorization.validBefore,
                nonce
            )
        );
        (authorization.v, authorization.r, authorization.s) = vm.sign(key, tokenDigest(structHash));
    }

    function tokenDigest(bytes32 structHash) internal view returns (bytes32) {
        return keccak256(abi.encodePacked("\x19\x01", token.DOMAIN_SEPARATOR(), structHash));
    }
}
