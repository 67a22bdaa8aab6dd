//! The class of a GPU, such as `h100-80g-sxm`: the name by which leases select offers.
//!
//! The format is `<model>[-<memory>g][-<form factor>]`. It is derived from the product name, the memory and, where the
//! name contains no form factor, the PCI device id. Every card has a class, unknown models included.

use std::fmt;

use crate::sources::pci::ids;

/// Form factor, for models that exist in several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FormFactor {
    Sxm,
    Pcie,
    Nvl,
}

impl FormFactor {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Sxm => "sxm",
            Self::Pcie => "pcie",
            Self::Nvl => "nvl",
        }
    }
}

/// A class. `Display` writes its slug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Class {
    /// Lower-case letters and digits: `h100`, `rtx4090`.
    pub(crate) model: String,
    /// Nominal memory, in GiB. `None` if NVML reports no memory.
    pub(crate) memory_gib: Option<u64>,
    pub(crate) form_factor: Option<FormFactor>,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.model)?;
        if let Some(gib) = self.memory_gib {
            write!(f, "-{gib}g")?;
        }
        match self.form_factor {
            Some(form) => write!(f, "-{}", form.as_str()),
            None => Ok(()),
        }
    }
}

impl Class {
    /// The class of a card, from what NVML reports; `device` is its PCI device id.
    pub(crate) fn of(name: &str, total_bytes: Option<u64>, device: u16) -> Self {
        let words = Words::of(name);
        let model = words.model();
        let product = ids::product(device).filter(|product| product.model == model);
        Self {
            memory_gib: total_bytes
                .map(|total| words.memory_gib(total).unwrap_or_else(|| nominal_gib(total))),
            form_factor: words
                .form_factor()
                .or_else(|| product.and_then(|product| product.form_factor)),
            model,
        }
    }

    /// Nominal memory, in bytes; 0 if NVML reports no memory.
    pub(crate) fn nominal_bytes(&self) -> u64 {
        self.memory_gib.unwrap_or(0) << 30
    }
}

/// The class of a MIG slice, from the class of its GPU and the name of the slice, which ends with its profile:
/// `NVIDIA A100 80GB PCIe MIG 1g.10gb`. A slice that is restored from the status has its class as its name.
pub(crate) fn slice_class(of_gpu: &str, name: &str) -> String {
    let of_slice = format!("{of_gpu}-mig-");
    if name.starts_with(&of_slice) {
        return name.to_owned();
    }
    let profile = name.rsplit_once(" MIG ").map_or("", |(_, profile)| profile);
    let mut class = format!("{of_slice}{}", Words::of(profile).0.join("-"));
    class.truncate(CLASS_CHARS_MAX);
    class.trim_end_matches('-').to_owned()
}

/// Limit of a class, which is a label value.
const CLASS_CHARS_MAX: usize = 63;

/// Words that name the vendor or the product line, not the model.
const IGNORED_WORDS: &[&str] = &[
    "nvidia",
    "geforce",
    "tesla",
    "quadro",
    "generation",
    "edition",
    "gpu",
    "graphics",
];
/// Limits the model so that the slug fits a label value together with memory and form factor.
const MODEL_CHARS_MAX: usize = 40;

/// The lower-case words of a product name.
struct Words(Vec<String>);

impl Words {
    fn of(name: &str) -> Self {
        let words = name
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty());
        Self(words.map(str::to_ascii_lowercase).collect())
    }

    fn model(&self) -> String {
        let own = self.0.iter().filter(|word| {
            !IGNORED_WORDS.contains(&word.as_str())
                && stated_gib(word).is_none()
                && !word.starts_with("hbm")
                && form_factor_of(word).is_none()
        });
        let model: String = own.flat_map(|word| word.chars()).take(MODEL_CHARS_MAX).collect();
        if model.is_empty() { "gpu".to_owned() } else { model }
    }

    fn form_factor(&self) -> Option<FormFactor> {
        self.0.iter().find_map(|word| form_factor_of(word))
    }

    /// The size in the name, if it is the size of the GPU's memory: the 480GB of a GH200 is CPU memory.
    fn memory_gib(&self, total_bytes: u64) -> Option<u64> {
        let stated = self.0.iter().find_map(|word| stated_gib(word))?;
        is_near(stated, total_bytes).then_some(stated)
    }
}

fn stated_gib(word: &str) -> Option<u64> {
    word.strip_suffix("gb")?.parse().ok()
}

fn form_factor_of(word: &str) -> Option<FormFactor> {
    match word {
        "pcie" => Some(FormFactor::Pcie),
        "nvl" => Some(FormFactor::Nvl),
        _ => word
            .strip_prefix("sxm")
            .filter(|rest| rest.chars().all(|c| c.is_ascii_digit()))
            .map(|_| FormFactor::Sxm),
    }
}

/// Memory sizes of products.
const NOMINAL_GIB: &[u64] = &[
    2, 3, 4, 5, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 72, 80, 94, 96, 128, 141, 180, 192, 288,
];

