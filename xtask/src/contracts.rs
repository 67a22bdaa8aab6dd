//! `cargo xtask contracts`: compiles and tests the escrow's sources with forge. Deploying it needs the chain adapter and
//! is a task of `xtask/tasks`.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use leasehold_testtools::{Stderr, contracts};

#[derive(clap::Subcommand)]
pub(crate) enum Task {
    /// Compile, and write the ABI that the Rust crates use
    Build {
        /// Write nothing; fail when what is checked in is stale
        #[arg(long)]
        check: bool,
    },
    /// Run unit, fuzz and invariant tests
    Test(Test),
    /// Deploy the escrow to a chain, and print the PaymentNetwork for it
    #[command(disable_help_flag = true)]
    Deploy {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        arguments: Vec<OsString>,
    },
}

#[derive(clap::Args, Default)]
pub(crate) struct Test {
    /// Also break the contract in each known way, and fail unless the suite notices every one
    #[arg(long)]
    pub(crate) mutants: bool,
    /// Also compare the gas of each action with what is checked in
    #[arg(long)]
    pub(crate) gas: bool,
    /// Further arguments for `forge test`
    #[arg(last = true)]
    pub(crate) arguments: Vec<String>,
}

pub(crate) fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Build { check } => {
            let arguments: Vec<String> = check.then(|| "--check".to_owned()).into_iter().collect();
            contracts::script("build.sh", &arguments, &Stderr::default())?;
        }
        Task::Test(tests) => test(&tests)?,
        Task::Deploy { arguments } => return crate::tasks::run("deploy", &arguments),
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn test(tests: &Test) -> Result<()> {
    let progress = Stderr::default();
    contracts::script("test.sh", &tests.arguments, &progress)?;
    if tests.gas {
        contracts::script("gas.sh", &["--check".to_owned()], &progress)?;
    }
    if tests.mutants {
        contracts::script("mutants.sh", &[], &progress)?;
    }
    Ok(())
}
