//! `cargo xtask contracts deploy`: puts the escrow on a chain, and prints the PaymentNetwork for it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use leasehold_planner::ports::SigningKey;

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

/// From the bytecode that is checked in: neither node nor forge is needed.
pub(crate) async fn run(deploy: Deploy) -> Result<ExitCode> {
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
    Ok(ExitCode::SUCCESS)
}

fn key(text: &str) -> Option<SigningKey> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let bytes = data_encoding::HEXLOWER_PERMISSIVE
        .decode(digits.as_bytes())
        .ok()?;
    Some(SigningKey(bytes.try_into().ok()?))
}
