//! GPUs that break under a lease, a node that dies under one, and GPUs that lie: who is told and how soon, what is charged,
//! what is sold. Real containers, a real chain, real agents; the driver alone is simulated.

mod node_lost;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use leasehold_crds::{
    GpuLease, GpuNode, GpuOffer, GpuPool, GpuReservation, PROVIDER_NAMESPACE_PREFIX,
    lease::{Phase, workload::NodeShape},
    payment::money::TokenAmount,
    provider::node::DeviceHealth,
    shared::conditions::{find, is_true},
};
use leasehold_e2e::{GpuNodes, ProviderSpec, Stack, StackSpec, Tenant, eventually, on_stack, told, within};
use leasehold_planner::{
    escrow::{Account, Terms},
    ports::{BlockLevel, Payments as _},
};
use nvidia_ml_sim::{Fault, Fixture};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);
/// Everybody is to know within 15 s with the agent's own period of 10 s; here it looks every second.
const TOLD_WITHIN: Duration = Duration::from_secs(15 - 9);
const HONEST: &str = "rhine-west";
const DUBIOUS: &str = "alpine-one";
const MORTAL: &str = "fjord-gpu";
const NODE: &str = "node-1";
const MORTAL_NODE: &str = "node-2";

#[tokio::test(flavor = "multi_thread")]
async fn gpus_break_under_a_lease_and_lies_are_not_sold() -> anyhow::Result<()> {
    let mut spec = StackSpec::one_node("e2e-health");
    let played = |name: &str, gpus| {
        let shape = NodeShape {
            cpu: "32".into(),
            memory: "128Gi".into(),
            ephemeral_storage: "500Gi".into(),
            gpus,
        };
        (name.to_owned(), "a100-80g-pcie".to_owned(), shape)
    };
    spec.providers.push(ProviderSpec {
        name: DUBIOUS.into(),
        region: "eu-central".into(),
        price: "1.20".into(),
        nodes: GpuNodes::Kwok(vec![
            played("liar", 2),
            played("one-bus", 8),
            played("twin-a", 2),
            played("twin-b", 2),
        ]),
    });
    spec.providers.push(ProviderSpec {
        name: MORTAL.into(),
        region: "eu-north".into(),
        price: "1.15".into(),
        nodes: GpuNodes::Real(vec![(MORTAL_NODE.into(), "t4-16g".into(), 1)]),
    });
    on_stack(spec, stories).await
}

async fn stories(stack: &Stack) -> anyhow::Result<()> {
    let tenant = Tenant::new(stack, "team-a")?;
    told("no root without user namespaces", no_root(&tenant)).await?;
    tokio::try_join!(
        told("a GPU is lost under a lease", gpu_lost(&tenant)),
        told("lies are not sold", lies(stack)),
        told("a node dies under a lease", node_lost::story(stack)),
    )?;
    Ok(())
}

/// A lease of one GPU of one provider.
fn lease(tenant: &Tenant<'_>, name: &str, provider: &str, workload: &str) -> anyhow::Result<GpuLease> {
    let what = json!({
        "image": "leasehold.test/busybox:1", "command": ["/bin/busybox", "httpd", "-f", "-p", "8080"],
        "ports": [{"name": "http", "port": 8080}],
    });
    let lease = json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuLease", "metadata": {"name": name, "namespace": tenant.namespace},
        "spec": {
            "perNode": {"cpu": "200m", "memory": "64Mi", "ephemeralStorage": "50Mi", "gpus": 1},
            "placement": {"providers": [provider]},
            "term": {"duration": "1h"},
            "workload": {workload: what},
            "payment": {"network": "anvil", "maxPricePerGpuHour": "1.90", "wallet": {"secretName": "wallet"}},
        },
    });
    Ok(serde_json::from_value(lease)?)
}

