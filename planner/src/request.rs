//! A tenant's spec in numbers. What the schema lets through and arithmetic does not is refused here, with the
//! field named.

use leasehold_crds::{
    lease::{GpuLeaseSpec, OnFundsEnd, Spread, amd64, workload::Workload},
    payment::money::{Price, TokenAmount},
    provider::pool::MaxPerGpu,
    shared::{
        architecture::Architecture,
        duration,
        quantity::{self, QuantityError},
    },
};

use crate::{market::lease::START_WITHIN_SECONDS, provider::workload::results::Retention};

/// A version of two numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16);

impl Version {
    /// Reads `9.0`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// What a lease takes of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape {
    /// Whole GPUs.
    pub gpus: u64,
    /// Thousandths of a core.
    pub millicores: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of scratch disk.
    pub scratch: u64,
}

impl Shape {
    /// Reads the wire's form.
    pub fn from_wire(node: &leasehold_crds::lease::workload::NodeShape) -> Result<Self, SpecError> {
        Ok(Self {
            gpus: positive("perNode.gpus", node.gpus)?,
            millicores: positive_u64(
                "perNode.cpu",
                quantity::millicores(&node.cpu).map_err(|e| field("perNode.cpu", e))?,
            )?,
            memory: positive_u64(
                "perNode.memory",
                quantity::bytes(&node.memory).map_err(|e| field("perNode.memory", e))?,
            )?,
            scratch: quantity::bytes(&node.ephemeral_storage)
                .map_err(|e| field("perNode.ephemeralStorage", e))?,
        })
    }

    /// Whether `self` fits into `room`.
    #[must_use]
    pub const fn fits(&self, room: &Self) -> bool {
        self.gpus <= room.gpus
            && self.millicores <= room.millicores
            && self.memory <= room.memory
            && self.scratch <= room.scratch
    }

    /// The sum, at most the largest number.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            gpus: self.gpus.saturating_add(other.gpus),
            millicores: self.millicores.saturating_add(other.millicores),
            memory: self.memory.saturating_add(other.memory),
            scratch: self.scratch.saturating_add(other.scratch),
        }
    }

    /// The larger of each value.
    #[must_use]
    pub fn larger(&self, other: &Self) -> Self {
        Self {
            gpus: self.gpus.max(other.gpus),
            millicores: self.millicores.max(other.millicores),
            memory: self.memory.max(other.memory),
            scratch: self.scratch.max(other.scratch),
        }
    }

    /// What is left of `self` without `taken`, at least nothing.
    #[must_use]
    pub const fn without(&self, taken: &Self) -> Self {
        Self {
            gpus: self.gpus.saturating_sub(taken.gpus),
            millicores: self.millicores.saturating_sub(taken.millicores),
            memory: self.memory.saturating_sub(taken.memory),
            scratch: self.scratch.saturating_sub(taken.scratch),
        }
    }
}

/// What a lease can have at most with each of its GPUs. `u64::MAX` has no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PerGpu {
    /// Thousandths of a core.
    pub millicores: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of scratch disk.
    pub scratch: u64,
    /// Bytes of a volume.
    pub storage: u64,
}

impl PerGpu {
    /// No bound.
    pub const UNBOUNDED: Self = Self {
        millicores: u64::MAX,
        memory: u64::MAX,
        scratch: u64::MAX,
        storage: u64::MAX,
    };

    /// Reads the wire's form. Absent values are taken from `default`.
    pub fn from_wire(wire: &MaxPerGpu, default: &Self) -> Result<Self, QuantityError> {
        let bytes = |text: &Option<String>, default| text.as_deref().map_or(Ok(default), quantity::bytes);
        Ok(Self {
            millicores: wire
                .cpu
                .as_deref()
                .map_or(Ok(default.millicores), quantity::millicores)?,
            memory: bytes(&wire.memory, default.memory)?,
            scratch: bytes(&wire.ephemeral_storage, default.scratch)?,
            storage: bytes(&wire.storage, default.storage)?,
        })
    }

    /// The bound of `gpus` GPUs together.
    #[must_use]
    pub const fn times(&self, gpus: u64) -> Self {
        Self {
            millicores: self.millicores.saturating_mul(gpus),
            memory: self.memory.saturating_mul(gpus),
            scratch: self.scratch.saturating_mul(gpus),
            storage: self.storage.saturating_mul(gpus),
        }
    }

    /// Whether a shape with a volume of `storage` bytes asks for no more than this with each of its GPUs.
    #[must_use]
    pub const fn permits(&self, shape: &Shape, storage: u64) -> bool {
        let most = self.times(shape.gpus);
        shape.millicores <= most.millicores
            && shape.memory <= most.memory
            && shape.scratch <= most.scratch
            && storage <= most.storage
    }
}

