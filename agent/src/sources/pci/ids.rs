//! Products by PCI device id, to detect a card that reports another name.
//!
//! Taken from the PCI ID database (pci-ids.ucw.cz): the cards that are commonly rented out. A card that is missing
//! here is not checked, as new cards appear before this table contains them.

use crate::gpu_class::FormFactor;

/// Product of a device id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Product {
    /// In the notation of [`crate::gpu_class::Class::model`].
    pub(crate) model: &'static str,
    pub(crate) form_factor: Option<FormFactor>,
    /// Nominal memory, in GiB.
    pub(crate) memory_gib: u64,
}

/// The product with one of NVIDIA's device ids.
pub(crate) fn product(device: u16) -> Option<Product> {
    let found = PRODUCTS.binary_search_by_key(&device, |entry| entry.0).ok()?;
    let (_, model, form_factor, memory_gib) = *PRODUCTS.get(found)?;
    Some(Product {
        model,
        form_factor,
        memory_gib,
    })
}

const SXM: Option<FormFactor> = Some(FormFactor::Sxm);
const PCIE: Option<FormFactor> = Some(FormFactor::Pcie);
const NVL: Option<FormFactor> = Some(FormFactor::Nvl);

/// Sorted by id.
const PRODUCTS: &[(u16, &str, Option<FormFactor>, u64)] = &[
    (0x15f8, "p100", PCIE, 16),
    (0x15f9, "p100", SXM, 16),
    (0x1b06, "gtx1080ti", None, 11),
    (0x1b38, "p40", None, 24),
    (0x1db1, "v100", SXM, 16),
    (0x1db4, "v100", PCIE, 16),
    (0x1db5, "v100", SXM, 32),
    (0x1db6, "v100", PCIE, 32),
    (0x1df6, "v100s", PCIE, 32),
    (0x1e04, "rtx2080ti", None, 11),
    (0x1e07, "rtx2080ti", None, 11),
    (0x1eb8, "t4", None, 16),
    (0x20b0, "a100", SXM, 40),
    (0x20b2, "a100", SXM, 80),
    (0x20b5, "a100", PCIE, 80),
    (0x20b7, "a30", None, 24),
    (0x20f1, "a100", PCIE, 40),
    (0x20f3, "a800", SXM, 80),
    (0x20f5, "a800", PCIE, 80),
    (0x2203, "rtx3090ti", None, 24),
    (0x2204, "rtx3090", None, 24),
    (0x2206, "rtx3080", None, 10),
    (0x2208, "rtx3080ti", None, 12),
    (0x2216, "rtx3080", None, 10),
    (0x2230, "rtxa6000", None, 48),
    (0x2231, "rtxa5000", None, 24),
    (0x2235, "a40", None, 48),
    (0x2236, "a10", None, 24),
    (0x2237, "a10g", None, 24),
    (0x2321, "h100", NVL, 94),
    (0x2329, "h20", None, 96),
    (0x2330, "h100", SXM, 80),
    (0x2331, "h100", PCIE, 80),
    (0x2335, "h200", SXM, 141),
    (0x2339, "h100", SXM, 94),
    (0x233b, "h200", NVL, 141),
    (0x2484, "rtx3070", None, 8),
    (0x24b0, "rtxa4000", None, 16),
    (0x2504, "rtx3060", None, 12),
    (0x2684, "rtx4090", None, 24),
    (0x2685, "rtx4090d", None, 24),
    (0x26b1, "rtx6000ada", None, 48),
    (0x26b2, "rtx5000ada", None, 32),
    (0x26b5, "l40", None, 48),
    (0x26b9, "l40s", None, 48),
    (0x2702, "rtx4080super", None, 16),
    (0x2704, "rtx4080", None, 16),
    (0x2705, "rtx4070tisuper", None, 16),
    (0x2782, "rtx4070ti", None, 12),
    (0x2783, "rtx4070super", None, 12),
    (0x2786, "rtx4070", None, 12),
    (0x27b8, "l4", None, 24),
    (0x2805, "rtx4060ti", None, 16),
    (0x2901, "b200", SXM, 180),
    (0x2b85, "rtx5090", None, 32),
    (0x2bb1, "rtxpro6000blackwellworkstation", None, 96),
    (0x2bb5, "rtxpro6000blackwellserver", None, 96),
    (0x2c02, "rtx5080", None, 16),
    (0x2c05, "rtx5070ti", None, 16),
    (0x2f04, "rtx5070", None, 12),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_so_that_a_search_finds_every_entry() {
        assert!(PRODUCTS.is_sorted_by_key(|entry| entry.0));
        assert!(PRODUCTS.iter().all(|entry| product(entry.0).is_some()));
        assert_eq!(product(0x2fff), None);
    }
}
