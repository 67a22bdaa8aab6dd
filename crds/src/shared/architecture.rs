//! Processor architectures of nodes and images.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Processor architecture of a node, in the notation of the label `kubernetes.io/arch`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// x86-64.
    Amd64,
    /// 64-bit Arm: GH200, GB200, GB10.
    Arm64,
}

impl Architecture {
    /// The value of the label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Reads the value of the label; `None` if it is another architecture.
    #[must_use]
    pub fn parse(label: &str) -> Option<Self> {
        [Self::Amd64, Self::Arm64]
            .into_iter()
            .find(|architecture| architecture.as_str() == label)
    }
}