/// A session's tenant is root in a user namespace; nodes that KWOK plays have none.
async fn no_root(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    tenant.apply(&lease(tenant, "rootless", DUBIOUS, "session")?)?;
    let lease = tenant
        .until("rootless", LIMIT, "reasons", |l| {
            l.status
                .as_ref()
                .and_then(|s| s.quote.as_ref())
                .is_some_and(|q| !q.misses.is_empty())
        })
        .await?;
    let quote = lease.status.and_then(|s| s.quote).context("quote")?;
    let miss = quote
        .misses
        .iter()
        .find(|m| m.provider == DUBIOUS)
        .context("its rows are the nearest")?;
    let failed: Vec<_> = miss.failed.iter().map(|f| f.dimension.as_str()).collect();
    ensure!(failed == ["rootNotAllowed"], "{failed:?}");
    tenant.delete("rootless").await?;
    tenant.until_gone("rootless", LIMIT).await
}

/// GPUs of a provider that the market can sell.
async fn offered(stack: &Stack, provider: &str) -> anyhow::Result<i64> {
    let namespace = format!("{PROVIDER_NAMESPACE_PREFIX}{provider}");
    let offer = Api::<GpuOffer>::namespaced(stack.client.clone(), &namespace)
        .get(provider)
        .await?;
    Ok(offer.spec.rows.iter().map(|r| r.gpus * r.nodes_free).sum())
}

async fn is_offered(stack: &Stack, provider: &str, gpus: i64) -> anyhow::Result<()> {
    eventually(&format!("{gpus} GPUs of {provider} to be offered"), || async {
        let now = offered(stack, provider).await?;
        Ok(if now == gpus { Ok(()) } else { Err(now) })
    })
    .await
}

/// Nodes of a pool that are not sold: reason and message, by node.
async fn not_sold(stack: &Stack, pool: &str) -> anyhow::Result<BTreeMap<String, (String, String)>> {
    let pool = Api::<GpuPool>::all(stack.client.clone()).get(pool).await?;
    let entries = pool.status.map(|s| s.not_sold).unwrap_or_default();
    Ok(entries
        .into_iter()
        .map(|n| (n.node, (n.reason, n.message)))
        .collect())
}

async fn gpu_node(stack: &Stack, name: &str) -> anyhow::Result<GpuNode> {
    Ok(Api::all(stack.client.clone()).get(name).await?)
}

/// When each came, since the GPU broke or was well again.
#[derive(Debug, Default)]
struct Seen {
    node: Option<Duration>,
    lease: Option<Duration>,
    sale: Option<Duration>,
    leg: Option<Duration>,
    credit: Option<Duration>,
}

impl Seen {
    fn all(&self) -> bool {
        let all = [self.node, self.lease, self.sale, self.leg, self.credit];
        all.iter().all(Option::is_some)
    }
}

/// What runs of the lease and the account it is paid from.
struct Served<'a> {
    tenant: &'a Tenant<'a>,
    name: &'static str,
    gpu: String,
    terms: Terms,
}

impl Served<'_> {
    async fn account(&self) -> anyhow::Result<Account> {
        let lease = self.tenant.leases().get(self.name).await?;
        Ok(self.tenant.account(&lease).await?.1)
    }

    async fn served_at_least(&self, seconds: u64) -> anyhow::Result<Account> {
        eventually(&format!("{seconds} served seconds"), || async {
            let account = self.account().await?;
            let served = account.legs[0].served_seconds;
            Ok(if served >= seconds {
                Ok(account)
            } else {
                Err(served)
            })
        })
        .await
    }

    /// The end: what is not refunded is rate times seconds served, to the unit.
    async fn ends_exactly(&self, before: TokenAmount) -> anyhow::Result<()> {
        let tenant = self.tenant;
        tenant.delete(self.name).await?;
        tenant.until_gone(self.name, LIMIT).await?;
        let read = tenant.stack.rail.account(&self.terms, BlockLevel::Latest).await?;
        let closed = read.present().context("the account")?.clone();
        let seconds = closed.legs[0].served_seconds;
        let due = self.terms.legs[0]
            .rate
            .earned_floor(seconds)
            .context("in range")?;
        ensure!(closed.closed && seconds < closed.paid_seconds, "{closed:?}");
        let spent = before.0 - tenant.own_balance().await?.0;
        ensure!(spent == due.0, "the tenant spent {spent}, {seconds} s are {due}");
        Ok(())
    }

    /// Looks at everything until all show the GPU lost, or well.
    async fn watch(&self, lost: bool, served_at_most: u64) -> anyhow::Result<Seen> {
        let stack = self.tenant.stack;
        let begun = Instant::now();
        let mut seen = Seen::default();
        while !seen.all() {
            ensure!(begun.elapsed() < LIMIT, "after {LIMIT:?}: {seen:?}");
            let (node, lease, account, offered, not_sold) = tokio::try_join!(
                gpu_node(stack, NODE),
                async { anyhow::Ok(self.tenant.leases().get(self.name).await?) },
                self.account(),
                offered(stack, HONEST),
                not_sold(stack, HONEST),
            )?;
            let now = begun.elapsed();
            let note = |when: &mut Option<Duration>, so: bool| {
                if so {
                    when.get_or_insert(now);
                }
            };
            note(&mut seen.node, node_shows(&node, &self.gpu, lost));
            note(&mut seen.lease, lease_shows(&lease, lost));
            let out = not_sold
                .get(NODE)
                .is_some_and(|(reason, message)| reason == "GpuLost" && message.contains(&self.gpu));
            note(
                &mut seen.sale,
                if lost {
                    out && offered == 0
                } else {
                    not_sold.is_empty() && offered == 1
                },
            );
            let runs = account.running & 1 != 0;
            note(&mut seen.leg, runs != lost);
            let served = account.legs[0].served_seconds;
            note(&mut seen.credit, !lost || (!runs && served <= served_at_most));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(seen)
    }
}

