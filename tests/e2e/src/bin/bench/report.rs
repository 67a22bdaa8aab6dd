//! Prints one line per metric, for people or for programs.

use serde_json::json;

/// Output of metrics.
pub(crate) struct Report {
    /// Whether to print one JSON object per line.
    pub(crate) json: bool,
}

impl Report {
    /// Prints one value, from `n` measurements.
    pub(crate) fn line(&self, metric: &str, value: f64, unit: &str, n: usize) {
        if self.json {
            println!(
                "{}",
                json!({"metric": metric, "value": value, "unit": unit, "n": n})
            );
        } else {
            println!("{metric:<36} {value:>10.3} {unit:<6} n={n}");
        }
    }

    /// Prints percentiles of the values, or nothing if there are none.
    pub(crate) fn quantiles(&self, metric: &str, mut values: Vec<f64>, unit: &str, wanted: &[(&str, usize)]) {
        values.sort_by(f64::total_cmp);
        let n = values.len();
        if n == 0 {
            return;
        }
        for (name, percent) in wanted {
            self.line(&format!("{metric}.{name}"), quantile(&values, *percent), unit, n);
        }
    }
}

/// The percentile of values in order of size, of which there is at least one.
pub(crate) fn quantile(values: &[f64], percent: usize) -> f64 {
    let n = values.len();
    values[(n * percent).div_ceil(100).clamp(1, n) - 1]
}
