//! Time that the provider's side loses is paused and credited.

use leasehold_crds::provider::node::DeviceHealth;
use leasehold_planner::provider::health::KubeletReport;

use crate::{fixtures::at, site::Site, snapshot};

#[test]
fn gpu_fault_and_credit() {
    let mut site = Site::active(
        "A GPU fails under an active lease, and works again two minutes later.",
        |_| {},
    );
    site.reconcile("The lease has been active for a minute.");
    site.later(30);
    site.node.device = DeviceHealth::FatalXid;
    site.node.message = "Xid 79, GPU has fallen off the bus".into();
    site.node.since = site.now - 10;
    site.reconcile("The agent reports a fault that began ten seconds ago.");
    site.reconcile("A second read of the account agrees.");
    site.reconcile("The intent is stored.");
    site.later(2);
    site.reconcile("The transaction is mined: the leg is paused.");
    site.reconcile("The intent is stored.");
    site.later(2);
    site.reconcile("The transaction is mined: the seconds since the fault are credited.");
    site.answer("The allocation is reconciled.");
    site.later(116);
    site.node.device = DeviceHealth::Healthy;
    site.node.message.clear();
    site.reconcile("The GPU works again.");
    site.reconcile("The intent is stored.");
    site.later(2);
    site.reconcile("The transaction is mined: the leg runs again.");
    snapshot("gpu_fault_and_credit", &site.page);
}

#[test]
fn node_lost() {
    let mut site = Site::active(
        "The node of an active lease is lost, and never comes back.",
        |_| {},
    );
    let heard = site.now;
    site.node.agent_heard_at = Some(heard);
    site.later(40);
    site.node.kubelet = KubeletReport::NotReady {
        since: at(site.now),
        heard_at: Some(at(heard - 5)),
    };
    site.reconcile("The agent has been silent for 40 seconds; the cluster marks the node as not ready.");
    site.later(30);
    site.reconcile("The agent has been silent for 70 seconds, and the kubelet for 75.");
    site.later(31);
    site.reconcile("Both have been silent for more than a minute.");
    site.reconcile("A second read of the account agrees.");
    site.reconcile("The intent is stored.");
    site.later(2);
    site.reconcile("The transaction is mined: the leg is paused.");
    site.reconcile("The intent is stored.");
    site.later(2);
    site.reconcile("The transaction is mined: everything since the node was last heard is credited.");
    site.answer("The allocation is reconciled.");
    assert_eq!(site.earned(), "0.03 USDC");
    snapshot("node_lost", &site.page);
}

#[test]
fn silent_agent() {
    let mut site = Site::active(
        "The agent of an active lease is silent; the node is ready.",
        |_| {},
    );
    site.node.agent_heard_at = Some(site.now);
    site.later(120);
    site.reconcile("The agent has been silent for two minutes.");
    site.node.agent_heard_at = None;
    site.later(5);
    site.reconcile("The agent reports again.");
    snapshot("silent_agent", &site.page);
}

#[test]
fn pod_drained() {
    let mut site = Site::active(
        "The node of an active lease is drained, and back after ten minutes.",
        |_| {},
    );
    site.pods_gone();
    site.running.pods_alive = 1;
    site.running.trouble = "lease-0: 0/1 nodes are available: 1 node(s) were unschedulable".into();
    site.reconcile("The pod has been evicted, and its successor cannot be scheduled.");
    site.reconcile("The intent is stored.");
    site.later(2);
    site.reconcile("The transaction is mined: the leg is paused.");
    site.reconcile("The intent is stored.");
    site.later(2);
    site.reconcile("The transaction is mined: the seconds since the eviction are credited.");
    site.later(600);
    site.pods_run();
    site.running.gpu_uuids = vec![crate::site::GPU.into()];
    site.reconcile("The node is schedulable again, and the container runs.");
    site.reconcile("The intent is stored.");
    site.later(2);
    site.reconcile("The transaction is mined: the leg runs again.");
    snapshot("pod_drained", &site.page);
}
