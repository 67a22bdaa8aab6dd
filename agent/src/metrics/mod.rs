//! Prometheus metrics: fast changing facts, under the names and labels of NVIDIA's dcgm-exporter so that its
//! dashboards work, and metrics about the agent itself.
//!
//! The series of a GPU exist while the GPU can be read: each scrape builds them from the last reading.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use leasehold_telemetry::Metrics;
use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeLabel, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelSetEncoder,
    },
    metrics::{MetricType, counter::Counter, family::Family, gauge::ConstGauge},
};

use crate::{
    sources::facts::{GpuFacts, Reading, Slot, XidEvent},
    sources::nvml::watchdog::Outcome,
};

const MIB: u64 = 1 << 20;

/// The agent's metrics. Clones share their values.
#[derive(Clone, Debug)]
pub(crate) struct AgentMetrics {
    last: Arc<Mutex<Last>>,
    readings: Family<ByOutcome, Counter>,
    writes: Counter,
}

/// Which series of the GPUs are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GpuSeries {
    /// Those of dcgm-exporter.
    Dcgm,
    /// None: dcgm-exporter runs on the node itself.
    None,
}

/// The last reading, and the last Xid of each GPU since the agent's start.
#[derive(Debug, Default)]
struct Last {
    reading: Reading,
    xids: Vec<XidEvent>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: ReadingOutcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum ReadingOutcome {
    Read,
    Failed,
    Hung,
}

impl AgentMetrics {
    pub(crate) fn register(metrics: &mut Metrics, node: &str, series: GpuSeries) -> Self {
        let it = Self {
            last: Arc::default(),
            readings: Family::default(),
            writes: Counter::default(),
        };
        for outcome in [ReadingOutcome::Read, ReadingOutcome::Failed, ReadingOutcome::Hung] {
            it.readings.get_or_create(&ByOutcome { outcome }).inc_by(0);
        }
        let own = metrics.own().sub_registry_with_prefix("agent");
        own.register(
            "readings",
            "Readings of the GPUs through NVML, by outcome",
            it.readings.clone(),
        );
        own.register(
            "status_writes",
            "Writes of the GpuNode's status; it is written on change only",
            it.writes.clone(),
        );
        match series {
            GpuSeries::Dcgm => metrics.foreign().register_collector(Box::new(Dcgm {
                last: Arc::clone(&it.last),
                node: node.to_owned(),
            })),
            GpuSeries::None => {}
        }
        it
    }

    /// Records a reading.
    pub(crate) fn read(&self, outcome: &Outcome, xids: &[XidEvent]) {
        let label = match outcome {
            Outcome::Read(_) => ReadingOutcome::Read,
            Outcome::Failed(_) => ReadingOutcome::Failed,
            Outcome::Hung => ReadingOutcome::Hung,
        };
        self.readings.get_or_create(&ByOutcome { outcome: label }).inc();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Stale values of a GPU that cannot be read would look current.
        last.reading = match outcome {
            Outcome::Read(reading) => reading.clone(),
            Outcome::Failed(_) | Outcome::Hung => Reading::default(),
        };
        for event in xids {
            last.xids.retain(|known| known.uuid != event.uuid);
            last.xids.push(event.clone());
        }
        let Last { reading, xids } = &mut *last;
        if matches!(outcome, Outcome::Read(_)) {
            xids.retain(|event| {
                reading
                    .slots
                    .iter()
                    .any(|slot| matches!(slot, Slot::Read(gpu) if gpu.uuid == event.uuid))
            });
        }
    }

    pub(crate) fn wrote(&self) {
        self.writes.inc();
    }
}

/// The labels of dcgm-exporter: names and values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Labels([(&'static str, String); 6]);

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        self.0
            .iter()
            .try_for_each(|(name, value)| (*name, value.as_str()).encode(encoder.encode_label()))
    }
}

#[derive(Debug)]
struct Dcgm {
    last: Arc<Mutex<Last>>,
    node: String,
}

/// One metric: name, help, and value for a GPU, `None` if the GPU does not have it.
type Row = (&'static str, &'static str, fn(&GpuFacts) -> Option<f64>);

