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

use super::{FALSE_REPORTS, LIMIT, is_offered, not_sold};

fn played(stack: &Stack, node: &str) -> Fixture {
    Fixture::open(&stack.cluster.directory().join("kwok").join(node))
}

async fn is_not_sold(stack: &Stack, wanted: &[(&str, &str, &str)]) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    within(LIMIT, &format!("{wanted:?} not to be offered"), || async {
        let seen = not_sold(stack, FALSE_REPORTS).await?;
        let result = wanted.iter().all(|(node, word, words)| {
            seen.get(*node)
                .is_some_and(|(reason, message)| reason == word && message.contains(words))
        });
        Ok(if result && seen.len() == wanted.len() {
            Ok(begun.elapsed())
        } else {
            Err(seen)
        })
    })
    .await
}

pub(super) async fn story(stack: &Stack) -> anyhow::Result<()> {
    is_offered(stack, FALSE_REPORTS, 14).await?;
    // A card with a false name of a better model.
    played(stack, "liar").fault(0, &Fault::Name("NVIDIA H100 80GB HBM3".into()))?;
    // Eight cards with the same bus address.
    let one = played(stack, "one-bus").read()?.gpus[0].bus.clone();
    for gpu in 0..8 {
        played(stack, "one-bus").fault(gpu, &Fault::Bus(one.clone()))?;
    }
    // A card with the UUID of a card on another node, reported consistently by all sources of its node.
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
    let result = is_not_sold(stack, &wanted).await?;
    eprintln!("         four nodes with false reports are not offered {result:.1?} after the first fault");
    is_offered(stack, FALSE_REPORTS, 0).await?;
    eventually("the pool's condition that it offers nothing", || async {
        let pool = Api::<GpuPool>::all(stack.client.clone())
            .get(FALSE_REPORTS)
            .await?;
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
            let result = notes.iter().any(|(word, note)| {
                *word == Some(reason)
                    && note.is_some_and(|n| n.starts_with("not sold: ") && n.contains(words))
            });
            Ok(if result { Ok(()) } else { Err(format!("{notes:?}")) })
        })
        .await?;
    }

    // When one of the two nodes is taken off the market, the other is offered again. When the faults are cleared, all
    // are.
    let nodes = Api::<GpuNode>::all(stack.client.clone());
    let sell = async |sell: bool| {
        let spec = json!({"spec": {"sell": sell}});
        nodes
            .patch("twin-b", &PatchParams::default(), &Patch::Merge(&spec))
            .await
    };
    sell(false).await?;
    is_not_sold(stack, &[wanted[0], wanted[1], ("twin-b", "NotForSale", "")]).await?;
    is_offered(stack, FALSE_REPORTS, 2).await?;
    rename(stack, &own)?;
    played(stack, "liar").fault(0, &Fault::Clear)?;
    for gpu in 0..8 {
        played(stack, "one-bus").fault(gpu, &Fault::Clear)?;
    }
    sell(true).await?;
    is_not_sold(stack, &[]).await?;
    is_offered(stack, FALSE_REPORTS, 14).await
}

/// Changes the UUID of the first GPU of twin-b, for its driver and its device plugin.
fn rename(stack: &Stack, uuid: &str) -> anyhow::Result<()> {
    let uuid = uuid.to_owned();
    Ok(played(stack, "twin-b").edit(|file| {
        file.gpus[0].uuid = uuid;
        Ok(())
    })?)
}