fn node_shows(node: &GpuNode, gpu: &str, lost: bool) -> bool {
    let Some(status) = &node.status else { return false };
    let health = status.devices.iter().find(|d| d.uuid == gpu).map(|d| d.health);
    if lost {
        find(&status.conditions, "Healthy").is_some_and(|c| c.status == "False" && c.reason == "GpuLost")
            && health == Some(DeviceHealth::Lost)
    } else {
        is_true(&status.conditions, "Healthy") && health == Some(DeviceHealth::Healthy)
    }
}

fn lease_shows(lease: &GpuLease, lost: bool) -> bool {
    let Some(status) = &lease.status else { return false };
    let ready = find(&status.conditions, "Ready");
    status.phase == Phase::Active
        && ready.is_some_and(|c| {
            if lost {
                c.status == "False" && c.reason == "GpuFault" && c.message.contains(NODE)
            } else {
                c.status == "True"
            }
        })
}

#[allow(
    clippy::disallowed_methods,
    reason = "a test's own clock is the world's: agents and the chain go by it too"
)]
fn unix() -> anyhow::Result<u64> {
    Ok(SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)?
        .as_secs())
}

/// The lease's reservation, once it names the GPU that the lease holds.
async fn bound(lease: &GpuLease, stack: &Stack) -> anyhow::Result<GpuReservation> {
    let uid = lease.uid();
    eventually("the GPU that the lease holds", || async {
        let all = Api::<GpuReservation>::all(stack.client.clone())
            .list(&ListParams::default())
            .await?;
        let its = |r: &&GpuReservation| Some(&r.spec.allocation.lease.uid) == uid.as_ref();
        let found = all.items.iter().find(its).cloned();
        let status = found.as_ref().and_then(|r| r.status.clone());
        let bound = status.as_ref().is_some_and(|s| s.gpu_uuids.len() == 1);
        Ok(found.filter(|_| bound).ok_or(status))
    })
    .await
}

/// Pods of a reservation: uid, restarts, and whether somebody has asked them to go.
async fn running(
    stack: &Stack,
    reservation: &GpuReservation,
) -> anyhow::Result<Vec<(Option<String>, Option<i32>, bool)>> {
    let pods = Api::<Pod>::namespaced(stack.client.clone(), &reservation.name_any());
    let pods = pods.list(&ListParams::default()).await?.items;
    let restarts = |p: &Pod| {
        let statuses = p.status.as_ref()?.container_statuses.as_ref()?;
        Some(statuses.first()?.restart_count)
    };
    let seen = |p: &Pod| (p.uid(), restarts(p), p.metadata.deletion_timestamp.is_some());
    Ok(pods.iter().map(seen).collect())
}

