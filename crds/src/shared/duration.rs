//! Durations in the notation of Kubernetes and Go, in whole seconds.

/// A string is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a duration: write hours, minutes and seconds in this order, such as \"1h30m\" or \"90s\""
)]
pub struct DurationError(pub String);

/// Parses `1h30m`, `45m` or `90s` into seconds.
pub fn seconds(text: &str) -> Result<u64, DurationError> {
    let wrong = || DurationError(text.to_owned());
    let mut rest = text;
    let mut total = 0u64;
    for (unit, factor) in [('h', 3600), ('m', 60), ('s', 1)] {
        if let Some((number, tail)) = rest.split_once(unit) {
            if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
                return Err(wrong());
            }
            let number: u64 = number.parse().map_err(|_| wrong())?;
            total = number
                .checked_mul(factor)
                .and_then(|n| total.checked_add(n))
                .ok_or_else(wrong)?;
            rest = tail;
        }
    }
    if text.is_empty() || !rest.is_empty() {
        Err(wrong())
    } else {
        Ok(total)
    }
}

/// Formats seconds in the shortest form: `5400` becomes `1h30m`.
#[must_use]
pub fn text(seconds: u64) -> String {
    let (h, m, s) = (seconds / 3600, seconds % 3600 / 60, seconds % 60);
    let mut out = String::new();
    for (n, unit) in [(h, 'h'), (m, 'm'), (s, 's')] {
        if n > 0 {
            out.push_str(&format!("{n}{unit}"));
        }
    }
    if out.is_empty() { "0s".into() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes() {
        for (t, s) in [
            ("1h30m", 5400),
            ("90s", 90),
            ("2h", 7200),
            ("1h5s", 3605),
            ("0s", 0),
        ] {
            assert_eq!(seconds(t), Ok(s), "{t}");
        }
        assert_eq!(text(5400), "1h30m");
        assert_eq!(text(0), "0s");
        for t in [
            "",
            "1",
            "h",
            "1d",
            "-1h",
            "30m1h",
            "1h1h",
            "1.5h",
            "99999999999999999999h",
        ] {
            assert!(seconds(t).is_err(), "{t}");
        }
    }
}
