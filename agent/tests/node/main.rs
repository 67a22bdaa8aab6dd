//! The agent on a real node: a real kubelet, a device plugin registered with it, a token with the agent's own rights
//! only, and containers that hold GPUs. Only the driver is simulated. Needs root.
#![allow(clippy::unwrap_used, reason = "a failed step of a test panics")]

use std::time::{Duration, Instant};

use kube::{
    Api, ResourceExt,
    api::{DeleteParams, LogParams, Patch, PatchParams},
};
use leasehold_crds::{GpuNode, provider::node::DeviceHealth, shared::conditions::find};
use leasehold_testcluster::Unavailable;
use serde_json::json;

mod scene;

use scene::{NODE, Running, Scene, process_of, scene, until};

#[tokio::test]
async fn the_agent_reports_a_node_s_gpus_their_holders_and_their_faults() {
    if let Err(error) = Unavailable::check() {
        eprintln!("SKIPPED the_agent_reports_a_node_s_gpus_their_holders_and_their_faults: {error}");
        return;
    }
    let scene = scene().await;
    let gpus = scene.fixture.read().unwrap().gpus;
    let uuids: Vec<String> = gpus.into_iter().map(|gpu| gpu.uuid).collect();

    let agent = library_appears_after_the_agent_started(&scene, &uuids).await;
    unchanged_status_is_not_written_again(&scene).await;
    holder_and_foreign_process_are_reported(&scene, &uuids).await;
    released_gpu_is_reported_within_seconds(&scene).await;
    each_fault_is_reported_and_recovers(&scene).await;
    gpu_that_is_not_advertised_stays_healthy(&scene, &uuids).await;
    hanging_driver_makes_health_unknown(&scene).await;
    let agent = restart_keeps_a_fault(&scene, agent).await;
    deleted_gpu_node_is_created_again(&scene, agent).await;
    new_holder_is_reported_when_its_pod_starts(&scene).await;

    let Scene { cluster, .. } = scene;
    cluster.down().await.unwrap();
}

/// The driver's library can appear after the agent's start, as it does with a driver container.
async fn library_appears_after_the_agent_started(scene: &Scene, uuids: &[String]) -> Running {
    let library = scene.fixture.library();
    let hidden = library.with_extension("hidden");
    std::fs::rename(&library, &hidden).unwrap();
    let agent = scene.agent();
    scene.condition("Healthy", "False", "NoLibrary").await;
    std::fs::rename(&hidden, &library).unwrap();
    let status = scene.condition("Healthy", "True", "AllHealthy").await;
    assert_eq!((status.class.as_str(), status.gpu_count), ("h100-80g-sxm", 4));
    assert_eq!(
        status
            .devices
            .iter()
            .map(|device| &device.uuid)
            .collect::<Vec<_>>(),
        uuids.iter().collect::<Vec<_>>()
    );
    assert_eq!(status.devices[0].nvlink_peers.len(), 3);
    scene.condition("WitnessesAgree", "True", "Agree").await;
    let gpu_node = scene.gpu_node().await.unwrap();
    assert_eq!(gpu_node.owner_references()[0].kind, "Node");
    assert!(gpu_node.spec.sell);
    agent
}

/// While nothing changes, the status is written once; only the Lease is renewed.
async fn unchanged_status_is_not_written_again(scene: &Scene) {
    let version = scene.gpu_node().await.unwrap().resource_version();
    scene.observations(4).await;
    assert_eq!(
        scene.gpu_node().await.unwrap().resource_version(),
        version,
        "an unchanged status was written again"
    );
}

