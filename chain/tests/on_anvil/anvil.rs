//! One chain per test: an anvil process on a free loopback port, with the contracts deployed.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use alloy::{
    primitives::{Address as EvmAddress, B256, U256},
    providers::{Provider, RootProvider},
    rpc::client::RpcClient,
};
use leasehold_chain::{
    EvmEscrow, Limits, Network, Queues,
    deploy::{self, ANVIL_KEY, Deployed},
};
use leasehold_crds::payment::money::{Rate, TokenAmount};
use leasehold_planner::{
    escrow::{Address, Hash, Leg, Terms},
    ports::SigningKey,
};
use leasehold_testtools::Stderr;

const START_DEADLINE: Duration = Duration::from_secs(20);

/// Path of the anvil binary: the named one, or the one that `chain/contracts` locks, which is installed if it is
/// missing. A test without anvil fails: it would show nothing.
fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("LEASEHOLD_ANVIL") {
        return named.into();
    }
    let node_modules = leasehold_testtools::npm::ensure(&Stderr::default())
        .unwrap_or_else(|e| panic!("anvil cannot be installed: {e:#}; or set LEASEHOLD_ANVIL to its path"));
    leasehold_testtools::npm::binary(&node_modules, "anvil")
}

/// A running anvil process. It is killed when the value is dropped.
pub struct Anvil {
    child: Child,
    pub url: String,
    pub deployed: Deployed,
    pub rpc: RootProvider,
}

impl Drop for Anvil {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A client that shares its queues with no other.
pub fn connect(network: &Network) -> EvmEscrow {
    EvmEscrow::connect(network, &Queues::default()).expect("the URL is valid")
}

impl Anvil {
    /// Starts a chain with the contracts.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub async fn start_with(arguments: &[&str]) -> Self {
        let binary = binary();
        let mut child = Command::new(&binary)
            .args(["--host", "127.0.0.1", "--port", "0", "--accounts", "1"])
            // Otherwise anvil stores the states of old blocks in the user's home directory.
            .args(["--max-persisted-states", "0"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", binary.display()));
        let (found, address) = mpsc::channel();
        let stdout = child.stdout.take().expect("stdout is piped");
        // Read stdout to the end; otherwise anvil would block on a full pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(address) = line.strip_prefix("Listening on ") {
                    found.send(address.to_owned()).ok();
                }
            }
        });
        let address = address
            .recv_timeout(START_DEADLINE)
            .expect("anvil listens before the deadline");
        let url = format!("http://{address}");
        let rpc = RootProvider::new(RpcClient::new_http(
            url.parse().expect("anvil prints its address"),
        ));
        let deployed = deploy::deploy(&url, &ANVIL_KEY)
            .await
            .expect("the contracts deploy");
        Self {
            child,
            url,
            deployed,
            rpc,
        }
    }

    /// A client with deadlines for a chain that mines immediately.
    pub fn client(&self) -> EvmEscrow {
        connect(&self.network())
    }

    pub fn network(&self) -> Network {
        Network {
            rpc_url: self.url.clone(),
            chain_id: self.deployed.chain_id,
            escrow: self.deployed.escrow,
            token: self.deployed.token,
            call_deadline: Duration::from_secs(5),
            mine_deadline: Duration::from_secs(20),
            limits: Limits::default(),
        }
    }

    pub async fn mint(&self, to: Address, amount: u128) {
        let rows = [(to, TokenAmount(amount))];
        deploy::mint(&self.url, &ANVIL_KEY, self.deployed.token, &rows)
            .await
            .expect("minted");
    }

    /// Sets the native token balance of an address, in wei.
    pub async fn set_gas(&self, owner: Address, wei: u128) {
        self.request::<_, ()>("anvil_setBalance", (EvmAddress::new(owner.0), U256::from(wei)))
            .await;
    }

    /// Keys with native tokens for gas.
    pub async fn keys<const N: usize>(&self, first: u8) -> [SigningKey; N] {
        let keys = std::array::from_fn(|i| key(first + u8::try_from(i).expect("few keys")));
        for key in &keys {
            self.set_gas(address(key), 10u128.pow(20)).await;
        }
        keys
    }

    pub async fn set_automine(&self, on: bool) {
        self.request::<_, ()>("evm_setAutomine", (on,)).await;
    }

    pub async fn mine(&self) {
        self.request::<_, serde_json::Value>("evm_mine", ()).await;
    }

    pub async fn set_next_time(&self, time: u64) {
        self.request::<_, serde_json::Value>("evm_setNextBlockTimestamp", (time,))
            .await;
    }

    pub async fn request<P, R>(&self, method: &'static str, params: P) -> R
    where
        P: serde::Serialize + Clone + std::fmt::Debug + Send + Sync + Unpin,
        R: serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + Unpin + 'static,
    {
        self.rpc
            .raw_request(method.into(), params)
            .await
            .unwrap_or_else(|e| panic!("{method}: {e}"))
    }

    /// Stops the process, so that every call hangs.
    pub async fn stop(&self) {
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", self.child.id());
        until("every thread is stopped", async || {
            std::fs::read_dir(&tasks)
                .expect("the process exists")
                .flatten()
                .all(|task| {
                    let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                    stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
                })
        })
        .await;
    }

    /// Continues the process.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(self.child.id().to_string())
            .status()
            .expect("kill runs");
        assert!(status.success(), "kill -{signal}");
    }

    /// Hashes of the pending transactions.
    pub async fn pool_hashes(&self) -> Vec<B256> {
        let content: serde_json::Value = self.request("txpool_content", ()).await;
        let waiting = ["pending", "queued"]
            .into_iter()
            .filter_map(|part| content[part].as_object());
        let transactions = waiting
            .flat_map(|senders| senders.values())
            .filter_map(|nonces| nonces.as_object())
            .flat_map(|nonces| nonces.values());
        transactions
            .map(|t| t["hash"].as_str().expect("a hash").parse().expect("a hash"))
            .collect()
    }

    /// Number of pending transactions.
    pub async fn pool(&self) -> usize {
        self.pool_hashes().await.len()
    }

    /// Number of mined transactions of the address.
    pub async fn nonce(&self, owner: Address) -> u64 {
        let count = self.rpc.get_transaction_count(EvmAddress::new(owner.0));
        count.await.expect("a nonce")
    }

    pub async fn number(&self) -> u64 {
        self.rpc.get_block_number().await.expect("a number")
    }

    /// Terms of `payer` with one leg per controller, each at 1000 base units per second.
    pub fn terms(
        &self,
        payer: &SigningKey,
        controllers: &[&SigningKey],
        closer: &SigningKey,
        salt: u8,
    ) -> Terms {
        Terms {
            payer: address(payer),
            market: Address([0x77; 20]),
            token: self.deployed.token,
            closer: address(closer),
            salt: Hash([salt; 32]),
            start_by: 1 << 39,
            notice_seconds: 0,
            pause_for: 60,
            legs: controllers
                .iter()
                .zip(0x90..)
                .map(|(controller, payee)| Leg {
                    payee: Address([payee; 20]),
                    controller: address(controller),
                    rate: Rate(1_000_000_000_000_000),
                })
                .collect(),
        }
    }
}

pub fn key(number: u8) -> SigningKey {
    SigningKey([number; 32])
}

pub fn address(key: &SigningKey) -> Address {
    leasehold_chain::evm::address_of(key).expect("a key")
}

/// Polls until the condition holds, for at most 10 seconds.
pub async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap_or_else(|_| panic!("condition not met within 10 seconds: {what}"));
}
