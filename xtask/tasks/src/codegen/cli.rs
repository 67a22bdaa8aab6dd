//! docs/reference/cli.md: what each program says of itself.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use leasehold_testtools::{Quiet, cargo};

use super::Generated;

/// The programs that people call, as cargo built them.
pub(super) struct Programs {
    pub(super) operator: PathBuf,
    pub(super) agent: PathBuf,
}

pub(super) fn reference(programs: &Programs) -> Result<Generated> {
    let mut text = String::from(
        "# Command line reference\n\nWritten by `cargo xtask codegen` from each program's `--help`.\n",
    );
    for program in [&programs.operator, &programs.agent] {
        describe(&mut text, program, &mut Vec::new())?;
    }
    Ok(Generated {
        path: "docs/reference/cli.md".to_owned(),
        text,
    })
}

/// One section for a program or a subcommand, then one for each of its subcommands.
fn describe(text: &mut String, program: &Path, subcommands: &mut Vec<String>) -> Result<()> {
    let output = Command::new(program)
        .args(subcommands.iter())
        .arg("--help")
        // Help shows the present values of variables that set flags.
        .env_clear()
        .output()
        .with_context(|| format!("run {}", program.display()))?;
    let help = String::from_utf8(output.stdout)?;
    let name = program
        .file_name()
        .context("a program without a name")?
        .to_string_lossy();
    ensure!(
        output.status.success() && !help.is_empty(),
        "{name} {} --help says nothing",
        subcommands.join(" ")
    );
    let level = if subcommands.is_empty() { "##" } else { "###" };
    let title = std::iter::once(name.as_ref())
        .chain(subcommands.iter().map(String::as_str))
        .collect::<Vec<_>>();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    write!(
        text,
        "\n{level} `{}`\n\n```text\n{}\n```\n",
        title.join(" "),
        lines.join("\n").trim_end()
    )?;
    for subcommand in commands(&help) {
        subcommands.push(subcommand);
        describe(text, program, subcommands)?;
        subcommands.pop();
    }
    Ok(())
}

/// Names under `Commands:`.
fn commands(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        // A name stands two spaces in; a long explanation goes on further in.
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

pub(super) fn build() -> Result<Programs> {
    let folder = cargo::build(&["leasehold-operator", "leasehold-agent"], &Quiet)?;
    Ok(Programs {
        operator: folder.join("leasehold-operator"),
        agent: folder.join("leasehold-agent"),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn finds_the_subcommands_in_a_help_text() {
        let help = "Does\n\nUsage: x <COMMAND>\n\nCommands:\n  market    One\n            and more\n  provider  Two\n  \
                    help      Print\n\nOptions:\n  -h, --help  Print\n";
        assert_eq!(super::commands(help), ["market", "provider"]);
    }
}
