//! `cargo xtask contracts`: the escrow's sources, whose compiling and testing needs node as nothing else here does.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use leasehold_planner::ports::SigningKey;

#[derive(clap::Subcommand)]
pub(crate) enum Task {
    /// Compile, and write the ABI that the Rust crates use
    Build {
        /// Write nothing; fail when what is checked in is stale
        #[arg(long)]
        check: bool,
    },
    /// Unit, fuzz and invariant tests
    Test {
        /// Also break the contract in each known way, and fail unless the suite notices every one
        #[arg(long)]
        mutants: bool,
        /// Also compare the gas of each action with what is checked in
        #[arg(long)]
        gas: bool,
        /// Further arguments for `forge test`
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Put the escrow on a chain, and print the PaymentNetwork for it
    Deploy(Deploy),
}

#[derive(clap::Args)]
pub(crate) struct Deploy {
    /// The chain's JSON-RPC endpoint
    #[arg(long, env = "ETH_RPC_URL", hide_env_values = true)]
    rpc_url: String,
    /// File with the deployer's private key, which pays the gas and keeps no power over the contract
    #[arg(long)]
    key_file: PathBuf,
    /// Also deploy a token that anybody can mint, for a test network
    #[arg(long)]
    test_token: bool,
}

pub(crate) async fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Build { check } => {
            tools()?;
            script(
                "build.sh",
                &if check { vec!["--check".to_owned()] } else { vec![] },
            )?;
        }
        Task::Test {
            mutants,
            gas,
            arguments,
        } => {
            tools()?;
            script("test.sh", &arguments)?;
            if gas {
                script("gas.sh", &["--check".to_owned()])?;
            }
            if mutants {
                script("mutants.sh", &[])?;
            }
        }
        Task::Deploy(deploy) => put(deploy).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// From the bytecode that is checked in: neither node nor forge is needed.
async fn put(deploy: Deploy) -> Result<()> {
    let file = deploy.key_file.display();
    let text = std::fs::read_to_string(&deploy.key_file).with_context(|| format!("read {file}"))?;
    let key = key(text.trim()).with_context(|| format!("{file}: want 0x and 64 hexadecimal digits"))?;
    // The URL may hold a secret, and what is printed may end in a repository.
    let (escrow, chain, token) = if deploy.test_token {
        let deployed = leasehold_chain::deploy::deploy(&deploy.rpc_url, &key).await?;
        let token = format!("{{address: \"{}\", symbol: TEST, decimals: 6}}", deployed.token);
        (deployed.escrow, deployed.chain_id.to_string(), token)
    } else {
        let escrow = leasehold_chain::deploy::deploy_escrow(&deploy.rpc_url, &key).await?;
        (
            escrow,
            "# the chain's id".to_owned(),
            "# {address, symbol, decimals} of the token".to_owned(),
        )
    };
    println!(
        "apiVersion: leasehold.dev/v1alpha1\nkind: PaymentNetwork\nmetadata: {{name: main}}\nspec:\n  \
         chainId: {chain}\n  escrow: \"{escrow}\"\n  token: {token}\n  \
         rpcSecretName: # a Secret of the operator's namespace whose entry url is the endpoint, or rpcUrl\n  \
         marketId: # an address that names your market in every account, if you run one"
    );
    Ok(())
}

fn key(text: &str) -> Option<SigningKey> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let bytes = data_encoding::HEXLOWER_PERMISSIVE
        .decode(digits.as_bytes())
        .ok()?;
    Some(SigningKey(bytes.try_into().ok()?))
}

/// Fails when the checked-in ABI is not what the sources compile to.
pub(crate) fn check_abi() -> Result<()> {
    tools()?;
    script("build.sh", &["--check".to_owned()])
}

/// What the scripts need, at the locked versions. npm runs no install scripts: the platform packages hold the
/// real binaries.
fn tools() -> Result<()> {
    if folder().join("node_modules").exists() {
        return Ok(());
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
    succeed(npm).context("install forge and solc; node 20 or later is needed")
}

fn script(name: &str, arguments: &[String]) -> Result<()> {
    let mut script = Command::new("bash");
    script.arg(name).args(arguments);
    succeed(script)
}

fn succeed(mut command: Command) -> Result<()> {
    let status = command
        .current_dir(folder())
        .status()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

fn folder() -> PathBuf {
    xtask::root().join("chain/contracts")
}
