// SPDX-License-Identifier: Apache-2.0
// A token for tests and demos with the payment methods of real stablecoins. Anyone can mint it, so it has no value.
pragma solidity ^0.8.28;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";

/// @title A test token with 6 decimals, ERC-2612 permits and ERC-3009 authorizations.
contract TestToken is ERC20, ERC20Permit, ERC3009 {
    constructor() ERC20("Leasehold Test Dollar", "TUSD") ERC20Permit("Leasehold Test Dollar") {}

    /// @notice Mints `amount` base units for `to`.
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    /// @inheritdoc ERC20
    function decimals() public pure override returns (uint8) {
        return 6;
    }
}