/// A lease's spec in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Nodes, 1 to 64.
    pub nodes: u64,
    /// What each takes.
    pub shape: Shape,
    /// Classes of which one will do; any, when empty.
    pub classes: Vec<String>,
    /// Least memory of one GPU, bytes.
    pub gpu_memory: u64,
    /// Least compute capability.
    pub compute_capability: Version,
    /// Least CUDA version.
    pub cuda: Version,
    /// Regions of which one will do; any, when empty.
    pub regions: Vec<String>,
    /// Providers of which one will do; any, when empty.
    pub providers: Vec<String>,
    /// Providers that do not do.
    pub excluded_providers: Vec<String>,
    /// How nodes spread.
    pub spread: Spread,
    /// Paid seconds.
    pub term_seconds: u64,
    /// Bytes of a volume on each node; 0 for none.
    pub storage: u64,
    /// Whether the workload may be root, in a user namespace.
    pub root: bool,
    /// Whether something of the workload is reached from outside: ports, or results of a job.
    pub exposes: bool,
    /// Architectures of which one will do; any, when empty.
    pub architectures: Vec<Architecture>,
    /// Seconds from the last moment of the deposit until the lease must have started.
    pub start_within_seconds: u64,
    /// Most that a GPU-hour may cost.
    pub price_cap: Price,
    /// Seconds that storage is kept when the funds end; 0 when the lease closes then.
    pub pause_seconds: u64,
    /// Seconds that what a job leaves behind is kept; 0 when nothing is.
    pub keep_results_seconds: u64,
    /// When and how to top up.
    pub top_up: Option<TopUpRule>,
}

/// When and how to top up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopUpRule {
    /// With less than this many paid seconds left.
    pub when_below_seconds: u64,
    /// By this many.
    pub extend_seconds: u64,
    /// Deposits at most this much in all, as the tenant wrote it in whole tokens.
    pub total_at_most: String,
}

impl TopUpRule {
    /// The cap in base units of a token with `decimals`.
    pub fn cap(&self, decimals: u32) -> Result<TokenAmount, SpecError> {
        TokenAmount::parse_tokens(&self.total_at_most, decimals)
            .map_err(|e| field("payment.topUp.totalAtMost", e))
    }
}

/// A field that can't be served as it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("spec.{field}: {problem}")]
pub struct SpecError {
    /// Path below `spec`.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

pub(crate) fn field(field: &'static str, problem: impl std::fmt::Display) -> SpecError {
    SpecError {
        field,
        problem: problem.to_string(),
    }
}

fn positive(name: &'static str, n: i64) -> Result<u64, SpecError> {
    positive_u64(name, u64::try_from(n).unwrap_or(0))
}

fn positive_u64(name: &'static str, n: u64) -> Result<u64, SpecError> {
    if n == 0 {
        Err(field(name, "must be more than zero"))
    } else {
        Ok(n)
    }
}

fn version(name: &'static str, text: Option<&String>) -> Result<Version, SpecError> {
    text.map_or(Ok(Version::default()), |t| {
        Version::parse(t).ok_or_else(|| field(name, format!("{t:?} is not two numbers such as \"9.0\"")))
    })
}

fn keeps_results(workload: &Workload) -> bool {
    workload.job.as_ref().is_some_and(|job| job.output.is_some())
}

impl Request {
    /// Reads a spec.
    pub fn from_spec(spec: &GpuLeaseSpec) -> Result<Self, SpecError> {
        let gpu = spec.gpu.clone().unwrap_or_default();
        let placement = spec.placement.clone().unwrap_or_default();
        let payment = &spec.payment;
        let seconds = |name, text: &str| duration::seconds(text).map_err(|e| field(name, e));
        let pause = payment
            .pause_for
            .as_deref()
            .map_or(Ok(3600), |t| seconds("payment.pauseFor", t))?;
        Ok(Self {
            nodes: positive("nodes", spec.nodes)?,
            shape: Shape::from_wire(&spec.per_node)?,
            classes: gpu.classes,
            gpu_memory: gpu
                .memory
                .as_deref()
                .map_or(Ok(0), |t| quantity::bytes(t).map_err(|e| field("gpu.memory", e)))?,
            compute_capability: version("gpu.computeCapability", gpu.compute_capability.as_ref())?,
            cuda: version("gpu.cuda", gpu.cuda.as_ref())?,
            regions: placement.regions,
            providers: placement.providers,
            excluded_providers: placement.exclude_providers,
            spread: placement.spread,
            term_seconds: positive_u64("term.duration", seconds("term.duration", &spec.term.duration)?)?,
            storage: spec.storage.as_ref().map_or(Ok(0), |s| {
                quantity::bytes(&s.size).map_err(|e| field("storage.size", e))
            })?,
            root: spec.workload.may_be_root(),
            exposes: !spec.workload.ports().is_empty() || keeps_results(&spec.workload),
            architectures: spec
                .placement
                .as_ref()
                .map_or_else(amd64, |placement| placement.architectures.clone()),
            start_within_seconds: spec
                .start_within
                .as_deref()
                .map_or(Ok(START_WITHIN_SECONDS), |t| {
                    positive_u64("startWithin", seconds("startWithin", t)?)
                })?,
            price_cap: Price::parse(&payment.max_price_per_gpu_hour)
                .map_err(|e| field("payment.maxPricePerGpuHour", e))?,
            pause_seconds: match payment.on_funds_end {
                OnFundsEnd::Close => 0,
                OnFundsEnd::Pause => pause,
            },
            keep_results_seconds: Retention::of(&spec.workload, spec.storage.as_ref())?
                .map_or(0, |k| k.seconds),
            top_up: payment
                .top_up
                .as_ref()
                .map(|t| {
                    Ok(TopUpRule {
                        when_below_seconds: seconds("payment.topUp.whenRunwayBelow", &t.when_runway_below)?,
                        extend_seconds: positive_u64(
                            "payment.topUp.extendBy",
                            seconds("payment.topUp.extendBy", &t.extend_by)?,
                        )?,
                        total_at_most: t.total_at_most.clone(),
                    })
                })
                .transpose()?,
        })
    }

    /// GPUs of the lease in all.
    #[must_use]
    pub const fn gpus(&self) -> u64 {
        self.nodes * self.shape.gpus
    }
}
