//! What is read about the node's GPUs: from NVML, the PCI bus, the kubelet and the process table.

pub(crate) mod facts;
pub(crate) mod kubelet;
pub(crate) mod nvml;
pub(crate) mod pci;
pub(crate) mod processes;
