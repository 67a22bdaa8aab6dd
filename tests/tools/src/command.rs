//! Running a program to its end, with an error that shows what it said.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Lines of a program's last words that an error repeats.
const TAIL_LINES: usize = 25;

/// Runs the command and returns what it wrote to standard output.
///
/// # Errors
/// When it can't be started, or ends with another code than 0: then with the last lines of what it wrote.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", command.get_program().to_string_lossy()))?;
    if !output.status.success() {
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        bail!(
            "`{}` ended with {}:\n{}",
            shown(command),
            output.status,
            tail(&said)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command with those arguments.
pub fn new<I, S>(program: impl AsRef<OsStr>, arguments: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// The last lines of a text.
#[must_use]
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// The last lines of a log, or why they can't be read.
#[must_use]
pub fn tail_of_file(path: &Path) -> String {
    match std::fs::read(path) {
        Ok(bytes) => tail(&String::from_utf8_lossy(&bytes)),
        Err(error) => format!("(no log at {}: {error})", path.display()),
    }
}
