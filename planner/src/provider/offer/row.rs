//! Rows of an offer. Every value is within the bounds of the schema of GpuOffer: one row beyond them would make the API
//! refuse the whole offer.

use leasehold_crds::{
    GpuPool,
    market::offer::{OfferRow, PaymentIdentity},
    provider::pool::MaxPerGpu,
    shared::{architecture::Architecture, duration, quantity},
};

use super::supply::{FreeNode, GpusSeen, NodeSeen};
use crate::{
    provider::workload::results,
    request::{PerGpu, Shape, Version},
};

/// Bounds of the schema. What a node has beyond them is not offered.
const GPUS_MAX: u64 = 16;
const NODES_MAX: i64 = 100_000;
/// At most six digits, of cores or of thousandths of a core.
const CPU_NUMBER_MAX: u64 = 999_999;
/// At most 17 digits, and fewer before a unit.
const BYTES_MAX: u64 = 64 << 50;
const VERSION_NUMBER_MAX: u16 = 9_999;
/// `maxStartWithin` of a pool that states none.
const START_WITHIN_SECONDS_MAX: u64 = 3_600;

/// What nodes of one row have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group {
    class: String,
    free: Shape,
    gpu_memory: u64,
    compute_capability: Version,
    cuda: Version,
    root_allowed: bool,
    architecture: Option<Architecture>,
    max_per_gpu: PerGpu,
}

impl Group {
    pub(super) fn of(node: &NodeSeen, gpus: &GpusSeen, free: &FreeNode) -> Self {
        Self {
            class: gpus.class.clone(),
            free: free.room,
            architecture: node.architecture,
            max_per_gpu: free.max_per_gpu,
            gpu_memory: gpus.memory,
            compute_capability: gpus.compute_capability,
            cuda: gpus.cuda,
            root_allowed: free.user_namespaces,
        }
    }
}

/// The row of a group of equal nodes.
pub(super) fn row(pool: &GpuPool, payment: &PaymentIdentity, group: Group, nodes_free: i64) -> OfferRow {
    let free = group.free;
    OfferRow {
        pool: pool.metadata.name.clone().unwrap_or_default(),
        class: group.class,
        nodes_free: nodes_free.min(NODES_MAX),
        gpus: i64::try_from(free.gpus.min(GPUS_MAX)).unwrap_or_default(),
        cpu: cpu(free.millicores),
        memory: bytes(free.memory),
        ephemeral_storage: bytes(free.scratch),
        storage: pool
            .spec
            .storage
            .as_ref()
            .and_then(|s| quantity::bytes(&s.max_size).ok())
            .map(bytes),
        gpu_memory: bytes(group.gpu_memory),
        compute_capability: version(group.compute_capability),
        cuda: version(group.cuda),
        price_per_gpu_hour: pool.spec.price_per_gpu_hour.clone(),
        payment: payment.clone(),
        max_duration: pool.spec.max_duration.clone(),
        max_pause: pool.spec.max_pause.clone(),
        max_keep_results_for: duration::text(results::longest(&pool.spec)),
        max_per_gpu: per_gpu(&group.max_per_gpu),
        architecture: group.architecture,
        max_start_within: duration::text(start_within_max(pool)),
        root_allowed: group.root_allowed,
        exposure: pool.spec.exposure,
    }
}

/// Longest time within which a lease can require to start, in seconds.
pub(crate) fn start_within_max(pool: &GpuPool) -> u64 {
    let stated = pool.spec.max_start_within.as_deref();
    stated
        .and_then(|text| duration::seconds(text).ok())
        .unwrap_or(START_WITHIN_SECONDS_MAX)
}

fn per_gpu(most: &PerGpu) -> MaxPerGpu {
    let bounded = |value: u64, text: fn(u64) -> String| (value != u64::MAX).then(|| text(value));
    MaxPerGpu {
        cpu: bounded(most.millicores, cpu),
        memory: bounded(most.memory, bytes),
        ephemeral_storage: bounded(most.scratch, bytes),
        storage: bounded(most.storage, bytes),
    }
}

/// Where thousandths of a core do not fit, whole cores are offered.
fn cpu(millicores: u64) -> String {
    let fits = millicores.is_multiple_of(1000) || millicores <= CPU_NUMBER_MAX;
    let offered = if fits {
        millicores
    } else {
        millicores - millicores % 1000
    };
    quantity::millicores_text(offered.min(CPU_NUMBER_MAX * 1000))
}

fn bytes(bytes: u64) -> String {
    quantity::bytes_text(bytes.min(BYTES_MAX))
}

fn version(Version(major, minor): Version) -> String {
    Version(major.min(VERSION_NUMBER_MAX), minor.min(VERSION_NUMBER_MAX)).to_string()
}

#[cfg(test)]
mod tests {
    use leasehold_crds::{provider::pool::PoolStorage, shared::schema};
    use proptest::prelude::*;

    use super::*;

    /// Whether a text is in a language of a schema fragment. The API server checks the same pattern and length.
    fn fits(text: &str, fragment: schemars::Schema) -> bool {
        let fragment = fragment.to_value();
        let pattern = regex::Regex::new(fragment["pattern"].as_str().unwrap()).unwrap();
        text.len() as u64 <= fragment["maxLength"].as_u64().unwrap() && pattern.is_match(text)
    }

    proptest! {
        #[test]
        fn every_row_fits_the_schema(gpus: u64, millicores: u64, memory: u64, scratch: u64, major: u16, minor: u16, nodes in 1i64..i64::MAX) {
            let free = Shape { gpus, millicores, memory, scratch };
            let group = Group {
                class: "t4-16g".into(),
                free,
                gpu_memory: memory,
                compute_capability: Version(major, minor),
                cuda: Version(minor, major),
                root_allowed: true,
                architecture: None,
                max_per_gpu: PerGpu { millicores, memory, scratch, storage: memory },
            };
            let mut pool = GpuPool::default();
            pool.spec.storage = Some(PoolStorage { max_size: "1.5Ti".into(), class_name: None });
            let row = row(&pool, &PaymentIdentity::default(), group, nodes);
            // Written as people write it, and offered in the notation of the API.
            prop_assert_eq!(row.storage.as_deref(), Some("1536Gi"));
            prop_assert!((0..=16).contains(&row.gpus) && (0..=100_000).contains(&row.nodes_free));
            let generator = &mut schemars::SchemaGenerator::default();
            let most = &row.max_per_gpu;
            for bytes in [&most.memory, &most.ephemeral_storage, &most.storage].into_iter().flatten() {
                prop_assert!(fits(bytes, schema::bytes(generator)), "{}", bytes);
            }
            prop_assert!(most.cpu.as_ref().is_none_or(|cpu| fits(cpu, schema::cpu(generator))));
            for cpu in [&row.cpu, &self::cpu(millicores % 2_000_000)] {
                prop_assert!(fits(cpu, schema::cpu(generator)), "{}", cpu);
            }
            for bytes in [&row.memory, &row.ephemeral_storage, &row.gpu_memory, &self::bytes(memory >> 20 << 20)] {
                prop_assert!(fits(bytes, schema::bytes(generator)), "{}", bytes);
            }
            for version in [&row.compute_capability, &row.cuda] {
                prop_assert!(fits(version, schema::version(generator)), "{}", version);
            }
            // What is offered is there.
            prop_assert!(quantity::millicores(&row.cpu).unwrap() <= millicores);
            prop_assert!(quantity::bytes(&row.memory).unwrap() <= memory);
        }
    }
}
