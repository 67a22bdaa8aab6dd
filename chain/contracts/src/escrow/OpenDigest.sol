// SPDX-License-Identifier: Apache-2.0
// The EIP-712 encoding of all arguments of an opening. A payer signs it so that another caller can open an account,
// and a wallet can display each argument.
pragma solidity ^0.8.28;

import {Leg, Terms} from "./EscrowTypes.sol";

/// @title EIP-712 struct hashes of an opening.
library OpenDigest {
    bytes32 internal constant LEG_TYPEHASH = keccak256("Leg(address payee,address controller,uint128 rate)");
    bytes32 internal constant TERMS_TYPEHASH = keccak256(
        "Terms(address payer,address market,address token,address closer,bytes32 salt,uint40 startBy,uint32 noticeSeconds,uint32 pauseFor,Leg[] legs)Leg(address payee,address controller,uint128 rate)"
    );
    bytes32 internal constant OPEN_TYPEHASH = keccak256(
        "Open(Terms terms,uint128 deposit,uint40 validUntil)Leg(address payee,address controller,uint128 rate)Terms(address payer,address market,address token,address closer,bytes32 salt,uint40 startBy,uint32 noticeSeconds,uint32 pauseFor,Leg[] legs)"
    );

    /// @notice hashStruct of Open{terms, deposit, validUntil}.
    function structHash(Terms calldata terms, uint128 deposit, uint40 validUntil) internal pure returns (bytes32) {
        return keccak256(abi.encode(OPEN_TYPEHASH, _terms(terms), deposit, validUntil));
    }

    function _terms(Terms calldata terms) private pure returns (bytes32) {
        bytes memory head = abi.encode(TERMS_TYPEHASH, terms.payer, terms.market, terms.token, terms.closer);
        bytes memory tail =
            abi.encode(terms.salt, terms.startBy, terms.noticeSeconds, terms.pauseFor, _legs(terms.legs));
        return keccak256(bytes.concat(head, tail));
    }

    function _legs(Leg[] calldata legs) private pure returns (bytes32) {
        bytes32[] memory hashes = new bytes32[](legs.length);
        for (uint256 i = 0; i < legs.length; ++i) {
            hashes[i] = keccak256(abi.encode(LEG_TYPEHASH, legs[i].payee, legs[i].controller, legs[i].rate));
        }
        return keccak256(abi.encodePacked(hashes));
    }
}
