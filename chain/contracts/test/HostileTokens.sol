// SPDX-License-Identifier: Apache-2.0
// Tokens and wallets that misbehave as real ones do, and one that attacks.
pragma solidity ^0.8.28;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

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

/// Makes a configured call in the middle of each transfer.
contract ReentrantToken is MintableToken {
    address public target;
    bytes public call;
    uint256 public fired;
    bool public succeeded;
    bytes4 public failure;

    function arm(address target_, bytes calldata call_) external {
        target = target_;
        call = call_;
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
        if (target == address(0) || from == address(0)) return;
        ++fired;
        bytes memory answer;
        (succeeded, answer) = target.call(call);
        if (answer.length >= 4) failure = bytes4(answer);
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
