//! The rows of an offer, at most as many as the API takes.
//!
//! Nodes of a large fleet differ a little in what is free of them. Rows that are nearly equal are merged then, so that no
//! node is missing from the offer only because it has a row of its own.

use std::collections::{BTreeMap, btree_map::Entry};

use leasehold_crds::{
    market::offer::OfferRow,
    provider::pool::MaxPerGpu,
    shared::quantity::{self, QuantityError},
};

/// Bound of the schema.
const ROWS_MAX: usize = 64;

/// The rows of an offer. If there are more than the API takes, rows that differ only in CPU, memory and disk, and by less
/// than half, become one with the least of them. If there are still too many, those with the most free GPUs are offered.
#[must_use]
pub fn within_bound(rows: Vec<OfferRow>) -> Vec<OfferRow> {
    if rows.len() <= ROWS_MAX {
        return rows;
    }
    let mut rows = merged(rows);
    if rows.len() > ROWS_MAX {
        rows.sort_by_key(|row| std::cmp::Reverse(row.gpus.saturating_mul(row.nodes_free)));
        rows.truncate(ROWS_MAX);
    }
    rows
}

fn merged(rows: Vec<OfferRow>) -> Vec<OfferRow> {
    let mut merged: BTreeMap<String, OfferRow> = BTreeMap::new();
    for row in rows {
        match merged.entry(key(&row)) {
            Entry::Occupied(mut into) => merge(into.get_mut(), &row),
            Entry::Vacant(entry) => {
                entry.insert(row);
            }
        }
    }
    merged.into_values().collect()
}

/// Rows with the same key are merged: they differ in amounts of the same magnitude only.
fn key(row: &OfferRow) -> String {
    let magnitude = |amount: Result<u64, QuantityError>| {
        let magnitude = amount.ok().and_then(u64::checked_ilog2);
        magnitude.map_or_else(String::new, |power| power.to_string())
    };
    let per_gpu = &row.max_per_gpu;
    let bytes = |text: &Option<String>| text.as_deref().map(|t| magnitude(quantity::bytes(t)));
    let coarse = OfferRow {
        nodes_free: 0,
        cpu: magnitude(quantity::millicores(&row.cpu)),
        memory: magnitude(quantity::bytes(&row.memory)),
        ephemeral_storage: magnitude(quantity::bytes(&row.ephemeral_storage)),
        max_per_gpu: MaxPerGpu {
            cpu: per_gpu.cpu.as_deref().map(|t| magnitude(quantity::millicores(t))),
            memory: bytes(&per_gpu.memory),
            ephemeral_storage: bytes(&per_gpu.ephemeral_storage),
            storage: bytes(&per_gpu.storage),
        },
        ..row.clone()
    };
    format!("{coarse:?}")
}

fn merge(into: &mut OfferRow, row: &OfferRow) {
    into.nodes_free = into.nodes_free.saturating_add(row.nodes_free);
    least(&mut into.cpu, &row.cpu, quantity::millicores);
    least(&mut into.memory, &row.memory, quantity::bytes);
    least(
        &mut into.ephemeral_storage,
        &row.ephemeral_storage,
        quantity::bytes,
    );
    let (into, row) = (&mut into.max_per_gpu, &row.max_per_gpu);
    for (into, row, read) in [
        (&mut into.cpu, &row.cpu, quantity::millicores as Read),
        (&mut into.memory, &row.memory, quantity::bytes),
        (
            &mut into.ephemeral_storage,
            &row.ephemeral_storage,
            quantity::bytes,
        ),
        (&mut into.storage, &row.storage, quantity::bytes),
    ] {
        if let (Some(into), Some(row)) = (into, row) {
            least(into, row, read);
        }
    }
}

type Read = fn(&str) -> Result<u64, QuantityError>;

fn least(into: &mut String, other: &str, read: Read) {
    if read(other).unwrap_or(0) < read(into).unwrap_or(0) {
        other.clone_into(into);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(class: &str, memory: &str, gpus: i64) -> OfferRow {
        OfferRow {
            class: class.into(),
            memory: memory.into(),
            cpu: "31500m".into(),
            ephemeral_storage: "0".into(),
            gpus,
            nodes_free: 1,
            max_per_gpu: MaxPerGpu {
                memory: Some(memory.into()),
                ..MaxPerGpu::default()
            },
            ..OfferRow::default()
        }
    }

    #[test]
    fn a_large_fleet_of_nearly_equal_nodes_is_offered_whole() {
        let rows: Vec<_> = (0..200)
            .map(|n| row("a100-80g-pcie", &format!("{}Ki", (120 << 20) + n), 4))
            .chain([row("a100-80g-pcie", "1Gi", 4), row("t4-16g", "120Gi", 4)])
            .collect();
        let offered = within_bound(rows);
        let nodes: Vec<_> = offered
            .iter()
            .map(|row| (row.class.as_str(), row.memory.as_str(), row.nodes_free))
            .collect();
        assert_eq!(
            nodes.iter().map(|node| node.2).sum::<i64>(),
            202,
            "no node is missing"
        );
        assert!(
            nodes.contains(&("a100-80g-pcie", "125829120Ki", 200)),
            "{nodes:?}"
        );
        assert!(
            nodes.contains(&("a100-80g-pcie", "1Gi", 1)),
            "a node with little memory does not hide that of the others"
        );
        let large = offered.iter().find(|row| row.nodes_free == 200).unwrap();
        assert_eq!(large.max_per_gpu.memory.as_deref(), Some("125829120Ki"));
    }

    #[test]
    fn few_rows_stay_as_they_are_and_of_too_many_those_with_most_gpus_are_offered() {
        let few = vec![row("a", "1Gi", 1), row("a", "1025Mi", 1)];
        assert_eq!(within_bound(few.clone()), few);
        let many: Vec<_> = (1..100).map(|n| row(&format!("c{n}"), "1Gi", n % 16)).collect();
        let offered = within_bound(many);
        assert_eq!(offered.len(), 64);
        assert!(offered.iter().all(|row| row.gpus >= 5), "{:?}", offered.last());
    }
}
