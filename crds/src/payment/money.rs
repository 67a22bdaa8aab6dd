//! Money in checked integers. The name of each function states its rounding direction.

use std::fmt;

/// An amount in base units of a token. With 18 decimals, `u64` would hold only 18.4 tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenAmount(pub u128);

/// A rate in 10⁻¹² base units of a token per second, so that a 2 % share of 0.10 USDC per hour is still precise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(pub u128);

/// A price per GPU-hour in 10⁻¹⁸ tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Price(pub u128);

/// Scale between a [`Rate`] and base units.
pub const RATE_SCALE: u128 = 1_000_000_000_000;
const PRICE_DECIMALS: u32 = 18;

/// A string is not an amount of money.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// The text does not consist of digits with at most one decimal point.
    #[error("{0:?} is not a decimal number: write digits with at most one point, such as \"0.85\"")]
    NotDecimal(String),
    /// The text has more decimals than the token or the price.
    #[error("{text:?} has more than {decimals} digits behind the point")]
    TooPrecise { text: String, decimals: u32 },
    /// The value exceeds 128 bits.
    #[error("{0:?} is too large")]
    Overflow(String),
}

fn fixed(text: &str, decimals: u32) -> Result<u128, MoneyError> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || (text.contains('.') && fraction.is_empty())
    {
        return Err(MoneyError::NotDecimal(text.into()));
    }
    let places = u32::try_from(fraction.len()).map_err(|_| MoneyError::Overflow(text.into()))?;
    let Some(missing) = decimals.checked_sub(places) else {
        return Err(MoneyError::TooPrecise {
            text: text.into(),
            decimals,
        });
    };
    let number: u128 = format!("{whole}{fraction}")
        .parse()
        .map_err(|_| MoneyError::Overflow(text.into()))?;
    10u128
        .checked_pow(missing)
        .and_then(|m| number.checked_mul(m))
        .ok_or_else(|| MoneyError::Overflow(text.into()))
}

impl TokenAmount {
    /// Parses a decimal string of base units.
    pub fn parse(text: &str) -> Result<Self, MoneyError> {
        fixed(text, 0).map(Self)
    }
    /// Parses a decimal string of whole tokens (`"60"`, `"0.5"`) of a token with `decimals`.
    pub fn parse_tokens(text: &str, decimals: u32) -> Result<Self, MoneyError> {
        fixed(text, decimals).map(Self)
    }
    /// Formats the exact amount in whole tokens, without trailing zeros.
    #[must_use]
    pub fn to_tokens(self, decimals: u32) -> String {
        let width = decimals as usize + 1;
        let padded = format!("{:0>width$}", self.0);
        let (whole, fraction) = padded.split_at(padded.len() - decimals as usize);
        let fraction = fraction.trim_end_matches('0');
        if fraction.is_empty() {
            whole.to_owned()
        } else {
            format!("{whole}.{fraction}")
        }
    }
    /// The sum, or `None` if it exceeds 128 bits.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }
}

