//! GPUs whose driver reports false data are not offered.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Event;
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use leasehold_crds::{GpuNode, GpuPool, shared::conditions::find};
use leasehold_e2e::{Stack, eventually, within};
use nvidia_ml_sim::{Fault, Fixture};
use serde_json::json;

use super::{DUBIOUS, LIMIT, is_offered, not_sold};

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

pub(super) async fn story(stack: &Stack) -> anyhow::Result<()> {
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
