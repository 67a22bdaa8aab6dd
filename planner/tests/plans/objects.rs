//! The objects that a provider creates for a workload.

use leasehold_crds::{
    GpuLease, GpuPool,
    lease::workload::{
        Access, Container, Job, JobOutput, JobResult, Port, Session, Storage, Subject, Workload,
    },
    provider::pool::{Exposure, GpuPoolSpec, PoolToleration},
};
use leasehold_planner::provider::{
    reservation::{PodChange, Workload as Wanted},
    user_namespaces::probe_pod,
};

use crate::{page::Page, site::Site, snapshot};

/// Plays the start of a lease, and writes the objects that are applied.
fn objects(about: &str, name: &str, change: impl FnOnce(&mut GpuLease)) {
    objects_at(Site::reserved(about, change), name);
}

fn objects_at(mut site: Site, name: &str) {
    site.open();
    let plan = site.reconcile("The market has opened the account.");
    let Wanted::Run { objects, pods } = &plan.workload else {
        panic!("{:?}", plan.workload);
    };
    site.page.line(
        "objects",
        "in the order in which they are applied; each has the labels of its namespace",
    );
    site.page.yaml(&**objects);
    for change in pods {
        if let PodChange::Create(pod) = change {
            site.page.line("pod", "after the objects");
            site.page.yaml(&**pod);
        }
    }
    snapshot(name, &site.page);
}

#[test]
fn objects_of_a_service() {
    let about = "The objects of a service with one port.";
    objects(about, "objects_of_a_service", |_| {});
}

#[test]
fn objects_of_a_service_behind_the_gateway() {
    let about = "The objects of a service with one port in a pool with exposure Tunnel.";
    let mut site = Site::reserved(about, |_| {});
    site.reservation.as_mut().unwrap().spec.hosting.exposure = Exposure::Tunnel;
    objects_at(site, "objects_of_a_service_behind_the_gateway");
}

#[test]
fn probe_of_user_namespaces() {
    let mut page = Page::new("The pod that probes whether pods with a GPU run in user namespaces on a node.");
    let mut pool = GpuPool::new("h100", GpuPoolSpec::default());
    pool.spec.runtime_class_name = Some("nvidia".into());
    pool.spec.tolerations = vec![PoolToleration {
        key: "sku".into(),
        value: Some("gpu".into()),
        effect: None,
    }];
    let place = (
        "lease-checks-leasehold",
        "rhine-west",
        "leasehold.test/operator:dev",
    );
    page.yaml(&probe_pod(&pool, ("node-1", "boot 1, driver 570.86.15"), place));
    snapshot("probe_of_user_namespaces", &page);
}

#[test]
fn objects_of_a_session() {
    let about = "The objects of a session with a volume, an SSH key, and access for a group.";
    objects(about, "objects_of_a_session", |lease| {
        lease.spec.storage = Some(Storage {
            size: "10Gi".into(),
            mount_path: "/data".into(),
        });
        lease.spec.access = Some(Access {
            subjects: vec![Subject {
                kind: "Group".into(),
                name: "team-a".into(),
            }],
            ..Access::default()
        });
        lease.spec.workload = Workload {
            session: Some(Box::new(Session {
                container: container("registry.example/desk:1"),
                ssh_keys: vec!["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI tenant".into()],
                ports: vec![Port {
                    name: "ssh".into(),
                    port: 22,
                    ..Port::default()
                }],
            })),
            ..Workload::default()
        };
    });
}

fn container(image: &str) -> Container {
    Container {
        image: image.into(),
        ..Container::default()
    }
}

fn job(lease: &mut GpuLease) {
    lease.spec.storage = Some(Storage {
        size: "10Gi".into(),
        mount_path: "/data".into(),
    });
    lease.spec.workload = Workload {
        job: Some(Box::new(Job {
            container: container("registry.example/train:1"),
            output: Some(JobOutput {
                path: "/data/out".into(),
                keep_results_for: "1h".into(),
                recipients: vec!["age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj".into()],
            }),
        })),
        ..Workload::default()
    };
}

#[test]
fn objects_of_a_job() {
    let about = "The objects of a job with a volume, whose output is kept for an hour.";
    objects(about, "objects_of_a_job", job);
}

#[test]
fn results_of_a_job() {
    let mut site = Site::active(
        "A job ends, and its results are kept for an hour and then deleted.",
        job,
    );
    site.later(540);
    site.pods_gone();
    (site.running.pods_ended, site.running.pods_succeeded) = (1, 1);
    site.running.job = Some(JobResult {
        finished_at: crate::fixtures::at(site.now).to_string(),
        log_tail: "epoch 3 of 3".into(),
        ..JobResult::default()
    });
    site.reconcile("The job has ended with exit code 0.");
    let now = site.unix();
    site.account().close(1, now);
    site.allocation.spec.release = true;
    site.answer("The market has closed the account and releases the allocation.");
    site.reconcile("The reservation is released.");
    site.later(1);
    let plan = site.reconcile("No pod is left.");
    let Wanted::KeepResults(objects) = &plan.workload else {
        panic!("{:?}", plan.workload);
    };
    site.page.line(
        "objects",
        "in the order in which they are applied; each has the labels of its namespace",
    );
    site.page.yaml(&**objects);
    site.running.results.ready = 1;
    site.later(10);
    site.reconcile("The results are served.");
    site.later(3600);
    site.reconcile("The hour is over.");
    snapshot("results_of_a_job", &site.page);
}