async fn gpu_lost(tenant: &Tenant<'_>) -> anyhow::Result<()> {
    let stack = tenant.stack;
    let before = tenant.own_balance().await?;
    tenant.apply(&lease(tenant, "train", HONEST, "service")?)?;
    let active = tenant.until_phase("train", Phase::Active, LIMIT).await?;
    let (terms, account) = tenant.account(&active).await?;
    let reservation = bound(&active, stack).await?;
    let served = Served {
        tenant,
        name: "train",
        gpu: reservation.status.as_ref().context("status")?.gpu_uuids[0].clone(),
        terms,
    };
    let ran = running(stack, &reservation).await?;
    is_offered(stack, HONEST, 1).await?;
    served.served_at_least(5).await?;

    // The GPU falls off the bus.
    let fixture = Fixture::open(&stack.cluster.node(NODE).files);
    let gpus = fixture.read()?.gpus;
    let index = gpus
        .iter()
        .position(|g| g.uuid == served.gpu)
        .context("its GPU is one of the node's")?;
    let well = unix()? - account.started_at;
    fixture.fault(index, &Fault::Lost)?;
    let seen = served.watch(true, well).await?;
    let paused = served.account().await?;
    let kept = paused.legs[0].served_seconds;
    eprintln!(
        "         lost: GpuNode {:.1?}, lease {:.1?}, out of sale {:.1?}, paused on chain {:.1?}, credited {:.1?}; \
         charged {kept} of {well} s until then",
        seen.node.unwrap_or_default(),
        seen.lease.unwrap_or_default(),
        seen.sale.unwrap_or_default(),
        seen.leg.unwrap_or_default(),
        seen.credit.unwrap_or_default(),
    );
    for (what, when) in [
        ("the GpuNode", seen.node),
        ("the lease", seen.lease),
        ("the offer", seen.sale),
    ] {
        let when = when.unwrap_or(Duration::MAX);
        ensure!(when < TOLD_WITHIN, "{what} showed it after {when:?}");
    }
    ensure!(
        kept <= well && kept + 3 >= well,
        "served {kept} s, it was well for {well} s: an agent that looks each second costs a provider two at most"
    );

    // Nothing is charged while it is broken, and the workload is left alone.
    let later = eventually("five seconds more on the chain", || async {
        let account = served.account().await?;
        let gone = account.block_time - paused.block_time;
        Ok(if gone >= 5 { Ok(account) } else { Err(gone) })
    })
    .await?;
    ensure!(later.legs[0].served_seconds == kept && later.running == 0);
    ensure!(
        running(stack, &reservation).await? == ran,
        "the workload is left alone"
    );

    // It comes back.
    fixture.fault(index, &Fault::Clear)?;
    let seen = served.watch(false, 0).await?;
    eprintln!(
        "         back: GpuNode {:.1?}, lease {:.1?}, for sale {:.1?}, charged again {:.1?}",
        seen.node.unwrap_or_default(),
        seen.lease.unwrap_or_default(),
        seen.sale.unwrap_or_default(),
        seen.leg.unwrap_or_default(),
    );
    let after = served.served_at_least(kept + 3).await?;
    ensure!(
        after.paid_seconds >= after.legs[0].served_seconds + 5,
        "the account's time went on, the fault's seconds are set aside: {after:?}"
    );
    let status = Api::<GpuReservation>::all(stack.client.clone())
        .get(&reservation.name_any())
        .await?
        .status
        .context("status")?;
    ensure!(
        status.fault_since.is_none() && status.credit_due.is_none() && status.intent.is_none(),
        "nothing of the fault is left: {status:?}"
    );

    served.ends_exactly(before).await?;
    is_offered(stack, HONEST, 2).await
}

fn played(stack: &Stack, node: &str) -> Fixture {
    Fixture::open(&stack.cluster.directory().join("kwok").join(node))
}

async fn is_not_sold(stack: &Stack, wanted: &[(&str, &str, &str)]) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    within(LIMIT, &format!("{wanted:?} not to be sold"), || async {
        let seen = not_sold(stack, DUBIOUS).await?;
        let told = wanted.iter().all(|(node, word, words)| {
            seen.get(*node)
                .is_some_and(|(reason, message)| reason == word && message.contains(words))
        });
        Ok(if told && seen.len() == wanted.len() {
            Ok(begun.elapsed())
        } else {
            Err(seen)
        })
    })
    .await
}

