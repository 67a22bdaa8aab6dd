//! The one place of the agent that reads the wall clock; every decision gets the time as an argument.

use std::{fs, path::Path};

use jiff::Timestamp;

/// Now, in whole seconds: what the API server keeps of a time.
#[expect(
    clippy::disallowed_methods,
    reason = "the edge that passes the time to decisions"
)]
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// When the machine booted, by `/proc/stat`.
pub(crate) fn booted(proc: &Path) -> Option<Timestamp> {
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Timestamp::from_second(seconds.trim().parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_booted_before_now() {
        assert!(booted(Path::new("/proc")).unwrap() <= now());
        assert_eq!(booted(Path::new("/nowhere")), None);
    }
}
