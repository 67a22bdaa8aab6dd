//! The examples with a box and with a service, applied unchanged except for images, keys and the size of the node,
//! and then used as their comments describe.

mod images;

use std::{path::Path, process::Output, time::Duration};

use anyhow::{Context as _, ensure};
use leasehold_crds::{
    GpuLease,
    lease::{
        Phase,
        workload::{Container, Endpoint},
    },
};
use leasehold_e2e::{Stack, StackSpec, Tenant, on_stack, within};
use leasehold_planner::ports::{BlockLevel, Payments as _};
use leasehold_testcluster::ssh_key;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const LIMIT: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn a_box_and_a_service_are_used_as_their_examples_describe() -> anyhow::Result<()> {
    on_stack(StackSpec::one_node("e2e-examples"), stories).await
}

async fn stories(stack: &Stack) -> anyhow::Result<()> {
    let folder = stack.cluster.directory().to_owned();
    let archives = tokio::task::spawn_blocking(move || images::write(&folder)).await??;
    for archive in &archives {
        stack.cluster.load_image(archive).await?;
    }
    let tenant = Tenant::new(stack, "team-a")?;
    let before = tenant.own_balance().await?;
    let keys = stack.cluster.directory();
    let [(mine, public), (anothers, _)] = [ssh_key(keys, "mine")?, ssh_key(keys, "anothers")?];

    let mut session = small(tenant.example("examples/02-box.yaml", None)?);
    let session_spec = session
        .spec
        .workload
        .session
        .as_mut()
        .context("02 is a session")?;
    session_spec.container.image = images::BOX.into();
    session_spec.ssh_keys = vec![public];
    let mut service = small(tenant.example("examples/03-service.yaml", None)?);
    container(&mut service)?.image = images::SERVER.into();
    tenant.apply(&session)?;
    tenant.apply(&service)?;

    let mut spent = 0;
    let lived = tokio::try_join!(
        async {
            let lease = tenant.until_phase("box", Phase::Active, LIMIT).await?;
            in_the_box(&endpoint(&tenant, "box").await?, &mine, &anothers).await?;
            anyhow::Ok(lease)
        },
        async {
            let lease = tenant.until_phase("llm", Phase::Active, LIMIT).await?;
            asked(&endpoint(&tenant, "llm").await?).await?;
            anyhow::Ok(lease)
        }
    )?;
    for lease in [lived.0, lived.1] {
        let name = lease.metadata.name.clone().context("a name")?;
        let (terms, account) = tenant.account(&lease).await?;
        ensure!(account.running != 0, "{name} is charged while it serves");
        tenant.delete(&name).await?;
        tenant.until_gone(&name, LIMIT).await?;
        let read = stack.payments.account(&terms, BlockLevel::Latest).await?;
        let account = read.present().context("the account")?;
        ensure!(account.closed, "the account of {name} is closed");
        let served = account.legs[0].served_seconds;
        spent += terms.legs[0].rate.earned_floor(served).context("in range")?.0;
    }
    ensure!(
        before.0 - tenant.own_balance().await?.0 == spent,
        "the refund is exact"
    );
    Ok(())
}

/// Reduces CPU and memory for a machine with two cores. The GPU request stays.
fn small(mut lease: GpuLease) -> GpuLease {
    let node = &mut lease.spec.per_node;
    (node.cpu, node.memory, node.ephemeral_storage) = ("200m".into(), "256Mi".into(), "1Gi".into());
    lease
}

fn container(lease: &mut GpuLease) -> anyhow::Result<&mut Container> {
    let service = lease.spec.workload.service.as_mut();
    Ok(&mut service.context("03 is a service")?.container)
}

async fn endpoint(tenant: &Tenant<'_>, name: &str) -> anyhow::Result<Endpoint> {
    let found = |lease: &GpuLease| lease.status.as_ref().is_some_and(|s| !s.endpoints.is_empty());
    let lease = tenant.until(name, LIMIT, "an endpoint", found).await?;
    Ok(lease.status.context("status")?.endpoints[0].clone())
}