/// The smallest product size that matches the reported total, or else the total rounded to GiB.
fn nominal_gib(total_bytes: u64) -> u64 {
    let sold = NOMINAL_GIB.iter().copied().find(|gib| is_near(*gib, total_bytes));
    sold.unwrap_or_else(|| (total_bytes + (1 << 29)) >> 30).max(1)
}

/// Whether a card of this nominal size can report this total: ECC and firmware reserve up to an eighth, and no card
/// reports over 1 % more.
pub(crate) fn is_near(nominal_gib: u64, total_bytes: u64) -> bool {
    let nominal_mib = nominal_gib << 10;
    let total_mib = total_bytes >> 20;
    total_mib * 100 <= nominal_mib * 101 && total_mib * 8 >= nominal_mib * 7
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Names and totals as drivers report them.
    const CARDS: &[(&str, u64, u16, &str)] = &[
        ("NVIDIA H100 80GB HBM3", 81559, 0x2330, "h100-80g-sxm"),
        ("NVIDIA H100 PCIe", 81559, 0x2331, "h100-80g-pcie"),
        ("NVIDIA H100 NVL", 95830, 0x2321, "h100-94g-nvl"),
        ("NVIDIA H200", 143_771, 0x2335, "h200-141g-sxm"),
        ("NVIDIA A100 80GB PCIe", 81920, 0x20b5, "a100-80g-pcie"),
        ("NVIDIA A100-SXM4-40GB", 40960, 0x20b0, "a100-40g-sxm"),
        ("Tesla V100-SXM2-16GB", 16160, 0x1db1, "v100-16g-sxm"),
        ("NVIDIA GeForce RTX 4090", 24564, 0x2684, "rtx4090-24g"),
        ("NVIDIA GeForce RTX 4090 D", 24564, 0x2685, "rtx4090d-24g"),
        ("NVIDIA GeForce RTX 2080 Ti", 11264, 0x1e07, "rtx2080ti-11g"),
        ("NVIDIA RTX 6000 Ada Generation", 49140, 0x26b1, "rtx6000ada-48g"),
        ("NVIDIA RTX A6000", 49140, 0x2230, "rtxa6000-48g"),
        (
            "NVIDIA RTX PRO 6000 Blackwell Server Edition",
            97887,
            0x2bb5,
            "rtxpro6000blackwellserver-96g",
        ),
        ("Tesla T4", 15360, 0x1eb8, "t4-16g"),
        ("NVIDIA A10G", 23028, 0x2237, "a10g-24g"),
        ("NVIDIA A40", 46068, 0x2235, "a40-48g"),
        ("NVIDIA L4", 23034, 0x27b8, "l4-24g"),
        ("NVIDIA GH200 480GB", 97871, 0x2342, "gh200-96g"),
        ("NVIDIA B200", 183_359, 0x2901, "b200-180g-sxm"),
        (
            "NVIDIA Xylo 77 Engineering Sample",
            12282,
            0x2fff,
            "xylo77engineeringsample-12g",
        ),
        ("Mystery/Card (rev. 2) 日本", 7000, 0x0000, "mysterycardrev2-7g"),
        ("", 0, 0x0000, "gpu-1g"),
    ];

    #[test]
    fn every_card_has_a_class() {
        for (name, mib, device, slug) in CARDS {
            assert_eq!(
                Class::of(name, Some(mib * MIB), *device).to_string(),
                *slug,
                "{name}"
            );
        }
        assert_eq!(Class::of("NVIDIA GB10", None, 0x2e12).to_string(), "gb10");
    }

    #[test]
    fn a_slice_has_a_class_of_its_own() {
        let of = |name: &str| slice_class("a100-80g-pcie", name);
        assert_eq!(
            of("NVIDIA A100 80GB PCIe MIG 1g.10gb"),
            "a100-80g-pcie-mig-1g-10gb"
        );
        assert_eq!(
            of("NVIDIA A100 80GB PCIe MIG 1g.10gb+me"),
            "a100-80g-pcie-mig-1g-10gb-me"
        );
        assert_eq!(
            of("a100-80g-pcie-mig-1g-10gb"),
            "a100-80g-pcie-mig-1g-10gb",
            "as stored"
        );
        assert_eq!(of(""), "a100-80g-pcie-mig");
    }

    #[test]
    fn a_slug_is_a_valid_kubernetes_name_for_any_card_name() {
        for name in [
            "x".repeat(200),
            "Ω Ω Ω".to_owned(),
            "-- --".to_owned(),
            "NVIDIA".to_owned(),
        ] {
            let slug = Class::of(&name, Some(u64::MAX >> 8), 0x2330).to_string();
            assert!(slug.len() <= 63, "{slug}");
            assert!(
                slug.chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'),
                "{slug}"
            );
            assert!(slug.starts_with(|c: char| c.is_ascii_alphanumeric()), "{slug}");
        }
    }

    #[test]
    fn the_form_factor_of_a_device_id_is_not_used_for_a_card_with_another_name() {
        assert_eq!(
            Class::of("NVIDIA GeForce RTX 4090", Some(81559 * MIB), 0x2330).form_factor,
            None
        );
    }
}
