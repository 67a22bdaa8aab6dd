// SPDX-License-Identifier: Apache-2.0
// A stablecoin for tests and demos, with the ways to pay that real ones have. Anybody can mint it: worthless on purpose.
pragma solidity ^0.8.28;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";

/// @title A dollar of nobody's, with 6 decimals, ERC-2612 permits and ERC-3009 authorizations.
contract TestToken is ERC20, ERC20Permit, ERC3009 {
    constructor() ERC20("Leasehold Test Dollar", "TUSD") ERC20Permit("Leasehold Test Dollar") {}

    /// @notice Makes `amount` base units for `to`.
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    /// @inheritdoc ERC20
    function decimals() public pure override returns (uint8) {
        return 6;
    }
}