impl fmt::Display for TokenAmount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Rate {
    /// Parses a decimal string of 10⁻¹² base units per second.
    pub fn parse(text: &str) -> Result<Self, MoneyError> {
        fixed(text, 0).map(Self)
    }
    /// The cost of `seconds`, rounded up to a base unit. This deposit pays for all of them.
    #[must_use]
    pub fn cost_ceil(self, seconds: u64) -> Option<TokenAmount> {
        Some(TokenAmount(
            self.0.checked_mul(u128::from(seconds))?.div_ceil(RATE_SCALE),
        ))
    }
    /// The earnings of `seconds`, rounded down to a base unit, as paid by the escrow.
    #[must_use]
    pub fn earned_floor(self, seconds: u64) -> Option<TokenAmount> {
        Some(TokenAmount(self.0.checked_mul(u128::from(seconds))? / RATE_SCALE))
    }
    /// The whole seconds that `amount` pays for, rounded down. `None` for a rate of zero, which never ends.
    #[must_use]
    pub fn seconds_floor(self, amount: TokenAmount) -> Option<u64> {
        let seconds = amount.0.checked_mul(RATE_SCALE)?.checked_div(self.0)?;
        u64::try_from(seconds).ok()
    }
    /// The sum, or `None` if it exceeds 128 bits.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }
    /// Tokens per hour for display, rounded to the nearest base unit, so that it equals the offered price. It is not
    /// used for charging.
    #[must_use]
    pub fn tokens_per_hour_nearest(self, decimals: u32) -> String {
        let base_units = self.0.saturating_mul(3600).saturating_add(RATE_SCALE / 2) / RATE_SCALE;
        TokenAmount(base_units).to_tokens(decimals)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Price {
    /// Parses a price per GPU-hour in whole tokens.
    pub fn parse(text: &str) -> Result<Self, MoneyError> {
        fixed(text, PRICE_DECIMALS).map(Self)
    }
    /// The rate of `gpus` GPUs at this price in a token with `decimals`, rounded down, so that a tenant never pays more
    /// than the price.
    #[must_use]
    pub fn rate_floor(self, gpus: u64, decimals: u32) -> Option<Rate> {
        // price·10⁻¹⁸ tokens/h · 10^decimals · 10¹² / 3600 s
        let per_hour = self.0.checked_mul(u128::from(gpus))?;
        let scale = i64::from(decimals) + 12 - i64::from(PRICE_DECIMALS);
        let power = 10u128.checked_pow(u32::try_from(scale.unsigned_abs()).ok()?)?;
        let scaled = if scale >= 0 {
            per_hour.checked_mul(power)?
        } else {
            per_hour / power
        };
        Some(Rate(scaled / 3600))
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&TokenAmount(self.0).to_tokens(PRICE_DECIMALS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_reads_as_the_price_it_came_from() {
        for (price, gpus, text) in [
            ("1.85", 1, "1.85"),
            ("1.05", 4, "4.2"),
            ("0.000001", 1, "0.000001"),
        ] {
            let rate = Price::parse(price).unwrap().rate_floor(gpus, 6).unwrap();
            assert_eq!(rate.tokens_per_hour_nearest(6), text);
        }
    }

    #[test]
    fn reads_and_writes_decimals_exactly() {
        assert_eq!(TokenAmount::parse_tokens("0.85", 6), Ok(TokenAmount(850_000)));
        assert_eq!(TokenAmount(850_000).to_tokens(6), "0.85");
        assert_eq!(TokenAmount(1_000_000).to_tokens(6), "1");
        assert_eq!(TokenAmount(1).to_tokens(18), "0.000000000000000001");
        assert_eq!(TokenAmount(7).to_tokens(0), "7");
    }

    #[test]
    fn refuses_what_is_no_money() {
        for text in ["", ".", "1.", ".5", "-1", "1e9", "+1", "1,5", "١", " 1", "0x1"] {
            assert!(
                matches!(TokenAmount::parse_tokens(text, 6), Err(MoneyError::NotDecimal(_))),
                "{text:?}"
            );
        }
        assert!(matches!(
            Price::parse("0.0000000000000000001"),
            Err(MoneyError::TooPrecise { .. })
        ));
        assert!(matches!(
            TokenAmount::parse(&"9".repeat(39)),
            Err(MoneyError::Overflow(_))
        ));
    }

    #[test]
    fn a_price_becomes_a_rate_and_back_into_what_an_hour_costs() {
        let rate = Price::parse("1.85").unwrap().rate_floor(12, 6).unwrap();
        assert_eq!(rate, Rate(22_200_000 * RATE_SCALE / 3600));
        assert_eq!(rate.cost_ceil(3600), Some(TokenAmount(22_200_000)));
        assert_eq!(rate.seconds_floor(rate.cost_ceil(7200).unwrap()), Some(7200));
    }
}
