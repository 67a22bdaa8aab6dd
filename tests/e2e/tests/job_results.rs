//! Results on a job's volume. They are kept after the lease is closed and refunded and its GPU is offered again. The
//! tenant fetches them as the example describes. They are deleted after that or when their time is over, and never
//! kept if the tenant deletes the lease while the job runs.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams},
};
use leasehold_crds::{
    GpuLease, GpuOffer, GpuReservation,
    lease::{CloseReason, Phase, workload::ResultsAt},
};
use leasehold_e2e::{NAMESPACE, Stack, StackSpec, Tenant, on_stack, timed, within};
use leasehold_planner::ports::Clock as _;
use leasehold_runtime::SystemClock;
use leasehold_testcluster::{Stderr, ssh_key};

const EXAMPLE: &str = "examples/07-results.yaml";
const LIMIT: Duration = Duration::from_secs(60);
/// How long the results of the short lease are kept, in seconds.
const SHORT: i64 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn results_are_kept_after_the_lease_and_then_deleted() -> anyhow::Result<()> {
    on_stack(StackSpec::one_node("e2e-results"), story).await
}

async fn story(stack: &Stack) -> anyhow::Result<()> {
    let tenant = Tenant::new(stack, "team-a")?;
    let it = It {
        stack,
        tenant: &tenant,
        age: leasehold_testtools::go::age(&Stderr::default())?,
        folder: stack.cluster.directory().to_owned(),
        gpus: offered(stack).await?,
    };
    let [(mine, recipient), (another, _)] = [ssh_key(&it.folder, "mine")?, ssh_key(&it.folder, "another")?];
    timed("longer than the pool keeps results", it.too_long(&recipient)).await?;
    let url = timed("kept, and refunded", it.kept(&recipient)).await?;
    timed("over", it.over(&recipient)).await?;
    timed("given up", it.given_up(&recipient)).await?;
    timed("kept across a restart", it.restarted(&url)).await?;
    timed("fetched", it.fetched(&url, &mine, &another)).await
}

struct It<'a> {
    stack: &'a Stack,
    tenant: &'a Tenant<'a>,
    age: PathBuf,
    folder: PathBuf,
    /// Number of offered GPUs while nothing runs.
    gpus: i64,
}

