//! Which Xids are fatal: the GPU must not be offered until it was reset. Other Xids are errors of a program.
//!
//! Based on NVIDIA's "Analyzing Xid Errors with the Xid Catalog" (docs.nvidia.com/deploy/xid-errors): an Xid is fatal
//! if its immediate action is a reset of the GPU or a restart of the machine. The first five of the non-fatal ones
//! are those that NVIDIA's device plugin treats as application errors.

/// Severity of an Xid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// The GPU works again only after a reset.
    Fatal(&'static str),
    /// A program was stopped or an error was recorded. The GPU continues to work.
    NonFatal,
}

/// Returns the severity of an Xid. Unknown ones are non-fatal: NVIDIA adds more codes for notices than for faults,
/// and a GPU that failed is also reported as lost or no longer advertised by the device plugin.
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
        119 | 120 => Severity::Fatal("the GPU's system processor does not answer"),
        122..=125 => Severity::Fatal("the GPU's flash memory is unusable"),
        136 => Severity::Fatal("link training failed"),
        140 => Severity::Fatal("unrecovered ECC error"),
        143 => Severity::Fatal("the GPU could not be initialised"),
        // Errors of a program: 13 graphics engine exception, 31 page fault, 43 stopped, 45 cleaned up, 68 video
        // processor. Recorded, with effect on the program only: 63 row to be remapped, 92 many corrected errors, 94
        // contained error.
        _ => Severity::NonFatal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_program_is_not_fatal() {
        for xid in [13, 31, 43, 45, 63, 68, 92, 94, 109, 999] {
            assert_eq!(severity(xid), Severity::NonFatal, "{xid}");
        }
        for xid in [48, 62, 64, 74, 79, 95, 119, 120, 122, 125, 140] {
            assert!(matches!(severity(xid), Severity::Fatal(_)), "{xid}");
        }
    }
}