async fn lies(stack: &Stack) -> anyhow::Result<()> {
    is_offered(stack, DUBIOUS, 14).await?;
    // A card that calls itself better than it is.
    played(stack, "liar").fault(0, &Fault::Name("NVIDIA H100 80GB HBM3".into()))?;
    // Eight that sit in one place.
    let one = played(stack, "one-bus").read()?.gpus[0].bus.clone();
    for gpu in 0..8 {
        played(stack, "one-bus").fault(gpu, &Fault::Bus(one.clone()))?;
    }
    // A card whose UUID another node has, to all of its own node's witnesses.
    let own = played(stack, "twin-b").read()?.gpus[0].uuid.clone();
    let other = played(stack, "twin-a").read()?.gpus[0].uuid.clone();
    rename(stack, &other)?;
    let twins = format!("{other} is claimed by twin");
    let wanted = [
        ("liar", "WitnessesDisagree", "the PCI device id belongs to"),
        (
            "one-bus",
            "Duplicate",
            &one.trim_start_matches("0000:").to_uppercase(),
        ),
        ("twin-a", "DuplicateUuid", &format!("{twins}-b")),
        ("twin-b", "DuplicateUuid", &format!("{twins}-a")),
    ];
    let told = is_not_sold(stack, &wanted).await?;
    eprintln!("         four lying nodes are out of sale {told:.1?} after the first lie");
    is_offered(stack, DUBIOUS, 0).await?;
    eventually("the pool to say that it sells nothing", || async {
        let pool = Api::<GpuPool>::all(stack.client.clone()).get(DUBIOUS).await?;
        let conditions = pool.status.map(|s| s.conditions).unwrap_or_default();
        Ok(match find(&conditions, "Selling") {
            Some(c) if c.status == "False" && c.reason == "NothingFree" => Ok(()),
            _ => Err(conditions),
        })
    })
    .await?;
    for (node, reason, words) in wanted {
        eventually(&format!("an Event about {node}"), || async {
            let events = Api::<Event>::all(stack.client.clone())
                .list(&ListParams::default())
                .await?
                .items;
            let notes: Vec<_> = events
                .iter()
                .filter(|e| e.involved_object.name.as_deref() == Some(node))
                .map(|e| (e.reason.as_deref(), e.message.as_deref()))
                .collect();
            let told = notes.iter().any(|(word, note)| {
                *word == Some(reason)
                    && note.is_some_and(|n| n.starts_with("not sold: ") && n.contains(words))
            });
            Ok(if told { Ok(()) } else { Err(format!("{notes:?}")) })
        })
        .await?;
    }

    // Who takes the liar out of sale has the honest one back; and all are sold again who tell the truth.
    let nodes = Api::<GpuNode>::all(stack.client.clone());
    let sell = async |sell: bool| {
        let spec = json!({"spec": {"sell": sell}});
        nodes
            .patch("twin-b", &PatchParams::default(), &Patch::Merge(&spec))
            .await
    };
    sell(false).await?;
    is_not_sold(stack, &[wanted[0], wanted[1], ("twin-b", "NotForSale", "")]).await?;
    is_offered(stack, DUBIOUS, 2).await?;
    rename(stack, &own)?;
    played(stack, "liar").fault(0, &Fault::Clear)?;
    for gpu in 0..8 {
        played(stack, "one-bus").fault(gpu, &Fault::Clear)?;
    }
    sell(true).await?;
    is_not_sold(stack, &[]).await?;
    is_offered(stack, DUBIOUS, 14).await
}

/// Gives the first GPU of a twin a UUID, for its driver and its device plugin alike.
fn rename(stack: &Stack, uuid: &str) -> anyhow::Result<()> {
    let uuid = uuid.to_owned();
    Ok(played(stack, "twin-b").edit(|file| {
        file.gpus[0].uuid = uuid;
        Ok(())
    })?)
}