/// A pod holds one GPU, can see only that one, and computes on it. Then it also computes on a GPU that it doesn't hold.
async fn holder_and_foreign_process_are_reported(scene: &Scene, uuids: &[String]) {
    scene.run("holder", 1, "nvidia-smi -L; exec sleep 3600").await;
    let pod = scene.phase("holder", "Running").await;
    let status = until("the holder is in the status", async || {
        let status = scene.status().await?;
        if status.holders.is_empty() {
            Err("no holder".to_owned())
        } else {
            Ok(status)
        }
    })
    .await;
    assert_eq!(
        (
            status.holders[0].namespace.as_str(),
            status.holders[0].pod.as_str()
        ),
        ("default", "holder")
    );
    let held = status.holders[0].uuids[0].clone();
    let log = until("the output of nvidia-smi", async || {
        match scene.pods().logs("holder", &LogParams::default()).await {
            Ok(log) if !log.is_empty() => Ok(log),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(log.lines().count() == 1 && log.contains(&held), "{log}");
    let index = uuids.iter().position(|uuid| *uuid == held).unwrap();
    scene.fault(index, &format!("busy={}", process_of(&pod)));
    scene.condition("NoForeignProcesses", "True", "OnlyHolders").await;
    let other = (index + 1) % 4;
    scene.fault(other, &format!("busy={}", process_of(&pod)));
    let status = scene
        .condition("NoForeignProcesses", "False", "ForeignProcess")
        .await;
    let message = &find(&status.conditions, "NoForeignProcesses").unwrap().message;
    assert!(
        message.contains("default/holder") && message.contains(&uuids[other]),
        "{message}"
    );
    scene.fault(other, "idle");
    scene.fault(index, "idle");
    scene.condition("NoForeignProcesses", "True", "OnlyHolders").await;
}

/// Seconds after the pod is gone, the status has no holder.
async fn released_gpu_is_reported_within_seconds(scene: &Scene) {
    scene
        .pods()
        .delete("holder", &DeleteParams::default())
        .await
        .unwrap();
    until("the pod is gone", async || {
        match scene.pods().get_opt("holder").await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let gone = Instant::now();
    until("the status has no holder", async || {
        match scene.status().await?.holders.as_slice() {
            [] => Ok(()),
            holders => Err(format!("{holders:?}")),
        }
    })
    .await;
    assert!(gone.elapsed() < Duration::from_secs(5), "{:?}", gone.elapsed());
}

/// Each fault is reported with its reason, and the GPU is healthy again after the fault was cleared.
async fn each_fault_is_reported_and_recovers(scene: &Scene) {
    for (fault, reason) in [
        ("lost", "GpuLost"),
        ("unplug", "GpuLost"),
        ("xid=79", "FatalXid"),
        ("ecc=2", "EccUncorrectable"),
        ("name=NVIDIA GeForce RTX 4090", "WitnessesDisagree"),
        ("bus=0000:18:00.0", "Duplicate"),
    ] {
        let broken = Instant::now();
        scene.fault(2, fault);
        scene.condition("Healthy", "False", reason).await;
        eprintln!("{fault}: {reason} after {:?}", broken.elapsed());
        // For these faults the device plugin stops advertising the GPU; wait until the kubelet knows.
        let withheld = matches!(fault, "lost" | "unplug" | "xid=79" | "ecc=2");
        until("the kubelet has three allocatable GPUs", async || {
            let node: k8s_openapi::api::core::v1::Node = Api::all(scene.client.clone())
                .get(NODE)
                .await
                .map_err(|error| error.to_string())?;
            let allocatable = node
                .status
                .and_then(|status| status.allocatable)
                .unwrap_or_default();
            let gpus = allocatable
                .get("nvidia.com/gpu")
                .map(|quantity| quantity.0.clone())
                .unwrap_or_default();
            if !withheld || gpus == "3" {
                Ok(())
            } else {
                Err(gpus)
            }
        })
        .await;
        scene.observations(1).await;
        scene.fault(2, "clear");
        let cleared = Instant::now();
        let status = scene.condition("Healthy", "True", "AllHealthy").await;
        eprintln!("{fault}: healthy {:?} after it was cleared", cleared.elapsed());
        assert_eq!(status.devices.len(), 4, "{status:?}");
    }
}

/// A GPU that the device plugin does not advertise has no fault. The node is not sold until it is advertised again.
async fn gpu_that_is_not_advertised_stays_healthy(scene: &Scene, uuids: &[String]) {
    scene.fault(2, "withhold");
    let status = scene
        .condition("WitnessesAgree", "False", "GpusNotAdvertised")
        .await;
    let message = &find(&status.conditions, "WitnessesAgree").unwrap().message;
    assert!(message.contains(&uuids[2]), "{message}");
    scene.observations(3).await;
    let status = scene.condition("Healthy", "True", "AllHealthy").await;
    assert!(
        status.devices.iter().all(|d| d.health == DeviceHealth::Healthy),
        "{status:?}"
    );
    scene.fault(2, "clear");
    scene.condition("WitnessesAgree", "True", "Agree").await;
}

/// While a driver call hangs, health is Unknown and the agent keeps renewing its Lease.
async fn hanging_driver_makes_health_unknown(scene: &Scene) {
    scene.fault(1, "hang");
    let status = scene.condition("Healthy", "Unknown", "NvmlHung").await;
    assert!(
        status
            .devices
            .iter()
            .all(|device| device.health == DeviceHealth::Unknown)
    );
    scene.observations(2).await;
    scene.fault(1, "clear");
    scene.condition("Healthy", "True", "AllHealthy").await;
}

/// An Xid that the agent received before a restart still counts after it.
async fn restart_keeps_a_fault(scene: &Scene, mut agent: Running) -> Running {
    scene.fault(3, "xid=48");
    scene.condition("Healthy", "False", "FatalXid").await;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(agent.0.id()).unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    let ended = agent.0.wait().unwrap();
    assert!(ended.success(), "the agent did not end gracefully: {ended}");
    let agent = scene.agent();
    scene.observations(3).await;
    scene.condition("Healthy", "False", "FatalXid").await;
    agent
}

/// The GpuNode is deleted while the agent restarts. What the administrator set is kept.
async fn deleted_gpu_node_is_created_again(scene: &Scene, agent: Running) {
    let gpu_nodes = Api::<GpuNode>::all(scene.client.clone());
    let patch = json!({"spec": {"sell": false}});
    gpu_nodes
        .patch(NODE, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
    until("the agent's Lease keeps it", async || {
        match scene.annotations().await {
            Some(kept) if kept.values().any(|kept| kept.contains("\"sell\":false")) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    drop(agent);
    gpu_nodes.delete(NODE, &DeleteParams::default()).await.unwrap();
    let _agent = scene.agent();
    let gpu_node = until("the GpuNode exists", async || scene.gpu_node().await).await;
    assert!(!gpu_node.spec.sell);
}

/// A new holder is reported when its pod starts, without waiting for the period: the start of a lease depends on it.
async fn new_holder_is_reported_when_its_pod_starts(scene: &Scene) {
    let last = scene.renewed().await;
    let agent = scene.agent_every("60m", "60m");
    until("the agent's first observation", async || {
        match scene.renewed().await {
            now if now > last => Ok(()),
            now => Err(format!("{now:?}")),
        }
    })
    .await;
    scene.run("prompt", 1, "exec sleep 3600").await;
    scene.phase("prompt", "Running").await;
    let running = Instant::now();
    until("the new holder is in the status", async || {
        let holders = scene.status().await?.holders;
        let reported = holders.iter().any(|h| h.pod == "prompt" && h.uuids.len() == 1);
        if reported {
            Ok(())
        } else {
            Err(format!("{holders:?}"))
        }
    })
    .await;
    eprintln!(
        "holder reported {:?} after the pod was seen running",
        running.elapsed()
    );
    assert!(
        running.elapsed() < Duration::from_secs(2),
        "{:?}",
        running.elapsed()
    );
    drop(agent);
}
