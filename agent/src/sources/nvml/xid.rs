//! What an Xid means: a program's own fault, or a GPU that must not be sold until it was reset.
//!
//! After NVIDIA's "Analyzing Xid Errors with the Xid Catalog" (docs.nvidia.com/deploy/xid-errors): fatal are those
//! whose immediate action is a reset of the GPU or a restart of the machine. The first five of the others are those
//! that NVIDIA's own device plugin calls application errors.

/// How bad an Xid is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// The GPU serves again after a reset at the earliest.
    Fatal(&'static str),
    /// A program was stopped or something was recorded; the GPU serves on.
    NonFatal,
}

/// The severity of an Xid. An unknown one passes: NVIDIA adds codes for notices more often than for faults, and a
/// GPU that is really gone is also lost, or withheld by the device plugin.
pub(crate) const fn severity(xid: u64) -> Severity {
    match xid {
        46 => Severity::Fatal("the GPU stopped processing"),
        48 => Severity::Fatal("double-bit ECC error"),
        61 => Severity::Fatal("internal micro-controller breakpoint"),
        62 => Severity::Fatal("internal micro-controller halt"),
        64 => Severity::Fatal("a bad memory row could not be replaced"),
        74 => Severity::Fatal("NVLink error"),
        79 => Severity::Fatal("fallen off the bus"),
        95 => Severity::Fatal("uncontained ECC error"),
        110 => Severity::Fatal("security fault"),
        119 | 120 => Severity::Fatal("the GPU's system processor doesn't answer"),
        122..=125 => Severity::Fatal("the GPU's flash memory can't be used"),
        136 => Severity::Fatal("link training failed"),
        140 => Severity::Fatal("unrecovered ECC error"),
        143 => Severity::Fatal("the GPU could not be initialised"),
        // 13 graphics engine exception, 31 page fault, 43 stopped, 45 cleaned up, 68 video processor: the program.
        // 63 a row will be replaced, 92 many corrected errors, 94 contained: recorded, the program alone was hit.
        _ => Severity::NonFatal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_s_error_is_no_broken_gpu() {
        for xid in [13, 31, 43, 45, 63, 68, 92, 94, 109, 999] {
            assert_eq!(severity(xid), Severity::NonFatal, "{xid}");
        }
        for xid in [48, 62, 64, 74, 79, 95, 119, 120, 122, 125, 140] {
            assert!(matches!(severity(xid), Severity::Fatal(_)), "{xid}");
        }
    }
}