impl It<'_> {
    /// The example with another key.
    fn lease(&self, name: &str, recipient: &str, keep: &str) -> anyhow::Result<GpuLease> {
        let mut lease = self.tenant.example(EXAMPLE, Some(name))?;
        let job = lease.spec.workload.job.as_mut().context("a job")?;
        let output = job.output.as_mut().context("the example has an output")?;
        output.recipients = vec![recipient.into()];
        output.keep_results_for = keep.into();
        Ok(lease)
    }

    /// A pool keeps results for a day by default. A lease that wants more is not matched, and nothing is paid.
    async fn too_long(&self, recipient: &str) -> anyhow::Result<()> {
        self.tenant.apply(&self.lease("long", recipient, "25h")?)?;
        let waits = |l: &GpuLease| {
            let quote = l.status.as_ref().and_then(|s| s.quote.as_ref());
            let failed = quote.iter().flat_map(|q| &q.misses).flat_map(|m| &m.failed);
            failed
                .filter(|f| f.dimension == "keepResultsFor" && f.wanted == "25h" && f.found == "24h")
                .count()
                == 1
        };
        let lease = self
            .tenant
            .until("long", LIMIT, "a quote with the reason", waits)
            .await?;
        ensure!(
            lease.status.context("status")?.escrow.is_none(),
            "nothing is paid"
        );
        self.tenant.delete("long").await?;
        self.tenant.until_gone("long", LIMIT).await
    }

    /// The lease is closed and refunded exactly, and the GPU is offered again, while the results are still there.
    async fn kept(&self, recipient: &str) -> anyhow::Result<String> {
        let before = self.tenant.own_balance().await?;
        self.tenant.apply(&self.lease("train", recipient, "24h")?)?;
        let closed = self.tenant.until_phase("train", Phase::Closed, LIMIT).await?;
        let (closed_at, now) = (Instant::now(), SystemClock.now());
        let status = closed.status.clone().unwrap_or_default();
        ensure!(
            status.close_reason == Some(CloseReason::JobSucceeded),
            "{status:?}"
        );
        let (terms, account) = self.tenant.account(&closed).await?;
        let served = account.legs[0].served_seconds;
        let earned = terms.legs[0].rate.earned_floor(served).context("in range")?;
        ensure!(
            self.tenant.own_balance().await?.0 == before.0 - earned.0,
            "the refund is exact"
        );
        let at = results(&closed)?;
        let until: Timestamp = at.until.as_deref().context("until when")?.parse()?;
        let left = until.as_second() - now.as_second();
        ensure!(
            (86_300..=86_400).contains(&left),
            "kept for a day after the end: {left} s"
        );
        within(Duration::from_secs(30), "the GPU to be offered again", || async {
            let gpus = offered(self.stack).await?;
            Ok(if gpus == self.gpus { Ok(()) } else { Err(gpus) })
        })
        .await?;
        eprintln!(
            "         offered {:.1} s after the close",
            closed_at.elapsed().as_secs_f64()
        );
        self.serves(&at.url).await?;
        let namespace = namespace(&closed)?;
        let claims = Api::<PersistentVolumeClaim>::namespaced(self.stack.client.clone(), &namespace);
        ensure!(claims.get_opt("data").await?.is_some(), "the volume is kept");
        Ok(at.url)
    }

    /// Results are kept exactly for their time, and nothing remains afterwards. Both GPUs are leased meanwhile.
    async fn over(&self, recipient: &str) -> anyhow::Result<()> {
        let mut lease = self.lease("short", recipient, &format!("{SHORT}s"))?;
        lease.spec.per_node.gpus = 2;
        self.tenant.apply(&lease)?;
        let closed = self.tenant.until_phase("short", Phase::Closed, LIMIT).await?;
        let at = results(&closed)?;
        let until: Timestamp = at.until.context("until when")?.parse()?;
        self.serves(&at.url).await?;
        self.until_nothing_is_left(&closed).await?;
        let late = SystemClock.now().as_second() - until.as_second();
        ensure!(late >= 0, "deleted {late} s after its time");
        eprintln!("         nothing remains {late} s after its time");
        Ok(())
    }

    /// When a lease is deleted while its job runs, no results are kept.
    async fn given_up(&self, recipient: &str) -> anyhow::Result<()> {
        let mut lease = self.lease("given-up", recipient, "24h")?;
        let job = lease.spec.workload.job.as_mut().context("a job")?;
        job.container.args = vec!["mkdir -p /data/out && date > /data/out/half && sleep 600".into()];
        self.tenant.apply(&lease)?;
        let active = self.tenant.until_phase("given-up", Phase::Active, LIMIT).await?;
        let at = results(&active)?;
        ensure!(
            at.until.is_none(),
            "the address is known, but not the end: {at:?}"
        );
        self.tenant.delete("given-up").await?;
        self.tenant.until_gone("given-up", LIMIT).await?;
        self.until_nothing_is_left(&active).await
    }

    /// The provider's operator is killed. Its successor does not mistake kept results for an orphan.
    async fn restarted(&self, url: &str) -> anyhow::Result<()> {
        let pods = Api::<Pod>::namespaced(self.stack.client.clone(), NAMESPACE);
        let operators = ListParams::default().labels("app.kubernetes.io/component=provider");
        for pod in pods.list(&operators).await?.items {
            pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0))
                .await?;
        }
        let lease = self.tenant.leases().get("train").await?;
        let reservations = Api::<GpuReservation>::all(self.stack.client.clone());
        let namespaces = Api::<Namespace>::all(self.stack.client.clone());
        let name = namespace(&lease)?;
        // Two searches for orphans, half a minute apart, by the current leader.
        let begun = Instant::now();
        within(Duration::from_secs(90), "two checks for orphans", || async {
            ensure!(
                reservations.get_opt(&name).await?.is_some(),
                "the reservation exists"
            );
            let deleted = namespaces.get(&name).await?.metadata.deletion_timestamp;
            ensure!(deleted.is_none(), "the namespace exists");
            let passed = begun.elapsed();
            Ok(if passed > Duration::from_secs(75) {
                Ok(())
            } else {
                Err(passed)
            })
        })
        .await?;
        self.serves(url).await
    }

    /// Fetches as the example's comments describe, after attempts without the path and with another key.
    async fn fetched(&self, url: &str, mine: &Path, another: &Path) -> anyhow::Result<()> {
        let lease = self.tenant.leases().get("train").await?;
        let root = url.rsplit_once('/').context("a path")?.0;
        ensure!(
            !curl(&[root])?.status.success(),
            "without the path nothing is served"
        );
        let wrong = curl(&["-X", "DELETE", &format!("{url}/{}", "0".repeat(64))])?;
        ensure!(!wrong.status.success(), "a wrong receipt is refused: {wrong:?}");
        let unpack = |key: &Path, into: &str| -> anyhow::Result<(PathBuf, Output)> {
            let into = self.folder.join(into);
            std::fs::create_dir(&into)?;
            let pipe = r#"set -o pipefail; curl -fsS "$1" | "$2/age" -d -i "$3" | tar xf -"#;
            let mut bash = Command::new("bash");
            bash.args(["-c", pipe, "-", url]).arg(&self.age).arg(key);
            let output = bash.current_dir(&into).output()?;
            Ok((into, output))
        };
        let (_, refused) = unpack(another, "others-results")?;
        ensure!(
            !refused.status.success(),
            "another key cannot decrypt: {refused:?}"
        );
        let (into, opened) = unpack(mine, "my-results")?;
        ensure!(opened.status.success(), "{opened:?}");
        let gpus = std::fs::read_to_string(into.join("out/gpus.txt"))?;
        ensure!(gpus.contains("H100"), "the output of the job: {gpus}");
        ensure!(
            !into.join("leasehold-left-out").exists(),
            "the results are complete"
        );
        let receipt = std::fs::read_to_string(into.join("leasehold-receipt"))?;
        let result = curl(&["-X", "DELETE", &format!("{url}/{receipt}")])?;
        ensure!(result.status.success(), "{result:?}");
        self.until_nothing_is_left(&lease).await
    }

    async fn serves(&self, url: &str) -> anyhow::Result<()> {
        let url = url.to_owned();
        within(LIMIT, "the results to be served", || async {
            let got = curl(&[&url])?;
            let whole = got.status.success() && got.stdout.starts_with(b"age-encryption.org/v1\n");
            Ok(if whole { Ok(()) } else { Err(got.stderr) })
        })
        .await
    }

    async fn until_nothing_is_left(&self, lease: &GpuLease) -> anyhow::Result<()> {
        let name = namespace(lease)?;
        let namespaces = Api::<Namespace>::all(self.stack.client.clone());
        let reservations = Api::<GpuReservation>::all(self.stack.client.clone());
        within(LIMIT, "nothing to remain", || async {
            let left = (
                namespaces.get_opt(&name).await?.map(|n| n.status),
                reservations.get_opt(&name).await?.map(|r| r.status),
            );
            Ok(if left == (None, None) { Ok(()) } else { Err(left) })
        })
        .await
    }
}

fn results(lease: &GpuLease) -> anyhow::Result<ResultsAt> {
    let status = lease.status.as_ref().context("status")?;
    ensure!(status.results.len() == 1, "{:?}", status.results);
    Ok(status.results[0].clone())
}

/// The namespace at the provider's cluster, which is also the reservation's name.
fn namespace(lease: &GpuLease) -> anyhow::Result<String> {
    let escrow = lease.status.as_ref().and_then(|s| s.escrow.as_ref());
    Ok(escrow.context("an account")?.legs[0].namespace.clone())
}

async fn offered(stack: &Stack) -> anyhow::Result<i64> {
    let offers = Api::<GpuOffer>::all(stack.client.clone())
        .list(&ListParams::default())
        .await?;
    let rows = offers.items.iter().flat_map(|o| &o.spec.rows);
    Ok(rows.map(|r| r.nodes_free * r.gpus).sum())
}

fn curl(args: &[&str]) -> anyhow::Result<Output> {
    let mut curl = Command::new("curl");
    curl.args(["-fsS", "--max-time", "10"]).args(args);
    curl.output().context("install curl")
}
