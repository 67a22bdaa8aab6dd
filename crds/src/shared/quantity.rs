//! Kubernetes quantities as integers: CPU in millicores, everything else in bytes.

use serde::{Deserialize, Deserializer};

/// A quantity as people write it in a manifest.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a quantity is text or a whole number")]
enum Written {
    Text(String),
    Number(u64),
}

impl From<Written> for String {
    fn from(written: Written) -> Self {
        match written {
            Written::Text(text) => text,
            Written::Number(number) => number.to_string(),
        }
    }
}

/// Deserializes a quantity that is text or a whole number, as Kubernetes does: `500m`, `"4"`, `4`.
pub fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Written::deserialize(from).map(String::from)
}

/// Deserializes a quantity that may be absent, as [`text`] does.
pub fn optional_text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Written>::deserialize(from)?.map(String::from))
}

/// A string is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a quantity: write \"32\" or \"500m\" for CPU, \"128Gi\" or \"80G\" for bytes")]
pub struct QuantityError(pub String);

/// Parses CPU into millicores. Fractions are rounded up, as in the scheduler.
pub fn millicores(text: &str) -> Result<u64, QuantityError> {
    scaled(text, 1000)
}

/// Parses bytes (or a count, for `nvidia.com/gpu`), rounded up.
pub fn bytes(text: &str) -> Result<u64, QuantityError> {
    scaled(text, 1)
}

fn scaled(text: &str, unit: u128) -> Result<u64, QuantityError> {
    let wrong = || QuantityError(text.to_owned());
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (multiply, divide): (u128, u128) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        e => {
            let power: u32 = e
                .strip_prefix(['e', 'E'])
                .and_then(|p| p.parse().ok())
                .ok_or_else(wrong)?;
            (10u128.checked_pow(power).ok_or_else(wrong)?, 1)
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || fraction.len() > 9 {
        return Err(wrong());
    }
    let digits: u128 = format!("0{whole}{fraction}").parse().map_err(|_| wrong())?;
    let places = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| wrong())?);
    let value = digits
        .checked_mul(multiply)
        .and_then(|v| v.checked_mul(unit))
        .ok_or_else(wrong)?;
    u64::try_from(value.div_ceil(divide * places)).map_err(|_| wrong())
}

/// Formats bytes in the largest binary unit that divides them: `137438953472` becomes `128Gi`.
#[must_use]
pub fn bytes_text(bytes: u64) -> String {
    for (shift, unit) in [(50, "Pi"), (40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")] {
        if bytes > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// Formats millicores in the notation of Kubernetes.
#[must_use]
pub fn millicores_text(millicores: u64) -> String {
    if millicores.is_multiple_of(1000) {
        (millicores / 1000).to_string()
    } else {
        format!("{millicores}m")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kubernetes_writes() {
        assert_eq!(millicores("32"), Ok(32_000));
        assert_eq!(millicores("1500m"), Ok(1_500));
        assert_eq!(millicores("0.1"), Ok(100));
        assert_eq!(bytes("128Gi"), Ok(128 << 30));
        assert_eq!(bytes("80G"), Ok(80_000_000_000));
        assert_eq!(bytes("24305728Ki"), Ok(24_305_728 << 10));
        assert_eq!(bytes("1e3"), Ok(1000));
        assert_eq!(bytes("4"), Ok(4));
        assert_eq!(bytes("1.5Gi"), Ok(3 << 29));
        assert_eq!(bytes("0.1Ki"), Ok(103), "rounded up, as in the scheduler");
        assert_eq!(bytes("16000m"), Ok(16));
        assert_eq!(bytes("99999999999999.999999999Ki"), Ok(102_400_000_000_000_000));
        for t in ["", "-1", "Gi", "1.2.3", "1Xi", "99999999999999999999"] {
            assert!(bytes(t).is_err(), "{t}");
        }
        assert_eq!(bytes_text(128 << 30), "128Gi");
        assert_eq!(millicores_text(1500), "1500m");
    }

    #[test]
    fn manifests_write_quantities_as_text_or_as_numbers() {
        let shape = |json: serde_json::Value| {
            serde_json::from_value::<crate::lease::workload::NodeShape>(json).map_err(|e| e.to_string())
        };
        let written = shape(serde_json::json!({"cpu": 4, "memory": 1_073_741_824, "gpus": 1})).unwrap();
        assert_eq!(
            (written.cpu.as_str(), written.memory.as_str()),
            ("4", "1073741824")
        );
        assert_eq!(written.ephemeral_storage, "10Gi");
        let text = shape(serde_json::json!({"cpu": "4", "memory": "1.5Gi", "gpus": 1})).unwrap();
        assert_eq!((text.cpu.as_str(), text.memory.as_str()), ("4", "1.5Gi"));
        assert!(shape(serde_json::json!({"cpu": -4, "memory": "1Gi", "gpus": 1})).is_err());
    }
}