const ROWS: &[Row] = &[
    ("DCGM_FI_DEV_SM_CLOCK", "SM clock frequency (in MHz)", |gpu| {
        gpu.fast.sm_clock_mhz.map(f64::from)
    }),
    (
        "DCGM_FI_DEV_MEM_CLOCK",
        "Memory clock frequency (in MHz)",
        |gpu| gpu.fast.memory_clock_mhz.map(f64::from),
    ),
    ("DCGM_FI_DEV_GPU_TEMP", "GPU temperature (in C)", |gpu| {
        gpu.fast.temperature_celsius.map(f64::from)
    }),
    ("DCGM_FI_DEV_POWER_USAGE", "Power draw (in W)", |gpu| {
        gpu.fast.power_milliwatts.map(|mw| f64::from(mw) / 1e3)
    }),
    ("DCGM_FI_DEV_POWER_MGMT_LIMIT", "Power limit (in W)", |gpu| {
        gpu.fast.power_limit_milliwatts.map(|mw| f64::from(mw) / 1e3)
    }),
    (
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
        "Energy since the driver was loaded (in mJ)",
        |gpu| gpu.fast.energy_millijoules.map(float),
    ),
    ("DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %)", |gpu| {
        gpu.fast.gpu_percent.map(f64::from)
    }),
    ("DCGM_FI_DEV_MEM_COPY_UTIL", "Memory utilization (in %)", |gpu| {
        gpu.fast.memory_percent.map(f64::from)
    }),
    (
        "DCGM_FI_DEV_FB_FREE",
        "Frame buffer memory free (in MiB)",
        |gpu| gpu.memory.map(|memory| float(memory.free / MIB)),
    ),
    (
        "DCGM_FI_DEV_FB_USED",
        "Frame buffer memory used (in MiB)",
        |gpu| gpu.memory.map(|memory| float(memory.used / MIB)),
    ),
    (
        "DCGM_FI_DEV_FB_RESERVED",
        "Frame buffer memory reserved (in MiB)",
        |gpu| gpu.memory.map(|memory| float(memory.reserved / MIB)),
    ),
    (
        "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
        "Uncorrectable memory errors since the driver was loaded",
        |gpu| gpu.ecc_uncorrected.map(float),
    ),
    (
        "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS",
        "Reasons for throttled clocks (NVML bit mask)",
        |gpu| gpu.fast.throttle_reasons.map(float),
    ),
    (
        "DCGM_FI_DEV_PCIE_LINK_GEN",
        "Current PCIe generation of the link",
        |gpu| gpu.fast.pcie_generation.map(f64::from),
    ),
    (
        "DCGM_FI_DEV_PCIE_LINK_WIDTH",
        "Current PCIe lanes of the link",
        |gpu| gpu.fast.pcie_width.map(f64::from),
    ),
];

impl Collector for Dcgm {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let gpus: Vec<(&GpuFacts, Labels)> = last.reading.gpus().map(|gpu| (gpu, self.labels(gpu))).collect();
        for (name, help, value) in ROWS {
            let samples = gpus
                .iter()
                .filter_map(|(gpu, labels)| Some((value(gpu)?, labels)));
            family(&mut encoder, name, help, samples)?;
        }
        let xid = |uuid: &str| {
            last.xids
                .iter()
                .find(|event| event.uuid == uuid)
                .map_or(0, |event| event.xid)
        };
        let xids = gpus.iter().map(|(gpu, labels)| (float(xid(&gpu.uuid)), labels));
        family(
            &mut encoder,
            "DCGM_FI_DEV_XID_ERRORS",
            "Last Xid since the agent's start; 0 if there was none",
            xids,
        )
    }
}

impl Dcgm {
    fn labels(&self, gpu: &GpuFacts) -> Labels {
        Labels([
            ("gpu", gpu.index.to_string()),
            ("UUID", gpu.uuid.clone()),
            ("pci_bus_id", gpu.bus.clone()),
            ("device", format!("nvidia{}", gpu.minor.unwrap_or(gpu.index))),
            ("modelName", gpu.name.clone()),
            ("Hostname", self.node.clone()),
        ])
    }
}

/// All metrics are gauges, the energy too: OpenMetrics would append `_total` to a counter's name, unlike
/// dcgm-exporter.
fn family<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl Iterator<Item = (f64, &'a Labels)>,
) -> Result<(), fmt::Error> {
    let mut encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (value, labels) in samples {
        ConstGauge::new(value).encode(encoder.encode_family(labels)?)?;
    }
    Ok(())
}

/// Exact up to 53 bits, which is the energy of a 1000 W card over 285 years in millijoules.
#[expect(
    clippy::cast_precision_loss,
    reason = "a metric is a float, and these values are below 2^53"
)]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests;
