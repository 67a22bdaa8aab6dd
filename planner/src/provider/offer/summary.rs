//! The rows of an offer in short: a printer column of Kubernetes shows only the first of several values.

use std::collections::BTreeMap;

use leasehold_crds::{
    market::offer::{OfferRow, OfferSummary},
    payment::money::Price,
};

/// Longer lists end with an ellipsis.
const CHARACTERS_MAX: usize = 200;

/// The summary of rows.
#[must_use]
pub fn summary(rows: &[OfferRow]) -> OfferSummary {
    let mut by_class: BTreeMap<&str, Vec<(Option<Price>, &str)>> = BTreeMap::new();
    for row in rows {
        let text = row.price_per_gpu_hour.as_str();
        let prices = by_class.entry(&row.class).or_default();
        prices.push((Price::parse(text).ok(), text));
    }
    let prices = by_class.values_mut().map(|prices| {
        prices.sort();
        match prices.as_slice() {
            [(_, first), .., (_, last)] if first != last => format!("{first}-{last}"),
            [(_, first), ..] => (*first).to_owned(),
            [] => String::new(),
        }
    });
    let prices: Vec<String> = prices.collect();
    let classes: Vec<String> = by_class.keys().map(|class| (*class).to_owned()).collect();
    OfferSummary {
        classes: list(&classes),
        prices: list(&prices),
        gpus_free: rows.iter().map(|row| row.nodes_free * row.gpus).sum(),
    }
}

fn list(words: &[String]) -> String {
    let mut text = String::new();
    for word in words {
        if text.len() + word.len() > CHARACTERS_MAX {
            text.push('…');
            break;
        }
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(word);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_shows_all_classes_with_their_prices() {
        let row = |class: &str, price: &str, nodes: i64| OfferRow {
            class: class.into(),
            price_per_gpu_hour: price.into(),
            nodes_free: nodes,
            gpus: 4,
            ..OfferRow::default()
        };
        let rows = [
            row("h100-80g-sxm", "10", 1),
            row("a100-80g-pcie", "1.20", 2),
            row("h100-80g-sxm", "9.5", 1),
            row("h100-80g-sxm", "10", 1),
        ];
        let summary = summary(&rows);
        assert_eq!(summary.classes, "a100-80g-pcie, h100-80g-sxm");
        assert_eq!(summary.prices, "1.20, 9.5-10");
        assert_eq!(summary.gpus_free, 20);
        let many: Vec<_> = (0..64)
            .map(|n| row(&format!("class-{n}-{}", "x".repeat(50)), "1", 1))
            .collect();
        assert!(super::summary(&many).classes.chars().count() <= 256);
        assert_eq!(super::summary(&[]), OfferSummary::default());
    }
}
