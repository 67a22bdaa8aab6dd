//! A table of a program's metrics for the documentation, generated from its rendered metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::Result;

use super::Metrics;

/// One row of the table.
#[derive(Debug, Default)]
struct Row {
    kind: String,
    help: String,
    labels: BTreeMap<String, BTreeSet<String>>,
}

/// A Markdown table of every metric: name as Prometheus stores it, type, labels with their values, and help.
///
/// # Errors
///
/// If the metrics cannot be rendered.
pub fn markdown(metrics: &Metrics) -> Result<String> {
    Ok(table(&metrics.render()?))
}

/// The same table from the response of `/metrics`.
#[must_use]
pub fn table(exposition: &str) -> String {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    let mut name = String::new();
    for line in exposition.lines() {
        match line
            .strip_prefix("# ")
            .map(|rest| rest.splitn(3, ' ').collect::<Vec<_>>())
            .as_deref()
        {
            Some(["HELP", of, help]) => {
                name = (*of).to_owned();
                rows.entry(name.clone()).or_default().help = help.trim_end_matches('.').to_owned();
            }
            Some(["TYPE", of, kind]) => rows.entry((*of).to_owned()).or_default().kind = (*kind).to_owned(),
            Some(_) => {}
            None => {
                let row = rows.entry(name.clone()).or_default();
                for (label, value) in labels(line) {
                    // `le` is the bucket limit of a histogram.
                    if label != "le" {
                        row.labels.entry(label).or_default().insert(value);
                    }
                }
            }
        }
    }
    let mut text = String::from("| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n");
    for (name, row) in rows {
        let suffix = if row.kind == "counter" { "_total" } else { "" };
        let labels: Vec<String> = row
            .labels
            .iter()
            .map(|(label, values)| {
                let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
                format!("`{label}`: {}", values.join(", "))
            })
            .collect();
        let labels = if labels.is_empty() {
            "–".to_owned()
        } else {
            labels.join("; ")
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| `{name}{suffix}` | {} | {labels} | {}. |",
            row.kind, row.help
        );
    }
    text
}

/// The labels of one sample. The values contain neither quotes nor commas, as they come from closed sets.
fn labels(sample: &str) -> Vec<(String, String)> {
    let Some((_, rest)) = sample.split_once('{') else {
        return Vec::new();
    };
    let Some((inside, _)) = rest.rsplit_once('}') else {
        return Vec::new();
    };
    inside
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(label, value)| (label.to_owned(), value.trim_matches('"').to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Operator, Role};

    #[test]
    fn the_table_names_each_metric_as_prometheus_does_with_its_labels() {
        let mut metrics = Metrics::new();
        let _operator = Operator::register(&mut metrics, Role::Provider);
        let text = markdown(&metrics).unwrap();
        assert!(
            text.contains("| `leasehold_leader` | gauge | – | 1 while this replica is the leader, else 0. |"),
            "{text}"
        );
        assert!(
            text.contains("| `leasehold_reservation_transitions_total` | counter | `phase`: `Active`,"),
            "{text}"
        );
        assert!(!text.contains("`le`"), "{text}");
    }
}