async fn ssh(endpoint: &Endpoint, key: &Path, command: &str) -> anyhow::Result<Output> {
    let mut ssh = tokio::process::Command::new("ssh");
    ssh.args([
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        "IdentitiesOnly=yes",
        "-o",
        "ConnectTimeout=5",
    ])
    .args([
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "LogLevel=ERROR",
    ])
    .arg("-i")
    .arg(key)
    .args([
        "-p",
        &endpoint.port.context("a port")?.to_string(),
        &format!("root@{}", endpoint.host.as_deref().context("a host")?),
        command,
    ])
    .stdin(std::process::Stdio::null())
    .kill_on_drop(true);
    Ok(tokio::time::timeout(LIMIT, ssh.output()).await??)
}

/// Runs a command in the box. Returns its output, or the error output.
async fn run_in_box(endpoint: &Endpoint, key: &Path, command: &str) -> anyhow::Result<String> {
    let output = ssh(endpoint, key, command).await?;
    let [said, complained] =
        [output.stdout, output.stderr].map(|t| String::from_utf8_lossy(&t).trim().to_owned());
    ensure!(output.status.success(), "{command}: {said}\n{complained}");
    Ok(said)
}

async fn in_the_box(endpoint: &Endpoint, mine: &Path, anothers: &Path) -> anyhow::Result<()> {
    within(LIMIT, "sshd", || async {
        Ok(run_in_box(endpoint, mine, "true").await)
    })
    .await?;
    let run = async |command: &str| run_in_box(endpoint, mine, command).await;
    ensure!(run("id -u").await? == "0", "root in the box");
    let map = run("cat /proc/self/uid_map").await?;
    let outside: Vec<&str> = map.split_whitespace().collect();
    ensure!(
        outside[0] == "0" && outside[1] != "0",
        "root in the box is not root outside: {map}"
    );
    ensure!(run("su - -c 'id -u; pwd'").await? == "0\n/root", "su -");
    ensure!(
        run("useradd --create-home ada && su - ada -c 'id -un; pwd'").await? == "ada\n/home/ada",
        "another user, too"
    );
    let gpus = run("nvidia-smi").await?;
    ensure!(gpus.contains("H100"), "the GPU is visible: {gpus}");
    ensure!(
        run("command -v hello || true").await?.is_empty(),
        "hello is not installed yet"
    );
    let install = format!(
        "DEBIAN_FRONTEND=noninteractive apt-get install -q -y {}",
        images::PACKAGE
    );
    run(&install).await?;
    ensure!(
        run("hello").await? == "Hello, world!",
        "the installed program runs"
    );
    ensure!(
        run("echo kept > /data/note && cat /data/note && mountpoint -q /data").await? == "kept",
        "the volume is mounted"
    );
    let refused = ssh(endpoint, anothers, "id -u").await?;
    ensure!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("Permission denied"),
        "another key is refused: {refused:?}"
    );
    Ok(())
}

/// Sends the request of `curl http://HOST:PORT/v1/models`.
async fn asked(endpoint: &Endpoint) -> anyhow::Result<()> {
    let host = endpoint.host.as_deref().context("a host")?;
    let address = format!("{host}:{}", endpoint.port.context("a port")?);
    let answer = within(LIMIT, "the models", || async {
        let get = async {
            let mut stream = tokio::net::TcpStream::connect(&address).await?;
            let request = format!("GET /v1/models HTTP/1.0\r\nHost: {address}\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = tokio::time::timeout(Duration::from_secs(5), get).await??;
        Ok(if answer.contains(" 200 ") {
            Ok(answer)
        } else {
            Err(answer)
        })
    })
    .await?;
    ensure!(answer.contains("Qwen/Qwen3-0.6B"), "{answer}");
    Ok(())
}
