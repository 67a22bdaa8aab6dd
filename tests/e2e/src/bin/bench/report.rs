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
            let index = (n * percent).div_ceil(100).clamp(1, n) - 1;
            self.line(&format!("{metric}.{name}"), values[index], unit, n);
        }
    }
}
