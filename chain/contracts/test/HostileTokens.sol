// SPDX-License-Identifier: Apache-2.0
// Tokens and wallets that misbehave as real ones do, and one that attacks.
pragma solidity ^0.8.28;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {Authorization, Permit, Terms} from "../src/escrow/EscrowTypes.sol";
import {IEscrow} from "../src/escrow/IEscrow.sol";

contract MintableToken is ERC20 {
    constructor() ERC20("Hostile", "HOST") {}

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }
}

/// Keeps one unit of each transfer between holders.
contract FeeToken is MintableToken {
    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value);
        if (from != address(0) && to != address(0) && value > 0) super._update(to, address(0xFEE), 1);
    }
}

/// Transfers more than requested.
contract BonusToken is MintableToken {
    function transferFrom(address from, address to, uint256 value) public override returns (bool) {
        _mint(to, 1);
        return super.transferFrom(from, to, value);
    }
}

/// Refuses transfers to and from some holders, as issuers of stablecoins can.
contract BlocklistToken is MintableToken {
    mapping(address => bool) public blocked;

    function block_(address holder, bool yes) external {
        blocked[holder] = yes;
    }

    function _update(address from, address to, uint256 value) internal override {
        require(!blocked[from] && !blocked[to], "blocked");
        super._update(from, to, value);
    }
}

/// Returns false instead of reverting, as some old tokens do.
contract FalseToken is MintableToken {
    bool public broken;

    function setBroken(bool yes) external {
        broken = yes;
    }

    function transfer(address to, uint256 value) public override returns (bool) {
        return broken ? false : super.transfer(to, value);
    }

    function transferFrom(address from, address to, uint256 value) public override returns (bool) {
        return broken ? false : super.transferFrom(from, to, value);
    }
}

/// Transfers, and returns nothing, as USDT does.
contract SilentToken is MintableToken {
    function transfer(address to, uint256 value) public override returns (bool) {
        super.transfer(to, value);
        assembly ("memory-safe") {
            return(0, 0)
        }
    }

    function transferFrom(address from, address to, uint256 value) public override returns (bool) {
        super.transferFrom(from, to, value);
        assembly ("memory-safe") {
            return(0, 0)
        }
    }
}

/// Consumes all gas of a transfer out of the escrow.
contract BurningToken is MintableToken {
    bool public burning;

    function setBurning(bool yes) external {
        burning = yes;
    }

    function transfer(address to, uint256 value) public override returns (bool) {
        if (burning) {
            assembly ("memory-safe") {
                invalid()
            }
        }
        return super.transfer(to, value);
    }
}

/// Makes all configured calls in the middle of each transfer.
contract ReentrantToken is MintableToken {
    address private target;
    bytes[] private calls;
    /// Calls that were made.
    uint256 public fired;
    /// Calls that had an effect, or that failed for another reason than the guard.
    uint256 public unguarded;

    function arm(address target_, bytes[] memory calls_) external {
        target = target_;
        delete calls;
        for (uint256 i = 0; i < calls_.length; ++i) {
            calls.push(calls_[i]);
        }
    }

    /// Anyone can act as this token, which belongs to the attacker.
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256,
        uint256,
        bytes32,
        uint8,
        bytes32,
        bytes32
    ) external {
        _mint(from, value);
        _transfer(from, to, value);
    }

    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value);
        if (from == address(0)) return;
        for (uint256 i = 0; i < calls.length; ++i) {
            ++fired;
            (bool succeeded, bytes memory answer) = target.call(calls[i]);
            bool guarded = bytes4(answer) == ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector;
            if (succeeded || !guarded) ++unguarded;
        }
    }
}

/// Refuses transfers out of the escrow, and later calls back in the middle of them.
contract TurncoatToken is ReentrantToken {
    bool public refusing = true;

    function relent() external {
        refusing = false;
    }

    function transfer(address to, uint256 value) public override returns (bool) {
        require(!refusing, "refused");
        return super.transfer(to, value);
    }
}

/// Every function of the escrow that changes its state, as a call of an account's token.
library EveryCall {
    function on(Terms memory terms) internal pure returns (bytes[] memory calls) {
        Terms[] memory many = new Terms[](1);
        many[0] = terms;
        Permit memory permit;
        Authorization memory authorization;
        calls = new bytes[](16);
        calls[0] = abi.encodeCall(IEscrow.open, (terms, 1, type(uint40).max));
        calls[1] = abi.encodeCall(IEscrow.openWithPermit, (terms, 1, type(uint40).max, permit));
        calls[2] = abi.encodeCall(IEscrow.openWithSignature, (terms, 1, type(uint40).max, ""));
        calls[3] = abi.encodeCall(IEscrow.openWithSignatureAndPermit, (terms, 1, type(uint40).max, "", permit));
        calls[4] = abi.encodeCall(IEscrow.openWithAuthorization, (terms, 1, type(uint40).max, "", authorization));
        calls[5] = abi.encodeCall(IEscrow.fundTo, (terms, 5000));
        calls[6] = abi.encodeCall(IEscrow.fundToWithPermit, (terms, 5000, permit));
        calls[7] = abi.encodeCall(IEscrow.start, (terms, 1));
        calls[8] = abi.encodeCall(IEscrow.pause, (terms, 1));
        calls[9] = abi.encodeCall(IEscrow.creditTo, (terms, 0, 1));
        calls[10] = abi.encodeCall(IEscrow.endLeg, (terms, 1));
        calls[11] = abi.encodeCall(IEscrow.withdraw, (terms, 1));
        calls[12] = abi.encodeCall(IEscrow.settleMany, (many, new uint16[](1)));
        calls[13] = abi.encodeCall(IEscrow.close, (terms, 1));
        calls[14] = abi.encodeCall(IEscrow.withdrawCredit, (terms.token, terms.payer));
        calls[15] = abi.encodeCall(IEscrow.deliverCredit, (terms.token, terms.legs[0].payee));
    }
}

/// A wallet contract that accepts the signatures of its owner (ERC-1271), or none after it was disabled.
contract Wallet {
    address private immutable owner;
    bool public frozen;

    constructor(address owner_) {
        owner = owner_;
    }

    function freeze() external {
        frozen = true;
    }

    function approve(ERC20 token, address spender, uint256 amount) external {
        token.approve(spender, amount);
    }

    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        return !frozen && ECDSA.recover(digest, signature) == owner ? bytes4(0x1626ba7e) : bytes4(0xffffffff);
    }
}
