//! The only place where the agent reads the wall clock. Decisions get the time as an argument.

use std::{fs, path::Path};

use jiff::Timestamp;

/// The current time.
#[expect(
    clippy::disallowed_methods,
    reason = "decisions get the time as an argument from here"
)]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// Rounds a time down to whole seconds, the precision of condition times in the API server.
pub(crate) fn second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// When the machine booted, according to `/proc/stat`.
pub(crate) fn booted(proc: &Path) -> Option<Timestamp> {
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Timestamp::from_second(seconds.trim().parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_rounded_down_to_its_second() {
        let time = Timestamp::from_microsecond(1_700_000_000_900_001).unwrap();
        assert_eq!(second(time), Timestamp::from_second(1_700_000_000).unwrap());
    }

    #[test]
    fn this_machine_booted_before_now() {
        assert!(booted(Path::new("/proc")).unwrap() <= now());
        assert_eq!(booted(Path::new("/nowhere")), None);
    }
}
